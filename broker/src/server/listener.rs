//! Where clients are accepted.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mio::event::Source;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry, Token};

use super::StartError;
use super::descriptors::{self, Descriptors, Told};
use super::net::Net;
use super::transport::Transport;

/// The pause after the operating system could not give one more socket: the client that waits stays ready, so that
/// trying at once would be trying without end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How many clients the system may let wait to be accepted; it takes less if its own limit (`net.core.somaxconn`) is
/// lower. With the usual 128, clients beyond that are not even refused: they try again after seconds, when a whole site
/// connects at once.
const WAITING_MAX: i32 = 4_096;

/// A listener that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// How MQTT is carried there.
    pub transport: Transport,
    /// Where.
    pub place: Place,
    /// Whether the broker starts without it when the place is taken.
    pub optional: bool,
}

impl Listen {
    /// Plain TCP at `address`.
    pub const fn tcp(address: SocketAddr) -> Self {
        Self { transport: Transport::Tcp, place: Place::Address(address), optional: false }
    }
}

/// Where clients find a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An address; port 0 chooses one.
    Address(SocketAddr),
    /// A Unix socket, with the mode of its file.
    Path(PathBuf, u32),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Path(path, _) => path.display().fmt(f),
        }
    }
}

/// A listener that is there.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) transport: Transport,
    pub(super) place: Place,
    socket: Bound,
    /// Clients may be waiting.
    pub(super) ready: bool,
    /// No more sockets could be had: when to try again.
    pub(super) paused_until: Option<Duration>,
    descriptors: Descriptors,
    /// Accepted, and without a place.
    waiting: Option<(Net, IpAddr)>,
    told: Told,
}

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// What one try to accept came to.
pub(super) enum Accepted {
    Client(Net, IpAddr),
    /// Nobody waits.
    Nobody,
    /// A client waits and cannot be had; says why if that was not told lately.
    Paused(Option<io::Error>),
}

impl Listener {
    /// Binds it; `None` if its place is taken and it is optional.
    pub(super) fn bind(listen: &Listen) -> Result<Option<Self>, StartError> {
        let bound = match &listen.place {
            Place::Address(address) => TcpListener::bind(*address).and_then(|listener| {
                rustix::net::listen(&listener, WAITING_MAX)?;
                let place = Place::Address(listener.local_addr()?);
                Ok((Bound::Tcp(listener), place))
            }),
            Place::Path(path, mode) => {
                bind_path(path, *mode).map(|listener| (Bound::Unix(listener), listen.place.clone()))
            }
        };
        match bound {
            Ok((socket, place)) => Ok(Some(Self {
                transport: listen.transport,
                place,
                socket,
                ready: false,
                paused_until: None,
                descriptors: Descriptors::for_mqtt(),
                waiting: None,
                told: Told::default(),
            })),
            Err(error) if listen.optional && error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(StartError::Listen { listen: listen.clone(), error }),
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let source: &mut dyn Source = match &mut self.socket {
            Bound::Tcp(listener) => listener,
            Bound::Unix(listener) => listener,
        };
        source.register(registry, token, Interest::READABLE)
    }

    /// Accepts one client.
    pub(super) fn accept(&mut self, now: Duration) -> Accepted {
        if self.paused_until.is_some_and(|until| now < until) {
            return Accepted::Nobody;
        }
        if let Some((net, peer)) = self.waiting.take() {
            return self.place(net, peer, now);
        }
        loop {
            let accepted = match &self.socket {
                Bound::Tcp(listener) => listener.accept().map(|(stream, peer)| (Net::Tcp(stream), peer.ip())),
                // Whoever opens a file of this machine is on this machine.
                Bound::Unix(listener) => {
                    listener.accept().map(|(stream, _)| (Net::Unix(stream), Ipv4Addr::LOCALHOST.into()))
                }
            };
            match accepted {
                Ok((net, peer)) => return self.place(net, peer, now),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The client went away before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready = false;
                    self.paused_until = None;
                    return Accepted::Nobody;
                }
                Err(error) => return self.pause(error, now),
            }
        }
    }

    /// Lets a client in if there is room for its socket; else it waits, and so do those behind it.
    fn place(&mut self, net: Net, peer: IpAddr, now: Duration) -> Accepted {
        match net.place(self.descriptors) {
            Ok(net) => {
                self.paused_until = None;
                Accepted::Client(net, peer)
            }
            Err(net) => {
                self.waiting = Some((net, peer));
                self.pause(descriptors::none_left(), now)
            }
        }
    }

    fn pause(&mut self, error: io::Error, now: Duration) -> Accepted {
        self.paused_until = Some(now + ACCEPT_PAUSE);
        Accepted::Paused(Some(error).filter(|_| self.told.is_news(now)))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Place::Path(path, _) = &self.place {
            let _ = fs::remove_file(path);
        }
    }
}

/// Binds a Unix socket. The file of a process that is gone is replaced; a socket that somebody listens on, or a file
/// of another kind, is left alone.
fn bind_path(path: &Path, mode: u32) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Ok(_) | Err(_) => return Err(io::ErrorKind::AddrInUse.into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    rustix::net::listen(&listener, WAITING_MAX)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_socket_of_a_process_that_is_gone_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mqtt");
        let bind = || {
            let place = Place::Path(path.clone(), 0o600);
            Listener::bind(&Listen { transport: Transport::Unix, place, optional: false })
        };
        let kind = |result: Result<Option<Listener>, StartError>| match result {
            Err(StartError::Listen { error, .. }) => error.kind(),
            other => panic!("{other:?}"),
        };
        let first = bind().unwrap().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(kind(bind()), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists(), "it takes its file along");

        // Like a process that was killed: the file stays and nobody listens.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(bind().unwrap().unwrap());

        fs::write(&path, "precious").unwrap();
        assert_eq!(kind(bind()), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
