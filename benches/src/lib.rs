//! What the side-by-side comparison is made of: the bytes a client sends ([`wire`]) and its connection ([`link`]),
//! the loads ([`load`], [`crowd`], [`filler`]), a journal made before ([`filled`]), the brokers as processes ([`peer`]), Kafka and a bare producer
//! ([`kafka`]) and the tables ([`report`]).
//!
//! The load generator shares the machine with the broker it measures, so it must be much cheaper than any of
//! them, and it shares no code with tidegate, so that a bug there cannot hide from it. The benches of single
//! stages need none of this; they stand for themselves in `benches/`.

pub mod crowd;
pub mod filled;
pub mod filler;
pub mod kafka;
pub mod link;
pub mod load;
pub mod peer;
pub mod report;
pub mod wire;
