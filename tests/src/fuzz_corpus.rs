//! Every input that fuzzing has kept is tried again, then changed at random for a few seconds.
//!
//! `tests/fuzz/Cargo.toml` says how the corpora are made. An input that has found a bug is one of them.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::fuzz;
use crate::support::random::Random;

/// How long each target is tried with changed inputs.
const TIME: Duration = Duration::from_secs(3);

const BYTES_MAX: usize = 4_096;

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    inputs.sort();
    inputs
}

/// Says which input it was, should trying it panic.
struct Trying<'a>(&'a str, &'a [u8]);

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} fails with the input {:02x?}", self.0, self.1);
        }
    }
}

fn replay(target: &str, body: fn(&[u8])) {
    let inputs = corpus(target);
    assert!(inputs.len() >= 20, "{target} has a corpus");
    for (path, input) in &inputs {
        let _trying = Trying(&path.to_string_lossy(), input);
        body(input);
    }
    let mut random = Random::printed(target);
    let (end, mut changed) = (Instant::now() + TIME, 0_u64);
    while Instant::now() < end {
        let input = change(&inputs, &mut random);
        let _trying = Trying(target, &input);
        body(&input);
        changed += 1;
    }
    println!("{target}: {} inputs as they are, {changed} changed", inputs.len());
}

/// One input, or the front of one and the back of another, with a few bytes changed, added or taken away.
fn change(inputs: &[(PathBuf, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    let mut pick = || inputs[random.within(0..inputs.len() as u64) as usize].1.clone();
    let (mut input, other) = (pick(), pick());
    if random.within(0..4) == 0 {
        input.truncate(random.within(0..input.len() as u64 + 1) as usize);
        input.extend_from_slice(&other[random.within(0..other.len() as u64 + 1) as usize..]);
    }
    for _ in 0..random.within(0..6) {
        let at = random.within(0..input.len() as u64 + 1) as usize;
        match random.within(0..4) {
            0 if at < input.len() => drop(input.remove(at)),
            1 if at < input.len() => input[at] ^= 1 << random.within(0..8),
            2 if at < input.len() => input[at] = random.next() as u8,
            _ => input.insert(at, random.next() as u8),
        }
    }
    input.truncate(BYTES_MAX);
    input
}

#[test]
fn acl_holds_for_the_corpus() {
    replay("acl", fuzz::acl::check);
}

#[test]
fn connect_holds_for_the_corpus() {
    replay("connect", fuzz::connect::check);
}

#[test]
fn decode_holds_for_the_corpus() {
    replay("decode", fuzz::decode::check);
}

#[test]
fn passwords_hold_for_the_corpus() {
    replay("passwords", fuzz::passwords::check);
}

#[test]
fn session_holds_for_the_corpus() {
    replay("session", fuzz::session::check);
}
