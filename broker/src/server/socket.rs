//! One client's TCP connection, without the meaning of what flows through it.

use std::io::{self, Read, Write};
use std::time::Duration;

use mio::net::TcpStream;

use crate::broker::Outbox;
use crate::slots::Key;

/// From this size on a packet is read to where it will be decoded, not through the shared buffer.
const LARGE_BYTES: usize = 64 * 1_024;

/// A client's socket.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) key: Key,
    pub(super) stream: TcpStream,
    /// Received bytes that are not yet a whole packet, or that are held back.
    pub(super) unread: Vec<u8>,
    /// How many bytes the packet at the front of `unread` has, once that is known.
    pub(super) needed: usize,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// Bytes came; they are in the first so many bytes of the buffer.
    Shared(usize),
    /// Bytes came; they are in `unread`.
    Unread,
    /// Nothing came.
    Nothing,
    /// The client or the network closed the connection.
    Closed,
}

impl Socket {
    pub(super) const fn new(key: Key, stream: TcpStream) -> Self {
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

    /// Reads once. `unread` comes first in `buffer`, so that packets lie in one piece.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        if self.needed >= LARGE_BYTES && self.unread.len() < self.needed {
            return self.read_large();
        }
        let kept = self.unread.len();
        buffer[..kept].copy_from_slice(&self.unread);
        loop {
            return match self.stream.read(&mut buffer[kept..]) {
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

    fn read_large(&mut self) -> ReadOutcome {
        let missing = self.needed - self.unread.len();
        self.unread.reserve_exact(missing);
        let before = self.unread.len();
        match (&mut self.stream).take(missing as u64).read_to_end(&mut self.unread) {
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
            Err(_) => ReadOutcome::Closed,
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
        self.needed = needed.unwrap_or(0);
    }

    /// Drops the first `consumed` bytes of `unread`.
    pub(super) fn consume_unread(&mut self, consumed: usize, needed: Option<usize>) {
        if consumed == self.unread.len() {
            self.unread = Vec::new();
        } else {
            self.unread.drain(..consumed);
        }
        self.needed = needed.unwrap_or(0);
    }

    /// Writes as much as the network takes. Returns how many bytes that was.
    pub(super) fn write(&mut self, outbox: &mut Outbox) -> io::Result<usize> {
        let mut total = 0;
        while !outbox.is_empty() {
            let written = {
                let mut pieces = outbox.pieces();
                let first = pieces.next();
                match (first, pieces.next()) {
                    (Some(only), None) => self.stream.write(&only),
                    (Some(first), Some(second)) => {
                        let all: Vec<_> = [first, second].into_iter().chain(pieces).collect();
                        self.stream.write_vectored(&all)
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

    /// Reads and drops what still comes; says whether the client has closed its side.
    pub(super) fn discard(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }
}
