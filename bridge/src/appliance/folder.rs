//! The data folder, the space on its disk, and how many files the process may open.

use std::ffi::CString;
use std::fs::DirBuilder;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::StartError;

/// Makes the folder if it is missing, for its owner only: it will hold what devices send, and hashed passwords.
pub(super) fn make(path: &Path) -> Result<(), StartError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| StartError::Folder { path: path.to_owned(), error })
}

/// Why a storage inside the data folder cannot be opened.
pub(super) fn refused(path: &Path, error: io::Error) -> StartError {
    if error.kind() == io::ErrorKind::ResourceBusy {
        return StartError::InUse { path: path.to_owned(), error };
    }
    StartError::Folder { path: path.to_owned(), error }
}

/// How many bytes this user can still write to the disk of `path`; `None` if the system does not say.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut filled = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is a live string that ends with NUL, the pointer is to writable memory of the right size.
    if unsafe { libc::statvfs(path.as_ptr(), filled.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it has filled the whole structure.
    let status = unsafe { filled.assume_init() };
    status.f_bavail.checked_mul(status.f_frsize)
}

/// Raises the number of files this process may open to what the system lets it; returns that number. Every
/// connection is a file, and the usual soft limit of 1,024 is there only for programs that use `select`.
pub(super) fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live, writable rlimit, which the call fills or leaves alone.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return u64::MAX;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: the pointer is to a live rlimit, which the call only reads.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        return raised.rlim_cur;
    }
    limit.rlim_cur
}
