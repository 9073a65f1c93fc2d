//! What lies between a socket and the bytes of MQTT: a PROXY header, TLS, WebSocket frames.
//!
//! A connection first passes its handshakes ([`Layers::greet`]); then its bytes are read and written through what
//! they have set up. Nothing is collected on the way: plaintext and the payloads of frames go to where the caller
//! wants them. How long a handshake may take is not decided here.

use std::io::{self, Read};
use std::net::IpAddr;
use std::sync::Arc;

use rustls::ServerConnection;

use super::frame::Violation;
use super::lower::{Early, Lower};
use super::net::Net;
use super::origin::WebRules;
use super::proxy::{self, Malformed, ProxyRules};
use super::tls;
use super::transport::Transport;
use super::upgrade::{self, UpgradeError};
use super::web::Web;
use crate::broker::Outbox;
use crate::mqtt::ReasonCode;

/// How much of a handshake is read at once.
const GREETING_BYTES: usize = 4 * 1_024;
/// What is added to the limit of a packet for its fixed header.
const FIXED_HEADER_BYTES: usize = 5;

/// A connection that is more than plain TCP.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) transport: Transport,
    lower: Lower,
    stage: Stage,
    /// Read behind the handshake of the WebSocket and not yet taken.
    ahead: Early,
    web: Option<Web>,
    web_rules: Option<Arc<WebRules>>,
    peer: IpAddr,
    packet_bytes: usize,
}

/// How far the handshakes are.
#[derive(Debug)]
enum Stage {
    Proxy(Arc<ProxyRules>),
    Tls,
    /// The head of the request, as far as it has come.
    Upgrade(Vec<u8>),
    Open,
    /// Refused: nothing is read any more.
    Refused,
}

/// What a connection has to pass.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) transport: Transport,
    pub(super) proxy: Option<Arc<ProxyRules>>,
    pub(super) tls: Option<Box<ServerConnection>>,
    pub(super) web: Option<Arc<WebRules>>,
    /// The limit of a packet; a frame may not be longer.
    pub(super) packet_bytes: usize,
}

/// Why a connection ends before the core wants it to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}; see mqtt.proxy_protocol")]
    Proxy(#[from] Malformed),
    #[error("{0} is not in mqtt.proxy_from")]
    NotAProxy(IpAddr),
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    #[error("WebSocket: {0}")]
    Upgrade(#[from] UpgradeError),
    #[error("{0}")]
    Frame(#[from] Violation),
    /// The peer or the network ended it.
    #[error("the connection ended")]
    Ended,
}

impl Broken {
    /// What a client of MQTT 5.0 is told.
    pub(super) const fn reason(&self) -> ReasonCode {
        match self {
            Self::Frame(Violation::TooLarge(_)) => ReasonCode::PacketTooLarge,
            Self::Frame(Violation::Malformed | Violation::NotBinary)
            | Self::Proxy(_)
            | Self::NotAProxy(_)
            | Self::Tls(_)
            | Self::Upgrade(_)
            | Self::Ended => ReasonCode::ProtocolError,
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        let Some(inner) = error.into_inner() else { return Self::Ended };
        match inner.downcast::<rustls::Error>() {
            Ok(error) => Self::Tls(*error),
            Err(inner) => {
                inner.downcast::<Violation>().map_or(Self::Ended, |violation| Self::Frame(*violation))
            }
        }
    }
}

/// How far [`Layers::greet`] came.
#[derive(Debug)]
pub(super) enum Greeting {
    /// The peer has to send more.
    Waiting,
    /// Every handshake is done.
    Done(Guest),
}

/// What the handshakes told of the peer.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) peer: IpAddr,
    /// Whom its certificate names, if it showed one.
    pub(super) certificate: Option<String>,
}

impl Layers {
    pub(super) fn new(net: Net, peer: IpAddr, plan: Plan) -> Self {
        let mut layers = Self {
            transport: plan.transport,
            lower: Lower::new(net, plan.tls),
            stage: Stage::Open,
            ahead: Early::default(),
            web: None,
            web_rules: plan.web,
            peer,
            packet_bytes: plan.packet_bytes,
        };
        layers.stage = match plan.proxy {
            Some(rules) => Stage::Proxy(rules),
            None => layers.after_proxy(),
        };
        layers
    }

    /// A WebSocket whose handshakes were done by somebody else, who has read `ahead` behind them.
    pub(super) fn upgraded(net: Net, peer: IpAddr, plan: Plan, ahead: &[u8]) -> Self {
        let mut layers = Self::new(net, peer, plan);
        layers.stage = Stage::Open;
        layers.ahead.push(ahead);
        layers.web = Some(layers.frames(Vec::new()));
        layers
    }

    const fn frames(&self, answer: Vec<u8>) -> Web {
        Web::new(self.packet_bytes.saturating_add(FIXED_HEADER_BYTES), answer)
    }

    fn after_proxy(&self) -> Stage {
        if self.lower.tls.is_some() { Stage::Tls } else { self.after_tls() }
    }

    const fn after_tls(&self) -> Stage {
        if self.web_rules.is_some() { Stage::Upgrade(Vec::new()) } else { Stage::Open }
    }

    pub(super) const fn net(&mut self) -> &mut Net {
        &mut self.lower.net
    }

    /// Whether the handshakes are done.
    pub(super) const fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    /// Whether every byte is passed on as it is, so that the layers can go.
    pub(super) const fn is_plain(&self) -> bool {
        self.is_open() && self.lower.tls.is_none() && self.web.is_none()
    }

    /// The socket, with what was read from it and not taken.
    pub(super) fn into_socket(self) -> (Net, Vec<u8>) {
        (self.lower.net, self.lower.early.rest().to_vec())
    }

    /// Goes on with the handshakes as far as what has come allows.
    pub(super) fn greet(&mut self, scratch: &mut [u8]) -> Result<Greeting, Broken> {
        loop {
            let step = match &self.stage {
                Stage::Proxy(rules) => {
                    let rules = Arc::clone(rules);
                    self.read_proxy_header(&rules, scratch).map(|done| done.then(|| self.after_proxy()))
                }
                Stage::Tls => {
                    let done = self.lower.shake_hands(scratch).map_err(Broken::from);
                    done.map(|done| done.then(|| self.after_tls()))
                }
                Stage::Upgrade(_) => self.read_upgrade(scratch).map(|done| done.then_some(Stage::Open)),
                Stage::Open => return Ok(Greeting::Done(self.guest())),
                Stage::Refused => return Ok(Greeting::Waiting),
            };
            match step {
                Ok(Some(next)) => self.stage = next,
                Ok(None) => return Ok(Greeting::Waiting),
                Err(broken) => {
                    self.stage = Stage::Refused;
                    return Err(broken);
                }
            }
        }
    }

    /// What is known of the peer when the handshakes are done.
    pub(super) fn guest(&self) -> Guest {
        let shown = self.lower.tls.as_ref().and_then(|tls| tls.peer_certificates()?.first());
        Guest { peer: self.peer, certificate: shown.and_then(tls::identity) }
    }

    fn read_proxy_header(&mut self, rules: &ProxyRules, scratch: &mut [u8]) -> Result<bool, Broken> {
        if !rules.trusts(self.peer) {
            return Err(Broken::NotAProxy(self.peer));
        }
        loop {
            if let Some(header) = proxy::parse(self.lower.early.rest())? {
                self.lower.early.take(header.bytes);
                self.peer = header.source.unwrap_or(self.peer);
                return Ok(true);
            }
            match self.lower.net.read(&mut scratch[..GREETING_BYTES]) {
                Ok(0) => return Err(Broken::Ended),
                Ok(bytes) => self.lower.early.push(&scratch[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(_) => return Err(Broken::Ended),
            }
        }
    }

    fn read_upgrade(&mut self, scratch: &mut [u8]) -> Result<bool, Broken> {
        let (chunk, scratch) = scratch.split_at_mut(GREETING_BYTES);
        let Stage::Upgrade(mut head) = std::mem::replace(&mut self.stage, Stage::Refused) else {
            return Ok(true);
        };
        loop {
            match self.answer_upgrade(&head) {
                Ok(None) => {}
                Ok(Some((bytes, answer))) => {
                    self.ahead.push(&head[bytes..]);
                    self.web = Some(self.frames(answer.into_bytes()));
                    return self.flush().map(|()| true).map_err(Broken::from);
                }
                Err(error) => {
                    self.web = Some(Web::refused(upgrade::refusal(&error).into_bytes()));
                    return Err(error.into());
                }
            }
            match self.lower.read(chunk, scratch) {
                Ok(0) => return Err(Broken::Ended),
                Ok(bytes) => head.extend_from_slice(&chunk[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stage = Stage::Upgrade(head);
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What answers the request in `head` and how long that is, once it is there.
    fn answer_upgrade(&mut self, head: &[u8]) -> Result<Option<(usize, String)>, UpgradeError> {
        let Some(request) = upgrade::read(head)? else { return Ok(None) };
        if let Some(rules) = &self.web_rules {
            self.peer = rules.peer(self.peer, request.provenance)?;
        }
        Ok(Some((request.bytes, request.upgrade.answer())))
    }

    /// Reads MQTT once. `Ok(0)` is the end.
    fn read(&mut self, out: &mut [u8], scratch: &mut [u8]) -> io::Result<usize> {
        let Some(web) = &mut self.web else { return self.lower.read(out, scratch) };
        loop {
            let bytes = if self.ahead.is_empty() {
                web.check().map_err(|violation| io::Error::new(io::ErrorKind::InvalidData, violation))?;
                self.lower.read(out, scratch)?
            } else {
                self.ahead.move_to(out)
            };
            let decoded = web.decode(&mut out[..bytes]);
            // Pongs, and the answer to a Close frame.
            if !web.is_flushed() {
                web.write(&mut self.lower, &mut Outbox::default())?;
            }
            let payload =
                decoded.map_err(|violation| io::Error::new(io::ErrorKind::InvalidData, violation))?;
            if payload > 0 || bytes == 0 || web.is_closed() {
                return Ok(payload);
            }
        }
    }

    /// The bytes of MQTT as a stream; `scratch` is for whatever the layers need meanwhile.
    pub(super) const fn reader<'a>(&'a mut self, scratch: &'a mut [u8]) -> Reader<'a> {
        Reader { layers: self, scratch }
    }

    /// Writes as much as the peer takes. Returns how many bytes of `outbox` are on their way.
    pub(super) fn write(&mut self, outbox: &mut Outbox) -> io::Result<usize> {
        match &mut self.web {
            None => self.lower.write(outbox),
            Some(web) => web.write(&mut self.lower, outbox),
        }
    }

    /// Writes what was taken from the outbox, and what the layers have to say themselves.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.is_flushed() {
            self.write(&mut Outbox::default())?;
        }
        Ok(())
    }

    /// Whether nothing that was taken from the outbox waits.
    pub(super) fn is_flushed(&self) -> bool {
        self.lower.is_flushed() && self.web.as_ref().is_none_or(Web::is_flushed)
    }

    /// Tells the peer that nothing more comes; says whether that is on its way. To be called when the outbox is
    /// empty.
    pub(super) fn finish(&mut self) -> io::Result<bool> {
        if let Some(web) = &mut self.web {
            web.finish();
        }
        self.flush()?;
        if self.is_flushed() { self.lower.finish() } else { Ok(false) }
    }
}

/// See [`Layers::reader`].
#[derive(Debug)]
pub(super) struct Reader<'a> {
    layers: &'a mut Layers,
    scratch: &'a mut [u8],
}

impl Read for Reader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.layers.read(out, self.scratch)
    }
}
