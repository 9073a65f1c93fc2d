//! A network that can fall silent: connections stay open and nothing passes, as behind a firewall that has forgotten them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const READ_BYTES: usize = 1 << 16;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Passing,
    /// What the server says is swallowed; what it is told still arrives, so it does what nobody hears of.
    AnswersSwallowed,
    /// Everything is swallowed.
    Swallowing,
}

/// Passes connections on to a server until it is told not to. A connection of which something was swallowed never passes anything
/// again, because its stream has a gap now, and stays open until one side ends it. Connections made while it is silent are
/// accepted and stay silent. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct SilentProxy {
    network: watch::Sender<Network>,
    swallowed: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

#[derive(Clone, Debug)]
struct Place {
    network: watch::Receiver<Network>,
    swallowed: Arc<AtomicU64>,
    /// Something of this connection was swallowed.
    has_gap: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    ToServer,
    FromServer,
}

impl SilentProxy {
    /// Listens at `address` and passes on to `server`.
    pub(crate) async fn start(address: SocketAddr, server: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await;
        let listener =
            listener.unwrap_or_else(|error| panic!("the proxy cannot listen on {address}: {error}"));
        let (network, watched) = watch::channel(Network::Passing);
        let swallowed = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&swallowed);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let place = Place {
                    network: watched.clone(),
                    swallowed: Arc::clone(&counted),
                    has_gap: Arc::new(AtomicBool::new(false)),
                };
                connections.spawn(connection(client, server, place));
            }
        });
        Self { network, swallowed, accepting }
    }

    /// From now on the network does this.
    pub(crate) fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// Bytes that did not arrive.
    pub(crate) fn swallowed_bytes(&self) -> u64 {
        self.swallowed.load(Ordering::Relaxed)
    }
}

impl Drop for SilentProxy {
    fn drop(&mut self) {
        // The connections are in its task and end with it.
        self.accepting.abort();
    }
}

async fn connection(client: TcpStream, server: SocketAddr, place: Place) {
    let Ok(upstream) = TcpStream::connect(server).await else { return };
    let (_, _) = (client.set_nodelay(true), upstream.set_nodelay(true));
    if *place.network.borrow() != Network::Passing {
        place.has_gap.store(true, Ordering::Relaxed);
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = upstream.into_split();
    // Whichever side ends first ends both.
    tokio::select! {
        () = pass(from_client, to_server, Direction::ToServer, &place) => {}
        () = pass(from_server, to_client, Direction::FromServer, &place) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: Direction, place: &Place) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(bytes) = from.read(&mut buffer).await {
        if bytes == 0 {
            return;
        }
        let is_swallowed = match *place.network.borrow() {
            Network::Passing => false,
            Network::AnswersSwallowed => direction == Direction::FromServer,
            Network::Swallowing => true,
        };
        if is_swallowed {
            place.has_gap.store(true, Ordering::Relaxed);
        }
        // The direction that lost nothing goes on until the network is whole again.
        let is_over = place.has_gap.load(Ordering::Relaxed)
            && (is_swallowed || *place.network.borrow() == Network::Passing);
        if is_over {
            place.swallowed.fetch_add(bytes as u64, Ordering::Relaxed);
        } else if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}
