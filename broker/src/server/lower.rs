//! A socket, with TLS in front of it if there is any: bytes in, bytes out.
//!
//! What leaves is taken from the caller only when what was taken before is on its way, so that a peer that takes
//! nothing costs [`TLS_BYTES_MAX`].

use std::io::{self, IoSlice, Read as _, Write as _};

use rustls::ServerConnection;

use super::net::Net;
use crate::broker::Outbox;

/// Bytes to be encrypted that are taken at once, and so those that wait for one slow peer.
const TLS_BYTES_MAX: usize = 64 * 1_024;

/// The socket, and TLS if there is any.
#[derive(Debug)]
pub(super) struct Lower {
    pub(super) net: Net,
    /// Read from the socket and not yet taken by what lies above.
    pub(super) early: Early,
    pub(super) tls: Option<Box<ServerConnection>>,
}

/// Bytes that came before somebody wanted them.
#[derive(Debug, Default)]
pub(super) struct Early {
    bytes: Vec<u8>,
    taken: usize,
}

impl Early {
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Notes that the first `bytes` are done with; gives the memory back with the last.
    pub(super) fn take(&mut self, bytes: usize) {
        self.taken += bytes;
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// Moves as much as fits to `out`.
    pub(super) fn move_to(&mut self, out: &mut [u8]) -> usize {
        let bytes = self.rest().len().min(out.len());
        out[..bytes].copy_from_slice(&self.rest()[..bytes]);
        self.take(bytes);
        bytes
    }
}

impl Lower {
    pub(super) fn new(net: Net, mut tls: Option<Box<ServerConnection>>) -> Self {
        if let Some(tls) = &mut tls {
            tls.set_buffer_limit(Some(TLS_BYTES_MAX));
        }
        Self { net, early: Early::default(), tls }
    }

    /// Reads once. `Ok(0)` is the end.
    pub(super) fn read(&mut self, out: &mut [u8], scratch: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(tls) = &mut self.tls else {
                return if self.early.is_empty() { self.net.read(out) } else { Ok(self.early.move_to(out)) };
            };
            match tls.reader().read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // An end without a close_notify is an end: MQTT knows for itself where a packet ends.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            if !self.feed(scratch)? {
                return Ok(0);
            }
        }
    }

    /// Gives TLS some of what comes; says whether anything may come yet.
    fn feed(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(false) };
        if self.early.is_empty() {
            let bytes = self.net.read(scratch)?;
            if bytes == 0 {
                return Ok(false);
            }
            let mut rest = &scratch[..bytes];
            tls.read_tls(&mut rest)?;
            self.early.push(rest);
        } else {
            let taken = tls.read_tls(&mut self.early.rest())?;
            self.early.take(taken);
        }
        let processed = tls.process_new_packets();
        // Answers of TLS itself, and the alert that says what was wrong.
        self.flush()?;
        processed.map(|_| true).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Goes on with the TLS handshake; says whether it is done.
    pub(super) fn shake_hands(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        while self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            match self.feed(scratch) {
                Ok(true) => {}
                Ok(false) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether nothing that was taken waits to be written.
    pub(super) fn is_flushed(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| !tls.wants_write())
    }

    /// Writes what was taken; says whether all of it is on its way.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        while tls.wants_write() {
            match tls.write_tls(&mut self.net) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Takes as much of `pieces` as can be taken now, 0 if nothing can; to be called when all is flushed.
    pub(super) fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let sent = match &mut self.tls {
            None => self.net.write_vectored(pieces),
            Some(tls) => tls.writer().write_vectored(pieces),
        };
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            sent => sent,
        }
    }

    /// Writes as much of `outbox` as the peer takes.
    pub(super) fn write(&mut self, outbox: &mut Outbox) -> io::Result<usize> {
        let mut total = 0;
        while self.flush()? && !outbox.is_empty() {
            let sent = {
                let pieces: Vec<_> = outbox.pieces().collect();
                self.send(&pieces)?
            };
            if sent == 0 {
                break;
            }
            outbox.advance(sent);
            total += sent;
        }
        Ok(total)
    }

    /// Tells the peer that nothing more comes; says whether that is on its way.
    pub(super) fn finish(&mut self) -> io::Result<bool> {
        if let Some(tls) = self.tls.as_mut().filter(|tls| !tls.is_handshaking()) {
            tls.send_close_notify();
        }
        let flushed = self.flush()?;
        if flushed {
            let _ = self.net.end_writing();
        }
        Ok(flushed)
    }
}
