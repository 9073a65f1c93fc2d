//! Tokens: somebody else has found out who a client is, and has signed that.

use std::fmt::Debug;

use crate::record::Timestamp;

/// What a token says, after it was found to be good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The user.
    pub user: String,
    /// From when on it says nothing any more.
    pub expires: Option<Timestamp>,
}

/// Checks tokens. The keys and what a token must say are its own affair.
pub trait VerifyToken: Debug + Send + Sync {
    /// What `token` says at `now`, or why it is not believed.
    fn verify(&self, token: &str, now: Timestamp) -> Result<Token, String>;
}

/// Whether a password can only be a token: three parts in Base64, of which the first begins as a JSON object does.
pub(super) fn looks_like_token(password: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(password).ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_token = text.starts_with("ey") && text.bytes().filter(|byte| *byte == b'.').count() == 2;
    (is_token && text.bytes().all(plain)).then_some(text)
}
