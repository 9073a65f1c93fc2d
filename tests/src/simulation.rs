//! The whole system under one seed: devices, broker core, journal on a disk that fails in every way, pumps and
//! destinations that fail between write and confirm. At the end of every seed nothing acknowledged may be missing
//! anywhere, and nothing may be there that nobody published.
//!
//! Everything runs in one thread on a simulated clock, so a seed is replayed exactly:
//! `TIDEGATE_TEST_SEED=7 cargo test -p tidegate-tests one_seed -- --nocapture`. `TIDEGATE_TEST_SEEDS` says how many
//! seeds are tried.

mod check;
mod client;
mod ledger;
mod machine;
mod outcome;
mod plan;
mod sinks;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tidegate_broker::plant::{self, Bug};

use crate::support::report;
use outcome::{Counts, Outcome};
use world::World;

/// About a minute on two cores.
const SEEDS: u64 = 50_000;

/// Not caught here: what the first leaves behind is too rare, and the journal's own random lives catch it; the second shows
/// only where a member of a group never comes back, which it always does in the end.
const NOT_CAUGHT: [Bug; 2] = [Bug::TrimmedByUnsaved, Bug::SharedNotHandedOver];

/// Seeds in which a planted bug must be caught.
const SEEDS_FOR_A_BUG: u64 = 50_000;

fn run(seed: u64) -> Outcome {
    World::new(seed).run()
}

/// What a seed comes to, or what it fails with.
fn attempt(seed: u64) -> Result<Counts, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(seed)));
    outcome.map(|outcome| outcome.counts).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        panic.downcast_ref::<String>().cloned().or(text).unwrap_or_default()
    })
}

fn asked_for(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|number| number.parse().expect("a whole number"))
}

/// Tries the seeds that `next` gives out; the counts of all, or the first that failed.
fn attempt_all(next: &AtomicU64, seeds: u64) -> Result<Counts, (u64, String)> {
    let mut counts = Counts::default();
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds {
            return Ok(counts);
        }
        counts += attempt(seed).map_err(|said| (seed, said))?;
    }
}

#[test]
fn nothing_acknowledged_is_lost_in_any_seed() {
    let seeds = asked_for("TIDEGATE_TEST_SEEDS").unwrap_or(SEEDS);
    let (begun, next) = (Instant::now(), AtomicU64::new(0));
    let halves = std::thread::scope(|scope| {
        let workers = [(); 2].map(|()| scope.spawn(|| attempt_all(&next, seeds)));
        workers.map(|worker| worker.join().expect("failures are caught"))
    });
    let mut counts = Counts::default();
    for half in halves {
        match half {
            Ok(half) => counts += half,
            Err((seed, said)) => {
                panic!("seed {seed} fails (TIDEGATE_TEST_SEED={seed} runs it alone): {said}")
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    report("simulation", &format!("{seeds} seeds in {seconds:.0} s, nothing lost"));
    for (name, count) in counts.named() {
        report("simulation", &format!("{count} {name}"));
        assert!(count > seeds / 100 || seeds < 1_000, "{count} {name} in {seeds} seeds prove little");
    }
}

#[test]
fn one_seed_runs_the_same_way_twice() {
    for seed in asked_for("TIDEGATE_TEST_SEED").map_or(0..20, |seed| seed..seed + 1) {
        assert_eq!(run(seed).digest, run(seed).digest, "seed {seed}");
    }
}

/// A simulation that misses a planted bug is not harsh enough. What is printed is a table for the README.
#[test]
fn every_planted_bug_is_caught() {
    let hook = std::panic::take_hook();
    // Hundreds of panics are expected here; their traces would hide everything else.
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicU64::new(0);
    let mut rows = std::thread::scope(|scope| {
        let worker = || {
            let bugs = std::iter::from_fn(|| {
                let at = next.fetch_add(1, Ordering::Relaxed) as usize;
                Bug::ALL.get(at).map(|bug| (at, *bug))
            });
            let bugs = bugs.filter(|(_, bug)| !NOT_CAUGHT.contains(bug));
            bugs.map(|(at, bug)| (at, bug, caught(bug))).collect::<Vec<_>>()
        };
        let workers = [scope.spawn(worker), scope.spawn(worker)];
        workers.into_iter().flat_map(|worker| worker.join().expect("panics are caught")).collect::<Vec<_>>()
    });
    std::panic::set_hook(hook);
    rows.sort_by_key(|(at, ..)| *at);
    let missed: Vec<Bug> = rows.iter().filter(|(.., by)| by.is_none()).map(|(_, bug, _)| *bug).collect();
    let rows = rows.into_iter().filter_map(|(_, bug, by)| {
        let (seed, said) = by?;
        Some(format!("| {} | {seed} | {said} |", bug.does()))
    });
    let head = "| Planted bug | Seed | Caught by |\n|---|---|---|";
    report("simulation", &rows.fold(head.to_owned(), |table, row| table + "\n" + &row));
    assert!(missed.is_empty(), "no seed below {SEEDS_FOR_A_BUG} catches {missed:?}");
}

/// The first seed that catches `bug`, and the first line of what it says.
fn caught(bug: Bug) -> Option<(u64, String)> {
    plant::plant(Some(bug));
    let caught = (0..SEEDS_FOR_A_BUG).find_map(|seed| Some((seed, attempt(seed).err()?)));
    plant::plant(None);
    caught.map(|(seed, said)| (seed, said.lines().next().unwrap_or_default().to_owned()))
}
