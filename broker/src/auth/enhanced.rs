//! Enhanced authentication (MQTT 5.0 section 4.12): the methods, and where an exchange stands.
//!
//! An exchange is a value that takes one message and becomes the next step; it knows no connection.

use super::identity::{Identity, Login};
use super::scram::{self, Challenge};
use super::scram_file::ScramFile;
use super::{Access, Denied};
use crate::record::Timestamp;

/// Random bytes in the server's part of a nonce.
const NONCE_BYTES: usize = 18;

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `SCRAM-SHA-256`: RFC 7677, the client's messages in AUTH or CONNECT, the server's in AUTH and CONNACK.
    ScramSha256,
    /// `JWT`: the Authentication Data is a token.
    Jwt,
}

impl Method {
    /// The method with this name, as CONNECT and AUTH give it.
    pub fn named(name: &str) -> Option<Self> {
        [Self::ScramSha256, Self::Jwt].into_iter().find(|method| method.name() == name)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::Jwt => "JWT",
        }
    }
}

/// An exchange that waits for the client.
#[derive(Debug)]
pub struct Exchange {
    method: Method,
    /// `None` before the client's first message.
    challenge: Option<Box<Challenge>>,
}

/// What a message leads to.
#[derive(Debug)]
pub enum Step {
    /// The client has to answer `data`.
    Continue(Exchange, Vec<u8>),
    /// The client is who it says; `data` goes with the good news.
    Done(Identity, Vec<u8>),
}

impl Exchange {
    /// Begins with a method.
    pub const fn begin(method: Method) -> Self {
        Self { method, challenge: None }
    }

    /// Its method.
    pub const fn method(&self) -> Method {
        self.method
    }
}

impl Access {
    /// Whether clients may use `method`: whether there is anything to check it against.
    pub fn offers(&self, method: Method) -> bool {
        match method {
            Method::ScramSha256 => self.scram().is_some(),
            Method::Jwt => self.tokens().is_some(),
        }
    }

    /// Takes the client's next message in `exchange`. No data asks for the server's turn, which has nothing to say yet.
    pub fn authenticate(
        &self,
        exchange: Exchange,
        login: &Login<'_>,
        data: Option<&[u8]>,
        now: Timestamp,
    ) -> Result<Step, Denied> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| Denied::BadCredentials)?;
        self.step(exchange, login, data, nonce, now)
    }

    fn step(
        &self,
        exchange: Exchange,
        login: &Login<'_>,
        data: Option<&[u8]>,
        nonce: [u8; NONCE_BYTES],
        now: Timestamp,
    ) -> Result<Step, Denied> {
        let Some(data) = data else {
            return match exchange.challenge {
                None => Ok(Step::Continue(exchange, Vec::new())),
                Some(_) => Err(Denied::BadCredentials),
            };
        };
        match (exchange.method, exchange.challenge) {
            (Method::Jwt, _) => {
                let token = std::str::from_utf8(data).map_err(|_| Denied::BadCredentials)?;
                Ok(Step::Done(self.by_token(token, login, now)?, Vec::new()))
            }
            (Method::ScramSha256, None) => {
                let file = self.scram().ok_or(Denied::BadCredentials)?;
                let user = scram::user_of(data).map_err(|_| Denied::BadCredentials)?;
                let known = file.verifier(&user).cloned();
                let is_known = known.is_some();
                let verifier = known.unwrap_or_else(|| ScramFile::decoy(self.secret(), &user));
                let nonce = hex(&nonce);
                let (challenge, answer) =
                    Challenge::new(data, verifier, is_known, &nonce).map_err(|_| Denied::BadCredentials)?;
                let challenge = Some(Box::new(challenge));
                Ok(Step::Continue(Exchange { method: Method::ScramSha256, challenge }, answer))
            }
            (Method::ScramSha256, Some(challenge)) => {
                let (user, answer) = challenge.finish(data).map_err(|_| Denied::BadCredentials)?;
                Ok(Step::Done(Identity::user(&user, login.client), answer))
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
