//! Tests of the codec: what each clause allows and forbids, round trips, and damaged packets.

mod clauses;
mod connect_clauses;
mod damage;
mod examples;
mod round_trip;

use super::encode::{self, AckType, PublishHead};
use super::*;
use crate::record::{Properties, Qos};
use crate::topic::TopicName;

/// A small generator of repeatable randomness (SplitMix64).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn yes(&mut self) -> bool {
        self.below(2) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.yes() { Some(make(self)) } else { None }
    }

    fn bytes(&mut self, length_end: usize) -> Vec<u8> {
        (0..self.below(length_end)).map(|_| self.next() as u8).collect()
    }
}

const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// A packet whose Remaining Length fits its body.
fn packet(first: u8, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let mut out = vec![first];
    let mut rest = body.len();
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    out.extend(body);
    out
}

/// A UTF-8 Encoded String or Binary Data.
fn s(content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let mut out = (content.len() as u16).to_be_bytes().to_vec();
    out.extend(content);
    out
}

/// What the decoder must say about some bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// A packet.
    Fine,
    /// Malformed, by this clause.
    Malformed(&'static str),
    /// A Protocol Error, by this clause.
    Protocol(&'static str),
    /// A topic alias of 0.
    TopicAlias,
    /// A Topic Name with too many levels.
    TopicLevels,
    /// A version that is not spoken.
    Unsupported,
}

impl Verdict {
    fn of<T>(decoded: Result<Decoded<T>, DecodeError>) -> Option<Self> {
        Some(match decoded {
            Ok(Decoded::Packet { .. }) => Self::Fine,
            Ok(Decoded::Incomplete { .. }) => return None,
            Err(DecodeError::Malformed { clause, .. }) => Self::Malformed(clause),
            Err(DecodeError::Protocol { clause, .. }) => Self::Protocol(clause),
            Err(DecodeError::TopicAlias) => Self::TopicAlias,
            Err(DecodeError::TopicLevels) => Self::TopicLevels,
            Err(DecodeError::TooLarge { .. }) => return None,
            Err(DecodeError::UnsupportedVersion { .. }) => Self::Unsupported,
        })
    }
}

use Verdict::{Fine, Malformed, Protocol};

/// For which versions a case holds.
const ALL: &[Version] = &VERSIONS;
const V3: &[Version] = &[Version::V31, Version::V311];
const V31: &[Version] = &[Version::V31];
const V311: &[Version] = &[Version::V311];
const V5: &[Version] = &[Version::V5];
const NOT_V31: &[Version] = &[Version::V311, Version::V5];

/// Bytes, what is said of them, and what the decoder must answer.
type Case = (&'static [Version], Vec<u8>, &'static str, Verdict);

/// Checks every case as a packet from a client.
#[track_caller]
fn check_from_client(cases: &[Case]) {
    for (versions, bytes, claim, verdict) in cases {
        for version in *versions {
            let decoded = decode_from_client(bytes, *version, PACKET_BYTES_MAX);
            assert_eq!(Verdict::of(decoded), Some(*verdict), "{version:?}: {claim}: {bytes:02x?}");
        }
    }
}

/// Checks every case as a packet from either side.
#[track_caller]
fn check_from_either(cases: &[Case]) {
    for (versions, bytes, claim, verdict) in cases {
        for version in *versions {
            let decoded = decode(bytes, *version, PACKET_BYTES_MAX);
            assert_eq!(Verdict::of(decoded), Some(*verdict), "{version:?}: {claim}: {bytes:02x?}");
        }
    }
}
