//! How clients come to the shard: accepted, taken over, greeted, refused.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::{Interest, Token};

use super::super::layers::{Broken, Greeting, Guest, Layers, Plan};
use super::super::listener::Accepted;
use super::super::net::Net;
use super::super::socket::{Socket, Stream};
use super::super::transport::Transport;
use super::super::{Adopted, Certificates, ProxyRules, WebRules};
use super::Shard;
use crate::broker::Now;
use crate::slots::Key;

/// Connections accepted per round.
const ACCEPTS_PER_ROUND: usize = 64;
/// Refused handshakes are told in the log this often at most, and always counted.
const BROKEN_INTERVAL: Duration = Duration::from_secs(1);

/// What connections that are more than plain TCP have to pass.
pub(super) struct Rules {
    pub(super) certificates: Option<Arc<Certificates>>,
    pub(super) web: Arc<WebRules>,
    pub(super) proxy: Option<Arc<ProxyRules>>,
    pub(super) packet_bytes: usize,
}

impl Rules {
    /// How a client that was just accepted goes on; `None` if the rules for it cannot be had.
    fn stream(&self, net: Net, transport: Transport, peer: IpAddr) -> Option<Stream> {
        let proxy = self.proxy.clone().filter(|_| transport != Transport::Unix);
        let net = match net {
            Net::Tcp(stream) if transport == Transport::Tcp && proxy.is_none() => {
                return Some(Stream::Tcp(stream));
            }
            net @ (Net::Tcp(_) | Net::Unix(_)) => net,
        };
        let tls = if transport.is_tls() {
            let config = self.certificates.as_ref()?.current();
            Some(Box::new(rustls::ServerConnection::new(config).ok()?))
        } else {
            None
        };
        let web = transport.is_web().then(|| Arc::clone(&self.web));
        let plan = Plan { transport, proxy, tls, web, packet_bytes: self.packet_bytes };
        Some(Stream::Layered(Box::new(Layers::new(net, peer, plan))))
    }
}

impl Shard {
    pub(super) fn accept(&mut self, now: Now) {
        let mut left = ACCEPTS_PER_ROUND;
        for place in 0..self.listeners.len() {
            while left > 0 && self.listeners[place].ready {
                left -= 1;
                let transport = self.listeners[place].transport;
                match self.listeners[place].accept(now.monotonic) {
                    Accepted::Client(net, peer) => {
                        if let Some(stream) = self.rules.stream(net, transport, peer) {
                            self.admit(stream, peer, now);
                        }
                    }
                    Accepted::Nobody | Accepted::Paused(None) => break,
                    Accepted::Paused(Some(error)) => {
                        tracing::warn!(
                            %error, %transport,
                            "no more connections are accepted until some have ended; raise LimitNOFILE or ulimit -n"
                        );
                        break;
                    }
                }
            }
        }
    }

    fn admit(&mut self, mut stream: Stream, peer: IpAddr, now: Now) -> Option<Key> {
        let key = self.broker.open(peer, now)?;
        // Acknowledgements must not wait for each other.
        match &mut stream {
            Stream::Tcp(stream) => _ = stream.set_nodelay(true),
            Stream::Layered(layers) => layers.net().set_nodelay(),
        }
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(stream.source(), Token(key.index()), interest) {
            tracing::warn!(%error, "cannot watch a connection");
            self.broker.closed(key, now, &mut self.appender);
            return None;
        }
        if self.sockets.len() <= key.index() {
            self.sockets.resize_with(key.index() + 1, || None);
        }
        self.counters.opened(stream.transport());
        self.sockets[key.index()] = Some(Socket::new(key, stream));
        Some(key)
    }

    /// Takes a WebSocket over that was accepted and greeted elsewhere.
    pub(super) fn adopt(&mut self, adopted: Adopted, now: Now) {
        let Adopted { stream, peer, tls, ahead } = adopted;
        let transport = if tls.is_some() { Transport::Wss } else { Transport::Ws };
        let plan = Plan {
            transport,
            proxy: None,
            tls: tls.map(Box::new),
            web: None,
            packet_bytes: self.rules.packet_bytes,
        };
        let net = Net::Tcp(mio::net::TcpStream::from_std(stream));
        let layers = Layers::upgraded(net, peer, plan, &ahead);
        let guest = layers.guest();
        let Some(key) = self.admit(Stream::Layered(Box::new(layers)), peer, now) else { return };
        self.welcome(key, &guest);
        if let Some(socket) = self.socket(key) {
            // What was read already brings no event.
            socket.readable = true;
            self.line_up(key);
        }
    }

    /// Tells the core what the handshakes told.
    fn welcome(&mut self, key: Key, guest: &Guest) {
        self.broker.set_peer(key, guest.peer);
        if let Some(name) = &guest.certificate {
            self.broker.set_certificate(key, name);
        }
    }

    /// Goes on with the handshakes of a connection; says whether they are done.
    pub(super) fn greet(&mut self, key: Key, now: Now) -> bool {
        let Some(Some(socket)) = self.sockets.get_mut(key.index()) else { return false };
        let Stream::Layered(layers) = &mut socket.stream else { return true };
        if layers.is_open() {
            return true;
        }
        match layers.greet(&mut self.scratch) {
            Ok(Greeting::Done(guest)) => {
                let place = &mut self.sockets[key.index()];
                *place = place.take().map(Socket::lay_off);
                self.welcome(key, &guest);
                // What came with a PROXY header is MQTT already.
                self.receive_unread(key, now);
                true
            }
            Ok(Greeting::Waiting) => {
                socket.readable = false;
                if socket.ended {
                    self.remove(key, now);
                }
                false
            }
            Err(broken) => {
                self.break_off(key, &broken, now);
                false
            }
        }
    }

    /// Ends a connection whose handshakes or frames are not as they must be.
    pub(super) fn break_off(&mut self, key: Key, broken: &Broken, now: Now) {
        if let Some(socket) = self.socket(key) {
            socket.readable = false;
        }
        if matches!(broken, Broken::Ended) {
            return self.remove(key, now);
        }
        if now.monotonic >= self.broken_at {
            self.broken_at = now.monotonic + BROKEN_INTERVAL;
            let peer = self.broker.peer(key).map(tracing::field::display);
            tracing::info!(peer, reason = %broken, "refusing a connection");
        }
        self.broker.break_off(key, broken.reason(), now, &mut self.appender);
    }
}
