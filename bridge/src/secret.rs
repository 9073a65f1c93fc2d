//! Secrets that lie in files, as container platforms mount them.
//!
//! Whoever uses one reads it when it connects, so that a secret that was changed needs no restart. What a file holds is
//! in no message.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// More than any password, token or key in PEM has.
const BYTES_MAX: usize = 64 << 10;

/// What the file holds, without the end of its last line. `Err` says what is wrong with it, and not with which.
pub(crate) fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let limit = BYTES_MAX as u64 + 1;
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    if bytes.len() > BYTES_MAX {
        return Err(format!("{} is longer than {BYTES_MAX} bytes", path.display()));
    }
    let mut secret = String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8", path.display()))?;
    if secret.ends_with('\n') {
        secret.pop();
        if secret.ends_with('\r') {
            secret.pop();
        }
    }
    match secret.as_str() {
        "" => Err(format!("{} is empty", path.display())),
        text if text.contains('\0') => Err(format!("{} has a byte 0 in it", path.display())),
        _ => Ok(secret),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_end_of_line_is_cut_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let check = |content: &[u8], expected: Result<&str, &str>| {
            std::fs::write(&path, content).unwrap();
            let found = read(&path).map_err(|why| why.replace(&path.display().to_string(), "it"));
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{content:?}");
        };
        check(b"hunter2", Ok("hunter2"));
        check(b"hunter2\n", Ok("hunter2"));
        check(b"hunter2\r\n", Ok("hunter2"));
        check(b" hunter2 \n\n", Ok(" hunter2 \n"));
        check(b"", Err("it is empty"));
        check(b"\n", Err("it is empty"));
        check(b"hunter2\xff", Err("it is not UTF-8"));
        check(b"hunter\x002", Err("it has a byte 0 in it"));
        check(&[b'x'; BYTES_MAX], Ok(&"x".repeat(BYTES_MAX)));
        check(&[b'x'; BYTES_MAX + 1], Err("it is longer than 65536 bytes"));
        let missing = read(&folder.path().join("missing")).unwrap_err();
        assert!(
            missing.ends_with("missing cannot be read: No such file or directory (os error 2)"),
            "{missing}"
        );
    }
}
