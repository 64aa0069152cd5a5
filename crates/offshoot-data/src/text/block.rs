//! Documents in blocks, so that threads have something to share and memory stays bounded.

use super::source::{Document, Documents};
use crate::error::DataError;

/// How large a block is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// UTF-8 bytes after which a block ends.
    pub(super) bytes: u64,
    /// The most documents.
    pub(super) documents: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 8 << 20,
            documents: 8192,
        }
    }
}

/// Neighbouring documents.
pub(super) struct Block {
    pub(super) documents: Vec<Document>,
    /// UTF-8 bytes of all: those of the limits at most, but for the last document.
    pub(super) bytes: u64,
}

/// The blocks of a source.
pub(super) struct Blocks<'s> {
    source: &'s mut Documents,
    limits: Limits,
}

impl<'s> Blocks<'s> {
    pub(super) fn new(source: &'s mut Documents, limits: Limits) -> Self {
        Self { source, limits }
    }

    pub(super) fn next(&mut self) -> Result<Option<Block>, DataError> {
        let mut block = Block {
            documents: Vec::new(),
            bytes: 0,
        };
        while block.bytes < self.limits.bytes && block.documents.len() < self.limits.documents {
            let Some(document) = self.source.next().transpose()? else {
                break;
            };
            block.bytes += document.text.len() as u64;
            block.documents.push(document);
        }
        Ok(Some(block).filter(|block| !block.documents.is_empty()))
    }

    pub(super) fn done_bytes(&self) -> u64 {
        self.source.done_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, BufReader, Read};
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// JSON lines of 1,000 bytes each, made as they are read.
    struct Made {
        line: Vec<u8>,
        at: usize,
        left: u64,
        read: Arc<AtomicU64>,
    }

    impl Read for Made {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = buffer
                .len()
                .min(self.line.len() - self.at)
                .min(usize::try_from(self.left).unwrap());
            buffer[..count].copy_from_slice(&self.line[self.at..self.at + count]);
            self.at = (self.at + count) % self.line.len();
            self.left -= count as u64;
            self.read.fetch_add(count as u64, Ordering::Relaxed);
            Ok(count)
        }
    }

    #[test]
    fn text_larger_than_a_block_is_read_block_by_block() {
        let mut line = format!("{{\"text\": \"{}\"}}", "a".repeat(987)).into_bytes();
        line.push(b'\n');
        assert_eq!(line.len(), 1000);
        let read = Arc::new(AtomicU64::new(0));
        let made = Made {
            line,
            at: 0,
            left: 64_000_000,
            read: Arc::clone(&read),
        };
        let reader = BufReader::with_capacity(4096, made);
        let mut source = Documents::lines(Path::new("made"), reader, 0.0).unwrap();
        let limits = Limits {
            bytes: 100_000,
            documents: 8192,
        };
        let mut blocks = Blocks::new(&mut source, limits);
        let (mut documents, mut taken) = (0, 0);
        while let Some(block) = blocks.next().unwrap() {
            // One document more than the limit at most, and no more read than taken and one buffer.
            assert!(block.bytes < 100_000 + 987);
            documents += block.documents.len();
            taken += block.documents.len() as u64 * 1000;
            assert!(read.load(Ordering::Relaxed) <= taken + 4096);
        }
        assert_eq!(documents, 64_000);
    }
}
