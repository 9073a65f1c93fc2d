//! Files that are written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Writes `content` to `path`, readable by its owner only. A file that was there keeps its owner, and a symbolic link
/// keeps pointing to it.
pub(super) fn replace(path: &Path, content: &str) -> io::Result<()> {
    let before = match fs::canonicalize(path) {
        Ok(target) => Some((fs::metadata(&target)?, target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let path = before.as_ref().map_or(path, |(_, target)| target);
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new_name = name.to_owned();
    new_name.push(format!(".{}.new", std::process::id()));
    let new = folder.join(new_name);
    let owner = before.as_ref().map(|(metadata, _)| (metadata.uid(), metadata.gid()));
    write_new(&new, owner, content).and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        // Best effort: what is told is why the file could not be written.
        let _ = fs::remove_file(&new);
    })?;
    File::open(folder)?.sync_all()
}

fn write_new(path: &Path, owner: Option<(u32, u32)>, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    let made = file.metadata()?;
    if let Some((uid, gid)) = owner.filter(|owner| *owner != (made.uid(), made.gid())) {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    file.write_all(content.as_bytes())?;
    file.sync_all()
}
