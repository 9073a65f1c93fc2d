//! HTTP and server-sent events, just enough of both. Requests are HTTP/1.0, so that no body comes in chunks.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{PATIENCE, within};

/// Room for one read; without it a large body is read in very many.
const READ_BYTES: usize = 1 << 16;

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// A header by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// `GET path`; fails if there is no answer.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Reply {
    try_get(address, path).await.unwrap_or_else(|error| panic!("GET {path}: {error}"))
}

/// `GET path`.
pub(crate) async fn try_get(address: SocketAddr, path: &str) -> std::io::Result<Reply> {
    request(address, "GET", path, &[], b"").await
}

/// `POST path` with a body.
pub(crate) async fn post(address: SocketAddr, path: &str, content_type: &str, body: &[u8]) -> Reply {
    let headers = [("Content-Type", content_type)];
    let reply = request(address, "POST", path, &headers, body).await;
    reply.unwrap_or_else(|error| panic!("POST {path}: {error}"))
}

/// Any request.
pub(crate) async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Reply> {
    within(&format!("{method} {path} is answered"), PATIENCE, async {
        let (mut stream, status, headers, mut rest) = begin(address, method, path, headers, body).await?;
        while stream.read_buf(&mut rest).await? > 0 {
            rest.reserve(READ_BYTES);
        }
        Ok(Reply { status, headers, body: rest.freeze() })
    })
    .await
}

type Begun = (TcpStream, u16, Vec<(String, String)>, BytesMut);

async fn begin(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Begun> {
    let mut stream = TcpStream::connect(address).await?;
    let mut request =
        format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut received = BytesMut::new();
    let head_bytes = loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut received).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = received.split_to(head_bytes);
    let head = std::str::from_utf8(&head).expect("the head of an answer is text");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok((stream, status.expect("an answer begins with its status"), headers, received))
}

/// One server-sent event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) data: String,
}

/// A stream of server-sent events (WHATWG HTML section 9.2). Comments are left out.
#[derive(Debug)]
pub(crate) struct EventStream {
    stream: TcpStream,
    received: BytesMut,
}

impl EventStream {
    /// Opens it; goes on behind `last_event_id`, if there is one.
    pub(crate) async fn open(address: SocketAddr, path: &str, last_event_id: Option<&str>) -> Self {
        let headers: Vec<_> = last_event_id.map(|id| ("Last-Event-ID", id)).into_iter().collect();
        Self::open_with(address, path, &headers).await
    }

    /// Opens it with these headers.
    pub(crate) async fn open_with(address: SocketAddr, path: &str, more: &[(&str, &str)]) -> Self {
        let begun = Self::try_open_with(address, path, more).await;
        begun.unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// Opens it with these headers, if the server is there.
    pub(crate) async fn try_open_with(
        address: SocketAddr,
        path: &str,
        more: &[(&str, &str)],
    ) -> std::io::Result<Self> {
        let headers = [&[("Accept", "text/event-stream")], more].concat();
        let begun = begin(address, "GET", path, &headers, b"");
        let (stream, status, _, received) = within("the event stream begins", PATIENCE, begun).await?;
        assert_eq!(status, 200, "GET {path}: {:?}", String::from_utf8_lossy(&received));
        Ok(Self { stream, received })
    }

    /// The next event that carries data.
    pub(crate) async fn next(&mut self) -> Event {
        let next = within("the next event arrives", PATIENCE, self.try_next()).await;
        next.expect("the event stream goes on")
    }

    /// The next event that carries data; fails when the stream ends.
    pub(crate) async fn try_next(&mut self) -> std::io::Result<Event> {
        loop {
            if let Some(end) = self.received.windows(2).position(|window| window == b"\n\n") {
                let block = self.received.split_to(end + 2);
                let event = parse(std::str::from_utf8(&block).expect("events are UTF-8"));
                if !event.data.is_empty() {
                    return Ok(event);
                }
                continue;
            }
            self.received.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn parse(block: &str) -> Event {
    let mut event = Event::default();
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => value.clone_into(&mut event.id),
            "event" => value.clone_into(&mut event.name),
            "data" if event.data.is_empty() => value.clone_into(&mut event.data),
            "data" => event.data.push_str(&format!("\n{value}")),
            _ => {}
        }
    }
    event
}
