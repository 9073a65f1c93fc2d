//! Tests of the codec: what each clause allows and forbids, round trips, and damaged packets.

#![allow(dead_code)]

mod clauses;
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
