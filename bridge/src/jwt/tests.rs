//! Tokens with every algorithm, and every reason not to believe one.

use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::*;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOW: Timestamp = Timestamp(1_000_000_000_000);
const EXP: u64 = 1_000_000_100;

fn encode(value: &Value) -> String {
    BASE64.encode(value.to_string())
}

fn claims() -> Value {
    json!({"sub": "ada", "exp": EXP, "iss": "us", "aud": ["x", "tidegate"], "name": "Ada L"})
}

fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = BASE64.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn hs(algorithm: hmac::Algorithm) -> impl Fn(&[u8]) -> Vec<u8> {
    move |message| hmac::sign(&hmac::Key::new(algorithm, SECRET), message).as_ref().to_vec()
}

fn by_secret(claims: &Value) -> String {
    token(&json!({"alg": "HS256"}), claims, hs(hmac::HMAC_SHA256))
}

fn secret() -> Vec<NamedKey> {
    vec![NamedKey::from_file(SECRET).unwrap()]
}

fn expected() -> Expected {
    Expected { issuer: Some("us".into()), audience: Some("tidegate".into()), username_claim: "sub".into() }
}

fn ada() -> Result<Token, String> {
    Ok(Token { user: "ada".into(), expires: Some(Timestamp((EXP + 30) * 1_000)) })
}

#[track_caller]
fn refused(tokens: &Tokens, token: &str, reason: &str) {
    let found = tokens.verify(token, NOW).unwrap_err();
    assert!(found.contains(reason), "{found}");
}

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("these tests need openssl");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}");
    output.stdout
}

#[test]
fn secrets_of_every_length_of_hash() {
    for (name, algorithm) in
        [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)]
    {
        let tokens = Tokens::new(secret(), expected());
        assert_eq!(tokens.verify(&token(&json!({"alg": name}), &claims(), hs(algorithm)), NOW), ada());
    }
}

#[test]
fn rsa_keys_made_by_openssl() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let path = path.to_str().unwrap();
    openssl(&["genrsa", "-out", path, "2048"], b"");
    let public = openssl(&["rsa", "-in", path, "-pubout"], b"");
    let tokens = Tokens::new(vec![NamedKey::from_file(&public).unwrap()], expected());
    for (name, hash, pss) in [
        ("RS256", "-sha256", false),
        ("RS384", "-sha384", false),
        ("RS512", "-sha512", false),
        ("PS256", "-sha256", true),
        ("PS384", "-sha384", true),
        ("PS512", "-sha512", true),
    ] {
        let mut arguments = vec!["dgst", hash, "-sign", path];
        if pss {
            arguments.extend(["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"]);
        }
        let good = token(&json!({"alg": name}), &claims(), |message| openssl(&arguments, message));
        assert_eq!(tokens.verify(&good, NOW), ada(), "{name}");
        let other = if pss { "RS256" } else { "PS256" };
        let wrong = token(&json!({"alg": other}), &claims(), |message| openssl(&arguments, message));
        refused(&tokens, &wrong, "signature");
    }
    // The public key is no secret: it must not be taken for one.
    let forged = token(&json!({"alg": "HS256"}), &claims(), |message| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &public), message).as_ref().to_vec()
    });
    refused(&tokens, &forged, "no key may be used");
}

#[test]
fn elliptic_curves_from_a_key_set_and_from_pem() {
    let random = SystemRandom::new();
    for (name, curve, openssl_curve, signing) in [
        ("ES256", "P-256", "prime256v1", &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
        ("ES384", "P-384", "secp384r1", &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
    ] {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(signing, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(signing, pkcs8.as_ref(), &random).unwrap();
        let point = pair.public_key().as_ref();
        let (x, y) = point[1..].split_at(point.len() / 2);
        let set = json!({"keys": [
            {"kty": "oct", "k": BASE64.encode(SECRET)},
            {"kty": "EC", "crv": curve, "kid": "other", "x": BASE64.encode(y), "y": BASE64.encode(x)},
            {"kty": "EC", "crv": curve, "kid": "k1", "alg": name, "x": BASE64.encode(x), "y": BASE64.encode(y)},
            {"kty": "EC", "crv": curve, "kid": "enc", "use": "enc", "x": BASE64.encode(x), "y": BASE64.encode(y)},
            {"what": "is this"},
        ]});
        let keys = NamedKey::from_jwks(set.to_string().as_bytes()).unwrap();
        assert_eq!(keys.len(), 2);
        let tokens = Tokens::new(keys, expected());
        let sign = |message: &[u8]| pair.sign(&random, message).unwrap().as_ref().to_vec();
        let with = |kid: &str| token(&json!({"alg": name, "kid": kid}), &claims(), sign);
        assert_eq!(tokens.verify(&with("k1"), NOW), ada(), "{name}");
        refused(&tokens, &with("other"), "signature");
        refused(&tokens, &with("enc"), "no key is known by that name");
        refused(&tokens, &by_secret(&claims()), "no key may be used");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let path = path.to_str().unwrap();
        openssl(&["ecparam", "-name", openssl_curve, "-genkey", "-noout", "-out", path], b"");
        let public = openssl(&["ec", "-in", path, "-pubout"], b"");
        assert!(NamedKey::from_file(&public).unwrap().allows(name));
    }
}

#[test]
fn ed25519() {
    let random = SystemRandom::new();
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    let public = pair.public_key().as_ref();
    let der = [&[0x30, 42, 0x30, 5, 6, 3, 0x2B, 0x65, 0x70, 3, 33, 0][..], public].concat();
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
    let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": BASE64.encode(public)}]});
    let sign = |message: &[u8]| pair.sign(message).as_ref().to_vec();
    for keys in [
        vec![NamedKey::from_file(pem.as_bytes()).unwrap()],
        NamedKey::from_jwks(set.to_string().as_bytes()).unwrap(),
    ] {
        let tokens = Tokens::new(keys, expected());
        assert_eq!(tokens.verify(&token(&json!({"alg": "EdDSA"}), &claims(), sign), NOW), ada());
    }
}

#[test]
fn what_is_wrong_is_not_believed() {
    let tokens = Tokens::new(secret(), expected());
    let header = |header: Value| token(&header, &claims(), hs(hmac::HMAC_SHA256));
    refused(&tokens, &header(json!({"alg": "none"})), "no key may be used");
    refused(&tokens, &header(json!({"alg": "RS256"})), "no key may be used");
    refused(&tokens, &header(json!({"alg": "HS512"})), "signature");
    refused(&tokens, &header(json!({"typ": "JWT"})), "header");
    refused(&tokens, &header(json!({"alg": "HS256", "crit": ["b64"]})), "critical");
    let good = by_secret(&claims());
    refused(&tokens, &good[..good.len() - 2], "signature");
    refused(&tokens, &format!("{}.", good.rsplit_once('.').unwrap().0), "signature");
    refused(&tokens, &good.replace('.', ""), "no signature");
    refused(&tokens, "a.b", "no claims");
    refused(&tokens, "!.b.c", "Base64");
    refused(&tokens, &"a".repeat(20_000), "too long");

    let changed = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        by_secret(&claims)
    };
    let without = |name: &str| {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        by_secret(&claims)
    };
    refused(&tokens, &without("exp"), "no exp");
    refused(&tokens, &changed("exp", json!("never")), "not a time");
    refused(&tokens, &changed("exp", json!(NOW.0 / 1_000 - 31)), "expired");
    assert!(tokens.verify(&changed("exp", json!(NOW.0 / 1_000 - 29)), NOW).is_ok(), "clocks may differ");
    refused(&tokens, &changed("nbf", json!(NOW.0 / 1_000 + 31)), "nbf");
    refused(&tokens, &changed("nbf", json!("later")), "not a time");
    assert!(tokens.verify(&changed("nbf", json!(NOW.0 / 1_000 + 29)), NOW).is_ok());
    refused(&tokens, &changed("iss", json!("them")), "issuer");
    refused(&tokens, &without("iss"), "issuer");
    refused(&tokens, &changed("aud", json!("x")), "not for");
    refused(&tokens, &without("aud"), "not for");
    assert!(tokens.verify(&changed("aud", json!("tidegate")), NOW).is_ok());
    refused(&tokens, &without("sub"), "names no user");
    refused(&tokens, &changed("sub", json!("")), "names no user");
    refused(&tokens, &changed("sub", json!(7)), "names no user");
    refused(&tokens, &changed("sub", json!("a\nb")), "names no user");
}

#[test]
fn another_claim_may_name_the_user() {
    let expected = Expected { username_claim: "name".into(), ..Expected::default() };
    let found = Tokens::new(secret(), expected).verify(&by_secret(&claims()), NOW).unwrap();
    assert_eq!(found.user, "Ada L");
}

#[test]
fn files_that_hold_no_key_say_so() {
    let check = |content: &[u8], error| assert_eq!(NamedKey::from_file(content).unwrap_err(), error);
    check(b"short\n", KeyError::ShortSecret(5));
    check(b"", KeyError::ShortSecret(0));
    check(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", KeyError::Pem);
    check(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", KeyError::Pem);
    assert!(NamedKey::from_jwks(b"{}").is_err());
    let with_newline = [SECRET, b"\n"].concat();
    let tokens = Tokens::new(vec![NamedKey::from_file(&with_newline).unwrap()], expected());
    assert_eq!(tokens.verify(&by_secret(&claims()), NOW), ada());
}
