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
