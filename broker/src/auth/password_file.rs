//! A password file in mosquitto's format: a line per user, `username:hash`.
//!
//! A line that begins with `#` is a comment, and so is a line without a colon; blanks around username and hash do
//! not count, nor does anything after a second colon. Where mosquitto drops an entry it cannot use and only logs
//! that, the whole file is refused here with every mistake in it: a user who silently cannot connect helps nobody.
//! Comments and the order of the lines are kept when the file is changed.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use super::hash::PasswordHash;
use super::whole_file;

/// The longest username and password in bytes: what a CONNECT can hold.
const BYTES_MAX: usize = 65_535;

/// Usernames with hashed passwords.
#[derive(Clone, Debug, Default)]
pub struct PasswordFile {
    lines: Vec<Line>,
    /// Where in `lines` a user's entry is.
    users: HashMap<String, usize>,
    /// Chooses which entry an unknown user is checked against.
    decoys: RandomState,
}

#[derive(Clone, Debug)]
enum Line {
    Entry {
        username: String,
        hash: PasswordHash,
    },
    /// A comment or a blank line.
    Other(String),
}

/// Why a password file could not be read, changed or written.
#[derive(Debug, thiserror::Error)]
pub enum PasswordFileError {
    /// The file cannot be read.
    #[error("cannot read the password file {}: {error}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// Lines of the file are wrong.
    #[error("the password file {} has mistakes:{}", path.display(), Mistakes(mistakes))]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Line numbers, from 1, each with what is wrong.
        mistakes: Vec<(usize, String)>,
    },
    /// The file cannot be written; what was there before still is.
    #[error("cannot write the password file {}: {error}", path.display())]
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
    /// A password longer than a client can send.
    #[error("the password has more than {BYTES_MAX} bytes")]
    PasswordTooLong,
    /// The operating system gave no randomness for a salt.
    #[error("no randomness for the salt: {0}")]
    Randomness(getrandom::Error),
}

/// Lines with what is wrong in them, as errors list them.
pub(super) struct Mistakes<'a>(pub(super) &'a [(usize, String)]);

impl fmt::Display for Mistakes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(line, what)| write!(f, "\n  line {line}: {what}"))
    }
}

impl PasswordFile {
    /// Reads the file at `path`.
    pub fn open(path: &Path) -> Result<Self, PasswordFileError> {
        let content = fs::read_to_string(path)
            .map_err(|error| PasswordFileError::Read { path: path.to_owned(), error })?;
        Self::parse(path, &content)
    }

    /// Reads the content of a password file; `path` is what errors call it.
    pub fn parse(path: &Path, content: &str) -> Result<Self, PasswordFileError> {
        let mut file = Self::default();
        let mut mistakes = Vec::new();
        for (at, line) in content.lines().enumerate() {
            if let Err(mistake) = file.push(line) {
                mistakes.push((at + 1, mistake));
            }
        }
        if mistakes.is_empty() {
            Ok(file)
        } else {
            Err(PasswordFileError::Malformed { path: path.to_owned(), mistakes })
        }
    }

    fn push(&mut self, line: &str) -> Result<(), String> {
        let Some((username, rest)) = line.split_once(':').filter(|_| !line.starts_with('#')) else {
            self.lines.push(Line::Other(line.to_owned()));
            return Ok(());
        };
        let username = username.trim();
        check_username(username).map_err(|reason| format!("the username {username:?}: {reason}"))?;
        let hash = rest.split(':').next().unwrap_or_default().trim();
        let hash = PasswordHash::parse(hash).map_err(|mistake| format!("user {username}: {mistake}"))?;
        if self.users.contains_key(username) {
            return Err(format!("user {username} has an entry already"));
        }
        self.users.insert(username.to_owned(), self.lines.len());
        self.lines.push(Line::Entry { username: username.to_owned(), hash });
        Ok(())
    }

    /// Whether there is nobody in it.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// How many users it has.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether `username` is in it.
    pub fn contains(&self, username: &str) -> bool {
        self.users.contains_key(username)
    }

    /// The usernames, in the order of the file.
    pub fn usernames(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().filter_map(|line| match line {
            Line::Entry { username, .. } => Some(username.as_str()),
            Line::Other(_) => None,
        })
    }

    /// Whether `password` is that of `username`. No password is never right.
    pub(super) fn verify(&self, username: &str, password: Option<&[u8]>) -> bool {
        let right = match self.users.get(username) {
            Some(at) => self.hash_at(*at).is_some_and(|hash| hash.verify(password.unwrap_or_default())),
            None => {
                self.verify_decoy(username, password.unwrap_or_default());
                false
            }
        };
        right && password.is_some()
    }

    /// Spends the time that a wrong password costs some user of this file. An unknown username is always checked
    /// against the same entry, so that neither its cost nor a change of its cost tells it from a known one.
    fn verify_decoy(&self, username: &str, password: &[u8]) {
        let some_line = self.decoys.hash_one(username) as usize % self.lines.len().max(1);
        let entry = (some_line..self.lines.len()).chain(0..some_line).find_map(|at| self.hash_at(at));
        match entry {
            // Another password, so that the right one of the other user does not take the quick way.
            Some(hash) => drop(hash.verify(&[password, b"\0decoy"].concat())),
            None => drop(PasswordHash::decoy().verify(password)),
        }
    }

    fn hash_at(&self, at: usize) -> Option<&PasswordHash> {
        match self.lines.get(at)? {
            Line::Entry { hash, .. } => Some(hash),
            Line::Other(_) => None,
        }
    }

    /// Adds `username`, or changes its password. New entries are `$7$`.
    pub fn set(&mut self, username: &str, password: &[u8]) -> Result<(), PasswordFileError> {
        check_username(username)
            .map_err(|reason| PasswordFileError::Username { username: username.to_owned(), reason })?;
        if password.len() > BYTES_MAX {
            return Err(PasswordFileError::PasswordTooLong);
        }
        let hash = PasswordHash::new(password).map_err(PasswordFileError::Randomness)?;
        let entry = Line::Entry { username: username.to_owned(), hash };
        match self.users.get(username) {
            Some(at) => self.lines[*at] = entry,
            None => {
                self.users.insert(username.to_owned(), self.lines.len());
                self.lines.push(entry);
            }
        }
        Ok(())
    }

    /// Removes `username`; false if it was not there.
    pub fn remove(&mut self, username: &str) -> bool {
        let Some(removed) = self.users.remove(username) else { return false };
        self.lines.remove(removed);
        for at in self.users.values_mut().filter(|at| **at > removed) {
            *at -= 1;
        }
        true
    }

    /// Writes the file at `path`: whole or not at all, readable by its owner only. A file that was there keeps its
    /// owner, and a symbolic link keeps pointing to it.
    pub fn save(&self, path: &Path) -> Result<(), PasswordFileError> {
        whole_file::replace(path, &self.to_string())
            .map_err(|error| PasswordFileError::Write { path: path.to_owned(), error })
    }
}

impl fmt::Display for PasswordFile {
    /// The content of the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| match line {
            Line::Entry { username, hash } => writeln!(f, "{username}:{hash}"),
            Line::Other(text) => writeln!(f, "{text}"),
        })
    }
}

pub(super) fn check_username(username: &str) -> Result<(), &'static str> {
    if username.is_empty() {
        return Err("it is empty");
    }
    if username.len() > BYTES_MAX {
        return Err("it has more than 65535 bytes");
    }
    if username.starts_with('#') {
        return Err("a line that begins with # is a comment");
    }
    if username.contains(':') {
        return Err("a colon would end it");
    }
    if username.contains(|character: char| character.is_control()) {
        return Err("it holds a control character");
    }
    if username.trim() != username {
        return Err("blanks around it would be lost");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
