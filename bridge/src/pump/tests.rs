//! The pump against fake sinks that fail, forget and confirm when they like, in one thread under one seed.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use tidegate_broker::journal::RecordsFrom;
use tidegate_broker::plant::{self, Bug};
use tidegate_broker::record::{Batch, BatchBuilder, Entry, Offset, Properties, Qos, Record, Timestamp};
use tidegate_broker::topic::TopicName;

use super::{Action, Limits, Pump, SinkError};
use crate::balance::{Account, Reasons};

fn batch(base: u64, records: u64) -> Batch {
    let mut builder = BatchBuilder::new(Offset(base), Timestamp(1_000 + base), 0, 64);
    for index in 0..records {
        let payload = (base + index).to_le_bytes();
        builder.push(&Entry::Record(Record {
            time: Timestamp(1_000 + base),
            client: "c",
            topic: TopicName::new("t").unwrap(),
            properties: Properties::NONE,
            payload: &payload,
            qos: Qos::AtLeastOnce,
            retain: false,
            packet_id: 1,
        }));
    }
    builder.finish(|_| {}).1
}

const fn limits(batches: usize) -> Limits {
    Limits { batches, bytes: usize::MAX }
}

const NOW: Duration = Duration::ZERO;

fn connected(at: u64, window: usize) -> Pump {
    let mut pump = Pump::new(Offset(at), limits(window));
    assert_eq!(pump.poll(NOW), Action::Connect);
    pump.handle_connected(None, Offset(0), Offset(u64::MAX));
    pump
}

fn write(pump: &mut Pump, base: u64, records: u64) {
    assert_eq!(pump.poll(NOW), Action::Read(Offset(base)));
    assert!(pump.handle_batch(batch(base, records)).0.is_some());
}

#[test]
fn no_more_than_the_window_is_in_flight() {
    let mut pump = connected(0, 2);
    write(&mut pump, 0, 3);
    write(&mut pump, 3, 1);
    let full = Action::Wait { confirmation: true, entries: false, until: None };
    assert_eq!(pump.poll(NOW), full);
    pump.handle_confirmed(Offset(2));
    assert_eq!(pump.poll(NOW), full, "the first batch is not wholly confirmed");
    pump.handle_confirmed(Offset(3));
    assert_eq!(pump.poll(NOW), Action::Read(Offset(4)));
}

#[test]
fn a_gap_is_passed_like_a_batch_and_its_loss_is_counted_once_it_is_behind() {
    let mut pump = connected(0, 9);
    write(&mut pump, 0, 2);
    for (base, lost) in [(2, true), (7, false)] {
        assert_eq!(pump.poll(NOW), Action::Read(Offset(base)));
        let (gap, trimmed) = pump.handle_batch(Batch::gap(Offset(base), 5, Timestamp(0), lost));
        assert!(gap.is_some_and(|gap| gap.is_gap()));
        assert_eq!(trimmed, 0);
    }
    assert_eq!(pump.handle_confirmed(Offset(2)).lost, 0);
    let progress = pump.handle_confirmed(Offset(12));
    assert_eq!((progress.entries, progress.records, progress.lost), (10, 0, 5));
    assert_eq!(pump.poll(NOW), Action::Read(Offset(12)));
}

#[test]
fn one_batch_may_be_in_flight_however_large() {
    let mut pump = Pump::new(Offset(0), Limits { batches: 9, bytes: 1 });
    pump.handle_connected(None, Offset(0), Offset(100));
    write(&mut pump, 0, 50);
    assert_eq!(pump.poll(NOW), Action::Wait { confirmation: true, entries: false, until: None });
}

#[test]
fn after_an_error_everything_not_confirmed_is_offered_again() {
    let mut pump = connected(10, 4);
    write(&mut pump, 10, 5);
    write(&mut pump, 15, 5);
    let progress = pump.handle_confirmed(Offset(12));
    assert_eq!((progress.entries, progress.records), (2, 0));
    let pause = pump.handle_error(&SinkError::Retry("away".into()), NOW).unwrap();
    assert_eq!(pump.poll(NOW), Action::Wait { confirmation: false, entries: false, until: Some(pause) });
    assert_eq!(pump.poll(pause), Action::Connect);
    pump.handle_connected(None, Offset(0), Offset(20));
    assert_eq!(pump.poll(pause), Action::Read(Offset(12)));
}

#[test]
fn a_sink_that_waits_by_itself_is_offered_nothing_again() {
    let mut pump = connected(0, 4);
    write(&mut pump, 0, 5);
    assert_eq!(pump.handle_error(&SinkError::Waiting("away".into()), NOW), None);
    assert_eq!(pump.poll(NOW), Action::Read(Offset(5)));
}

#[test]
fn pauses_double_up_to_their_limit_and_begin_again_after_progress() {
    let mut pump = Pump::new(Offset(0), limits(1));
    let pauses = |error: fn(String) -> SinkError, count: usize| -> Vec<u64> {
        let mut pump = Pump::new(Offset(0), limits(1));
        (0..count)
            .map(|_| pump.handle_error(&error(String::new()), NOW).unwrap().as_millis().try_into().unwrap())
            .collect()
    };
    assert_eq!(pauses(SinkError::Retry, 9), [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    assert_eq!(pauses(SinkError::Operator, 11)[7..], [12_800, 25_600, 51_200, 60_000]);

    for _ in 0..5 {
        pump.handle_error(&SinkError::Retry(String::new()), NOW);
    }
    pump.handle_connected(None, Offset(0), Offset(9));
    let pause = pump.handle_error(&SinkError::Retry(String::new()), NOW).unwrap();
    assert_eq!(pause.as_millis(), 3200, "connecting alone is no progress");
    pump.handle_connected(None, Offset(0), Offset(9));
    let _ = pump.handle_batch(batch(0, 1));
    pump.handle_confirmed(Offset(1));
    let pause = pump.handle_error(&SinkError::Retry(String::new()), NOW).unwrap();
    assert_eq!(pause.as_millis(), 100);
}

#[test]
fn a_destination_that_remembers_its_place_is_believed() {
    let check = |remembered: Option<u64>, start: u64, end: u64, from: u64, lost: u64, ahead: u64| {
        let mut pump = Pump::new(Offset(50), limits(1));
        let resumed = pump.handle_connected(remembered.map(Offset), Offset(start), Offset(end));
        assert_eq!((resumed.lost, resumed.ahead), (lost, ahead), "{remembered:?} in {start}..{end}");
        assert_eq!(pump.poll(NOW), Action::Read(Offset(from)), "{remembered:?} in {start}..{end}");
        assert_eq!(pump.confirmed(), Offset(from));
    };
    check(None, 0, 100, 50, 0, 0);
    check(Some(70), 0, 100, 70, 0, 0);
    check(Some(30), 0, 100, 30, 0, 0);
    check(Some(30), 40, 100, 40, 10, 0);
    check(Some(120), 0, 100, 100, 0, 20);
    check(None, 60, 100, 60, 10, 0);
}

#[test]
fn what_was_trimmed_while_reading_is_counted() {
    let mut pump = connected(0, 4);
    let (written, lost) = pump.handle_batch(batch(7, 1));
    assert_eq!((written.map(|batch| batch.base()), lost), (Some(Offset(7)), 7));
}

#[test]
fn it_waits_at_the_durable_end_until_that_moves() {
    let mut pump = connected(0, 4);
    pump.handle_end();
    assert_eq!(pump.poll(NOW), Action::Wait { confirmation: false, entries: true, until: None });
    pump.handle_durable();
    assert_eq!(pump.poll(NOW), Action::Read(Offset(0)));
}

#[test]
fn a_drain_ends_when_all_is_confirmed_or_at_its_deadline() {
    let deadline = Duration::from_secs(5);
    let mut pump = connected(0, 4);
    write(&mut pump, 0, 5);
    pump.handle_drain(deadline);
    let waits = Action::Wait { confirmation: true, entries: false, until: Some(deadline) };
    assert_eq!(pump.poll(NOW), waits);
    pump.handle_confirmed(Offset(5));
    assert_eq!(pump.poll(NOW), Action::Stop);

    let mut pump = connected(0, 4);
    write(&mut pump, 0, 5);
    pump.handle_drain(deadline);
    assert_eq!(pump.poll(deadline), Action::Stop);
    assert_eq!(pump.confirmed(), Offset(0));

    let mut pump = Pump::new(Offset(0), limits(1));
    pump.handle_drain(deadline);
    assert_eq!(pump.poll(NOW), Action::Stop, "nothing is in flight, so there is nothing to wait for");
}

#[test]
#[should_panic(expected = "only what was written can be confirmed")]
fn a_confirmation_of_what_was_not_written_is_refused() {
    connected(0, 4).handle_confirmed(Offset(1));
}

/// xorshift64*; Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// A destination in memory: what it holds is what it was handed, less what it lost when it failed.
#[derive(Default)]
struct Destination {
    /// Every entry before it is stored.
    stored_before: u64,
    /// Something was stored before the entry in front of it.
    out_of_order: bool,
    /// Batches handed over and not stored yet.
    pending: VecDeque<Range<u64>>,
    remembers: bool,
}

impl Destination {
    /// Stores the oldest pending batch and returns its end.
    fn store_one(&mut self) -> Option<Offset> {
        let batch = self.pending.pop_front()?;
        self.out_of_order |= batch.start > self.stored_before;
        self.stored_before = self.stored_before.max(batch.end);
        Some(Offset(batch.end))
    }
}

/// One life of a pump; `Err` says which promise it broke.
fn simulate(seed: u64) -> Result<(), String> {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let total = 1 + random.below(200);
    let window = 1 + random.below(6) as usize;
    let mut destination = Destination { remembers: random.one_in(2), ..Destination::default() };
    let mut pump = Pump::new(Offset(0), limits(window));
    let (mut durable, mut now) = (0, Duration::ZERO);
    // Every entry is a record here.
    let mut account = Account::begin(RecordsFrom { records: 0, total: 0 });
    let mut settled = Offset(0);
    for step in 0.. {
        if step > 20_000 {
            return Err("it makes no progress".into());
        }
        now += Duration::from_millis(random.below(50));
        if random.one_in(3) && durable < total {
            durable = (durable + 1 + random.below(10)).min(total);
            pump.handle_durable();
        }
        match pump.poll(now) {
            Action::Connect if random.one_in(4) => {
                pump.handle_error(&SinkError::Retry(String::new()), now);
            }
            Action::Connect => {
                let remembered = destination.remembers.then_some(Offset(destination.stored_before));
                pump.handle_connected(remembered, Offset(0), Offset(durable));
                if pump.confirmed() != settled {
                    settled = pump.confirmed();
                    account.resume(
                        RecordsFrom { records: durable - settled.0, total: durable },
                        0,
                        &Reasons::new(),
                    );
                }
            }
            Action::Read(from) if from.0 < durable => {
                let read = batch(from.0, (1 + random.below(7)).min(durable - from.0));
                if let (Some(written), _) = pump.handle_batch(read) {
                    destination.pending.push_back(written.base().0..written.end().0);
                }
            }
            Action::Read(_) => pump.handle_end(),
            Action::Wait { confirmation: true, .. } if random.one_in(8) => {
                for _ in 0..random.below(3) {
                    destination.store_one();
                }
                destination.pending.clear();
                pump.handle_error(&SinkError::Retry(String::new()), now);
            }
            Action::Wait { confirmation: true, .. } => {
                let stored = destination.store_one().expect("something is in flight");
                let progress = pump.handle_confirmed(stored);
                account.passed(progress.records, &Reasons::new());
                settled = progress.completed.unwrap_or(settled);
            }
            Action::Wait { confirmation: false, .. } if pump.confirmed().0 == total => break,
            Action::Wait { .. } => {}
            Action::Stop => return Err("it stopped although nobody asked".into()),
        }
        let balance = account.balance(durable);
        if balance.taken_in != durable || balance.taken_in != balance.delivered + balance.pending {
            return Err(format!("the account is not balanced: {balance:?}"));
        }
        if balance.delivered != settled.0 || balance.delivered > destination.stored_before {
            return Err(format!("{} are stored, but {balance:?}", destination.stored_before));
        }
        if destination.pending.len() > window {
            return Err("more than the window is in flight".into());
        }
        if destination.out_of_order || destination.stored_before < pump.confirmed().0 {
            return Err("an entry was passed over".into());
        }
    }
    Ok(())
}

#[test]
fn nothing_is_lost_or_reordered_whatever_the_destination_does() {
    for seed in 0..2_000 {
        simulate(seed).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
    }
}

#[test]
fn the_simulation_catches_a_skipped_batch() {
    plant::plant(Some(Bug::SkippedBatch));
    let caught = (0..200).filter(|seed| simulate(*seed).is_err()).count();
    plant::plant(None);
    assert!(caught > 100, "only {caught} of 200 seeds notice a pump that passes over batches");
}
