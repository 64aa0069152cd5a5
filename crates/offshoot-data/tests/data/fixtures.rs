//! Small files of every format, written by the tests themselves.

use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use image::{ExtendedColorType, ImageEncoder};
use offshoot_data::text::{Algorithm, Tokenizer, Training};
use offshoot_data::{DataError, Image, Rng, Source};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// An image with a pattern of its own for each number.
pub(crate) fn picture(number: usize, width: u32, height: u32, channels: u8) -> Image {
    let count = width as usize * height as usize * usize::from(channels);
    let pixels = (0..count)
        .map(|i| ((i * (number + 3) * 7 + number * 31 + i / 5) % 251) as u8)
        .collect();
    Image {
        width,
        height,
        channels,
        pixels,
    }
}

pub(crate) fn png(image: &Image) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image::codecs::png::PngEncoder::new(&mut bytes)
        .write_image(&image.pixels, image.width, image.height, colour(image))
        .unwrap();
    bytes.into_inner()
}

pub(crate) fn jpeg(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new(&mut bytes)
        .write_image(&image.pixels, image.width, image.height, colour(image))
        .unwrap();
    bytes
}

fn colour(image: &Image) -> ExtendedColorType {
    if image.channels == 3 {
        ExtendedColorType::Rgb8
    } else {
        ExtendedColorType::L8
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An IDX file of unsigned bytes.
pub(crate) fn idx(dims: &[u32], content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    for dim in dims {
        bytes.extend(dim.to_be_bytes());
    }
    bytes.extend(content);
    bytes
}

pub(crate) fn idx_of(images: &[Image]) -> Vec<u8> {
    let content: Vec<u8> = images.iter().flat_map(|image| image.pixels.clone()).collect();
    let first = &images[0];
    match first.channels {
        1 => idx(&[images.len() as u32, first.height, first.width], &content),
        _ => idx(&[images.len() as u32, first.height, first.width, 3], &content),
    }
}

/// A CIFAR record file; images must be 32 x 32 in colour.
pub(crate) fn cifar(images: &[Image], labels: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (image, label) in images.iter().zip(labels) {
        bytes.extend(*label);
        for channel in 0..3 {
            bytes.extend(image.pixels.iter().skip(channel).step_by(3));
        }
    }
    bytes
}

pub(crate) fn tar_of(path: &Path, members: &[(&str, &[u8])]) {
    let mut builder = tar::Builder::new(File::create(path).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // The library refuses to write dangerous names, so they are put into the header by hand.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.finish().unwrap();
}

/// How [`parquet_of`] lays images out.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Layout {
    HuggingFace,
    Plain,
}

/// A parquet file; rows without bytes are null, and rows are cut into groups of `group`.
pub(crate) fn parquet_of(
    path: &Path,
    images: &[Option<Vec<u8>>],
    labels: Option<&[i64]>,
    layout: Layout,
    group: usize,
    metadata: Option<&str>,
) {
    let image = match layout {
        Layout::HuggingFace => "optional group image { optional binary bytes; optional binary path (UTF8); }",
        Layout::Plain => "optional binary picture;",
    };
    let label = if labels.is_some() { "required int64 label;" } else { "" };
    let schema = Arc::new(parse_message_type(&format!("message schema {{ {image} {label} }}")).unwrap());
    let metadata = metadata.map(|text| vec![KeyValue::new("huggingface".to_string(), text.to_string())]);
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_data_page_size_limit(4_000)
        .set_write_batch_size(2)
        .set_dictionary_page_size_limit(8 << 20)
        .set_key_value_metadata(metadata)
        .build();
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for (number, chunk) in images.chunks(group).enumerate() {
        let mut rows = writer.next_row_group().unwrap();
        let present = if layout == Layout::HuggingFace { 2 } else { 1 };
        let values: Vec<ByteArray> = chunk.iter().flatten().map(|bytes| bytes.clone().into()).collect();
        let levels: Vec<i16> = chunk
            .iter()
            .map(|bytes| if bytes.is_some() { present } else { present - 1 })
            .collect();
        let mut column = rows.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        if layout == Layout::HuggingFace {
            let paths: Vec<ByteArray> = (0..chunk.len()).map(|i| format!("{i}.png").as_str().into()).collect();
            let mut column = rows.next_column().unwrap().unwrap();
            column
                .typed::<ByteArrayType>()
                .write_batch(&paths, Some(&vec![2; chunk.len()]), None)
                .unwrap();
            column.close().unwrap();
        }
        if let Some(labels) = labels {
            let labels = &labels[number * group..number * group + chunk.len()];
            let mut column = rows.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(labels, None, None).unwrap();
            column.close().unwrap();
        }
        rows.close().unwrap();
    }
    writer.close().unwrap();
}

/// A parquet file with a column `text` (or another name) of strings, and one of numbers before it.
pub(crate) fn parquet_of_texts(path: &Path, column: &str, texts: &[Option<&[u8]>], group: usize) {
    let schema = format!("message schema {{ required int64 id; optional binary {column} (UTF8); }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for chunk in texts.chunks(group) {
        let mut rows = writer.next_row_group().unwrap();
        let mut ids = rows.next_column().unwrap().unwrap();
        ids.typed::<Int64Type>()
            .write_batch(&vec![7; chunk.len()], None, None)
            .unwrap();
        ids.close().unwrap();
        let values: Vec<ByteArray> = chunk.iter().flatten().map(|text| text.to_vec().into()).collect();
        let levels: Vec<i16> = chunk.iter().map(|text| i16::from(text.is_some())).collect();
        let mut column = rows.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        rows.close().unwrap();
    }
    writer.close().unwrap();
}

/// JSON lines with one document each.
pub(crate) fn json_lines<T: AsRef<str>>(texts: &[T]) -> Vec<u8> {
    let line = |text: &T| format!("{}\n", serde_json::json!({ "text": text.as_ref() }));
    texts.iter().map(line).collect::<String>().into_bytes()
}

/// Documents of made-up English, of 5 to 60 sentences each.
pub(crate) fn stories(count: usize, seed: u64) -> Vec<String> {
    const WORDS: &[&str] = &[
        "the", "a", "small", "old", "river", "house", "fox", "girl", "walks", "sees", "under", "over", "bright",
        "stone", "and", "then", "quietly", "window", "garden", "letter", "winter", "naïve", "café", "42", "runs",
        "isn't",
    ];
    let mut rng = Rng::for_example(seed, "stories", 0, 0);
    let mut story = || {
        let mut text = String::new();
        for _ in 0..rng.range(5..60) {
            for word in 0..rng.range(3..12) {
                text.push_str(if word == 0 { "" } else { " " });
                text.push_str(WORDS[rng.range(0..WORDS.len())]);
            }
            text.push_str(if rng.chance(0.2) { ".\n" } else { ". " });
        }
        text
    };
    (0..count).map(|_| story()).collect()
}

/// A byte-level tokenizer trained on made-up English, made once.
pub(crate) fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "a.jsonl", &json_lines(&stories(50, 1)));
        Tokenizer::train(
            &[root.path().to_path_buf()],
            &Training::new(Algorithm::Bpe, 340),
            &mut |_, _| {},
        )
        .unwrap()
    })
}

/// Writes a file and the folders on the way to it.
pub(crate) fn put(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Images held in memory; the numbers in `damaged` cannot be read, and reading `panics_at` panics.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) images: Vec<Image>,
    pub(crate) damaged: Vec<usize>,
    pub(crate) panics_at: Option<usize>,
}

impl Source for Memory {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn len(&self) -> usize {
        self.images.len()
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>, DataError> {
        Ok(self.images[index].pixels.clone())
    }

    fn read(&self, index: usize) -> Result<Image, DataError> {
        assert_ne!(self.panics_at, Some(index), "image {index} was not to be read");
        if self.damaged.contains(&index) {
            return Err(DataError::Damaged {
                place: self.name(index),
                reason: "made so".into(),
            });
        }
        Ok(self.images[index].clone())
    }

    fn name(&self, index: usize) -> String {
        format!("memory#{index}")
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }
}
