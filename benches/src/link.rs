//! A load generator's connections to a broker.
//!
//! Opening one blocks until the broker has answered; what follows is non-blocking, with one read for all packets
//! there are and one write for all there are to send.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream as BlockingStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Interest, Poll, Token};

use crate::wire::{self, Incoming};

/// How long a broker may take to answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection, what is still to be written to it, and the start of a packet whose rest has not come yet.
#[derive(Debug)]
pub struct Link {
    stream: TcpStream,
    /// What [`Link::flush`] writes.
    pub out: Vec<u8>,
    written: usize,
    kept: Vec<u8>,
}

impl Link {
    /// Watches an open connection as `token`.
    pub fn new(stream: BlockingStream, poll: &Poll, token: usize) -> Result<Self> {
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(token), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { stream, out: Vec::new(), written: 0, kept: Vec::new() })
    }

    /// Writes what there is; what the socket does not take stays for the next time it is writable.
    pub fn flush(&mut self) -> Result<()> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("writing to the broker"),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads once, through `buffer`, and calls `handle` for every whole packet; says whether there may be more
    /// to read. A read that does not fill the buffer has emptied the socket (epoll(7)), so no second one is
    /// needed to learn it.
    pub fn read(
        &mut self,
        buffer: &mut [u8],
        mut handle: impl FnMut(Incoming<'_>, &mut Vec<u8>) -> Result<()>,
    ) -> Result<bool> {
        let kept = self.kept.len();
        ensure!(kept < buffer.len(), "the broker sent a packet that is larger than any of the load");
        buffer[..kept].copy_from_slice(&self.kept);
        let bytes = match self.stream.read(&mut buffer[kept..]) {
            Ok(0) => bail!("the broker closed the connection"),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("reading from the broker"),
        };
        let filled = kept + bytes;
        let mut input = &buffer[..filled];
        while let Some(packet) = wire::take_packet(&mut input)? {
            handle(packet, &mut self.out)?;
        }
        self.kept.clear();
        self.kept.extend_from_slice(input);
        Ok(filled == buffer.len())
    }
}

/// Connects with a clean session and waits for CONNACK.
pub fn open(address: SocketAddr, client_id: &str) -> Result<BlockingStream> {
    open_session(address, client_id, true, false)
}

/// Connects with a session that is kept, which is `present` or new, and waits for CONNACK.
pub fn open_kept(address: SocketAddr, client_id: &str, present: bool) -> Result<BlockingStream> {
    open_session(address, client_id, false, present)
}

fn open_session(address: SocketAddr, client_id: &str, clean: bool, present: bool) -> Result<BlockingStream> {
    let mut stream = BlockingStream::connect_timeout(&address, ANSWER_TIMEOUT)
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut connect = Vec::new();
    wire::put_connect(&mut connect, client_id, clean);
    stream.write_all(&connect)?;
    expect(&mut stream, &[0x20, 2, u8::from(present), 0])
        .with_context(|| format!("connecting {client_id}"))?;
    Ok(stream)
}

/// Connects and subscribes to one Topic Filter.
pub fn open_subscribed(
    address: SocketAddr,
    client_id: &str,
    filter: &str,
    qos: u8,
) -> Result<BlockingStream> {
    let mut stream = open(address, client_id)?;
    subscribe(&mut stream, filter, qos).with_context(|| client_id.to_owned())?;
    Ok(stream)
}

/// Subscribes to one Topic Filter and waits for SUBACK.
pub fn subscribe(stream: &mut BlockingStream, filter: &str, qos: u8) -> Result<()> {
    let mut subscribe = Vec::new();
    wire::put_subscribe(&mut subscribe, filter, qos);
    stream.write_all(&subscribe)?;
    expect(stream, &[0x90, 3, 0, 1, qos]).with_context(|| format!("subscribing to {filter} at QoS {qos}"))
}

/// Reads as many bytes as `answer` has, which must be these.
fn expect(stream: &mut BlockingStream, answer: &[u8]) -> Result<()> {
    let mut bytes = vec![0; answer.len()];
    stream.read_exact(&mut bytes).context("the broker did not answer")?;
    ensure!(bytes == answer, "the broker answered {bytes:02x?} where {answer:02x?} was expected");
    Ok(())
}

/// A wait that a signal has interrupted has succeeded.
pub fn ignore_interrupt(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}
