//! WebDataset tar shards: members of one basename are one sample, an image and its `.cls`. Nothing is ever unpacked.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Component, Path, PathBuf};

use super::random_access::RandomAccess;
use super::{Labels, Source, class_number, file_name, numbered_classes, out_of_range};
use crate::error::DataError;
use crate::image::{Image, MAX_ENCODED_BYTES};

/// The extensions (in any case) by which a member counts as a sample's image.
pub const EXTENSIONS: &[&str] = &["jpg", "jpeg", "png", "webp", "bmp"];

/// The longest `.cls` member, in bytes.
const MAX_CLASS_BYTES: u64 = 64;

/// One or several tar shards, in order.
pub struct WebDataset {
    shards: Vec<RandomAccess>,
    samples: Vec<Sample>,
    labels: Vec<u32>,
    classes: Vec<String>,
    skipped: usize,
}

struct Sample {
    shard: usize,
    member: String,
    offset: u64,
    size: usize,
}

/// What is known of one basename while a shard is scanned.
struct Group {
    key: String,
    image: Option<Sample>,
    class: Option<(u64, usize)>,
}

impl WebDataset {
    /// Scans the headers of the shards once, in the given order. Samples keep the order of their first member.
    ///
    /// # Errors
    /// Where a shard is truncated or no tar file, a member's name is absolute or holds `..`, a member is too large, no
    /// shard holds an image, or labels are asked for and a sample has no `.cls` with a class number.
    pub fn open(shards: &[PathBuf], labels: Labels) -> Result<Self, DataError> {
        let mut found = Self {
            shards: Vec::new(),
            samples: Vec::new(),
            labels: Vec::new(),
            classes: Vec::new(),
            skipped: 0,
        };
        for path in shards {
            let groups = found.scan(path)?;
            found.take(groups, labels)?;
        }
        if found.samples.is_empty() {
            let place = shards.first().map_or_else(String::new, |p| p.display().to_string());
            return Err(DataError::Empty {
                place,
                found: format!("{} other members", found.skipped),
            });
        }
        found.classes = numbered_classes(&found.labels);
        Ok(found)
    }

    fn scan(&mut self, path: &Path) -> Result<Vec<Group>, DataError> {
        let shard = self.shards.len();
        let access = RandomAccess::open(path)?;
        let len = access.len();
        self.shards.push(access);
        let place = path.display().to_string();
        if len == 0 {
            return Err(DataError::damaged(place, "the file is empty (0 bytes)"));
        }
        let broken =
            |e: std::io::Error, after: &str| DataError::damaged(&place, format!("broken tar after `{after}`: {e}"));
        let mut archive = tar::Archive::new(BufReader::new(File::open(path).map_err(|e| DataError::io(path, e))?));
        let mut groups: Vec<Group> = Vec::new();
        let mut by_key: HashMap<String, usize> = HashMap::new();
        let mut last = String::from("the start");
        for entry in archive.entries_with_seek().map_err(|e| broken(e, "the start"))? {
            let entry = entry.map_err(|e| broken(e, &last))?;
            let member = member_name(path, &entry.path_bytes())?;
            let (offset, size) = (entry.raw_file_position(), entry.size());
            last.clone_from(&member);
            if !entry.header().entry_type().is_file() {
                continue;
            }
            if offset.checked_add(size).is_none_or(|end| end > len) {
                let reason = format!("truncated: member `{member}` has {size} bytes at offset {offset} of {len}");
                return Err(DataError::damaged(&place, reason));
            }
            let (key, extension) = split_name(&member);
            let is_image = EXTENSIONS.iter().any(|e| extension.eq_ignore_ascii_case(e));
            if !is_image && extension != "cls" {
                self.skipped += 1;
                continue;
            }
            let at = *by_key.entry(key.to_string()).or_insert_with(|| {
                groups.push(Group {
                    key: key.to_string(),
                    image: None,
                    class: None,
                });
                groups.len() - 1
            });
            let group = &mut groups[at];
            let limit = if is_image { MAX_ENCODED_BYTES } else { MAX_CLASS_BYTES };
            if size > limit {
                let what = format!("a member of {size} bytes");
                return Err(DataError::TooLarge {
                    place: format!("{place}!{member}"),
                    what,
                    limit: format!("{limit} bytes"),
                });
            }
            let size = size as usize;
            if (is_image && group.image.is_some()) || (!is_image && group.class.is_some()) {
                return Err(DataError::damaged(
                    format!("{place}!{member}"),
                    "the sample has this member twice",
                ));
            } else if is_image {
                group.image = Some(Sample {
                    shard,
                    member,
                    offset,
                    size,
                });
            } else {
                group.class = Some((offset, size));
            }
        }
        Ok(groups)
    }

    fn take(&mut self, groups: Vec<Group>, labels: Labels) -> Result<(), DataError> {
        for Group { key, image, class } in groups {
            let Some(sample) = image else {
                self.skipped += 1;
                continue;
            };
            if labels == Labels::Use {
                let shard = &self.shards[sample.shard];
                let place = || format!("{}!{key}.cls", shard.path().display());
                let missing = |reason: &str| DataError::LabelsMissing {
                    place: place(),
                    reason: reason.into(),
                };
                let (offset, size) = class.ok_or_else(|| missing("the sample has no such member"))?;
                let text = shard.read_at(offset, size)?;
                let number = std::str::from_utf8(&text)
                    .ok()
                    .and_then(|text| text.trim().parse::<i64>().ok());
                self.labels.push(class_number(
                    number.ok_or_else(|| missing("it holds no number"))?,
                    place,
                )?);
            }
            self.samples.push(sample);
        }
        Ok(())
    }

    fn sample(&self, index: usize) -> Result<&Sample, DataError> {
        self.samples
            .get(index)
            .ok_or_else(|| out_of_range(self.shards[0].path(), index, self.samples.len()))
    }

    /// The name with the shard's full path, for errors.
    fn place(&self, sample: &Sample) -> String {
        format!("{}!{}", self.shards[sample.shard].path().display(), sample.member)
    }
}

/// A member's name as text, refused where unpacking it would leave the folder it is unpacked in.
fn member_name(archive: &Path, raw: &[u8]) -> Result<String, DataError> {
    let name = String::from_utf8_lossy(raw).into_owned();
    let leaves = Path::new(&name)
        .components()
        .any(|c| !matches!(c, Component::Normal(_) | Component::CurDir));
    if leaves || name.contains('\\') && name.split('\\').any(|part| part == "..") {
        return Err(DataError::UnsafeMember {
            archive: archive.display().to_string(),
            member: name,
        });
    }
    Ok(name.strip_prefix("./").map_or_else(|| name.clone(), str::to_string))
}

/// A member's sample and extension: split at the first dot of the last component.
fn split_name(member: &str) -> (&str, &str) {
    let start = member.rfind('/').map_or(0, |slash| slash + 1);
    match member[start..].find('.') {
        Some(dot) => (&member[..start + dot], &member[start + dot + 1..]),
        None => (member, ""),
    }
}

impl Source for WebDataset {
    fn kind(&self) -> &'static str {
        "webdataset"
    }

    fn len(&self) -> usize {
        self.samples.len()
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let sample = self.sample(index)?;
        self.shards[sample.shard].read_at(sample.offset, sample.size)
    }

    fn read(&self, index: usize) -> Result<Image, DataError> {
        Image::decode(&self.bytes(index)?, &self.place(self.sample(index)?))
    }

    fn name(&self, index: usize) -> String {
        let Some(sample) = self.samples.get(index) else {
            return String::new();
        };
        format!("{}!{}", file_name(self.shards[sample.shard].path()), sample.member)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).copied()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn skipped(&self) -> usize {
        self.skipped
    }
}
