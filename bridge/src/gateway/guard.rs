//! Who may use the gateway, and who that is.
//!
//! The rule is the MQTT listener's: an address that may connect without credentials, the operator token, a username
//! and password, or a JSON Web Token where MQTT takes them. What who is let in may do is decided in `permit`. Two
//! things are different in HTTP, because a browser carries a stranger's wishes:
//!
//! - A web page of another origin must not act with the trust that this machine has. Whatever a browser sends of
//!   itself (an address, a remembered password) counts only from our own page or an allowed origin. A token is
//!   put there by somebody who knows it and counts from anywhere.
//! - Loopback is trusted only when it is the caller. Behind a reverse proxy everybody comes from loopback: a
//!   request with forwarding headers, or for a name that is not this machine's, needs credentials. What such
//!   headers say is never believed.
//!
//! Wrong passwords and tokens slow their address down, together with those over MQTT. Nobody is kept waiting for an
//! answer here: where one would wait it is 429, and says when to come again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq as _;
use tidegate_broker::auth::{Access, Denied, Identity, Login};
use tidegate_broker::record::Timestamp;
use tidegate_broker::server::{ForeignOrigin, Provenance, WebRules};
use tokio::sync::Semaphore;

use super::Config;
use super::caller::Caller;
use super::reply::Refusal;
use super::routes::App;

/// Password checks at the same time: each is made slow on purpose, so that guessing is.
const PASSWORD_CHECKS_MAX: usize = 2;
/// An address of nobody (RFC 5737): whoever may connect from it without credentials, everybody may.
const SOMEBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// What stands in for the Client Identifier, also as the id of a device that has no credentials.
const CLIENT: &str = "http";
const FORWARDING: [HeaderName; 3] =
    [header::FORWARDED, HeaderName::from_static("x-forwarded-for"), HeaderName::from_static("x-real-ip")];

/// The peer of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

/// The rules.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) access: Arc<Access>,
    operator_token: Option<String>,
    allowed_origins: Vec<String>,
    allowed_hosts: Vec<String>,
    password_checks: Semaphore,
    /// The same for those who bring no credentials to HTTP: MQTT over WebSocket.
    web: WebRules,
}

/// What a request offers to be let in.
#[derive(Debug, PartialEq, Eq)]
enum Credentials {
    None,
    Token(String),
    Password(String, Vec<u8>),
    Malformed,
}

/// Why a password or a JSON Web Token does not let in.
#[derive(Debug)]
enum PasswordError {
    NothingToCheckAgainst,
    Refused(Refusal),
}

impl Guard {
    pub(super) fn new(config: &Config, access: Arc<Access>, operator_token: Option<String>) -> Self {
        let origins = config.allowed_origins.iter().map(|origin| origin.to_ascii_lowercase());
        let hosts = config.allowed_hosts.iter().map(|host| host.to_ascii_lowercase());
        Self {
            access,
            operator_token: operator_token.filter(|token| !token.is_empty()),
            allowed_origins: origins.collect(),
            allowed_hosts: hosts.collect(),
            password_checks: Semaphore::new(PASSWORD_CHECKS_MAX),
            web: WebRules::new(&config.allowed_origins, &config.allowed_hosts),
        }
    }

    /// The address that counts for a WebSocket with MQTT, whose credentials come later.
    pub(super) fn mqtt_peer(&self, peer: IpAddr, headers: &HeaderMap) -> Result<IpAddr, ForeignOrigin> {
        // A value that is no text is nobody's origin and no name of this machine.
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let provenance = Provenance {
            host: text(header::HOST).unwrap_or_default(),
            origin: text(header::ORIGIN),
            forwarded: FORWARDING.iter().any(|name| headers.contains_key(name)),
        };
        self.web.peer(peer, provenance)
    }

    /// Lets the request in and says who sent it, or says why not.
    async fn admit(&self, peer: IpAddr, headers: &HeaderMap, uri: &Uri) -> Result<Caller, Refusal> {
        let (username, secret) = match credentials(headers, uri) {
            Credentials::None => {
                let caller = self.check_address(peer, headers)?;
                self.check_origin(headers)?;
                return Ok(caller);
            }
            Credentials::Malformed => {
                return Err(Refusal::new(
                    StatusCode::UNAUTHORIZED,
                    "bad_credentials",
                    "the Authorization header is neither \"Bearer TOKEN\" nor HTTP Basic",
                ));
            }
            // A token is no part of what a browser adds by itself, so the page's origin does not matter.
            Credentials::Token(token) => (None, token.into_bytes()),
            Credentials::Password(username, password) => {
                self.check_origin(headers)?;
                (Some(username), password)
            }
        };
        // Any username goes with the token, so that a browser's own dialogue can be used to enter it. It cannot be
        // guessed at any speed, so that whoever guesses does not lock the operator out.
        if self.is_operator_token(&secret) {
            return Ok(Caller::Operator);
        }
        if let Some(wait) = self.access.wait_of(peer, now()) {
            return Err(slowed("credentials from this address are not looked at for a while", wait));
        }
        let is_token = username.is_none();
        let refusal = match self.check_password(peer, username, secret).await {
            Ok(identity) => return Ok(Caller::Client(identity)),
            Err(PasswordError::NothingToCheckAgainst) if is_token => {
                unauthorized("bad_credentials", "the token is not the operator token")
            }
            Err(PasswordError::NothingToCheckAgainst) => match self.check_address(peer, headers) {
                Ok(caller) => return Ok(caller),
                Err(refusal) => refusal,
            },
            Err(PasswordError::Refused(refusal)) => refusal,
        };
        Err(self.slow_down(peer, refusal))
    }

    /// Counts a wrong guess, and refuses in the way that says how long to wait if that is needed.
    fn slow_down(&self, peer: IpAddr, refusal: Refusal) -> Refusal {
        if refusal.status != StatusCode::UNAUTHORIZED {
            return refusal;
        }
        let wait = self.access.login_failed(peer, CLIENT, Denied::BadCredentials, now());
        if wait.is_zero() { refusal } else { slowed("the credentials are wrong", wait) }
    }

    fn is_operator_token(&self, token: &[u8]) -> bool {
        self.operator_token.as_ref().is_some_and(|known| bool::from(known.as_bytes().ct_eq(token)))
    }

    /// Who proves with a password, or a JSON Web Token in its place, who they are. Whoever is let in namelessly was let
    /// in for the address: there is nothing to check what was sent against, and it counts for nothing.
    async fn check_password(
        &self,
        peer: IpAddr,
        username: Option<String>,
        password: Vec<u8>,
    ) -> Result<Identity, PasswordError> {
        let _turn = self.password_checks.acquire().await;
        let access = Arc::clone(&self.access);
        let check = move || {
            let login = Login {
                username: username.as_deref(),
                password: Some(&password),
                ..Login::anonymous(peer, CLIENT)
            };
            access.connect(&login, now())
        };
        match tokio::task::spawn_blocking(check).await {
            Ok(Ok(identity)) if identity.name().is_some() => Ok(identity),
            Ok(Ok(_) | Err(Denied::NotAuthorised)) => Err(PasswordError::NothingToCheckAgainst),
            Ok(Err(denied @ Denied::BadCredentials)) => {
                Err(PasswordError::Refused(unauthorized("bad_credentials", &denied.to_string())))
            }
            Err(error) => {
                tracing::error!(%error, "a password check failed");
                let detail = "the password could not be checked";
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                Err(PasswordError::Refused(Refusal::new(status, "internal", detail)))
            }
        }
    }

    /// Who may do without credentials. Who comes from loopback and may be anybody is nobody on this machine.
    fn check_address(&self, peer: IpAddr, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let forwarded = FORWARDING.iter().any(|name| headers.contains_key(name));
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let direct = !forwarded && self.is_this_machine(host);
        let counts = if direct || !peer.is_loopback() { peer } else { SOMEBODY };
        let anonymous = |address| self.access.connect(&Login::anonymous(address, CLIENT), now());
        if let Ok(identity) = anonymous(counts) {
            return Ok(Caller::Client(identity));
        }
        if anonymous(peer).is_err() {
            return Err(unauthorized("unauthorized", "credentials are needed from this address"));
        }
        if forwarded {
            return Err(unauthorized("unauthorized", "credentials are needed through a proxy"));
        }
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "host_not_allowed",
            format!(
                "without credentials the gateway answers to localhost and IP addresses, not to {host:?}; \
                 add the name to http.allowed_hosts or send credentials"
            ),
        ))
    }

    /// Whether a `Host` header can only be meant for this machine: no DNS answer can have led here.
    fn is_this_machine(&self, host: &str) -> bool {
        let name = match host.parse::<SocketAddr>() {
            Ok(_) => return true,
            Err(_) => host.rsplit_once(':').map_or(host, |(name, port)| {
                if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host }
            }),
        };
        let name = name.to_ascii_lowercase();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || self.allowed_hosts.contains(&name)
    }

    /// A request that names an origin must name ours or an allowed one.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let origin = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        let same = origin_authority(&origin)
            .is_some_and(|authority| host.is_some_and(|host| host.eq_ignore_ascii_case(authority)));
        if same || self.allowed_origins.contains(&origin) {
            return Ok(());
        }
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "origin_not_allowed",
            format!(
                "web pages of the origin {origin:?} may not use this gateway; add it to http.allowed_origins"
            ),
        ))
    }

    /// The origin to be named in `Access-Control-Allow-Origin`, if the request's is an allowed one.
    fn cross_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let lower = origin.to_str().ok()?.to_ascii_lowercase();
        self.allowed_origins.contains(&lower).then(|| origin.clone())
    }
}

pub(super) fn now() -> Timestamp {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX))
}

pub(super) fn unauthorized(code: &'static str, reason: &str) -> Refusal {
    let detail = format!(
        "{reason}; send the operator token (the file operator-token in the data folder) as \
         \"Authorization: Bearer TOKEN\" or ?token=TOKEN, or a username and password with HTTP Basic"
    );
    Refusal::new(StatusCode::UNAUTHORIZED, code, detail)
}

/// What an address is told from which too many logins have failed.
fn slowed(reason: &str, wait: Duration) -> Refusal {
    let detail = format!(
        "{reason}: many logins from this address have failed, over HTTP or MQTT; wait as Retry-After says, then come \
         with the right credentials"
    );
    Refusal::too_many("too_many_failures", detail, wait)
}

/// `host[:port]` of an origin `scheme://host[:port]`.
pub(super) fn origin_authority(origin: &str) -> Option<&str> {
    let (scheme, authority) = origin.split_once("://")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    let scheme_fits = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (scheme_fits && !authority.is_empty() && authority.bytes().all(plain)).then_some(authority)
}

fn credentials(headers: &HeaderMap, uri: &Uri) -> Credentials {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        return value.to_str().ok().and_then(authorization).unwrap_or(Credentials::Malformed);
    }
    match query_value(uri, "token") {
        Some(token) => Credentials::Token(token),
        None => Credentials::None,
    }
}

fn authorization(value: &str) -> Option<Credentials> {
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Credentials::Token(rest.to_owned()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(rest).ok()?;
    let colon = decoded.iter().position(|&byte| byte == b':')?;
    let username = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    Some(Credentials::Password(username, decoded[colon + 1..].to_vec()))
}

/// The first value of `name` in the query.
fn query_value(uri: &Uri, name: &str) -> Option<String> {
    let query: axum::extract::Query<Vec<(String, String)>> = axum::extract::Query::try_from_uri(uri).ok()?;
    query.0.into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
}

/// Stands in front of every route.
pub(super) async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let guard = &app.guard;
    let cross_origin = guard.cross_origin(request.headers());
    if request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
    {
        return preflight(cross_origin);
    }
    let peer = request.extensions().get::<Peer>().map_or(SOMEBODY, |peer| peer.0.ip().to_canonical());
    let admitted = guard.admit(peer, request.headers(), request.uri()).await;
    let path = request.uri().path();
    let caller = match admitted {
        Ok(caller) => caller,
        Err(_) if is_open(path) => Caller::Stranger,
        Err(refusal) => return with_cross_origin(refusal.into_response(), cross_origin),
    };
    if let Err(refusal) = guard.may_open(&caller, path) {
        return with_cross_origin(refusal.into_response(), cross_origin);
    }
    request.extensions_mut().insert(caller);
    with_cross_origin(next.run(request).await, cross_origin)
}

/// Probes ask here without credentials; MQTT clients bring theirs in CONNECT.
fn is_open(path: &str) -> bool {
    matches!(path, "/health" | "/health/live" | "/health/ready" | "/mqtt")
}

/// Answers before any credentials: a browser sends none with this question.
fn preflight(origin: Option<HeaderValue>) -> Response {
    let Some(origin) = origin else {
        return Refusal::new(
            StatusCode::FORBIDDEN,
            "origin_not_allowed",
            "web pages of this origin may not use this gateway; add it to http.allowed_origins",
        )
        .into_response();
    };
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, last-event-id"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    with_cross_origin((StatusCode::NO_CONTENT, headers, Body::empty()).into_response(), Some(origin))
}

fn with_cross_origin(mut response: Response, origin: Option<HeaderValue>) -> Response {
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    response
}

#[cfg(test)]
mod tests {
    use tidegate_broker::auth::{Anonymous, PasswordFile};

    use super::*;

    fn guard() -> Guard {
        let config = Config {
            allowed_origins: vec!["https://dash.example".into()],
            allowed_hosts: vec!["gateway.lan".into()],
            ..Config::default()
        };
        Guard::new(&config, Arc::default(), Some("0123456789abcdef".into()))
    }

    #[test]
    fn only_names_that_no_dns_answer_can_forge_are_this_machine() {
        let check = |host: &str, expected| assert_eq!(guard().is_this_machine(host), expected, "{host}");
        check("localhost", true);
        check("LOCALHOST:8080", true);
        check("app.localhost:8080", true);
        check("127.0.0.1:8080", true);
        check("192.168.1.5", true);
        check("[::1]:8080", true);
        check("[::1]", true);
        check("gateway.lan:8080", true);
        check("evil.example", false);
        check("evil.example:8080", false);
        check("127.0.0.1.evil.example", false);
        check("localhost.evil.example", false);
        check("", false);
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let check = |origin: &str, host: &str, expected| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, origin.parse().unwrap());
            headers.insert(header::HOST, host.parse().unwrap());
            assert_eq!(guard().check_origin(&headers).is_ok(), expected, "{origin} at {host}");
        };
        check("http://localhost:8080", "localhost:8080", true);
        check("http://LOCALHOST:8080", "localhost:8080", true);
        check("https://dash.example", "localhost:8080", true);
        check("https://dash.example.evil", "localhost:8080", false);
        check("http://evil.example", "localhost:8080", false);
        check("http://localhost:3000", "localhost:8080", false);
        check("null", "localhost:8080", false);
        check("file://", "localhost:8080", false);
        assert!(guard().check_origin(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn credentials_are_read_from_header_and_query() {
        let check = |authorization: Option<&str>, uri: &str, expected: Credentials| {
            let mut headers = HeaderMap::new();
            if let Some(value) = authorization {
                headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            }
            assert_eq!(credentials(&headers, &uri.parse().unwrap()), expected, "{authorization:?} {uri}");
        };
        check(None, "/ws", Credentials::None);
        check(None, "/ws?token=abc%2B1&x=y", Credentials::Token("abc+1".into()));
        check(Some("Bearer abc"), "/ws?token=other", Credentials::Token("abc".into()));
        check(Some("basic dXNlcjpwYTpzcw=="), "/", Credentials::Password("user".into(), b"pa:ss".to_vec()));
        check(Some("Digest x"), "/", Credentials::Malformed);
        check(Some("Basic ???"), "/", Credentials::Malformed);
        check(Some("Bearer"), "/", Credentials::Malformed);
    }

    #[tokio::test]
    async fn guesses_are_slowed_by_address_and_nobody_else_is() {
        let mut passwords = PasswordFile::default();
        passwords.set("d1", b"secret").unwrap();
        let access = Access::new(Anonymous::Never, Some(passwords));
        let guard = Guard::new(&Config::default(), Arc::new(access), Some("0123456789abcdef".into()));
        let admit = async |address: &str, authorization: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
            let admitted = guard.admit(address.parse().unwrap(), &headers, &Uri::from_static("/")).await;
            admitted.map_err(|refusal| (refusal.status.as_u16(), refusal.retry_after_s))
        };
        let right = format!("Basic {}", STANDARD.encode("d1:secret"));
        let wrong = format!("Basic {}", STANDARD.encode("d1:guess"));
        let (guesser, other) = ("192.0.2.7", "192.0.2.8");
        for wait in [1, 1, 1, 1, 2, 4] {
            assert_eq!(admit(guesser, &wrong).await.unwrap_err(), (429, Some(wait)));
            assert!(admit(guesser, &right).await.is_ok(), "who knows it does not wait");
        }
        while guard.access.logins().unchecked == 0 {
            assert_eq!(admit(guesser, "Bearer guess").await.unwrap_err().0, 429);
        }
        assert_eq!(admit(guesser, &right).await.unwrap_err().0, 429);
        assert!(admit(guesser, "Bearer 0123456789abcdef").await.is_ok());
        assert!(admit(other, &right).await.is_ok());
        assert_eq!(admit(other, "Bearer guess").await.unwrap_err(), (429, Some(1)), "it counts for itself");
    }

    #[test]
    fn only_the_whole_token_is_right() {
        let check = |token: &str, expected| {
            assert_eq!(guard().is_operator_token(token.as_bytes()), expected, "{token}")
        };
        check("0123456789abcdef", true);
        check("0123456789abcde", false);
        check("0123456789abcdeF", false);
        check("", false);
        let without = Guard::new(&Config::default(), Arc::default(), Some(String::new()));
        assert!(!without.is_operator_token(b""));
    }
}
