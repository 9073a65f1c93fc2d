//! Where the journal's files are: a folder, or memory that can lose power.
//!
//! A [`Storage`] promises as little as POSIX does: a write is on disk after [`StorageFile::sync`], a name after
//! [`Storage::sync_folder`], and nothing is before. What follows from a failed call is the caller's business.
//!
//! `Ok` always means all of it: there are no short reads or writes to look out for. An error of a write or a sync
//! leaves open how much was done. Only one error may be survived: [`is_no_space`] from a write or a reservation,
//! for then nothing that was written before is in doubt. After any other, and after every failed sync, what lies
//! in the operating system's cache cannot be known.

use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::plant::{self, Bug};

pub use super::memory::{Call, Fault, Kept, MemoryStorage};

/// A flat folder of files.
pub trait Storage: Debug + Send + Sync {
    /// The names of all files, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes a new empty file; one that exists is emptied.
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;
    /// Opens a file that exists for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;
    /// Renames a file, replacing `to`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Whoever has it open may go on reading.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes created, renamed and removed names durable.
    fn sync_folder(&self) -> io::Result<()>;
    /// How a message names the file.
    fn display(&self, name: &str) -> String;
    /// Random bits, for what must be unique or must not be guessed.
    fn random(&self) -> u64 {
        random()
    }
}

/// Random bits from the keys that the standard library draws from the operating system for its hash maps.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// A file of a [`Storage`].
pub trait StorageFile: Debug + Send + Sync {
    /// Reads exactly `buffer.len()` bytes at `at`.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `at`, or fails with any part of them written.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts or extends it.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Makes the file at least `bytes` long, with zeros, so that writes up to there need no new space; does nothing
    /// where files cannot be made longer in this way. On Linux it halves what small syncs cost.
    ///
    /// # Errors
    ///
    /// Only [`is_no_space`]: there is not so much space. The file may have become longer all the same.
    fn reserve(&self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }
    /// Says that what lies before file position `end` and is synced will hardly be read soon: whoever caches it
    /// may let it go.
    fn let_go_before(&self, _end: u64) {}
    /// Whether it holds nothing.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Whether `error` says that the disk is full, or the quota used up: it can be tried again when there is room.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Writes `bytes` as the file `name` so that after a crash it holds either all of them or what it held before.
pub fn replace_file(storage: &dyn Storage, name: &str, bytes: &[u8]) -> io::Result<()> {
    if plant::is(Bug::CursorsOverwritten) && storage.open(name).is_ok() {
        let file = storage.open(name)?;
        file.write_at(bytes, 0)?;
        return file.sync();
    }
    let new = format!("{name}.new");
    let file = storage.create(&new)?;
    file.write_at(bytes, 0)?;
    if !plant::is(Bug::CursorsNotSynced) {
        file.sync()?;
    }
    storage.rename(&new, name)?;
    storage.sync_folder()
}

/// The whole content of `file`.
pub fn read_file(file: &dyn StorageFile) -> io::Result<Vec<u8>> {
    let bytes = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut buffer = vec![0; bytes];
    file.read_at(&mut buffer, 0)?;
    Ok(buffer)
}

pub(super) const LOCK_FILE: &str = "lock";
/// Payloads and who sent them are nobody else's business.
const OWNER_ONLY: u32 = 0o600;

/// Descriptors that are kept: a segment is let go of after its next one has begun, and cursors are saved meanwhile.
const SPARES: usize = 3;

/// A folder on a real file system, locked against a second process for as long as this lives.
#[derive(Debug)]
pub struct FileStorage {
    path: PathBuf,
    folder: File,
    /// At most [`SPARES`], given up one by one for new files when the process has no descriptor left.
    spares: Mutex<Vec<OwnedFd>>,
    _lock: File,
}

impl FileStorage {
    /// Opens `folder` (made if missing) and locks it against a second process.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` if a process (this one included) has it open already; else what the operating system says.
    /// Every message names the folder.
    #[allow(clippy::new_ret_no_self)]
    pub fn open(folder: &Path) -> io::Result<Arc<dyn Storage>> {
        let named = |doing: &str, error: io::Error| {
            io::Error::new(error.kind(), format!("cannot {doing} {}: {error}", folder.display()))
        };
        make_durable(folder).map_err(|error| named("make the folder", error))?;
        let lock = Self::lock(folder).map_err(|error| named("lock the folder", error))?;
        let open = File::open(folder).map_err(|error| named("open the folder", error))?;
        let storage = Self { path: folder.to_owned(), folder: open, spares: Mutex::default(), _lock: lock };
        storage.take_spares();
        Ok(Arc::new(storage))
    }

    /// Makes sure, where it can, that files can be made when the process can open no other: a journal that cannot begin
    /// a segment fails for good.
    fn take_spares(&self) {
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        while spares.len() < SPARES
            && let Ok(spare) = self.folder.as_fd().try_clone_to_owned()
        {
            spares.push(spare);
        }
    }

    fn give_up_spare(&self) -> bool {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner).pop().is_some()
    }

    fn lock(folder: &Path) -> io::Result<File> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(OWNER_ONLY)
            .open(folder.join(LOCK_FILE))?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                file.rewind()?;
                write!(file, "{}", std::process::id())?;
                Ok(file)
            }
            Err(TryLockError::WouldBlock) => {
                let holder = lock_holder(&mut file);
                let message = format!("{holder} is using it; stop that one first, or choose another folder");
                Err(io::Error::new(io::ErrorKind::ResourceBusy, message))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Makes `folder` and its parents, each with its name synced.
fn make_durable(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    make_durable(parent)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    File::open(parent)?.sync_all()
}

/// The names of all files in `folder`, sorted.
pub(super) fn list_files(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Who holds a folder's lock, as far as the lock file says; that only helps to find it.
pub(super) fn lock_holder(lock: &mut File) -> String {
    let mut holder = String::new();
    let _ = lock.read_to_string(&mut holder);
    if holder.is_empty() { "another process".to_owned() } else { format!("process {holder}") }
}

impl Storage for FileStorage {
    fn list(&self) -> io::Result<Vec<String>> {
        list_files(&self.path)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(OWNER_ONLY);
        self.take_spares();
        let file = match options.open(&path) {
            Err(error) if is_out_of_descriptors(&error) && self.give_up_spare() => options.open(&path)?,
            made => made?,
        };
        Ok(Arc::new(DiskFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.take_spares();
        self.folder.sync_all()
    }

    fn display(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }
}

/// Whether this process, or the whole system, can open no more files.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error).is_some_and(|errno| matches!(errno, Errno::MFILE | Errno::NFILE))
}

#[derive(Debug)]
struct DiskFile(File);

impl StorageFile for DiskFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)?;
        // `fdatasync` need not write a length that shrank; this is rare enough to write everything here.
        self.0.sync_all()
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        let reserved = rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, bytes);
        match reserved.map_err(io::Error::from) {
            Err(error) if is_no_space(&error) => Err(error),
            // Not every file system can; then the write says whether there is space.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn let_go_before(&self, end: u64) {
        if let Some(end) = std::num::NonZeroU64::new(end) {
            // Only advice: where it is not taken, everything works as well.
            let _ = rustix::fs::fadvise(&self.0, 0, Some(end), rustix::fs::Advice::DontNeed);
        }
    }
}
