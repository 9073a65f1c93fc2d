//! One hashed password, as mosquitto writes it: `$7$iterations$salt$hash` is PBKDF2-HMAC-SHA512, `$6$salt$hash`
//! is SHA-512 of the password followed by the salt. Salt and hash are in Base64; the hash has 64 bytes.
//!
//! Comparisons take the same time wherever the bytes differ.

use std::sync::{LazyLock, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha512};
use subtle::ConstantTimeEq;

const HASH_BYTES: usize = 64;

/// Salt of new hashes: what mosquitto 2.0 writes, and the only length it reads.
const SALT_BYTES: usize = 12;

/// Iterations of new hashes. The thread that checks a password also serves every other client, so a check must stay
/// near a millisecond: a thousand devices that come back together then wait a second for each other.
const ITERATIONS: u32 = 1_000;

/// The most iterations a file may ask for: more would hold every client up for seconds at each wrong password.
const ITERATIONS_MAX: u32 = 1_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Algorithm {
    Sha512,
    Pbkdf2 { iterations: u32 },
}

/// A hashed password.
#[derive(Clone)]
pub(super) struct PasswordHash {
    algorithm: Algorithm,
    salt: Vec<u8>,
    hash: [u8; HASH_BYTES],
    /// A cheap digest of the right password, once it has been seen; known to this process alone.
    verified: OnceLock<[u8; HASH_BYTES]>,
}

impl std::fmt::Debug for PasswordHash {
    /// Without salt and hash, which do not belong into logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PasswordHash").field(&self.algorithm).finish()
    }
}

impl PasswordHash {
    /// Hashes `password` with a new salt.
    pub(super) fn new(password: &[u8]) -> Result<Self, getrandom::Error> {
        let mut salt = vec![0; SALT_BYTES];
        getrandom::fill(&mut salt)?;
        let algorithm = Algorithm::Pbkdf2 { iterations: ITERATIONS };
        let hash = digest(&algorithm, &salt, password);
        Ok(Self { algorithm, salt, hash, verified: OnceLock::new() })
    }

    /// What is checked where there is nothing to check, so that it costs the same: nothing hashes to it.
    pub(super) const fn decoy() -> Self {
        Self {
            algorithm: Algorithm::Pbkdf2 { iterations: ITERATIONS },
            salt: Vec::new(),
            hash: [0; HASH_BYTES],
            verified: OnceLock::new(),
        }
    }

    /// Reads `$6$...` or `$7$...`; an error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const NOT_HASHED: &str = "the password is not hashed as $6$ or $7$: write it with `tidegate passwd` or \
                                  `mosquitto_passwd` (-U hashes a whole file)";
        let mut parts = text.split('$');
        if parts.next() != Some("") {
            return Err(NOT_HASHED.to_owned());
        }
        let algorithm = match parts.next() {
            Some("6") => Algorithm::Sha512,
            Some("7") => Algorithm::Pbkdf2 { iterations: iterations(parts.next().unwrap_or_default())? },
            _ => return Err(NOT_HASHED.to_owned()),
        };
        let salt = decode(parts.next(), "salt")?;
        let hash = decode(parts.next(), "hash")?;
        if parts.next().is_some() {
            return Err("something follows the hash".to_owned());
        }
        let hash = <[u8; HASH_BYTES]>::try_from(hash)
            .map_err(|hash| format!("the hash has {} bytes instead of {HASH_BYTES}", hash.len()))?;
        Ok(Self { algorithm, salt, hash, verified: OnceLock::new() })
    }

    /// Whether `password` is the right one. Slow, as the hash asks for, except where it is right and was so before.
    pub(super) fn verify(&self, password: &[u8]) -> bool {
        let quick = quick_digest(&self.salt, password);
        if self.verified.get().is_some_and(|verified| verified.ct_eq(&quick).into()) {
            return true;
        }
        let right = digest(&self.algorithm, &self.salt, password).ct_eq(&self.hash).into();
        if right {
            // Another thread may have been first, with the same value.
            let _ = self.verified.set(quick);
        }
        right
    }
}

impl std::fmt::Display for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.algorithm {
            Algorithm::Sha512 => f.write_str("$6$")?,
            Algorithm::Pbkdf2 { iterations } => write!(f, "$7${iterations}$")?,
        }
        write!(f, "{}${}", BASE64.encode(&self.salt), BASE64.encode(self.hash))
    }
}

fn iterations(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(iterations @ 1..=ITERATIONS_MAX) => Ok(iterations),
        _ => Err(format!("the number of iterations is {text:?}, which is not within 1 to {ITERATIONS_MAX}")),
    }
}

fn decode(part: Option<&str>, name: &str) -> Result<Vec<u8>, String> {
    match part {
        None | Some("") => Err(format!("the {name} is missing")),
        Some(text) => BASE64.decode(text).map_err(|error| format!("the {name} is not Base64: {error}")),
    }
}

fn digest(algorithm: &Algorithm, salt: &[u8], password: &[u8]) -> [u8; HASH_BYTES] {
    match *algorithm {
        Algorithm::Sha512 => Sha512::new().chain_update(password).chain_update(salt).finalize().into(),
        Algorithm::Pbkdf2 { iterations } => {
            pbkdf2::pbkdf2_hmac_array::<Sha512, HASH_BYTES>(password, salt, iterations)
        }
    }
}

/// A digest that only this process can make: keyed with randomness that never leaves it.
fn quick_digest(salt: &[u8], password: &[u8]) -> [u8; HASH_BYTES] {
    static KEY: LazyLock<[u8; 32]> = LazyLock::new(|| {
        let mut key = [0; 32];
        getrandom::fill(&mut key).expect("the operating system gives randomness once it has started");
        key
    });
    // The key comes first and the password last; key and salt have the same length for every password of an entry.
    Sha512::new().chain_update(*KEY).chain_update(salt).chain_update(password).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with mosquitto_passwd 2.0.11 for the password "secret".
    const PBKDF2: &str = "$7$101$q/Zmr+VG6o2wzdeA$LlzVNcrtZpNfctJ5pg+YZAVVbZTZDKI9l4OiDeQoLDns0tov3S7m91NHag6xPmw1xR+imLUEv2Zhk5ur9wSxhw==";
    const SHA512: &str = "$6$qNo3fmo09lr+IV1C$TszBc4lDXLgOMsXq9ApFLnE4Ce7NReOS6KZPHJKPFiUnDUlrZlZlZ4C+hom/NK66zSd00sogkMC3UPSb8EkzrQ==";

    #[test]
    fn both_kinds_verify_and_are_written_as_they_were_read() {
        for text in [PBKDF2, SHA512] {
            let hash = PasswordHash::parse(text).unwrap();
            for _ in 0..2 {
                assert!(hash.verify(b"secret"), "{text}");
                assert!(!hash.verify(b"Secret"), "{text}");
                assert!(!hash.verify(b"secret "), "{text}");
                assert!(!hash.verify(b""), "{text}");
            }
            assert_eq!(hash.to_string(), text);
        }
    }

    #[test]
    fn every_byte_of_the_hash_counts() {
        for text in [PBKDF2, SHA512] {
            for at in 0..HASH_BYTES {
                let mut hash = PasswordHash::parse(text).unwrap();
                hash.hash[at] ^= 1;
                assert!(!hash.verify(b"secret"), "byte {at} of {text}");
            }
        }
    }

    #[test]
    fn every_hash_has_its_own_salt() {
        let (one, two) = (PasswordHash::new(b"same").unwrap(), PasswordHash::new(b"same").unwrap());
        assert_ne!(one.to_string(), two.to_string());
        assert!(PasswordHash::parse(&one.to_string()).unwrap().verify(b"same"));
        assert!(!format!("{one:?}").contains(&BASE64.encode(one.hash)));
    }

    #[test]
    fn nothing_is_right_for_the_decoy() {
        let decoy = PasswordHash::decoy();
        assert!(!decoy.verify(b""));
        assert!(!decoy.verify(b"secret"));
    }

    #[test]
    fn malformed_hashes_are_refused_with_what_is_wrong() {
        let check = |text: &str, expected: &str| {
            let error = PasswordHash::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("", "not hashed");
        check("secret", "not hashed");
        check("$5$c2FsdA==$aGFzaA==", "not hashed");
        check("$6$", "salt is missing");
        check("$6$c2FsdA==", "hash is missing");
        check("$6$c2FsdA==$", "hash is missing");
        check("$6$c2Fs!A==$aGFzaA==", "salt is not Base64");
        check("$6$c2FsdA==$aGFzaA==", "hash has 4 bytes instead of 64");
        check("$7$c2FsdA==$aGFzaA==", "not within 1 to 1000000");
        check("$7$0$c2FsdA==$aGFzaA==", "not within 1 to 1000000");
        check("$7$-1$c2FsdA==$aGFzaA==", "not within 1 to 1000000");
        check("$7$4000000000$c2FsdA==$aGFzaA==", "not within 1 to 1000000");
        check(&format!("{SHA512}$x"), "something follows the hash");
    }
}
