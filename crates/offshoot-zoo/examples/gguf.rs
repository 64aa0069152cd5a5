//! Writes and reads GGUF files as the commands do, for comparison with other programs; `interop/check_gguf.py` calls this.
//!
//! `gguf write MODEL FOLDER F32|F16|Q8_0`: MODEL is whatever `offshoot import` opens; FOLDER gets all of it as `model.gguf`.
//! `gguf read FILE.gguf FOLDER`: FOLDER gets the model as a folder of transformers, and `listed.json`, its `tokenizer.json` by llama.cpp's
//! keys alone. Both print notes, one a line.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};

use offshoot_family::View;
use offshoot_zoo::gguf::tokenizer::tokenizer_json;
use offshoot_zoo::gguf::{self, GgufFile, Metadata, TensorType};
use offshoot_zoo::layout::Program;
use offshoot_zoo::network::SpaceBounds;
use offshoot_zoo::{Checkpoint, Preparation, import};

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let words: Vec<&Path> = words.iter().map(PathBuf::as_path).collect();
    match words[..] {
        [command, model, folder, kind] if command == "write" => {
            let kind = TensorType::WRITTEN
                .into_iter()
                .find(|k| Some(k.name()) == kind.to_str());
            to_gguf(model, folder, kind.ok_or("the type is none of F32, F16 and Q8_0")?)
        }
        [command, file, folder] if command == "read" => of_gguf(file, folder),
        _ => Err("usage: gguf write MODEL FOLDER F32|F16|Q8_0, or gguf read FILE.gguf FOLDER".into()),
    }
}

/// The view that leaves a model as it is.
fn whole(checkpoint: &Checkpoint) -> Result<View, Failure> {
    let network = checkpoint.network();
    let intact = network.space(SpaceBounds::default())?.intact();
    Ok(network.child(&intact, "")?)
}

fn say(notes: &[String]) -> Result<(), Failure> {
    for note in notes {
        writeln!(std::io::stdout(), "{note}")?;
    }
    Ok(())
}

fn to_gguf(model: &Path, folder: &Path, kind: TensorType) -> Result<(), Failure> {
    let model = import::open(model, None)?;
    let Preparation::Text(tokenizer) = &model.preparation else {
        return Err("it is no language model".into());
    };
    std::fs::create_dir_all(folder)?;
    let view = whole(&model.checkpoint)?;
    let notes = gguf::export(&model.checkpoint, &view, tokenizer, ("whole", kind), folder)?;
    say(&notes.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn of_gguf(path: &Path, folder: &Path) -> Result<(), Failure> {
    let model = gguf::open(path)?;
    say(&model.notes)?;
    std::fs::create_dir_all(folder)?;
    let view = whole(&model.checkpoint)?;
    let preparation = Preparation::Text(model.tokenizer);
    model
        .checkpoint
        .export_child(&view, Program::Usual, &preparation, folder)?;
    let file = GgufFile::open(path)?;
    let mut listed = Metadata::new();
    let of_others = |key: &str| key != "tokenizer.huggingface.json";
    for (key, value) in file.metadata().iter().filter(|(key, _)| of_others(key)) {
        listed.set(key, value.clone());
    }
    let (tokenizer, ..) = tokenizer_json(&listed)?;
    std::fs::write(folder.join("listed.json"), serde_json::to_vec(&tokenizer)?)?;
    Ok(())
}
