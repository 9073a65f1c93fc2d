//! The WebSocket handshake (RFC 6455 section 4.2): a request is read, and answered with 101 or with what is wrong.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

use super::origin::{FORWARDING, ForeignOrigin, Provenance};

/// The longest head of a request; browsers send cookies along.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1_024;
const HEADERS_MAX: usize = 64;
/// The WebSocket subprotocols of MQTT [MQTT-6.0.0-3], the second for MQTT 3.1.
const PROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];
/// What the key is hashed with (section 1.3).
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why a handshake is refused; each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// Not HTTP.
    #[error("this port speaks MQTT over WebSocket; what came is no HTTP request")]
    NotHttp,
    /// The head of the request is longer than any needs to be.
    #[error("the head of the request is longer than 16 KiB or has more than 64 headers")]
    TooLong,
    /// HTTP that asks for no WebSocket.
    #[error("this address speaks MQTT over WebSocket: connect with ws:// and the subprotocol mqtt")]
    NotWebSocket,
    /// A version other than 13.
    #[error("only version 13 of WebSocket is spoken here")]
    Version,
    /// Subprotocols, and none is MQTT.
    #[error("no subprotocol that was offered is MQTT: offer mqtt, or mqttv3.1")]
    Protocol,
    /// A page that may not.
    #[error(transparent)]
    Origin(#[from] ForeignOrigin),
}

impl UpgradeError {
    /// The HTTP status code and its words.
    pub const fn status(&self) -> (u16, &'static str) {
        match self {
            Self::NotHttp | Self::Protocol => (400, "Bad Request"),
            Self::TooLong => (431, "Request Header Fields Too Large"),
            Self::NotWebSocket | Self::Version => (426, "Upgrade Required"),
            Self::Origin(_) => (403, "Forbidden"),
        }
    }
}

/// A request for a WebSocket that can be granted, if its origin may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// `Sec-WebSocket-Accept` of the answer.
    pub accept: String,
    /// `Sec-WebSocket-Protocol` of the answer.
    pub protocol: Option<&'static str>,
}

impl Upgrade {
    /// Reads what `headers` ask for.
    ///
    /// # Errors
    ///
    /// If that is no WebSocket with MQTT in it.
    pub fn read<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self, UpgradeError> {
        let (mut upgrade, mut connection) = (false, false);
        let (mut version, mut key) = (None, None);
        let (mut offered, mut protocol) = (false, None);
        for (name, value) in headers {
            let has = |word: &str| list(value).any(|each| each.eq_ignore_ascii_case(word));
            if name.eq_ignore_ascii_case("upgrade") {
                upgrade |= has("websocket");
            } else if name.eq_ignore_ascii_case("connection") {
                connection |= has("upgrade");
            } else if name.eq_ignore_ascii_case("sec-websocket-version") {
                version = Some(value.trim());
            } else if name.eq_ignore_ascii_case("sec-websocket-key") {
                key = Some(value.trim());
            } else if name.eq_ignore_ascii_case("sec-websocket-protocol") {
                offered = true;
                protocol = protocol.or_else(|| list(value).find_map(known_protocol));
            }
        }
        let key = key.filter(|key| STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16));
        let (true, true, Some(key)) = (upgrade, connection, key) else {
            return Err(UpgradeError::NotWebSocket);
        };
        if version != Some("13") {
            return Err(UpgradeError::Version);
        }
        // A client without subprotocols is let in: some of the older ones offer none.
        if offered && protocol.is_none() {
            return Err(UpgradeError::Protocol);
        }
        let accept = STANDARD.encode(Sha1::new().chain_update(key).chain_update(ACCEPT_SUFFIX).finalize());
        Ok(Self { accept, protocol })
    }

    /// The answer that grants it.
    pub(super) fn answer(&self) -> String {
        let protocol = self
            .protocol
            .map_or_else(String::new, |protocol| format!("sec-websocket-protocol: {protocol}\r\n"));
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {}\r\n{protocol}\r\n",
            self.accept
        )
    }
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim)
}

fn known_protocol(offered: &str) -> Option<&'static str> {
    PROTOCOLS.into_iter().find(|known| *known == offered)
}

/// The answer that refuses.
pub(super) fn refusal(error: &UpgradeError) -> String {
    let (status, words) = error.status();
    let version = if status == 426 { "upgrade: websocket\r\nsec-websocket-version: 13\r\n" } else { "" };
    let body = format!("{error}\n");
    format!(
        "HTTP/1.1 {status} {words}\r\nconnection: close\r\n{version}content-type: text/plain; charset=utf-8\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// What the head of a request comes to.
pub(super) struct Request<'a> {
    /// How many bytes the head has.
    pub(super) bytes: usize,
    pub(super) upgrade: Upgrade,
    pub(super) provenance: Provenance<'a>,
}

/// Reads the head of a request at the front of `bytes`; `None` when more bytes are needed.
pub(super) fn read(bytes: &[u8]) -> Result<Option<Request<'_>>, UpgradeError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(UpgradeError::TooLong);
        }
        Err(_) => return Err(UpgradeError::NotHttp),
    };
    if request.method != Some("GET") || request.version != Some(1) {
        return Err(UpgradeError::NotWebSocket);
    }
    let mut provenance = Provenance::default();
    for header in &*request.headers {
        // A value that is no text is nobody's origin and no name of this machine.
        let value = std::str::from_utf8(header.value).unwrap_or("?");
        if header.name.eq_ignore_ascii_case("host") {
            provenance.host = value.trim();
        } else if header.name.eq_ignore_ascii_case("origin") {
            provenance.origin = Some(value.trim());
        }
        provenance.forwarded |= FORWARDING.iter().any(|name| header.name.eq_ignore_ascii_case(name));
    }
    let texts = request.headers.iter();
    let upgrade =
        Upgrade::read(texts.map(|header| (header.name, std::str::from_utf8(header.value).unwrap_or("?"))))?;
    Ok(Some(Request { bytes: length, upgrade, provenance }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455 section 1.3 with other lines in the place of those of the same name.
    fn request(lines: &[&str]) -> String {
        const USUAL: [&str; 6] = [
            "Host: localhost:9001",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Protocol: mqtt",
        ];
        let name = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
        let kept = USUAL.iter().filter(|usual| !lines.iter().any(|line| name(line) == name(usual)));
        let all: Vec<&str> = kept.chain(lines).copied().filter(|line| line.contains(": ")).collect();
        format!("GET /mqtt HTTP/1.1\r\n{}\r\n\r\n", all.join("\r\n"))
    }

    #[track_caller]
    fn protocol(lines: &[&str]) -> Result<Option<&'static str>, UpgradeError> {
        let text = request(lines);
        let read = read(text.as_bytes())?.expect("it is complete");
        assert_eq!(read.bytes, text.len());
        assert_eq!(read.upgrade.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "the example of RFC 6455");
        Ok(read.upgrade.protocol)
    }

    #[test]
    fn a_handshake_is_granted_with_the_subprotocol_it_offered() {
        assert_eq!(protocol(&[]), Ok(Some("mqtt")));
        assert_eq!(protocol(&["Sec-WebSocket-Protocol: mqttv3.1"]), Ok(Some("mqttv3.1")));
        assert_eq!(protocol(&["Sec-WebSocket-Protocol: chat, mqttv3.1, mqtt"]), Ok(Some("mqttv3.1")));
        assert_eq!(
            protocol(&["Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: mqtt"]),
            Ok(Some("mqtt"))
        );
        assert_eq!(protocol(&["Sec-WebSocket-Protocol"]), Ok(None));
        assert_eq!(protocol(&["Connection: keep-alive, upgrade", "Upgrade: WebSocket"]), Ok(Some("mqtt")));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let check =
            |lines: &[&str], expected: UpgradeError| assert_eq!(protocol(lines), Err(expected), "{lines:?}");
        check(&["Sec-WebSocket-Protocol: chat"], UpgradeError::Protocol);
        check(&["Sec-WebSocket-Protocol: MQTT"], UpgradeError::Protocol);
        check(&["Sec-WebSocket-Protocol: "], UpgradeError::Protocol);
        check(&["Upgrade"], UpgradeError::NotWebSocket);
        check(&["Connection: close"], UpgradeError::NotWebSocket);
        check(&["Sec-WebSocket-Key"], UpgradeError::NotWebSocket);
        check(&["Sec-WebSocket-Key: c2hvcnQ="], UpgradeError::NotWebSocket);
        check(&["Sec-WebSocket-Version: 8"], UpgradeError::Version);
        check(&["Sec-WebSocket-Version"], UpgradeError::Version);
        let many: Vec<String> = (0..HEADERS_MAX).map(|n| format!("X-{n}: y")).collect();
        check(&many.iter().map(String::as_str).collect::<Vec<_>>(), UpgradeError::TooLong);
        let error = |bytes: &[u8]| read(bytes).err();
        assert_eq!(error(b"\x10\x0c\0\x04MQTT"), Some(UpgradeError::NotHttp));
        assert_eq!(error(request(&[]).replace("GET", "POST").as_bytes()), Some(UpgradeError::NotWebSocket));
        assert_eq!(error(request(&[]).replace("/1.1", "/1.0").as_bytes()), Some(UpgradeError::NotWebSocket));
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(HEAD_BYTES_MAX));
        assert_eq!(error(endless.as_bytes()), Some(UpgradeError::TooLong));
    }

    #[test]
    fn a_handshake_may_come_in_any_pieces() {
        let text = request(&["Origin: https://dash.example", "X-Forwarded-For: 192.0.2.9"]);
        for end in 0..text.len() {
            assert!(matches!(read(&text.as_bytes()[..end]), Ok(None)), "{end}");
        }
        let request = read(text.as_bytes()).unwrap().unwrap();
        assert_eq!(request.provenance.host, "localhost:9001");
        assert_eq!(request.provenance.origin, Some("https://dash.example"));
        assert!(request.provenance.forwarded);
    }
}
