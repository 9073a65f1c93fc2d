//! Keys with which tokens are checked: from a PEM file, a secret, or a JSON Web Key Set (RFC 7517).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use ring::signature::{
    self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use serde::Deserialize;

/// The shortest secret in bytes that HS256 may be used with (RFC 7518 section 3.2).
const SECRET_BYTES_MIN: usize = 32;

/// Why there is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A secret that could be guessed.
    #[error("a secret needs at least {SECRET_BYTES_MIN} bytes, this one has {0}")]
    ShortSecret(usize),
    /// Not a public key, or one of a kind that is not known.
    #[error("this is no public key in PEM (BEGIN PUBLIC KEY) of RSA, P-256, P-384 or Ed25519")]
    Pem,
    /// Not a JSON Web Key Set.
    #[error("this is no JSON Web Key Set: {0}")]
    Jwks(String),
}

/// A key, and how tokens name it.
#[derive(Clone)]
pub struct NamedKey {
    /// Its `kid`.
    pub(super) id: Option<String>,
    /// The one algorithm it is for, if that was said.
    algorithm: Option<String>,
    key: Key,
}

#[derive(Clone)]
enum Key {
    Secret(Vec<u8>),
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl std::fmt::Debug for NamedKey {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamedKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl NamedKey {
    /// The key in a file: a public key in PEM, or else a secret, without a newline at its end.
    pub fn from_file(content: &[u8]) -> Result<Self, KeyError> {
        let text = std::str::from_utf8(content).unwrap_or_default();
        let key = if text.contains("-----BEGIN") {
            from_pem(text).ok_or(KeyError::Pem)?
        } else {
            let end = content.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |at| at + 1);
            if end < SECRET_BYTES_MIN {
                return Err(KeyError::ShortSecret(end));
            }
            Key::Secret(content[..end].to_vec())
        };
        Ok(Self { id: None, algorithm: None, key })
    }

    /// The keys of a set that can be used; secrets are not, since everybody can read the set.
    pub fn from_jwks(json: &[u8]) -> Result<Vec<Self>, KeyError> {
        let set: Set = serde_json::from_slice(json).map_err(|error| KeyError::Jwks(error.to_string()))?;
        Ok(set
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value(key).ok())
            .filter_map(from_jwk)
            .collect())
    }

    /// Whether a token with this algorithm may be checked with it.
    pub(super) fn allows(&self, algorithm: &str) -> bool {
        let fits = match &self.key {
            Key::Secret(_) => matches!(algorithm, "HS256" | "HS384" | "HS512"),
            Key::Rsa { .. } => rsa_parameters(algorithm).is_some(),
            Key::P256(_) => algorithm == "ES256",
            Key::P384(_) => algorithm == "ES384",
            Key::Ed25519(_) => algorithm == "EdDSA",
        };
        fits && self.algorithm.as_ref().is_none_or(|only| only == algorithm)
    }

    /// Whether `signature` is that of `message`.
    pub(super) fn verifies(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        let by = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
        };
        match &self.key {
            Key::Secret(secret) => {
                let algorithm = match algorithm {
                    "HS256" => hmac::HMAC_SHA256,
                    "HS384" => hmac::HMAC_SHA384,
                    "HS512" => hmac::HMAC_SHA512,
                    _ => return false,
                };
                hmac::verify(&hmac::Key::new(algorithm, secret), message, signature).is_ok()
            }
            Key::Rsa { n, e } => rsa_parameters(algorithm).is_some_and(|parameters| {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }),
            Key::P256(key) => by(&signature::ECDSA_P256_SHA256_FIXED, key),
            Key::P384(key) => by(&signature::ECDSA_P384_SHA384_FIXED, key),
            Key::Ed25519(key) => by(&signature::ED25519, key),
        }
    }
}

fn rsa_parameters(algorithm: &str) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
        "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
        "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

/// The key in `SubjectPublicKeyInfo` (RFC 5280) between the lines of PEM.
fn from_pem(text: &str) -> Option<Key> {
    let body = text.split_once("-----BEGIN PUBLIC KEY-----")?.1.split_once("-----END PUBLIC KEY-----")?.0;
    let body: String = body.split_whitespace().collect();
    let der = STANDARD.decode(body).ok()?;
    let mut info = element(&mut &der[..], SEQUENCE)?;
    let mut algorithm = element(&mut info, SEQUENCE)?;
    let kind = element(&mut algorithm, OBJECT)?;
    // The first byte counts bits that are not used; there are none.
    let key = element(&mut info, BIT_STRING)?.strip_prefix(&[0])?;
    match kind {
        // rsaEncryption
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01] => {
            let mut numbers = element(&mut &*key, SEQUENCE)?;
            let n = positive(element(&mut numbers, INTEGER)?);
            let e = positive(element(&mut numbers, INTEGER)?);
            Some(Key::Rsa { n, e })
        }
        // ecPublicKey, with prime256v1 or secp384r1
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01] => match element(&mut algorithm, OBJECT)? {
            [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07] => Some(Key::P256(key.to_vec())),
            [0x2B, 0x81, 0x04, 0x00, 0x22] => Some(Key::P384(key.to_vec())),
            _ => None,
        },
        // Ed25519
        [0x2B, 0x65, 0x70] => Some(Key::Ed25519(key.to_vec())),
        _ => None,
    }
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT: u8 = 0x06;
const SEQUENCE: u8 = 0x30;

/// Takes one element with this tag off the front of DER.
fn element<'a>(der: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    *der = rest;
    (found == tag).then_some(content)
}

/// A number without the zero in front that makes it positive.
fn positive(number: &[u8]) -> Vec<u8> {
    number.strip_prefix(&[0]).unwrap_or(number).to_vec()
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

fn from_jwk(jwk: Jwk) -> Option<NamedKey> {
    if jwk.usage.as_ref().is_some_and(|usage| usage != "sig") {
        return None;
    }
    let part = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_ref()?).ok();
    let point = || Some([&[4], &part(&jwk.x)?[..], &part(&jwk.y)?[..]].concat());
    let key = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => Key::Rsa { n: part(&jwk.n)?, e: part(&jwk.e)? },
        ("EC", Some("P-256")) => Key::P256(point()?),
        ("EC", Some("P-384")) => Key::P384(point()?),
        ("OKP", Some("Ed25519")) => Key::Ed25519(part(&jwk.x)?),
        _ => return None,
    };
    Some(NamedKey { id: jwk.kid, algorithm: jwk.alg, key })
}
