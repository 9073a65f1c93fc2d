//! Listeners, and the shard: one thread that owns the [`Broker`](crate::broker::Broker) and its sockets.
//!
//! A batch goes from `read` through decoding, the core, the journal's batch and `write` without leaving the
//! thread. Other parts of the appliance reach the broker through a [`Handle`]; the journal's writer wakes the
//! shard when a batch is durable. What packets mean is not decided here.

pub mod checkpoint;
mod clock;
mod descriptors;
mod frame;
mod layers;
mod listener;
mod lower;
mod memory;
mod net;
mod origin;
mod proxy;
pub mod reads;
mod shard;
mod socket;
mod tls;
mod transport;
mod upgrade;
mod web;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use mio::{Poll, Waker};

pub use self::descriptors::{Descriptors, Told, none_left};
use self::listener::Listener;
pub use self::listener::{Listen, Place};
pub use self::origin::{FORWARDING, ForeignOrigin, Provenance, WebRules};
pub use self::proxy::{Network, NotANetwork, ProxyRules};
pub use self::shard::CURSOR as SESSIONS_CURSOR;
use self::shard::{Parts, Shard, WAKER, listener_token};
pub use self::tls::{CertificateError, CertificateFiles, Certificates};
use self::transport::Counters;
pub use self::transport::{Transport, TransportStats};
pub use self::upgrade::{Upgrade, UpgradeError};
use crate::auth::Access;
use crate::broker::Now;
pub use crate::broker::{DropReason, Limit, Limits, RateAction, RefusalReason, Stats};

use crate::journal::{Appender, Journal, Storage};
use crate::record::{Offset, Properties, Qos, Record, Refused};
use crate::topic::{TopicError, TopicName};

/// Local publishes that may wait to be taken in; one more is refused as busy.
const LOCAL_WAITING_MAX: usize = 4_096;

/// What the listeners and the shard need to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where MQTT is accepted.
    pub listen: Vec<Listen>,
    /// The certificate for the listeners with TLS.
    pub certificates: Option<Arc<Certificates>>,
    /// Which web pages may use the listeners with WebSocket.
    pub web: Arc<WebRules>,
    /// Where connections begin with a PROXY header, and from whom; every listener with an address does or none.
    pub proxy: Option<Arc<ProxyRules>>,
    /// Who may connect.
    pub access: Arc<Access>,
    /// Limits of connections and sessions.
    pub limits: Limits,
}

impl Options {
    /// Plain TCP at `address`.
    pub fn plain(address: SocketAddr, access: Arc<Access>, limits: Limits) -> Self {
        Self {
            listen: vec![Listen::tcp(address)],
            certificates: None,
            web: Arc::default(),
            proxy: None,
            access,
            limits,
        }
    }
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be had.
    #[error("cannot listen on {}: {error}", listen.place)]
    Listen {
        /// The configured one.
        listen: Listen,
        /// What the operating system says.
        error: io::Error,
    },
    /// The operating system refuses what the shard needs.
    #[error("cannot start the broker's thread: {0}")]
    System(#[from] io::Error),
    /// The broker's state cannot be restored.
    #[error("cannot restore the broker's state: {0}")]
    Restore(String),
}

/// A publish that does not come from an MQTT connection.
#[derive(Clone, Debug)]
pub struct LocalPublish {
    /// Stands in for the Client Identifier of the publisher; at most 65,535 bytes.
    pub client: String,
    /// A Topic Name.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
    /// Its QoS.
    pub qos: Qos,
    /// Whether it becomes the topic's retained record.
    pub retain: bool,
    /// Travelling properties, encoded as [`crate::record::Properties`].
    pub properties: Vec<u8>,
}

/// Why a local publish was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Not a Topic Name.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The journal refused it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Larger than a packet may be.
    #[error("the payload is larger than a packet may be")]
    TooLarge,
    /// Too many local publishes wait already.
    #[error("the broker is busy: try again")]
    Busy,
    /// The broker is draining.
    #[error("the broker is stopping")]
    Stopped,
}

impl LocalPublish {
    /// What it becomes in the journal; `topic` is its topic.
    fn record<'a>(&'a self, topic: TopicName<'a>, now: Now) -> Record<'a> {
        Record {
            time: now.wall,
            client: &self.client,
            topic,
            properties: Properties::from_encoded(&self.properties),
            payload: &self.payload,
            qos: self.qos,
            retain: self.retain,
            // No client counts from 0: who published locally can always be told from who did at QoS 1 or 2.
            packet_id: 0,
        }
    }
}

/// What became of a series of local publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeriesOutcome {
    /// So many, from the first on, are durable.
    pub durable: usize,
    /// Why the one behind them was not accepted, nor any after it; `None` when all were.
    pub refused: Option<PublishError>,
}

type Done = Box<dyn FnOnce(Result<Offset, PublishError>) + Send>;
type SeriesDone = Box<dyn FnOnce(SeriesOutcome) + Send>;

/// Local publishes that keep their order.
struct Series {
    publishes: Vec<LocalPublish>,
    /// Why the series was cut off behind them, if it was.
    refused: Option<PublishError>,
}

enum Command {
    Publish(LocalPublish, Done),
    Series(Series, SeriesDone),
    Adopt(Box<Adopted>),
    Drain(Duration),
}

impl Command {
    /// Tells whoever waits for it that it will not be done.
    fn refuse(self, error: PublishError) {
        match self {
            Self::Publish(_, done) => done(Err(error)),
            Self::Series(_, done) => done(SeriesOutcome { durable: 0, refused: Some(error) }),
            Self::Adopt(_) | Self::Drain(_) => {}
        }
    }
}

/// A connection whose WebSocket handshake was done elsewhere.
#[derive(Debug)]
pub struct Adopted {
    /// The socket; it must not block.
    pub stream: std::net::TcpStream,
    /// The address that counts for it.
    pub peer: IpAddr,
    /// The TLS it was accepted with.
    pub tls: Option<rustls::ServerConnection>,
    /// What was read behind the handshake.
    pub ahead: Bytes,
}

/// A handle to the running broker; cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Handle {
    commands: SyncSender<Command>,
    waker: Arc<Waker>,
    stats: Arc<Mutex<Stats>>,
    counters: Arc<Counters>,
    packet_bytes: usize,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// Publishes; `done` is called once, from this or the shard's thread, when the record is durable or refused.
    /// It must not block.
    pub fn publish(
        &self,
        publish: LocalPublish,
        done: impl FnOnce(Result<Offset, PublishError>) + Send + 'static,
    ) {
        match self.refusal(&publish) {
            Some(error) => done(Err(error)),
            None => self.send(Command::Publish(publish, Box::new(done))),
        }
    }

    /// Publishes one after the other, up to the first that is refused, so that they keep their order when some have
    /// to be tried again. `done` is called once, from this or the shard's thread, when all that were accepted are
    /// durable. It must not block.
    pub fn publish_series(
        &self,
        mut publishes: Vec<LocalPublish>,
        done: impl FnOnce(SeriesOutcome) + Send + 'static,
    ) {
        let mut wrong = publishes.iter().map(|publish| self.refusal(publish)).enumerate();
        let refused = wrong.find_map(|(at, refusal)| refusal.map(|refusal| (at, refusal)));
        if let Some((at, _)) = refused {
            publishes.truncate(at);
        }
        let refused = refused.map(|(_, refusal)| refusal);
        if publishes.is_empty() {
            return done(SeriesOutcome { durable: 0, refused });
        }
        self.send(Command::Series(Series { publishes, refused }, Box::new(done)));
    }

    /// Why `publish` can never be accepted, if it cannot.
    fn refusal(&self, publish: &LocalPublish) -> Option<PublishError> {
        if let Err(error) = TopicName::new(&publish.topic) {
            return Some(error.into());
        }
        let fits =
            publish.payload.len() <= self.packet_bytes && publish.client.len() <= usize::from(u16::MAX);
        (!fits).then_some(PublishError::TooLarge)
    }

    fn send(&self, command: Command) {
        match self.commands.try_send(command) {
            Ok(()) => {
                // If the shard cannot be woken, its next timer finds the command.
                let _ = self.waker.wake();
            }
            Err(TrySendError::Full(command)) => command.refuse(PublishError::Busy),
            Err(TrySendError::Disconnected(command)) => command.refuse(PublishError::Stopped),
        }
    }

    /// Hands a WebSocket over that carries MQTT. When the broker has no time for it, it is closed.
    pub fn adopt(&self, adopted: Adopted) {
        if self.commands.try_send(Command::Adopt(Box::new(adopted))).is_ok() {
            // If the shard cannot be woken, its next timer finds the command.
            let _ = self.waker.wake();
        }
    }

    /// What came by one transport so far.
    pub fn transport(&self, transport: Transport) -> TransportStats {
        self.counters.stats(transport)
    }

    /// What the broker has done so far.
    pub fn stats(&self) -> Stats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running broker with its listeners.
#[derive(Debug)]
pub struct Server {
    handle: Handle,
    listening: Vec<(Transport, Place)>,
    missing: Vec<Listen>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Restores the broker's state from `storage` and the journal, binds the listeners and starts the shard.
    pub fn start(
        mut options: Options,
        journal: Journal,
        appender: Appender,
        storage: Arc<dyn Storage>,
    ) -> Result<Self, StartError> {
        if options.limits.memory_bytes == 0 {
            options.limits.memory_bytes = memory::available_bytes().map_or(0, |bytes| bytes / 4 * 3);
        }
        let poll = Poll::new()?;
        let (mut listeners, mut missing) = (Vec::new(), Vec::new());
        for listen in &options.listen {
            match Listener::bind(listen)? {
                Some(mut listener) => {
                    listener.register(poll.registry(), listener_token(listeners.len()))?;
                    listeners.push(listener);
                }
                None => missing.push(listen.clone()),
            }
        }
        let listening =
            listeners.iter().map(|listener| (listener.transport, listener.place.clone())).collect();
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let on_durable = Arc::clone(&waker);
        journal.on_durable(move |_| {
            // If the shard cannot be woken, its next timer finds what is durable.
            let _ = on_durable.wake();
        });
        let (sender, commands): (_, Receiver<Command>) = sync_channel(LOCAL_WAITING_MAX);
        let stats = Arc::new(Mutex::new(Stats::default()));
        let counters = Arc::new(Counters::default());
        let handle = Handle {
            commands: sender,
            waker,
            stats: Arc::clone(&stats),
            counters: Arc::clone(&counters),
            packet_bytes: options.limits.packet_bytes,
        };
        let parts = Parts { poll, listeners, journal, appender, storage, commands, stats, counters };
        let shard = Shard::new(options, parts)?;
        let thread = std::thread::Builder::new().name("shard".into()).spawn(move || shard.run())?;
        Ok(Self { handle, listening, missing, thread })
    }

    /// A handle for the other parts of the appliance.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Where it listens, with the port that was chosen if 0 was asked for.
    pub fn listening(&self) -> &[(Transport, Place)] {
        &self.listening
    }

    /// The address of the first listener that has one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listening.iter().find_map(|(_, place)| match place {
            Place::Address(address) => Some(*address),
            Place::Path(..) => None,
        })
    }

    /// The optional listeners whose place was taken.
    pub fn missing(&self) -> &[Listen] {
        &self.missing
    }

    /// Stops accepting, tells clients (0x8B in v5), makes everything accepted durable, saves a checkpoint and
    /// ends; gives up waiting after `deadline`.
    pub fn drain(self, deadline: Duration) {
        let _ = self.handle.commands.send(Command::Drain(deadline));
        let _ = self.handle.waker.wake();
        if self.thread.join().is_err() {
            tracing::error!("the broker's thread had failed");
        }
    }
}

#[cfg(test)]
mod tests;
