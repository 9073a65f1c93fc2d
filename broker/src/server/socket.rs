//! One client's connection, without the meaning of what flows through it.
//!
//! Nearly all are plain TCP and are kept as small as that allows; whatever else lies between the socket and MQTT is
//! in [`Layers`], on the heap.

use std::io::{self, Read, Write};
use std::time::Duration;

use mio::event::Source;
use mio::net::TcpStream;

use super::layers::{Broken, Layers};
use super::net::Net;
use super::transport::Transport;
use crate::broker::Outbox;
use crate::slots::Key;

/// From this size on a packet is read to where it will be decoded, not through the shared buffer.
const LARGE_BYTES: usize = 64 * 1_024;

/// How the bytes of MQTT come and go.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Layered(Box<Layers>),
}

impl Stream {
    pub(super) const fn transport(&self) -> Transport {
        match self {
            Self::Tcp(_) => Transport::Tcp,
            Self::Layered(layers) => layers.transport,
        }
    }

    pub(super) const fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(stream) => stream,
            Self::Layered(layers) => layers.net(),
        }
    }
}

/// A client's socket.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) key: Key,
    pub(super) stream: Stream,
    /// Received bytes that are not yet a whole packet, or that are held back.
    pub(super) unread: Vec<u8>,
    /// How many bytes the packet at the front of `unread` has, once that is known.
    needed: u32,
    /// The last read filled its buffer, so that there may be more.
    pub(super) readable: bool,
    /// The client's side has ended: no event will come any more, so only the end itself ends reading.
    pub(super) ended: bool,
    /// Whether it is in the list of sockets to read from.
    pub(super) in_ready: bool,
    /// Nothing is read until the broker says so.
    pub(super) held: bool,
    /// Set once nothing more will be sent: when to give up waiting for the client to close too.
    pub(super) closes_at: Option<Duration>,
}

/// How a read ended.
#[derive(Debug)]
pub(super) enum ReadOutcome {
    /// Bytes came; they are in the first so many bytes of the buffer.
    Shared(usize),
    /// Bytes came; they are in `unread`.
    Unread,
    /// Nothing came.
    Nothing,
    /// The client or the network closed the connection.
    Closed,
    /// What came is not allowed by what lies between the socket and MQTT.
    Broken(Broken),
}

impl Socket {
    pub(super) const fn new(key: Key, stream: Stream) -> Self {
        Self {
            key,
            stream,
            unread: Vec::new(),
            needed: 0,
            readable: false,
            ended: false,
            in_ready: false,
            held: false,
            closes_at: None,
        }
    }

    /// Whether the handshakes are done, if there are any.
    pub(super) fn is_open(&self) -> bool {
        match &self.stream {
            Stream::Tcp(_) => true,
            Stream::Layered(layers) => layers.is_open(),
        }
    }

    /// Becomes plain TCP again once nothing lies between the socket and MQTT; what was read already is in `unread`.
    pub(super) fn lay_off(self) -> Self {
        match self.stream {
            Stream::Layered(layers) if layers.is_plain() && layers.transport == Transport::Tcp => {
                match layers.into_socket() {
                    (Net::Tcp(stream), unread) => Self { stream: Stream::Tcp(stream), unread, ..self },
                    (Net::Unix(_), _) => unreachable!("a Unix socket is another transport"),
                }
            }
            stream @ (Stream::Tcp(_) | Stream::Layered(_)) => Self { stream, ..self },
        }
    }

    /// Reads once. `unread` comes first in `buffer`, so that packets lie in one piece; `scratch` is for the layers.
    pub(super) fn read(&mut self, buffer: &mut [u8], scratch: &mut [u8]) -> ReadOutcome {
        let needed = self.needed as usize;
        if needed >= LARGE_BYTES && self.unread.len() < needed {
            return self.read_large(needed, scratch);
        }
        let kept = self.unread.len();
        buffer[..kept].copy_from_slice(&self.unread);
        let stream = match &mut self.stream {
            Stream::Tcp(stream) => stream,
            Stream::Layered(layers) => {
                let (filled, end) = fill(&mut buffer[kept..], &mut layers.reader(scratch));
                return self.filled(kept, filled, end);
            }
        };
        loop {
            return match stream.read(&mut buffer[kept..]) {
                Ok(0) => ReadOutcome::Closed,
                Ok(bytes) => {
                    self.readable = self.ended || kept + bytes == buffer.len();
                    self.unread.clear();
                    ReadOutcome::Shared(kept + bytes)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    ReadOutcome::Nothing
                }
                Err(_) => ReadOutcome::Closed,
            };
        }
    }

    /// What a read through layers comes to; what came before its end counts first.
    fn filled(&mut self, kept: usize, filled: usize, end: io::Result<Filled>) -> ReadOutcome {
        // An end that came behind bytes comes again with the next read.
        self.readable = self.ended || !matches!(end, Ok(Filled::Drained));
        if filled > 0 {
            self.unread.clear();
            return ReadOutcome::Shared(kept + filled);
        }
        match end {
            Ok(Filled::Ended) => ReadOutcome::Closed,
            Ok(Filled::Full | Filled::Drained) => {
                self.readable = false;
                ReadOutcome::Nothing
            }
            Err(error) => broken(error),
        }
    }

    fn read_large(&mut self, needed: usize, scratch: &mut [u8]) -> ReadOutcome {
        let missing = needed - self.unread.len();
        self.unread.reserve_exact(missing);
        let before = self.unread.len();
        let read = match &mut self.stream {
            Stream::Tcp(stream) => stream.take(missing as u64).read_to_end(&mut self.unread),
            Stream::Layered(layers) => {
                layers.reader(scratch).take(missing as u64).read_to_end(&mut self.unread)
            }
        };
        match read {
            Ok(bytes) if bytes == missing => {
                self.readable = true;
                ReadOutcome::Unread
            }
            Ok(_) => ReadOutcome::Closed,
            // What came before the end of the supply is kept.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                if self.unread.len() > before { ReadOutcome::Unread } else { ReadOutcome::Nothing }
            }
            Err(error) => broken(error),
        }
    }

    /// Keeps what was not consumed for the next read.
    pub(super) fn keep(&mut self, rest: &[u8], needed: Option<usize>) {
        self.unread.clear();
        if rest.is_empty() {
            self.unread.shrink_to(0);
        } else {
            self.unread.extend_from_slice(rest);
        }
        self.needed = needed.map_or(0, |needed| u32::try_from(needed).unwrap_or(u32::MAX));
    }

    /// Drops the first `consumed` bytes of `unread`.
    pub(super) fn consume_unread(&mut self, consumed: usize, needed: Option<usize>) {
        if consumed == self.unread.len() {
            self.unread = Vec::new();
        } else {
            self.unread.drain(..consumed);
        }
        self.needed = needed.map_or(0, |needed| u32::try_from(needed).unwrap_or(u32::MAX));
    }

    /// Writes as much as the network takes. Returns how many bytes that was.
    pub(super) fn write(&mut self, outbox: &mut Outbox) -> io::Result<usize> {
        let stream = match &mut self.stream {
            Stream::Tcp(stream) => stream,
            Stream::Layered(layers) => return layers.write(outbox),
        };
        let mut total = 0;
        while !outbox.is_empty() {
            let written = {
                let mut pieces = outbox.pieces();
                let first = pieces.next();
                match (first, pieces.next()) {
                    (Some(only), None) => stream.write(&only),
                    (Some(first), Some(second)) => {
                        let all: Vec<_> = [first, second].into_iter().chain(pieces).collect();
                        stream.write_vectored(&all)
                    }
                    (None, _) => return Ok(total),
                }
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    outbox.advance(bytes);
                    total += bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(total),
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    /// Writes what the layers have taken and the network did not take then.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(_) => Ok(()),
            Stream::Layered(layers) => layers.flush(),
        }
    }

    /// Tells the client that nothing more comes; says whether that is on its way.
    pub(super) fn finish(&mut self) -> io::Result<bool> {
        match &mut self.stream {
            Stream::Tcp(stream) => {
                let _ = stream.shutdown(std::net::Shutdown::Write);
                Ok(true)
            }
            Stream::Layered(layers) => layers.finish(),
        }
    }

    /// Reads and drops what still comes; says whether the client has closed its side.
    pub(super) fn discard(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            let read = match &mut self.stream {
                Stream::Tcp(stream) => stream.read(buffer),
                Stream::Layered(layers) => layers.net().read(buffer),
            };
            match read {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }
}

/// Why filling a buffer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filled {
    Full,
    /// Nothing more has come yet.
    Drained,
    Ended,
}

/// Reads until `buffer` is full or nothing more has come; says how many bytes that was.
fn fill(buffer: &mut [u8], reader: &mut impl Read) -> (usize, io::Result<Filled>) {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => return (filled, Ok(Filled::Ended)),
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (filled, Ok(Filled::Drained)),
            Err(error) => return (filled, Err(error)),
        }
    }
    (filled, Ok(Filled::Full))
}

/// A read that failed: by the network, or by what the client has sent.
fn broken(error: io::Error) -> ReadOutcome {
    let broken = Broken::from(error);
    if matches!(broken, Broken::Ended) { ReadOutcome::Closed } else { ReadOutcome::Broken(broken) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_plain_connection_takes_no_more_than_its_own_fields() {
        // One per connection, of which there may be 100,000: everything rare lies behind a pointer.
        assert!(size_of::<Socket>() <= 72, "{}", size_of::<Socket>());
    }
}
