//! Who a client says it is, and who it was found to be.

use std::net::IpAddr;
use std::sync::Arc;

use crate::record::Timestamp;

/// What a client brings along to be let in.
#[derive(Clone, Copy)]
pub struct Login<'a> {
    /// Where it comes from.
    pub peer: IpAddr,
    /// Its Client Identifier, also one that was assigned to it.
    pub client: &'a str,
    /// The User Name of its CONNECT.
    pub username: Option<&'a str>,
    /// The Password of its CONNECT.
    pub password: Option<&'a [u8]>,
    /// The name in the certificate that it has proven to own, after a mutual TLS handshake.
    pub certificate: Option<&'a str>,
}

impl<'a> Login<'a> {
    /// A client that brings nothing.
    pub const fn anonymous(peer: IpAddr, client: &'a str) -> Self {
        Self { peer, client, username: None, password: None, certificate: None }
    }
}

impl std::fmt::Debug for Login<'_> {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("peer", &self.peer)
            .field("client", &self.client)
            .field("username", &self.username)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// Who a connected client is: what the rules for publishing and subscribing look at. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(Arc<Who>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Who {
    user: Option<Box<str>>,
    client: Box<str>,
    local: bool,
    expires: Option<Timestamp>,
}

impl Identity {
    /// A client that has proven to be `user`.
    pub fn user(user: &str, client: &str) -> Self {
        Self(Arc::new(Who { user: Some(user.into()), client: client.into(), local: false, expires: None }))
    }

    /// A client without credentials; `local` says whether it is on this machine.
    pub fn anonymous(client: &str, local: bool) -> Self {
        Self(Arc::new(Who { user: None, client: client.into(), local, expires: None }))
    }

    /// The same one, that must prove itself again at `expires`.
    #[must_use]
    pub fn until(mut self, expires: Option<Timestamp>) -> Self {
        Arc::make_mut(&mut self.0).expires = expires;
        self
    }

    /// The user name, if it is proven.
    pub fn name(&self) -> Option<&str> {
        self.0.user.as_deref()
    }

    /// The Client Identifier.
    pub fn client(&self) -> &str {
        &self.0.client
    }

    /// Whether it is a client without credentials on this machine.
    pub fn is_local(&self) -> bool {
        self.0.local && self.0.user.is_none()
    }

    /// From when on it is nobody any more, unless it has proven itself again.
    pub fn expires(&self) -> Option<Timestamp> {
        self.0.expires
    }
}
