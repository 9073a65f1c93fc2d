//! Who may connect, publish and subscribe. (Interface first.)

use std::net::IpAddr;

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
