//! JSON Web Tokens (RFC 7519): whether one is believed, and who its owner is.
//!
//! What always holds: the kind of a key decides which algorithms it may be used with, never the token; a token
//! without a signature, without an expiry or with something critical that is not known here is not believed. Keys come
//! from a file, or from an address at which the issuer publishes them ([`JwksThread`]).

mod fetch;
mod key;

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::Deserialize;
use tidegate_broker::auth::{Token, VerifyToken};
use tidegate_broker::record::Timestamp;

pub use self::fetch::JwksThread;
pub use self::key::{KeyError, NamedKey};

/// How far two clocks may be apart.
const LEEWAY: Duration = Duration::from_secs(30);

/// The longest token in bytes; a longer one is not looked at.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// What a token must say besides.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The issuer (`iss`), if it matters.
    pub issuer: Option<String>,
    /// What must be among those it is for (`aud`), if that matters.
    pub audience: Option<String>,
    /// Which claim names the user; empty means `sub`.
    pub username_claim: String,
}

/// Checks tokens.
#[derive(Debug, Default)]
pub struct Tokens {
    keys: RwLock<Vec<NamedKey>>,
    expected: Expected,
    /// Told of a key that is not known.
    unknown_key: Option<std::sync::mpsc::SyncSender<()>>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

impl Tokens {
    /// Checks with `keys` against what is `expected`.
    pub fn new(keys: Vec<NamedKey>, expected: Expected) -> Self {
        Self { keys: RwLock::new(keys), expected, unknown_key: None }
    }

    /// From now on checks with `keys`.
    pub fn replace_keys(&self, keys: Vec<NamedKey>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn check_signature(&self, header: &Header, signed: &[u8], signature: &[u8]) -> Result<(), String> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let named = |key: &&NamedKey| match (&header.kid, &key.id) {
            (Some(wanted), Some(id)) => wanted == id,
            (_, _) => true,
        };
        let mut candidates = keys.iter().filter(named).peekable();
        if candidates.peek().is_none() {
            // A full channel holds the wish already.
            self.unknown_key.as_ref().map(|sender| sender.try_send(()));
            return Err("no key is known by that name".to_owned());
        }
        let mut fits = false;
        for key in candidates.filter(|key| key.allows(&header.alg)) {
            fits = true;
            if key.verifies(&header.alg, signed, signature) {
                return Ok(());
            }
        }
        Err(if fits {
            "the signature is wrong".to_owned()
        } else {
            format!("no key may be used with the algorithm {:?}", header.alg)
        })
    }

    fn check_claims(&self, claims: &serde_json::Value, now: Timestamp) -> Result<Token, String> {
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(seconds) if (0.0..=1e12).contains(&seconds) => Ok(Some((seconds * 1_000.0) as u64)),
                Some(_) | None => Err(format!("{name} is not a time")),
            },
        };
        let leeway = LEEWAY.as_millis() as u64;
        let expires = Timestamp(time("exp")?.ok_or("it has no exp")? + leeway);
        if expires <= now {
            return Err("it has expired".to_owned());
        }
        if time("nbf")?.is_some_and(|begins| begins > now.0 + leeway) {
            return Err("its time has not come (nbf)".to_owned());
        }
        if let Some(issuer) = &self.expected.issuer
            && claims.get("iss").and_then(|found| found.as_str()) != Some(issuer)
        {
            return Err(format!("its issuer is not {issuer:?}"));
        }
        if let Some(audience) = &self.expected.audience
            && !is_for(claims.get("aud"), audience)
        {
            return Err(format!("it is not for {audience:?}"));
        }
        let name = match self.expected.username_claim.as_str() {
            "" => "sub",
            name => name,
        };
        let user = claims
            .get(name)
            .and_then(|user| user.as_str())
            .filter(|user| !user.is_empty() && user.len() <= 65_535 && !user.chars().any(char::is_control));
        let user = user.ok_or_else(|| format!("its {name} names no user"))?;
        Ok(Token { user: user.to_owned(), expires: Some(expires) })
    }
}

impl VerifyToken for Tokens {
    fn verify(&self, token: &str, now: Timestamp) -> Result<Token, String> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err("it is too long".to_owned());
        }
        let (signed, signature) = token.rsplit_once('.').ok_or("it has no signature")?;
        let (header, claims) = signed.split_once('.').ok_or("it has no claims")?;
        let part =
            |name: &str, text: &str| BASE64.decode(text).map_err(|_| format!("its {name} is not Base64"));
        let (header, claims) = (part("header", header)?, part("payload", claims)?);
        let header: Header =
            serde_json::from_slice(&header).map_err(|error| format!("its header cannot be read: {error}"))?;
        if header.crit.is_some() {
            return Err("it holds something critical (crit)".to_owned());
        }
        self.check_signature(&header, signed.as_bytes(), &part("signature", signature)?)?;
        let claims: serde_json::Value =
            serde_json::from_slice(&claims).map_err(|error| format!("its claims cannot be read: {error}"))?;
        self.check_claims(&claims, now)
    }
}

/// Whether `wanted` is the audience or among them.
fn is_for(audience: Option<&serde_json::Value>, wanted: &str) -> bool {
    audience.is_some_and(|audience| {
        audience.as_str() == Some(wanted)
            || audience.as_array().is_some_and(|all| all.iter().any(|one| one.as_str() == Some(wanted)))
    })
}

#[cfg(test)]
mod tests;
