//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side: the client proves that it knows a password without sending
//! it, and the server that it knows it too.
//!
//! Pure: messages in, messages out; the server's part of the nonce comes in. Names and passwords are compared as the
//! bytes they are, without SASLprep, which changes nothing in ASCII. Channel binding is not offered: the messages
//! travel inside MQTT, whose transport is not known here. An unknown user gets a salt and fails with its proof, as a
//! known one with a wrong password does.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Bytes of a hash.
pub(super) const HASH_BYTES: usize = 32;

/// The longest message in bytes; a longer one fails.
const MESSAGE_BYTES_MAX: usize = 4_096;

type Hash = [u8; HASH_BYTES];

/// What is kept of a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Verifier {
    pub(super) iterations: u32,
    pub(super) salt: Vec<u8>,
    pub(super) stored_key: Hash,
    pub(super) server_key: Hash,
}

impl std::fmt::Debug for Verifier {
    /// Without what could be used to guess the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

impl Verifier {
    /// That of `password`.
    pub(super) fn new(password: &[u8], salt: Vec<u8>, iterations: u32) -> Self {
        let salted = pbkdf2::pbkdf2_hmac_array::<Sha256, HASH_BYTES>(password, &salt, iterations);
        let stored_key = Sha256::digest(sign(&salted, b"Client Key")).into();
        Self { iterations, salt, stored_key, server_key: sign(&salted, b"Server Key") }
    }
}

/// Why an exchange has failed. Clients are told nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScramError {
    /// A message that is none.
    Malformed,
    /// The proof is not that of the password, or there is no such user.
    WrongProof,
}

/// After the first message: the proof is awaited.
#[derive(Clone, Debug)]
pub(super) struct Challenge {
    user: String,
    verifier: Verifier,
    known: bool,
    /// `c=` of the last message must be this header.
    header: String,
    nonce: String,
    /// The messages so far, as they are signed.
    signed: String,
}

/// The user that the client's first message names.
pub(super) fn user_of(first: &[u8]) -> Result<String, ScramError> {
    Ok(First::parse(first)?.user)
}

struct First<'a> {
    header: &'a str,
    bare: &'a str,
    user: String,
    nonce: &'a str,
}

impl<'a> First<'a> {
    fn parse(message: &'a [u8]) -> Result<Self, ScramError> {
        let message = text(message)?;
        let mut parts = message.splitn(3, ',');
        let (Some(binding), Some(authzid), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ScramError::Malformed);
        };
        // `y`: the client could bind to a channel and thinks that we cannot, which is so.
        if !matches!(binding, "n" | "y") {
            return Err(ScramError::Malformed);
        }
        let mut attributes = bare.split(',');
        let user = attributes.next().and_then(|part| part.strip_prefix("n=")).ok_or(ScramError::Malformed)?;
        let nonce =
            attributes.next().and_then(|part| part.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
        let user = unescaped(user)?;
        let other = authzid.strip_prefix("a=").map(unescaped).transpose()?;
        let foreign = other.as_ref().is_some_and(|other| *other != user);
        if foreign || (other.is_none() && !authzid.is_empty()) || nonce.is_empty() || user.is_empty() {
            return Err(ScramError::Malformed);
        }
        Ok(Self { header: &message[..message.len() - bare.len()], bare, user, nonce })
    }
}

impl Challenge {
    /// Answers the client's first message. `verifier` is that of the user it names, or a decoy if there is none.
    pub(super) fn new(
        first: &[u8],
        verifier: Verifier,
        known: bool,
        server_nonce: &str,
    ) -> Result<(Self, Vec<u8>), ScramError> {
        let first = First::parse(first)?;
        let nonce = format!("{}{server_nonce}", first.nonce);
        let answer = format!("r={nonce},s={},i={}", BASE64.encode(&verifier.salt), verifier.iterations);
        let signed = format!("{},{answer}", first.bare);
        let header = BASE64.encode(first.header);
        Ok((Self { user: first.user, verifier, known, header, nonce, signed }, answer.into_bytes()))
    }

    /// Checks the client's last message: its user, and the answer that proves the server.
    pub(super) fn finish(self, last: &[u8]) -> Result<(String, Vec<u8>), ScramError> {
        let message = text(last)?;
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let proof = BASE64.decode(proof).ok().and_then(|proof| Hash::try_from(proof).ok());
        let proof = proof.ok_or(ScramError::Malformed)?;
        let mut attributes = without_proof.split(',');
        let header = attributes.next().and_then(|part| part.strip_prefix("c="));
        let nonce = attributes.next().and_then(|part| part.strip_prefix("r="));
        if header != Some(&self.header) || nonce != Some(&self.nonce) {
            return Err(ScramError::Malformed);
        }
        let signed = format!("{},{without_proof}", self.signed);
        let mut client_key = sign(&self.verifier.stored_key, signed.as_bytes());
        client_key.iter_mut().zip(proof).for_each(|(byte, proof)| *byte ^= proof);
        let found: Hash = Sha256::digest(client_key).into();
        let right = bool::from(found.ct_eq(&self.verifier.stored_key));
        if !right || !self.known {
            return Err(ScramError::WrongProof);
        }
        let signature = sign(&self.verifier.server_key, signed.as_bytes());
        Ok((self.user, format!("v={}", BASE64.encode(signature)).into_bytes()))
    }
}

fn text(message: &[u8]) -> Result<&str, ScramError> {
    let text = std::str::from_utf8(message).map_err(|_| ScramError::Malformed)?;
    if text.len() > MESSAGE_BYTES_MAX || text.contains('\0') { Err(ScramError::Malformed) } else { Ok(text) }
}

/// A name in which `=2C` stands for a comma and `=3D` for an equals sign.
fn unescaped(name: &str) -> Result<String, ScramError> {
    let mut parts = name.split('=');
    let mut found = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (character, rest) = match part.as_bytes() {
            [b'2', b'C', ..] => (',', &part[2..]),
            [b'3', b'D', ..] => ('=', &part[2..]),
            _ => return Err(ScramError::Malformed),
        };
        found.push(character);
        found.push_str(rest);
    }
    Ok(found)
}

/// HMAC-SHA-256.
pub(super) fn sign(key: &[u8], message: &[u8]) -> Hash {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677 section 3.
    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const CHALLENGE: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const LAST: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const PROOF_OF_SERVER: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn verifier() -> Verifier {
        Verifier::new(b"pencil", BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), 4_096)
    }

    fn challenge(known: bool) -> (Challenge, Vec<u8>) {
        Challenge::new(FIRST.as_bytes(), verifier(), known, SERVER_NONCE).unwrap()
    }

    #[test]
    fn the_example_of_the_rfc_is_answered_as_it_says() {
        assert_eq!(user_of(FIRST.as_bytes()), Ok("user".into()));
        let (challenge, answer) = challenge(true);
        assert_eq!(String::from_utf8(answer).unwrap(), CHALLENGE);
        let (user, answer) = challenge.finish(LAST.as_bytes()).unwrap();
        assert_eq!((user.as_str(), String::from_utf8(answer).unwrap().as_str()), ("user", PROOF_OF_SERVER));
    }

    #[test]
    fn nothing_but_the_right_proof_of_a_known_user_is_taken() {
        assert_eq!(challenge(false).0.finish(LAST.as_bytes()).unwrap_err(), ScramError::WrongProof);
        let other = Challenge { verifier: Verifier::new(b"Pencil", vec![1], 4_096), ..challenge(true).0 };
        assert_eq!(other.finish(LAST.as_bytes()).unwrap_err(), ScramError::WrongProof);
        for (from, to) in [
            ("biws", "eSws"),
            ("c=biws", "d=biws"),
            ("k0,", "k1,"),
            ("r=rO", "r=ro"),
            ("p=dH", "p=dh"),
            ("p=", "q="),
            ("VQ=", "VQ"),
            ("p=dHzb", "p="),
            ("biws,", "biws,x=1,"),
        ] {
            let wrong = LAST.replacen(from, to, 1);
            assert_ne!(wrong, LAST);
            assert!(challenge(true).0.finish(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(challenge(true).0.finish(b"").is_err());
        assert!(challenge(true).0.finish(&[0xFF, 0xFE]).is_err());
        assert!(challenge(true).0.finish("p".repeat(5_000).as_bytes()).is_err());
    }

    #[test]
    fn first_messages_are_read_strictly() {
        let user = |message: &str| user_of(message.as_bytes()).ok();
        assert_eq!(user("y,,n=a,r=x").as_deref(), Some("a"));
        assert_eq!(user("n,a=a,n=a,r=x").as_deref(), Some("a"));
        assert_eq!(user("n,,n=a=2Cb=3D,r=x,ext=1").as_deref(), Some("a,b="));
        for wrong in [
            "",
            "n",
            "n,,",
            "p=tls-unique,,n=a,r=x",
            "n,,n=a",
            "n,,r=x,n=a",
            "n,,n=,r=x",
            "n,,n=a,r=",
            "n,a=b,n=a,r=x",
            "n,x,n=a,r=x",
            "n,,n=a=,r=x",
            "n,,n=a=2c,r=x",
            "n,,m=ext,n=a,r=x",
            "x,,n=a,r=x",
            "n,,n=a\0,r=x",
        ] {
            assert_eq!(user(wrong), None, "{wrong}");
        }
    }
}
