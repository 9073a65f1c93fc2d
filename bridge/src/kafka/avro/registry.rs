//! A Schema Registry (Confluent's API, which Apicurio, Karapace and others have too): asked over HTTP, in the
//! caller's thread.
//!
//! What went wrong is told as what delivery makes of it: a registry that is away is asked again, one that refuses
//! waits for somebody to act.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::pump::SinkError;
use crate::secret;

/// For one question.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer in bytes.
const ANSWER_BYTES_MAX: u64 = 8 << 20;
/// How many schemas one schema may rest on, counting those that they rest on.
const REFERENCES_MAX: usize = 256;
/// How much of an answer that is no JSON is told, in characters.
const TOLD_MAX: usize = 200;

const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";
/// Codes of Confluent's API that come with 404.
const NO_SUBJECT: u64 = 40_401;
const NO_VERSION: u64 = 40_402;
const NO_SCHEMA: u64 = 40_403;

/// Which registry, and as whom.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// `http://` or `https://`, with the path below which `/subjects` lies. Empty = there is none.
    pub url: String,
    /// Sent with the password as HTTP Basic authentication; empty = nothing is sent.
    pub username: String,
    /// The password.
    pub password: String,
    /// The file with the password, read whenever the registry is asked anew; it stands above `password`.
    pub password_file: Option<PathBuf>,
    /// Authorities in PEM, of one of which the registry's certificate must be; else those of browsers are trusted.
    pub ca_file: Option<PathBuf>,
    /// Milliseconds between two questions for the latest schemas.
    pub refresh_ms: u32,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            username: String::new(),
            password: String::new(),
            password_file: None,
            ca_file: None,
            refresh_ms: 60_000,
        }
    }
}

impl fmt::Debug for RegistryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryConfig").field("url", &self.url).finish_non_exhaustive()
    }
}

impl RegistryConfig {
    /// Every mistake in it, with the key it is in. What `routes` need is for them to say.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut wrong = |key: &str, why: &str| mistakes.push(format!("kafka.schema_registry.{key}: {why}"));
        let rest = self.url.strip_prefix("http://").or_else(|| self.url.strip_prefix("https://"));
        match rest {
            _ if self.url.is_empty() => {}
            None => wrong("url", "it must begin with http:// or https://"),
            Some(rest) => {
                let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
                if host.contains('@') {
                    wrong("url", "write the user as username and the password as password or password_file");
                } else if rest.contains(['?', '#']) || self.url.parse::<ureq::http::Uri>().is_err() {
                    wrong("url", "it is not a URL, as in http://127.0.0.1:8081");
                }
            }
        }
        if self.username.is_empty() && (!self.password.is_empty() || self.password_file.is_some()) {
            wrong("username", "there is a password and no username");
        }
        mistakes
    }

    /// The password as it is now. `Err` names the file that cannot be read.
    pub(super) fn read_password(&self) -> Result<String, String> {
        let Some(file) = &self.password_file else { return Ok(self.password.clone()) };
        secret::read(file).map_err(|why| format!("kafka.schema_registry.password_file: {why}"))
    }
}

/// A schema as the registry has it.
#[derive(Debug)]
pub(super) struct Registered {
    /// What a record says to name it.
    pub(super) id: u32,
    /// The schema.
    pub(super) text: String,
    /// The schemas whose types it names; each behind those that it names itself.
    pub(super) references: Vec<String>,
}

/// A connection to the registry.
pub(super) struct Registry<'a> {
    url: &'a str,
    username: &'a str,
    agent: ureq::Agent,
    authorization: Option<String>,
}

/// What the registry answers when it does not do what it was asked.
#[derive(Debug)]
struct Refusal {
    status: u16,
    /// The `error_code` of Confluent's API, if it is an answer of that.
    code: Option<u64>,
    told: String,
}

impl<'a> Registry<'a> {
    /// Reads the files that `config` names; connects when it is asked something.
    pub(super) fn new(config: &'a RegistryConfig) -> Result<Self, SinkError> {
        let mut tls = TlsConfig::builder();
        if let Some(file) = &config.ca_file {
            let wrong = |why: String| {
                let file = file.display();
                SinkError::Operator(format!("kafka.schema_registry.ca_file: {file}: {why}"))
            };
            let text = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
            let mut authorities: Vec<Certificate<'static>> = Vec::new();
            for item in parse_pem(&text) {
                if let PemItem::Certificate(certificate) = item.map_err(|error| wrong(error.to_string()))? {
                    authorities.push(certificate);
                }
            }
            if authorities.is_empty() {
                return Err(wrong("it has no certificate in PEM".to_owned()));
            }
            tls = tls.root_certs(RootCerts::new_with_certs(&authorities));
        }
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .max_redirects(0)
            .http_status_as_error(false)
            .tls_config(tls.build())
            .build()
            .into();
        let authorization = match config.username.as_str() {
            "" => None,
            username => {
                let password = config.read_password().map_err(SinkError::Operator)?;
                Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}"))))
            }
        };
        Ok(Self { url: config.url.trim_end_matches('/'), username: &config.username, agent, authorization })
    }

    /// The id of `text` under `subject`, where it is registered if it is not yet.
    pub(super) fn register(&self, subject: &str, text: &str) -> Result<u32, SinkError> {
        let path = format!("/subjects/{}", segment(subject));
        let body = json!({ "schema": text });
        // Asked first, so that a client that may only read can use what somebody else has registered.
        let known = match self.ask(&path, Some(&body))? {
            Ok(known) => Ok(known),
            Err(Refusal { code: Some(NO_SUBJECT | NO_VERSION | NO_SCHEMA), .. }) => {
                self.ask(&format!("{path}/versions"), Some(&body))?
            }
            Err(refusal) => Err(refusal),
        };
        match known {
            Ok(answer) => self.id(&answer),
            Err(Refusal { status: 409, told, .. }) => Err(SinkError::Operator(format!(
                "the Schema Registry at {} says that the schema is not compatible with those of the subject \
                 {subject:?}: {told}; make the schema compatible, or change the compatibility of the subject",
                self.url
            ))),
            Err(Refusal { status: 422, told, .. }) => Err(SinkError::Operator(format!(
                "the Schema Registry at {} does not take the schema for the subject {subject:?}: {told}",
                self.url
            ))),
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    /// The latest schema of `subject`.
    pub(super) fn latest(&self, subject: &str) -> Result<Registered, SinkError> {
        let answer = match self.ask(&format!("/subjects/{}/versions/latest", segment(subject)), None)? {
            Ok(answer) => answer,
            Err(Refusal { code: Some(NO_SUBJECT | NO_VERSION), .. }) => {
                return Err(SinkError::Operator(format!(
                    "the Schema Registry at {} has no subject {subject:?}: register a schema there, or name a file \
                     as the schema of the route",
                    self.url
                )));
            }
            Err(refusal) => return Err(self.refused(&refusal)),
        };
        let mut references = Vec::new();
        self.resolve(&answer, &mut Vec::new(), &mut references)?;
        self.read(subject, &answer, references)
    }

    fn read(&self, subject: &str, answer: &Value, references: Vec<String>) -> Result<Registered, SinkError> {
        // A registry that knows nothing else does not say it.
        let kind = answer.get("schemaType").and_then(Value::as_str).unwrap_or("AVRO");
        if kind != "AVRO" {
            return Err(SinkError::Operator(format!(
                "the latest schema of the subject {subject:?} in the Schema Registry at {} is {kind}, and the \
                 route's encoding is avro",
                self.url
            )));
        }
        let text = answer.get("schema").and_then(Value::as_str).ok_or_else(|| self.not_understood(answer))?;
        Ok(Registered { id: self.id(answer)?, text: text.to_owned(), references })
    }

    /// Fetches the schemas that `answer` rests on, and puts each behind those that it rests on itself.
    fn resolve(
        &self,
        answer: &Value,
        seen: &mut Vec<(String, u64)>,
        found: &mut Vec<String>,
    ) -> Result<(), SinkError> {
        let Some(references) = answer.get("references").and_then(Value::as_array) else { return Ok(()) };
        for reference in references {
            let subject = reference.get("subject").and_then(Value::as_str);
            let version = reference.get("version").and_then(Value::as_u64);
            let (Some(subject), Some(version)) = (subject, version) else {
                return Err(self.not_understood(answer));
            };
            if seen.iter().any(|(known, of)| known == subject && *of == version) {
                continue;
            }
            seen.push((subject.to_owned(), version));
            if seen.len() > REFERENCES_MAX {
                return Err(SinkError::Operator(format!(
                    "a schema of the Schema Registry at {} rests on more than {REFERENCES_MAX} others",
                    self.url
                )));
            }
            let path = format!("/subjects/{}/versions/{version}", segment(subject));
            let inner = self.ask(&path, None)?.map_err(|refusal| self.refused(&refusal))?;
            self.resolve(&inner, seen, found)?;
            found.push(self.read(subject, &inner, Vec::new())?.text);
        }
        Ok(())
    }

    fn id(&self, answer: &Value) -> Result<u32, SinkError> {
        let id = answer.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| self.not_understood(answer))
    }

    /// One question; with `body` it is a POST.
    fn ask(&self, path: &str, body: Option<&Value>) -> Result<Result<Value, Refusal>, SinkError> {
        let url = format!("{}{path}", self.url);
        let authorization = self.authorization.as_deref();
        let answer = match body {
            None => {
                let request = self.agent.get(&url).header("accept", CONTENT_TYPE);
                with(request, authorization).call()
            }
            Some(body) => {
                let request = self.agent.post(&url).header("accept", CONTENT_TYPE);
                with(request, authorization).header("content-type", CONTENT_TYPE).send(body.to_string())
            }
        };
        let mut answer = answer.map_err(|error| self.unreachable(&error))?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let text = text.map_err(|error| self.unreachable(&error))?;
        let read: Option<Value> = serde_json::from_slice(&text).ok();
        match read {
            Some(read) if status == 200 => Ok(Ok(read)),
            read => {
                let code = read.as_ref().and_then(|read| read.get("error_code")?.as_u64());
                let message = read.as_ref().and_then(|read| Some(read.get("message")?.as_str()?.to_owned()));
                let told = message.unwrap_or_else(|| {
                    String::from_utf8_lossy(&text).trim().chars().take(TOLD_MAX).collect()
                });
                Ok(Err(Refusal { status, code, told }))
            }
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> SinkError {
        let told = error.to_string();
        if told.contains("certificate") {
            return SinkError::Operator(format!(
                "the Schema Registry at {} shows a certificate that is not trusted: {told}; check \
                 kafka.schema_registry.ca_file, and that the certificate is for this host and has not expired",
                self.url
            ));
        }
        SinkError::Retry(format!(
            "the Schema Registry at {} cannot be reached: {told}; check that it runs and that \
             kafka.schema_registry.url is right",
            self.url
        ))
    }

    fn refused(&self, refusal: &Refusal) -> SinkError {
        let Refusal { status, told, .. } = refusal;
        let told = if told.is_empty() { String::new() } else { format!(" ({told})") };
        let url = self.url;
        match status {
            401 | 403 if self.username.is_empty() => SinkError::Operator(format!(
                "the Schema Registry at {url} wants credentials: {status}{told}; set \
                 kafka.schema_registry.username and password"
            )),
            401 => SinkError::Operator(format!(
                "the Schema Registry at {url} does not accept the user {:?} with this password: {status}{told}; \
                 check kafka.schema_registry.username and password",
                self.username
            )),
            403 => SinkError::Operator(format!(
                "the Schema Registry at {url} does not let the user {:?} do this: {status}{told}; check the rights \
                 of that user",
                self.username
            )),
            300..=399 => SinkError::Operator(format!(
                "the Schema Registry at {url} answers with a redirect ({status}), which is not followed: set \
                 kafka.schema_registry.url to where it leads"
            )),
            408 | 429 | 500.. => SinkError::Retry(format!(
                "the Schema Registry at {url} cannot answer now: {status}{told}; it is asked again"
            )),
            _ => SinkError::Operator(format!(
                "what answers at {url} is no Schema Registry: {status}{told}; kafka.schema_registry.url must be the \
                 address below which /subjects lies, which for Apicurio ends in /apis/ccompat/v7"
            )),
        }
    }

    fn not_understood(&self, answer: &Value) -> SinkError {
        let told: String = answer.to_string().chars().take(TOLD_MAX).collect();
        SinkError::Operator(format!(
            "the answer of the Schema Registry at {} is not understood: {told}; check kafka.schema_registry.url",
            self.url
        ))
    }
}

fn with<B>(request: ureq::RequestBuilder<B>, authorization: Option<&str>) -> ureq::RequestBuilder<B> {
    match authorization {
        Some(authorization) => request.header("authorization", authorization),
        None => request,
    }
}

/// `text` as one segment of a path (RFC 3986 section 3.3).
fn segment(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            written.push(char::from(byte));
        } else {
            written.push_str(&format!("%{byte:02X}"));
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::TcpListener;
    use std::path::Path;

    use super::*;

    /// A server that gives each answer once, to the request that begins like it; then its address goes away.
    fn answering(answers: Vec<(&'static str, u16, String)>) -> (String, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/base/", listener.local_addr().unwrap());
        let serve = move || {
            for (expected, status, body) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut first, mut line, mut bytes) = (String::new(), String::new(), 0);
                reader.read_line(&mut first).unwrap();
                while line != "\r\n" {
                    line.clear();
                    reader.read_line(&mut line).unwrap();
                    if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                        bytes = length.trim().parse().unwrap();
                    }
                }
                reader.read_exact(&mut vec![0; bytes]).unwrap();
                assert!(first.starts_with(expected), "{first} instead of {expected}");
                let head = format!("HTTP/1.1 {status} -\r\nLocation: /x\r\nConnection: close\r\n");
                write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            }
        };
        (url, std::thread::spawn(serve))
    }

    fn config(url: &str) -> RegistryConfig {
        RegistryConfig { url: url.to_owned(), ..RegistryConfig::default() }
    }

    #[test]
    fn what_an_answer_means_is_told_with_what_to_do() {
        let check = |status, body: &str, is_tried_again: bool, expected: &str| {
            let (url, server) =
                answering(vec![("GET /base/subjects/s/versions/latest ", status, body.to_owned())]);
            let error = Registry::new(&config(&url)).unwrap().latest("s").unwrap_err();
            let told = error.to_string();
            assert!(told.contains(expected), "{status} {body}: {told}");
            assert!(told.contains(url.trim_end_matches('/')), "{told}");
            assert_eq!(matches!(error, SinkError::Retry(_)), is_tried_again, "{told}");
            server.join().unwrap();
        };
        let told = |code: u32| format!("{{\"error_code\": {code}, \"message\": \"No.\"}}");
        check(503, "", true, "cannot answer now: 503; it is asked again");
        check(500, &told(50_001), true, "cannot answer now: 500 (No.)");
        check(429, "slowly", true, "cannot answer now: 429 (slowly)");
        check(401, "", false, "wants credentials: 401; set kafka.schema_registry.username and password");
        check(404, &told(40_401), false, "has no subject \"s\": register a schema there");
        check(404, "<html>", false, "is no Schema Registry: 404 (<html>); kafka.schema_registry.url must be");
        check(302, "", false, "answers with a redirect (302), which is not followed");
        check(200, "hello", false, "is no Schema Registry: 200 (hello)");
        check(200, "{}", false, "is not understood: {}");
        check(200, "{\"id\": -1, \"schema\": \"int\"}", false, "is not understood");
        let protobuf = "{\"id\": 1, \"schema\": \"int\", \"schemaType\": \"PROTOBUF\"}";
        check(200, protobuf, false, "is PROTOBUF, and the route's encoding is avro");
    }

    #[test]
    fn a_schema_is_looked_up_before_it_is_registered() {
        let answer = |status, body: &str| (status, body.to_owned());
        let check = |answers: Vec<(&'static str, (u16, String))>, expected: Result<u32, &str>| {
            let answers = answers.into_iter().map(|(start, (status, body))| (start, status, body)).collect();
            let (url, server) = answering(answers);
            let config = config(&url);
            let found = Registry::new(&config).unwrap().register("a/b c", "\"int\"");
            match expected {
                Ok(id) => assert_eq!(found.unwrap(), id),
                Err(expected) => {
                    let told = found.unwrap_err();
                    assert!(matches!(&told, SinkError::Operator(told) if told.contains(expected)), "{told}");
                }
            }
            server.join().unwrap();
        };
        let (look_up, register) =
            ("POST /base/subjects/a%2Fb%20c ", "POST /base/subjects/a%2Fb%20c/versions ");
        let missing = || answer(404, "{\"error_code\": 40403}");
        check(vec![(look_up, answer(200, "{\"id\": 7}"))], Ok(7));
        check(vec![(look_up, missing()), (register, answer(200, "{\"id\": 8}"))], Ok(8));
        let refused = answer(409, "{\"error_code\": 409, \"message\": \"x is new\"}");
        check(
            vec![(look_up, missing()), (register, refused)],
            Err("not compatible with those of the subject \"a/b c\": x is new"),
        );
        check(vec![(look_up, missing()), (register, answer(422, ""))], Err("does not take the schema"));
    }

    #[test]
    fn schemas_that_one_rests_on_come_before_it() {
        let schema = |text: &str, references: &[(&str, u32)]| {
            let references: Vec<_> = references
                .iter()
                .map(|(subject, version)| json!({"name": "n", "subject": subject, "version": version}))
                .collect();
            json!({"id": 3, "schema": text, "references": references}).to_string()
        };
        let (url, server) = answering(vec![
            ("GET /base/subjects/s/versions/latest ", 200, schema("S", &[("a", 1), ("b", 2), ("a", 1)])),
            ("GET /base/subjects/a/versions/1 ", 200, schema("A", &[("b", 2)])),
            ("GET /base/subjects/b/versions/2 ", 200, schema("B", &[("a", 1)])),
        ]);
        let found = Registry::new(&config(&url)).unwrap().latest("s").unwrap();
        assert_eq!((found.text.as_str(), found.references), ("S", vec!["B".to_owned(), "A".to_owned()]));
        server.join().unwrap();
    }

    #[test]
    fn mistakes_are_told_with_their_key_and_no_secret_is_shown() {
        let check = |config: RegistryConfig, expected: &[&str]| {
            let mistakes = config.mistakes();
            assert_eq!(mistakes.len(), expected.len(), "{mistakes:?}");
            for (mistake, expected) in mistakes.iter().zip(expected) {
                assert!(mistake.starts_with(&format!("kafka.schema_registry.{expected}")), "{mistake}");
            }
        };
        check(RegistryConfig::default(), &[]);
        check(config("https://registry.example:8081/apis/ccompat/v7"), &[]);
        check(config("registry:8081"), &["url: it must begin with http"]);
        check(config("http://u:p@registry"), &["url: write the user as username"]);
        check(config("http://registry/?a"), &["url: it is not a URL"]);
        check(config("http://not a host/"), &["url: it is not a URL"]);
        let both = RegistryConfig {
            password: "secret".into(),
            password_file: Some("file".into()),
            ..config("http://registry")
        };
        assert!(!format!("{both:?}").contains("secret"));
        check(both, &["username: there is a password"]);
        let missing = RegistryConfig {
            username: "u".into(),
            password_file: Some("no-such-file".into()),
            ..config("http://registry")
        };
        let told = Registry::new(&missing).err().unwrap().to_string();
        assert!(
            told.starts_with("kafka.schema_registry.password_file: no-such-file cannot be read: "),
            "{told}"
        );
        let empty =
            RegistryConfig { ca_file: Some(Path::new("/dev/null").into()), ..config("https://registry") };
        let told = Registry::new(&empty).err().unwrap().to_string();
        assert_eq!(told, "kafka.schema_registry.ca_file: /dev/null: it has no certificate in PEM");
    }
}
