//! A file of SCRAM credentials: a line per user, `user:SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`, the second
//! half as PostgreSQL stores it. A line that begins with `#` is a comment.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::password_file::{Mistakes, check_username};
use super::scram::{HASH_BYTES, Verifier, sign};
use super::whole_file;

const MECHANISM: &str = "SCRAM-SHA-256$";

/// Iterations of new credentials, as RFC 7677 asks for at least. It is the client that computes them.
const ITERATIONS: u32 = 4_096;

const SALT_BYTES: usize = 16;

/// Users who may prove with SCRAM that they know their password.
#[derive(Clone, Debug, Default)]
pub struct ScramFile {
    comments: Vec<String>,
    users: BTreeMap<String, Verifier>,
}

/// Why a SCRAM file could not be read, changed or written.
#[derive(Debug, thiserror::Error)]
pub enum ScramFileError {
    /// The file cannot be read.
    #[error("cannot read the SCRAM file {}: {error}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// Lines of the file are wrong.
    #[error("the SCRAM file {} has mistakes:{}", path.display(), Mistakes(mistakes))]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Line numbers, from 1, each with what is wrong.
        mistakes: Vec<(usize, String)>,
    },
    /// The file cannot be written; what was there before still is.
    #[error("cannot write the SCRAM file {}: {error}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// A username that cannot stand in the file.
    #[error("the username {username:?} cannot be used: {reason}")]
    Username {
        /// Which username.
        username: String,
        /// Why not.
        reason: &'static str,
    },
    /// The operating system gave no randomness for a salt.
    #[error("no randomness for the salt: {0}")]
    Randomness(getrandom::Error),
}

impl ScramFile {
    /// Reads the file at `path`.
    pub fn open(path: &Path) -> Result<Self, ScramFileError> {
        let content = fs::read_to_string(path)
            .map_err(|error| ScramFileError::Read { path: path.to_owned(), error })?;
        Self::parse(path, &content)
    }

    /// Reads the content of a SCRAM file; `path` is what errors call it.
    pub fn parse(path: &Path, content: &str) -> Result<Self, ScramFileError> {
        let mut file = Self::default();
        let mut mistakes = Vec::new();
        for (at, line) in content.lines().enumerate() {
            if line.starts_with('#') || line.trim().is_empty() {
                file.comments.push(line.to_owned());
            } else if let Err(mistake) = file.push(line) {
                mistakes.push((at + 1, mistake));
            }
        }
        if mistakes.is_empty() {
            Ok(file)
        } else {
            Err(ScramFileError::Malformed { path: path.to_owned(), mistakes })
        }
    }

    fn push(&mut self, line: &str) -> Result<(), String> {
        const FORM: &str = "a line is user:SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey";
        let (user, secret) = line.trim().split_once(':').ok_or(FORM)?;
        check_username(user).map_err(|reason| format!("the username {user:?}: {reason}"))?;
        let rest = secret.strip_prefix(MECHANISM).ok_or(FORM)?;
        let (head, keys) = rest.split_once('$').ok_or(FORM)?;
        let (iterations, salt) = head.split_once(':').ok_or(FORM)?;
        let (stored_key, server_key) = keys.split_once(':').ok_or(FORM)?;
        let iterations = iterations.parse().ok().filter(|iterations| (1..=10_000_000).contains(iterations));
        let key =
            |text: &str| BASE64.decode(text).ok().and_then(|key| <[u8; HASH_BYTES]>::try_from(key).ok());
        let verifier = Verifier {
            iterations: iterations.ok_or("the number of iterations is not within 1 to 10000000")?,
            salt: BASE64.decode(salt).map_err(|error| format!("the salt is not Base64: {error}"))?,
            stored_key: key(stored_key).ok_or("the StoredKey is not Base64 of 32 bytes")?,
            server_key: key(server_key).ok_or("the ServerKey is not Base64 of 32 bytes")?,
        };
        match self.users.insert(user.to_owned(), verifier) {
            None => Ok(()),
            Some(_) => Err(format!("user {user} has an entry already")),
        }
    }

    /// Adds `username`, or changes its password.
    pub fn set(&mut self, username: &str, password: &[u8]) -> Result<(), ScramFileError> {
        check_username(username)
            .map_err(|reason| ScramFileError::Username { username: username.to_owned(), reason })?;
        let mut salt = vec![0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(ScramFileError::Randomness)?;
        self.users.insert(username.to_owned(), Verifier::new(password, salt, ITERATIONS));
        Ok(())
    }

    /// Removes `username`; false if it was not there.
    pub fn remove(&mut self, username: &str) -> bool {
        self.users.remove(username).is_some()
    }

    /// The credentials of `username`.
    pub(super) fn verifier(&self, username: &str) -> Option<&Verifier> {
        self.users.get(username)
    }

    /// What a user that is not there is asked with: the same for the same name, as long as `secret` is.
    pub(super) fn decoy(secret: &[u8], username: &str) -> Verifier {
        let salt = sign(secret, username.as_bytes())[..SALT_BYTES].to_vec();
        Verifier { iterations: ITERATIONS, salt, stored_key: [0; HASH_BYTES], server_key: [0; HASH_BYTES] }
    }

    /// Writes the file at `path`: whole or not at all, readable by its owner only.
    pub fn save(&self, path: &Path) -> Result<(), ScramFileError> {
        whole_file::replace(path, &self.to_string())
            .map_err(|error| ScramFileError::Write { path: path.to_owned(), error })
    }
}

impl fmt::Display for ScramFile {
    /// The content of the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.comments.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        self.users.iter().try_for_each(|(user, verifier)| {
            let (salt, stored) = (BASE64.encode(&verifier.salt), BASE64.encode(verifier.stored_key));
            let server = BASE64.encode(verifier.server_key);
            writeln!(f, "{user}:{MECHANISM}{}:{salt}${stored}:{server}", verifier.iterations)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // As PostgreSQL stores the password "pencil" with the salt of RFC 7677.
    const LINE: &str = "user:SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    fn parse(content: &str) -> Result<ScramFile, String> {
        ScramFile::parse(Path::new("scram"), content).map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_of_postgresql_is_read_and_written() {
        let file = parse(&format!("# users\n{LINE}\n")).unwrap();
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        assert_eq!(file.verifier("user"), Some(&Verifier::new(b"pencil", salt, 4_096)));
        assert_eq!(file.to_string(), format!("# users\n{LINE}\n"));
    }

    #[test]
    fn users_come_and_go() {
        let mut file = parse("").unwrap();
        file.set("ada", b"secret").unwrap();
        let again = parse(&file.to_string()).unwrap();
        let verifier = again.verifier("ada").unwrap();
        assert_eq!(*verifier, Verifier::new(b"secret", verifier.salt.clone(), verifier.iterations));
        assert!(file.remove("ada") && !file.remove("ada"));
        assert!(file.set("a:b", b"x").is_err());
    }

    #[test]
    fn mistakes_are_told_with_their_lines() {
        let check = |line: String, expected: &str| {
            let error = parse(&format!("\n{line}\n")).unwrap_err();
            assert!(error.contains("line 2: ") && error.contains(expected), "{error}");
        };
        check("user".into(), "a line is");
        check(LINE.replace("256", "1"), "a line is");
        check(LINE.replace("4096", "0"), "iterations");
        check(LINE.replace("W22", "!"), "salt");
        check(LINE.replace("WG5d", ""), "StoredKey");
        check(LINE.replace("wfPL", ""), "ServerKey");
        check(LINE.replace("user", ""), "username");
        assert!(parse(&format!("{LINE}\n{LINE}\n")).unwrap_err().contains("line 2: user user has an entry"));
    }
}
