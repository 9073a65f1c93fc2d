//! Who may connect, publish and subscribe. (Interface first.)

use std::net::IpAddr;
use std::path::Path;

/// Who may connect without credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anonymous {
    /// Clients on this machine.
    #[default]
    Loopback,
    /// Nobody.
    Never,
    /// Everybody.
    Always,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Unknown username or wrong password: 0x86 in v5, 4 in v3.
    #[error("unknown username or wrong password")]
    BadCredentials,
    /// No credentials where they are needed: 0x87 in v5, 5 in v3.
    #[error("credentials are needed")]
    NotAuthorised,
}

/// The rules for connecting.
#[derive(Debug, Default)]
pub struct Access;

#[allow(unused_variables)]
impl Access {
    /// `anonymous` says who may connect without credentials; those who give some are checked against `passwords`.
    pub fn new(anonymous: Anonymous, passwords: Option<PasswordFile>) -> Self {
        todo!()
    }

    /// Whether the client may connect from `peer` with these credentials.
    pub fn connect(
        &self,
        peer: IpAddr,
        username: Option<&str>,
        password: Option<&[u8]>,
    ) -> Result<(), Denied> {
        todo!()
    }
}

/// Usernames with hashed passwords, in mosquitto's format.
#[derive(Clone, Debug, Default)]
pub struct PasswordFile;

/// Why a password file could not be read or written: names the file and, where there is one, the line.
#[derive(Debug, thiserror::Error)]
#[error("password file")]
pub struct PasswordFileError;

#[allow(unused_variables)]
impl PasswordFile {
    /// Reads the file at `path`.
    pub fn open(path: &Path) -> Result<Self, PasswordFileError> {
        todo!()
    }

    /// Reads the content of a password file; `name` is what errors call it.
    pub fn parse(name: &Path, content: &str) -> Result<Self, PasswordFileError> {
        todo!()
    }

    /// Adds `username`, or changes its password.
    pub fn set(&mut self, username: &str, password: &[u8]) -> Result<(), PasswordFileError> {
        todo!()
    }

    /// Removes `username`; false if it was not there.
    pub fn remove(&mut self, username: &str) -> bool {
        todo!()
    }

    /// Writes the file at `path`: whole or not at all, readable by its owner only.
    pub fn save(&self, path: &Path) -> Result<(), PasswordFileError> {
        todo!()
    }
}
