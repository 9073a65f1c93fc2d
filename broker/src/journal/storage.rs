//! Where the journal's files are: a folder, or memory that can lose power.

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A flat folder of files.
pub trait Storage: Debug + Send + Sync {
    /// The names of all files, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes a new empty file.
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;
    /// Opens a file that exists for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;
    /// Renames a file, replacing `to`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes created, renamed and removed names durable.
    fn sync_folder(&self) -> io::Result<()>;
    /// How a message names the file.
    fn display(&self, name: &str) -> String;
}

/// A file of a [`Storage`].
pub trait StorageFile: Debug + Send + Sync {
    /// Reads exactly `buffer.len()` bytes at `at`.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `at`.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts or extends it.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Whether it holds nothing.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A folder on a real file system.
#[derive(Debug)]
pub struct FileStorage;

#[allow(unused_variables)]
impl FileStorage {
    /// Opens `folder` (made if missing) and locks it against a second process.
    pub fn open(folder: &Path) -> io::Result<Arc<dyn Storage>> {
        todo!()
    }
}

/// Memory that can lose power: what was not synced may be lost, in any part, when it does.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage;
