//! A file with places that the disk cannot read any more: they read as bytes that are no entry, and the rest is saved.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::storage::StorageFile;

/// What is tried at once where a larger read fails: the block of most disks.
const BLOCK_BYTES: u64 = 4_096;
/// What an unreadable byte reads as. Not zero, which would look like space that was only reserved.
const UNREADABLE: u8 = 0xff;

/// Reads around what cannot be read, and remembers where that was.
#[derive(Debug)]
pub(super) struct ForgivingFile {
    file: Arc<dyn StorageFile>,
    /// The blocks that could not be read, and what the storage said of each.
    failed: Mutex<Vec<(u64, String)>>,
}

impl ForgivingFile {
    pub(super) fn new(file: Arc<dyn StorageFile>) -> Arc<Self> {
        Arc::new(Self { file, failed: Mutex::default() })
    }

    /// The blocks that could not be read, each once.
    pub(super) fn failed(&self) -> Vec<(u64, String)> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        failed.sort();
        failed.dedup_by_key(|(at, _)| *at);
        failed
    }
}

impl StorageFile for ForgivingFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        if self.file.read_at(buffer, at).is_ok() {
            return Ok(());
        }
        let mut rest = buffer;
        let mut from = at;
        while !rest.is_empty() {
            let block = usize::try_from(BLOCK_BYTES - from % BLOCK_BYTES).expect("a block is small");
            let (part, behind) = rest.split_at_mut(block.min(rest.len()));
            if let Err(error) = self.file.read_at(part, from) {
                part.fill(UNREADABLE);
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.push((from - from % BLOCK_BYTES, error.to_string()));
            }
            from += part.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
}
