//! A journal's folder that is only looked at: nothing is made, locked or changed, so that it may be a copy, lie on a disk
//! that is mounted read-only, or belong to somebody else.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::storage::{LOCK_FILE, Storage, StorageFile, list_files, lock_holder};

/// A folder on a real file system, opened for reading only. Whatever would change it fails.
#[derive(Debug)]
pub struct ReadOnlyFolder {
    path: PathBuf,
}

impl ReadOnlyFolder {
    /// Looks into `folder`. Nothing keeps a process from opening it for writing afterwards: what is read then may be
    /// half of one state and half of another.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` if a process has it open for writing now; else what the operating system says. Every message names
    /// the folder.
    #[allow(clippy::new_ret_no_self)]
    pub fn open(folder: &Path) -> io::Result<Arc<dyn Storage>> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("cannot read {}: {error}", folder.display()))
        };
        std::fs::read_dir(folder).map_err(named)?;
        refuse_if_locked(&folder.join(LOCK_FILE)).map_err(named)?;
        Ok(Arc::new(Self { path: folder.to_owned() }))
    }
}

fn refuse_if_locked(path: &Path) -> io::Result<()> {
    let mut lock = match File::open(path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    match lock.try_lock_shared() {
        Ok(()) => lock.unlock(),
        Err(TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("{} is using it; stop that one first", lock_holder(&mut lock)),
        )),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "it was opened only to be read")
}

impl Storage for ReadOnlyFolder {
    fn list(&self) -> io::Result<Vec<String>> {
        list_files(&self.path)
    }

    fn create(&self, _name: &str) -> io::Result<Arc<dyn StorageFile>> {
        Err(refused())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let file = OpenOptions::new().read(true).open(self.path.join(name))?;
        Ok(Arc::new(ReadOnlyFile(file)))
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Err(refused())
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        Err(refused())
    }

    fn sync_folder(&self) -> io::Result<()> {
        Err(refused())
    }

    fn display(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }
}

#[derive(Debug)]
struct ReadOnlyFile(File);

impl StorageFile for ReadOnlyFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, at)
    }

    fn write_at(&self, _bytes: &[u8], _at: u64) -> io::Result<()> {
        Err(refused())
    }

    fn sync(&self) -> io::Result<()> {
        Err(refused())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, _bytes: u64) -> io::Result<()> {
        Err(refused())
    }
}
