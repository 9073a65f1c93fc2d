//! Fills a broker's journal: publishes at QoS 1 as fast as one thread can, and waits for every PUBACK.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Result, ensure};

use crate::{link, wire};

/// Connections that take turns, so that one's publishes are synced while the next one's are written.
const CONNECTIONS: u64 = 8;
/// Publishes of one connection at a time: below what brokers let a client have in flight.
const BURST: u64 = 1_000;

/// Publishes `publishes` records to the topics that `topic` makes of their numbers, with payloads of `payload_bytes`.
pub fn fill(
    address: SocketAddr,
    publishes: u64,
    payload_bytes: usize,
    topic: impl Fn(&mut String, u64),
) -> Result<()> {
    let mut streams = (0..CONNECTIONS)
        .map(|number| link::open(address, &format!("filler-{number}")))
        .collect::<Result<Vec<_>>>()?;
    let payload = vec![b'.'; payload_bytes];
    let (mut out, mut name) = (Vec::new(), String::new());
    let mut waiting = [0; CONNECTIONS as usize];
    let mut next = 0;
    while next < publishes {
        let turn = (next / BURST % CONNECTIONS) as usize;
        acknowledged(&mut streams[turn], &mut waiting[turn])?;
        out.clear();
        let until = publishes.min(next + BURST);
        while next < until {
            name.clear();
            topic(&mut name, next);
            waiting[turn] += 1;
            wire::put_publish(&mut out, &name, Some(waiting[turn]), [&payload, &[]]);
            next += 1;
        }
        streams[turn].write_all(&out)?;
    }
    streams.iter_mut().zip(&mut waiting).try_for_each(|(stream, waiting)| acknowledged(stream, waiting))
}

/// Waits for the PUBACKs of Packet Identifiers 1 to `waiting`, in order.
fn acknowledged(stream: &mut TcpStream, waiting: &mut u16) -> Result<()> {
    let mut answers = vec![0; usize::from(*waiting) * 4];
    stream.read_exact(&mut answers)?;
    for (answer, packet_id) in answers.chunks_exact(4).zip(1_u16..) {
        let [high, low] = packet_id.to_be_bytes();
        ensure!(answer == [0x40, 2, high, low], "instead of PUBACK {packet_id} came {answer:02x?}");
    }
    *waiting = 0;
    Ok(())
}
