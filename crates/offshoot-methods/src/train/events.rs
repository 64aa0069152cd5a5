//! Scalars as a TensorBoard event file: TFRecord frames of `Event` messages.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use prost::Message;

/// What TensorBoard expects in the first event of a file.
const FILE_VERSION: &str = "brain.Event:2";

/// `tensorflow.Event`, the fields that scalars need.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

/// `tensorflow.Summary`.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// `tensorflow.Summary.Value`, a scalar.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    // Of a oneof: a value of 0 is written as well.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// `tensorflow.SessionLog`; status 1 is START.
#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

const START: i32 = 1;

/// Why events cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventsError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The event file or its folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl EventsError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let Self::Io { source, path } = self;
        match source.kind() {
            io::ErrorKind::StorageFull => Some("free some space and resume the run".into()),
            io::ErrorKind::PermissionDenied => {
                Some(format!("make {} writable", path.parent().unwrap_or(path).display()))
            }
            _ => None,
        }
    }
}

/// Writes one TensorBoard event file. What was written is on its way to disk after [`flush`](Self::flush) or when dropped.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventWriter {
    /// Starts `events.out.tfevents.<seconds>.<suffix>` in `folder`, which is made if it is missing. TensorBoard reads the files
    /// of a folder in the order of their names, so `wall_time` (seconds since 1970, from whoever may read a clock) orders the
    /// files of a resumed run; the suffix (host and process, say) keeps apart those that start in one second. A file that is
    /// there already is never touched: a number is added to the name.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn create(folder: &Path, suffix: &str, wall_time: f64) -> Result<Self, EventsError> {
        std::fs::create_dir_all(folder).map_err(|source| EventsError::Io {
            path: folder.to_owned(),
            source,
        })?;
        let safe = |c: char| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '-'
            }
        };
        let suffix: String = suffix.chars().map(safe).take(100).collect();
        // A cast of a float saturates, and takes what is not a number for 0.
        let name = format!("events.out.tfevents.{:010}.{suffix}", wall_time as u64);
        let mut path = folder.join(&name);
        let mut again = 0;
        loop {
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    let mut writer = Self {
                        path,
                        file: BufWriter::new(file),
                    };
                    writer.event(0, wall_time, What::FileVersion(FILE_VERSION.into()))?;
                    writer.flush()?;
                    return Ok(writer);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && again < 9_999 => {
                    again += 1;
                    path = folder.join(format!("{name}.{again:04}"));
                }
                Err(source) => return Err(EventsError::Io { path, source }),
            }
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says that a resumed run goes on at `step`: TensorBoard drops what earlier files say of that step and later ones.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn resumed_at(&mut self, step: u64, wall_time: f64) -> Result<(), EventsError> {
        self.event(step, wall_time, What::SessionLog(SessionLog { status: START }))
    }

    /// Writes the scalars `values` of `step`, each under its tag (`loss/total`: what is before the slash groups the charts).
    /// TensorBoard keeps scalars in single precision. `wall_time` is in seconds since 1970.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn scalar<T: AsRef<str>>(&mut self, step: u64, wall_time: f64, values: &[(T, f64)]) -> Result<(), EventsError> {
        let value = |(tag, value): &(T, f64)| Value {
            tag: tag.as_ref().into(),
            simple_value: Some(*value as f32),
        };
        self.event(
            step,
            wall_time,
            What::Summary(Summary {
                value: values.iter().map(value).collect(),
            }),
        )
    }

    /// Hands everything written so far to the system.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn flush(&mut self) -> Result<(), EventsError> {
        self.file.flush().map_err(|source| EventsError::Io {
            path: self.path.clone(),
            source,
        })
    }

    fn event(&mut self, step: u64, wall_time: f64, what: What) -> Result<(), EventsError> {
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        let event = Event {
            wall_time,
            step,
            what: Some(what),
        };
        frame(&mut self.file, &event.encode_to_vec()).map_err(|source| EventsError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

/// One TFRecord: length, its checksum, the record, its checksum; all little-endian.
fn frame(to: &mut impl Write, record: &[u8]) -> io::Result<()> {
    let length = (record.len() as u64).to_le_bytes();
    to.write_all(&length)?;
    to.write_all(&masked_crc(&length).to_le_bytes())?;
    to.write_all(record)?;
    to.write_all(&masked_crc(record).to_le_bytes())
}

/// TFRecord's checksum: CRC-32C, rotated and shifted so that a checksum of data that holds checksums stays sound.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads frames back and checks both checksums of each; the rest that is no whole frame is returned too.
    fn frames(mut bytes: &[u8]) -> (Vec<Event>, usize) {
        let mut events = Vec::new();
        while bytes.len() >= 16 {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(
                u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
                masked_crc(&bytes[..8])
            );
            if bytes.len() < 16 + length {
                break;
            }
            let record = &bytes[12..12 + length];
            assert_eq!(
                u32::from_le_bytes(bytes[12 + length..16 + length].try_into().unwrap()),
                masked_crc(record)
            );
            events.push(Event::decode(record).unwrap());
            bytes = &bytes[16 + length..];
        }
        (events, bytes.len())
    }

    #[test]
    fn checksums_are_tensorflows() {
        // CRC-32C of nine digits and of 32 zeros (RFC 3720), and the frame that TensorFlow writes for the first event.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
        let mut bytes = Vec::new();
        let first = Event {
            wall_time: 1.0,
            step: 0,
            what: Some(What::FileVersion(FILE_VERSION.into())),
        };
        frame(&mut bytes, &first.encode_to_vec()).unwrap();
        let wanted = b"\x18\0\0\0\0\0\0\0\xa3\x7f\x4b\x22\x09\0\0\0\0\0\0\xf0\x3f\x1a\x0dbrain.Event:2";
        assert_eq!(&bytes[..wanted.len()], wanted);
    }

    #[test]
    fn what_is_written_can_be_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(&folder.path().join("run"), "host.1", 1_700_000_000.5).unwrap();
        assert_eq!(
            writer.path().file_name().unwrap(),
            "events.out.tfevents.1700000000.host.1"
        );
        writer.resumed_at(3, 1_700_000_000.75).unwrap();
        writer
            .scalar(3, 1_700_000_001.25, &[("loss/total", 14.070_888), ("zero", 0.0)])
            .unwrap();
        writer
            .scalar(
                4,
                1_700_000_002.0,
                &[(String::from("odd"), f64::NAN), ("big".into(), 1e300)],
            )
            .unwrap();
        writer.scalar::<&str>(u64::MAX, 0.0, &[]).unwrap();
        writer.flush().unwrap();
        let bytes = std::fs::read(writer.path()).unwrap();
        let (events, rest) = frames(&bytes);
        assert_eq!((events.len(), rest), (5, 0));
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".into())));
        assert_eq!(events[0].wall_time, 1_700_000_000.5);
        assert_eq!(events[1].what, Some(What::SessionLog(SessionLog { status: 1 })));
        assert_eq!((events[2].step, events[2].wall_time), (3, 1_700_000_001.25));
        let scalar = |tag: &str, value| Value {
            tag: tag.into(),
            simple_value: Some(value),
        };
        let summary = Summary {
            value: vec![scalar("loss/total", 14.070_888), scalar("zero", 0.0)],
        };
        assert_eq!(events[2].what, Some(What::Summary(summary)));
        let Some(What::Summary(odd)) = &events[3].what else {
            panic!("{:?}", events[3])
        };
        assert!(odd.value[0].simple_value.unwrap().is_nan());
        assert_eq!(odd.value[1].simple_value, Some(f32::INFINITY));
        assert_eq!(events[4].step, i64::MAX);
        // A half-written last frame takes nothing else with it.
        assert_eq!(frames(&bytes[..bytes.len() - 3]).0.len(), 4);
    }

    #[test]
    fn a_file_that_is_there_is_never_touched() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<_> = (0..3)
            .map(|_| {
                EventWriter::create(folder.path(), "a/b c", 5.0)
                    .unwrap()
                    .path()
                    .file_name()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert_eq!(
            names,
            [
                "events.out.tfevents.0000000005.a-b-c",
                "events.out.tfevents.0000000005.a-b-c.0001",
                "events.out.tfevents.0000000005.a-b-c.0002"
            ]
        );
        for odd in [f64::NAN, -1.0, f64::INFINITY] {
            EventWriter::create(folder.path(), "", odd).unwrap();
        }
        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(
            EventWriter::create(&file, "x", 0.0)
                .unwrap_err()
                .to_string()
                .contains("file")
        );
    }
}
