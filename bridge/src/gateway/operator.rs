//! The operator token: made at first start, kept in the data folder, readable by its owner only.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// The file's name in the data folder.
const OPERATOR_TOKEN_FILE: &str = "operator-token";

/// 256 random bits in hexadecimal digits.
const TOKEN_BYTES: usize = 32;
const TOKEN_DIGITS_MIN: usize = 16;

/// The operator token of the data folder `folder`; made, durable and with mode 0600, if there is none.
///
/// # Errors
///
/// If the file cannot be read or written, or holds a token too short to be safe; the message names the file.
pub fn operator_token(folder: &Path) -> io::Result<String> {
    let path = folder.join(OPERATOR_TOKEN_FILE);
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match read(&path).map_err(named)? {
        Some(token) => Ok(token),
        None => make(folder, &path).map_err(named),
    }
}

/// The token in the file; `None` if there is no file, or an empty one.
fn read(path: &Path) -> io::Result<Option<String>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut token = String::new();
    (&file).take(4_096).read_to_string(&mut token)?;
    let token = token.trim();
    if token.is_empty() {
        return Ok(None);
    }
    if token.len() < TOKEN_DIGITS_MIN || token.contains(char::is_whitespace) {
        let reason = "the operator token needs at least 16 characters and no spaces; \
                      remove the file to have a new one made";
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the operator token was readable by others; now only by its owner");
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(Some(token.to_owned()))
}

/// Written beside and renamed, so that a crash leaves no half token.
fn make(folder: &Path, path: &Path) -> io::Result<String> {
    let mut random = [0; TOKEN_BYTES];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    fs::File::open(folder)?.sync_all()?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_made_once_and_readable_by_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let token = operator_token(folder.path()).unwrap();
        assert_eq!(token.len(), 64);
        assert_eq!(operator_token(folder.path()).unwrap(), token);
        let path = folder.path().join(OPERATOR_TOKEN_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(operator_token(folder.path()).unwrap(), token);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_empty_file_is_replaced_and_a_weak_token_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(OPERATOR_TOKEN_FILE);
        fs::write(&path, "").unwrap();
        assert_eq!(operator_token(folder.path()).unwrap().len(), 64);
        fs::write(&path, "secret\n").unwrap();
        let error = operator_token(folder.path()).unwrap_err().to_string();
        assert!(error.contains("operator-token") && error.contains("16 characters"), "{error}");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = operator_token(Path::new("/nonexistent/folder")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/folder/operator-token"), "{error}");
    }
}
