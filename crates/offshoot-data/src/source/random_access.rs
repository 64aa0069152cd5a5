//! A file read at any offset from many threads.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::DataError;

/// An open file of known length. Reads are checked against the length before anything is allocated.
pub(crate) struct RandomAccess {
    path: PathBuf,
    len: u64,
    file: Mutex<File>,
}

impl RandomAccess {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|e| DataError::io(path, e))?;
        let len = file.metadata().map_err(|e| DataError::io(path, e))?.len();
        Ok(Self {
            path: path.to_path_buf(),
            len,
            file: Mutex::new(file),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// `count` bytes from `offset` on.
    pub(crate) fn read_at(&self, offset: u64, count: usize) -> Result<Vec<u8>, DataError> {
        let end = offset.checked_add(count as u64);
        if end.is_none_or(|end| end > self.len) {
            let reason = format!(
                "truncated: {count} bytes at offset {offset} of {} are asked for",
                self.len
            );
            return Err(DataError::damaged(self.path.display().to_string(), reason));
        }
        let mut bytes = vec![0; count];
        // A thread that failed while it held the lock left nothing half done: every read seeks first.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| DataError::io(&self.path, e))?;
        Ok(bytes)
    }
}
