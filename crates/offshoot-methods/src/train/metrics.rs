//! `metrics.jsonl`: one JSON object for each logged step, appended as training goes and cut back when it resumes.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use offshoot_family::files::write_atomic;
use serde_json::{Map, Value};

/// Longest line that is read, in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// Why metrics cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line other than a half-written last one is not what was written.
    #[error("{path}:{line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, the first being 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A metric has a name that cannot be used.
    #[error("{path}: a metric cannot be called `{name}`: {reason}")]
    Name {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
}

impl MetricsError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { source, path } => match source.kind() {
                io::ErrorKind::AlreadyExists => Some(format!("resume the run, or remove {} first", path.display())),
                io::ErrorKind::StorageFull => Some("free some space and resume the run".into()),
                _ => None,
            },
            Self::Line { path, line, .. } => Some(format!(
                "repair or delete line {line} of {}; no other file depends on it",
                path.display()
            )),
            Self::Name { .. } => None,
        }
    }
}

/// Appends to a `metrics.jsonl`. Every line is handed to the system whole, so that a crash of the program loses none.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    length: u64,
}

impl MetricsWriter {
    /// Starts a new file.
    ///
    /// # Errors
    /// If there is one already, or whatever else the file system says.
    pub fn create(path: &Path) -> Result<Self, MetricsError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|e| io_error(path, e))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            length: 0,
        })
    }

    /// Goes on with the file of a run that resumes at `step` steps done: lines of later steps are dropped first (see
    /// [`truncate_after`]). A missing file is started.
    ///
    /// # Errors
    /// As [`truncate_after`].
    pub fn resume(path: &Path, step: u64) -> Result<Self, MetricsError> {
        truncate_after(path, step)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| io_error(path, e))?;
        let length = file.seek(SeekFrom::End(0)).map_err(|e| io_error(path, e))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one line: `step` first, then the values in their order. JSON has no NaN and no infinities; they are written as
    /// the strings `NaN`, `Infinity` and `-Infinity`, which [`number`] reads.
    ///
    /// # Errors
    /// If a value is called `step` or a name is there twice, or whatever the file system says; nothing of the line is left in
    /// the file then.
    pub fn write<N: AsRef<str>>(&mut self, step: u64, values: &[(N, f64)]) -> Result<(), MetricsError> {
        let values = values.iter().map(|(name, value)| (name.as_ref(), json(*value)));
        self.append(step, values)
    }

    /// Appends one line of texts: `step` first, then the texts in their order.
    ///
    /// # Errors
    /// As [`write`](Self::write), and if the line would be too long to be read again.
    pub fn write_texts(&mut self, step: u64, texts: &[(&str, &str)]) -> Result<(), MetricsError> {
        self.append(step, texts.iter().map(|(name, text)| (*name, Value::from(*text))))
    }

    fn append<'v>(&mut self, step: u64, values: impl Iterator<Item = (&'v str, Value)>) -> Result<(), MetricsError> {
        let mut object = Map::new();
        object.insert("step".into(), step.into());
        for (name, value) in values {
            if object.insert(name.into(), value).is_some() {
                let reason = if name == "step" {
                    "it is the first value of every line"
                } else {
                    "it is there twice"
                };
                return Err(MetricsError::Name {
                    path: self.path.clone(),
                    name: name.into(),
                    reason,
                });
            }
        }
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        if line.len() > MAX_LINE {
            let reason = "its line would be too long to be read again";
            return Err(MetricsError::Name {
                path: self.path.clone(),
                name: format!("step {step}"),
                reason,
            });
        }
        if let Err(source) = self.file.write_all(line.as_bytes()) {
            // Half a line would spoil the next one.
            let _ = self
                .file
                .set_len(self.length)
                .and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
            return Err(io_error(&self.path, source));
        }
        self.length += line.len() as u64;
        Ok(())
    }

    /// Waits until everything written is on disk.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn sync(&self) -> Result<(), MetricsError> {
        self.file.sync_data().map_err(|e| io_error(&self.path, e))
    }
}

fn io_error(path: &Path, source: io::Error) -> MetricsError {
    MetricsError::Io {
        path: path.to_owned(),
        source,
    }
}

fn json(value: f64) -> Value {
    match serde_json::Number::from_f64(value) {
        Some(number) => Value::Number(number),
        None if value.is_nan() => "NaN".into(),
        None if value > 0.0 => "Infinity".into(),
        None => "-Infinity".into(),
    }
}

/// A metric's value as [`MetricsWriter::write`] wrote it, NaN and infinities among them; none for anything else.
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// Drops the lines of steps after `step`, and a half-written last line, and says how many. The file is replaced whole or not
/// at all, and left as it is where nothing is to be dropped. A missing file has no lines.
///
/// # Errors
/// If a line but the last is not one of [`MetricsWriter::write`], or whatever the file system says.
pub fn truncate_after(path: &Path, step: u64) -> Result<usize, MetricsError> {
    let (mut dropped, mut unfinished) = (0, false);
    let found = each_line(path, |text, line| {
        match line {
            Some((at, _)) if at <= step => unfinished |= !text.ends_with(b"\n"),
            _ => dropped += 1,
        }
        Ok(())
    });
    match found {
        Err(MetricsError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    }
    if dropped > 0 || unfinished {
        let mut failed = None;
        write_atomic(path, |to| {
            let kept = each_line(path, |text, line| match line {
                Some((at, _)) if at <= step => {
                    to.write_all(text)?;
                    if text.ends_with(b"\n") {
                        Ok(())
                    } else {
                        to.write_all(b"\n")
                    }
                }
                _ => Ok(()),
            });
            kept.map_err(|error| {
                failed = Some(error);
                io::Error::other("unreadable")
            })
        })
        .map_err(|source| failed.unwrap_or_else(|| io_error(path, source)))?;
    }
    Ok(dropped)
}

/// Reads every line of a `metrics.jsonl`, but a half-written last one.
///
/// # Errors
/// If a line but the last is not one of [`MetricsWriter::write`], or whatever the file system says.
pub fn read(path: &Path) -> Result<Vec<Map<String, Value>>, MetricsError> {
    let mut lines = Vec::new();
    each_line(path, |_, line| {
        lines.extend(line.map(|(_, object)| object));
        Ok(())
    })?;
    Ok(lines)
}

/// Calls `act` with the bytes of every line and with its step and content; none for a half-written last line. Empty lines are
/// skipped.
fn each_line(
    path: &Path,
    mut act: impl FnMut(&[u8], Option<(u64, Map<String, Value>)>) -> io::Result<()>,
) -> Result<(), MetricsError> {
    let fail = |source| io_error(path, source);
    let mut file = BufReader::new(File::open(path).map_err(fail)?);
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        let n = file
            .by_ref()
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut text)
            .map_err(fail)?;
        if n == 0 {
            break;
        }
        let wrong = |reason: String| MetricsError::Line {
            path: path.to_owned(),
            line,
            reason,
        };
        if n > MAX_LINE {
            return Err(wrong(format!("longer than {MAX_LINE} bytes")));
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        match parse(&text) {
            Ok(parsed) => act(&text, Some(parsed)).map_err(fail)?,
            Err(reason) => {
                if !file.fill_buf().map_err(fail)?.is_empty() {
                    return Err(wrong(reason));
                }
                act(&text, None).map_err(fail)?;
            }
        }
    }
    Ok(())
}

fn parse(text: &[u8]) -> Result<(u64, Map<String, Value>), String> {
    let object: Map<String, Value> = serde_json::from_slice(text).map_err(|e| format!("not a JSON object: {e}"))?;
    match object.get("step").and_then(Value::as_u64) {
        Some(step) => Ok((step, object)),
        None => Err("no `step`, a whole number of steps done".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(steps: u64) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::create(&path).unwrap();
        for step in 1..=steps {
            writer
                .write(step, &[("loss", 1.0 / step as f64), ("lr", 1e-5)])
                .unwrap();
        }
        writer.sync().unwrap();
        (folder, path)
    }

    fn steps(path: &Path) -> Vec<u64> {
        read(path)
            .unwrap()
            .iter()
            .map(|line| line["step"].as_u64().unwrap())
            .collect()
    }

    #[test]
    fn lines_hold_the_step_first_and_every_value() {
        let (_folder, path) = written(2);
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"step\":1,\"loss\":1.0,\"lr\":0.00001}\n{\"step\":2,\"loss\":0.5,\"lr\":0.00001}\n"
        );
        assert_eq!(read(&path).unwrap()[1]["loss"], 0.5);
        let again = MetricsWriter::create(&path).unwrap_err();
        assert!(again.hint().unwrap().contains("resume"));
    }

    #[test]
    fn odd_values_stay_valid_json() {
        let (_folder, path) = written(0);
        let mut writer = MetricsWriter::resume(&path, 0).unwrap();
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 5e-324, f64::MAX, -0.0, 0.1];
        let named: Vec<(String, f64)> = odd.iter().enumerate().map(|(i, &v)| (format!("v\"{i}"), v)).collect();
        writer.write(u64::MAX, &named).unwrap();
        let line = &read(&path).unwrap()[0];
        assert_eq!(line["step"].as_u64(), Some(u64::MAX));
        for (name, value) in &named {
            let read = number(&line[name]).unwrap();
            assert!(
                read.to_bits() == value.to_bits() || (read.is_nan() && value.is_nan()),
                "{name}: {read}"
            );
        }
        assert_eq!(number(&Value::Null), None);
        assert_eq!(number(&"loss".into()), None);
    }

    #[test]
    fn names_are_used_once() {
        let (_folder, path) = written(1);
        let mut writer = MetricsWriter::resume(&path, 1).unwrap();
        assert!(
            writer
                .write(2, &[("step", 1.0)])
                .unwrap_err()
                .to_string()
                .contains("`step`")
        );
        assert!(
            writer
                .write(2, &[("a", 1.0), ("a", 2.0)])
                .unwrap_err()
                .to_string()
                .contains("twice")
        );
        writer.write(2, &[("a", 1.0)]).unwrap();
        assert_eq!(steps(&path), [1, 2]);
    }

    #[test]
    fn resuming_drops_what_came_after_the_step() {
        let (_folder, path) = written(9);
        assert_eq!(truncate_after(&path, 9).unwrap(), 0);
        assert_eq!(truncate_after(&path, 6).unwrap(), 3);
        assert_eq!(steps(&path), [1, 2, 3, 4, 5, 6]);
        let mut writer = MetricsWriter::resume(&path, 4).unwrap();
        writer.write(5, &[("loss", 0.5)]).unwrap();
        assert_eq!(steps(&path), [1, 2, 3, 4, 5]);
        let folder = path.parent().unwrap();
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1);
        assert_eq!(truncate_after(&folder.join("none.jsonl"), 4).unwrap(), 0);
        assert!(!folder.join("none.jsonl").exists());
        MetricsWriter::resume(&folder.join("none.jsonl"), 4)
            .unwrap()
            .write::<&str>(5, &[])
            .unwrap();
        assert_eq!(steps(&folder.join("none.jsonl")), [5]);
    }

    #[test]
    fn every_cut_of_the_last_line_is_survived() {
        let (_folder, path) = written(3);
        let whole = std::fs::read(&path).unwrap();
        let second = whole.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(1).unwrap().0 + 1;
        for end in second..=whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            // Without its newline a whole object is whole; with less it is dropped.
            let wanted: &[u64] = if end + 1 >= whole.len() { &[1, 2, 3] } else { &[1, 2] };
            assert_eq!(steps(&path), wanted, "{end}");
            let mut writer = MetricsWriter::resume(&path, 3).unwrap();
            writer.write(4, &[("loss", 0.5)]).unwrap();
            assert_eq!(steps(&path), [wanted, &[4]].concat());
        }
        // What a file system may leave behind after power is lost.
        std::fs::write(&path, [&whole[..second], &[0; 50]].concat()).unwrap();
        assert_eq!(truncate_after(&path, 9).unwrap(), 1);
        assert_eq!(std::fs::read(&path).unwrap(), whole[..second]);
    }

    #[test]
    fn a_spoilt_line_in_the_middle_is_named() {
        let (_folder, path) = written(1);
        let good = std::fs::read_to_string(&path).unwrap();
        for bad in ["{\"step\":", "[1]", "{\"loss\":1.0}", "{\"step\":-1}", "\u{0}"] {
            std::fs::write(&path, format!("{good}\n{bad}\n{good}")).unwrap();
            for error in [read(&path).unwrap_err(), truncate_after(&path, 0).unwrap_err()] {
                assert!(error.to_string().contains("metrics.jsonl:3: "), "{error}");
                assert!(error.hint().unwrap().contains("line 3"));
            }
        }
        std::fs::write(&path, vec![b' '; MAX_LINE + 5]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("longer than"));
        assert!(read(&path.join("none")).is_err());
    }
}
