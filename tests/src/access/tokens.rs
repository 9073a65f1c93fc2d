//! Tokens whose keys are fetched from their issuer: a small HTTP server stands in for it, openssl makes keys and
//! signatures, and stock clients give the tokens as passwords.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};

use super::publish;
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, eventually, free_address};

/// Between two fetches at least, as the appliance promises its issuer.
const FETCH_INTERVAL: Duration = Duration::from_secs(10);

/// Runs openssl on `input`; returns what it prints.
fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An RSA key of the issuer, in a file.
struct RsaKey {
    id: &'static str,
    path: PathBuf,
}

impl RsaKey {
    fn generate(folder: &Path, id: &'static str) -> Self {
        let path = folder.join(id);
        openssl(&["genrsa", "-out", path.to_str().unwrap(), "2048"], b"");
        Self { id, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// What the issuer publishes of it.
    fn jwk(&self) -> Value {
        let said = openssl(&["rsa", "-in", self.path(), "-noout", "-modulus"], b"");
        let said = String::from_utf8(said).unwrap();
        let digits = said.trim().strip_prefix("Modulus=").expect("openssl prints the modulus").as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let modulus: Vec<u8> = digits.chunks(2).map(byte).collect();
        json!({"kty": "RSA", "use": "sig", "kid": self.id, "n": BASE64.encode(modulus), "e": "AQAB"})
    }

    fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": "RS256", "kid": self.id});
        signed(&header, claims, |message| openssl(&["dgst", "-sha256", "-sign", self.path()], message))
    }
}

fn signed(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
    let signature = BASE64.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// What a good token says.
fn claims() -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    json!({"sub": "ada", "iss": "https://issuer.test/", "aud": ["tidegate"], "exp": now + 3_600})
}

fn set(keys: &[&RsaKey]) -> Answer {
    let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
    Answer::Body(200, json!({ "keys": keys }).to_string())
}

/// How the issuer answers.
#[derive(Clone, Debug)]
enum Answer {
    /// A status and a body.
    Body(u16, String),
    /// Somewhere else.
    Redirect,
    /// Not at all: the connection is closed.
    Hangup,
}

/// An issuer's HTTP server. It ends with the test.
struct Issuer {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    /// When it was asked.
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl Issuer {
    fn start(answer: Answer) -> Self {
        Self::start_at(free_address(), answer)
    }

    fn start_at(address: SocketAddr, answer: Answer) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::default());
        let issuer = Self { address, answer: Arc::clone(&answer), asked: Arc::clone(&asked) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answer = answer.lock().unwrap().clone();
                // A client that goes away meanwhile is its own affair.
                let _ = serve(&stream.unwrap(), &answer);
                asked.lock().unwrap().push(Instant::now());
            }
        });
        issuer
    }

    fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> Vec<Instant> {
        self.asked.lock().unwrap().clone()
    }

    async fn was_asked(&self, times: usize) {
        eventually(&format!("the issuer is asked {times} times"), PATIENCE, async || {
            (self.asked().len() >= times).then_some(())
        })
        .await;
    }
}

fn serve(mut stream: &TcpStream, answer: &Answer) -> std::io::Result<()> {
    let lines = BufReader::new(stream).lines();
    let request: Vec<String> =
        lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).flatten().collect();
    assert!(request[0].starts_with("GET /keys HTTP/1.1"), "{request:?}");
    let (status, more, body) = match answer {
        Answer::Body(status, body) => (*status, "", body.as_str()),
        Answer::Redirect => (302, "Location: /elsewhere\r\n", ""),
        Answer::Hangup => return Ok(()),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} Such\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// An appliance that believes the issuer at `address`, and nobody without a token.
async fn believing(address: SocketAddr) -> Tidegate {
    let settings = Settings::default()
        .set("TIDEGATE_AUTH_ANONYMOUS", "never")
        .set("TIDEGATE_AUTH_JWT_JWKS_URL", &format!("http://{address}/keys"))
        .set("TIDEGATE_AUTH_JWT_ISSUER", "https://issuer.test/")
        .set("TIDEGATE_AUTH_JWT_AUDIENCE", "tidegate");
    Tidegate::start(settings).await
}

/// Publishes as `ada` with a stock client; says whether it was let in.
fn lets_in(tidegate: &Tidegate, token: &str) -> bool {
    let more = ["-V", "mqttv5", "-q", "1", "-u", "anybody", "-P", token];
    publish(tidegate.mqtt, "sensors/ada/t", "1", &more).0
}

/// Whether the token is taken, once what is under way has arrived.
async fn comes_to_let_in(tidegate: &Tidegate, token: &str) {
    eventually("the token is believed", PATIENCE, async || lets_in(tidegate, token).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_known_is_fetched_once_and_its_tokens_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (RsaKey::generate(folder.path(), "old"), RsaKey::generate(folder.path(), "new"));
    let issuer = Issuer::start(set(&[&old]));
    let tidegate = believing(issuer.address).await;
    tidegate.log_has("keys for tokens were fetched").await;
    assert!(lets_in(&tidegate, &old.token(&claims())));
    assert!(!publish(tidegate.mqtt, "sensors/ada/t", "1", &[]).0, "without a token nobody comes in");

    // The user is the one that the token names.
    let device = ["-V", "mqttv5", "-q", "1", "-d", "-u", "eve", "-P", &old.token(&claims())];
    let (_, said) = publish(tidegate.mqtt, "sensors/eve/t", "1", &device);
    assert!(said.contains("RC:135"), "{said}");

    let token = new.token(&claims());
    for _ in 0..5 {
        assert!(!lets_in(&tidegate, &token), "its key is not known yet");
    }
    tidegate.log_has("no key is known by that name").await;
    issuer.answer(set(&[&old, &new]));
    issuer.was_asked(2).await;
    comes_to_let_in(&tidegate, &token).await;
    assert!(lets_in(&tidegate, &old.token(&claims())), "what is known stays known");
    let asked = issuer.asked();
    assert_eq!(asked.len(), 2, "five tokens are one question");
    let between = asked[1] - asked[0];
    assert!(between >= FETCH_INTERVAL - Duration::from_millis(500), "asked again after {between:?}");
}

/// After an answer that is no set, the keys of before hold, and the log names the reason.
async fn keeps_its_keys(keys: &[RsaKey; 2], answer: Answer, told: &str) {
    let issuer = Issuer::start(set(&[&keys[0]]));
    let tidegate = believing(issuer.address).await;
    tidegate.log_has("keys for tokens were fetched").await;
    issuer.answer(answer.clone());
    assert!(!lets_in(&tidegate, &keys[1].token(&claims())));
    let log = tidegate.log_has("cannot fetch keys for tokens; those of before stay").await;
    let line = log.lines().find(|line| line.contains("those of before stay")).unwrap();
    assert!(line.contains(told) && line.contains("auth.jwt_jwks_url"), "{answer:?} is told as {line}");
    assert!(lets_in(&tidegate, &keys[0].token(&claims())), "{answer:?}");
    assert!(!lets_in(&tidegate, &keys[1].token(&claims())), "{answer:?}");

    // It is asked again by itself.
    issuer.answer(set(&[&keys[1]]));
    comes_to_let_in(&tidegate, &keys[1].token(&claims())).await;
    assert!(!lets_in(&tidegate, &keys[0].token(&claims())), "a key that was withdrawn counts no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_fails_changes_nothing_and_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let keys = [RsaKey::generate(folder.path(), "known"), RsaKey::generate(folder.path(), "unknown")];
    let large = format!("{{\"keys\": [{}]}}", "0,".repeat(1 << 20));
    tokio::join!(
        keeps_its_keys(&keys, Answer::Body(500, "{\"keys\": []}".into()), "500"),
        keeps_its_keys(&keys, Answer::Body(200, "<html>sorry</html>".into()), "no JSON Web Key Set"),
        keeps_its_keys(&keys, Answer::Body(200, large), "limit"),
        keeps_its_keys(&keys, Answer::Redirect, "302"),
        keeps_its_keys(&keys, Answer::Hangup, "error"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_away_at_the_start_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let key = RsaKey::generate(folder.path(), "key");
    let address = free_address();
    let tidegate = believing(address).await;
    let log = tidegate.log_has("cannot fetch keys for tokens").await;
    assert!(log.contains("refused"), "{log}");
    assert!(!lets_in(&tidegate, &key.token(&claims())));
    let _issuer = Issuer::start_at(address, set(&[&key]));
    comes_to_let_in(&tidegate, &key.token(&claims())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_issuer_has_signed_for_us_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let key = RsaKey::generate(folder.path(), "key");
    let issuer = Issuer::start(set(&[&key]));
    let tidegate = believing(issuer.address).await;
    tidegate.log_has("keys for tokens were fetched").await;

    let changed = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        key.token(&claims)
    };
    let public = openssl(&["rsa", "-in", key.path(), "-pubout"], b"");
    let by_public_key = |message: &[u8]| {
        let secret = format!("hexkey:{}", hex(&public));
        openssl(&["dgst", "-sha256", "-mac", "HMAC", "-macopt", &secret, "-binary"], message)
    };
    let good = key.token(&claims());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = message.split_once('.').unwrap();
    let other_claims = BASE64.encode(changed_subject().to_string());
    for (token, reason) in [
        (changed("iss", json!("https://other.test/")), "issuer"),
        (changed("aud", json!("another")), "not for"),
        (changed("exp", json!(1_000_000_000)), "expired"),
        (signed(&json!({"alg": "none", "kid": "key"}), &claims(), |_| Vec::new()), "algorithm \\\"none\\\""),
        (signed(&json!({"alg": "HS256", "kid": "key"}), &claims(), by_public_key), "algorithm \\\"HS256\\\""),
        (format!("{header}.{other_claims}.{signature}"), "the signature is wrong"),
    ] {
        let before = tidegate.log().len();
        assert!(!lets_in(&tidegate, &token), "{reason}");
        let log = eventually(&format!("the log says {reason}"), PATIENCE, async || {
            Some(tidegate.log()[before..].to_owned()).filter(|log| log.contains("a token is not believed"))
        })
        .await;
        assert!(log.replace('\\', "").contains(&reason.replace('\\', "")), "{reason}: {log}");
    }
    assert!(lets_in(&tidegate, &good));
    assert_eq!(issuer.asked().len(), 1, "no reason to ask the issuer");
}

fn changed_subject() -> Value {
    let mut claims = claims();
    claims["sub"] = json!("root");
    claims
}
