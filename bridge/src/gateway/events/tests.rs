//! The fan-out against a model, under seeds: subscribers come, subscribe in the past, read at their own pace, fall
//! behind and catch up while records come in batches of every size. Whatever happens, a subscriber gets each record
//! that it wants once, and all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::thread;

use tidegate_broker::journal::{Appender, MemoryStorage, Options};
use tidegate_broker::record::{Append as _, Properties, Qos};
use tidegate_broker::topic::TopicFilter;

use super::*;
use crate::gateway::subscription::Delivery;

const TOPICS: [&str; 4] = ["a", "a/b", "a/c", "d"];
const FILTERS: [&str; 6] = ["#", "a/#", "a/+", "d", "a", "a/b"];
const RECORDS: u64 = 3_000;
const SEEDS: u64 = 8;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// The topic of the record at `offset`, or a control entry.
fn topic_of(offset: u64) -> Option<TopicName<'static>> {
    let at = usize::try_from(Random(offset).below(5)).unwrap();
    TOPICS.get(at).map(|topic| TopicName::new(topic).unwrap())
}

fn append_all(mut appender: Appender, journal: &Journal, seed: u64) {
    let mut random = Random(seed);
    let mut offset = 0;
    while offset < RECORDS {
        // Mostly single records: where a subscriber meets the follower, one record more or less is what matters.
        let count = if random.below(8) == 0 { random.below(200) } else { 1 };
        for _ in 0..count {
            let payload = vec![b'x'; usize::try_from(random.below(300)).unwrap()];
            let entry = match topic_of(offset) {
                None => Entry::Control(b"control"),
                Some(topic) => Entry::Record(Record {
                    time: Timestamp(1),
                    client: "device",
                    topic,
                    properties: Properties::NONE,
                    payload: &payload,
                    qos: Qos::AtLeastOnce,
                    retain: false,
                    packet_id: 0,
                }),
            };
            assert_eq!(appender.append(&entry).unwrap().offset, Offset(offset));
            offset += 1;
        }
        while journal.durable_end() < Offset(offset) {
            appender.submit();
            thread::yield_now();
        }
        while appender.take_durable().is_some() {}
    }
}

/// What a subscriber must have got in the end: for each filter, from where on.
#[derive(Default)]
struct Model {
    filters: BTreeMap<&'static str, Offset>,
    got: BTreeSet<u64>,
}

impl Model {
    fn take(&mut self, delivery: Delivery) {
        let Delivery::Events(events) = delivery else { panic!("{delivery:?}") };
        for event in events {
            let text = std::str::from_utf8(&event).unwrap();
            let offset = text.strip_prefix("id: ").unwrap().split('\n').next().unwrap().parse().unwrap();
            assert!(self.got.insert(offset), "the record at {offset} came twice");
        }
    }

    /// Exactly what some filter wants.
    fn wanted(&self, end: u64) -> BTreeSet<u64> {
        let filters: Vec<_> =
            self.filters.iter().map(|(filter, from)| (TopicFilter::new(filter).unwrap(), *from)).collect();
        (0..end)
            .filter(|&offset| {
                topic_of(offset).is_some_and(|topic| {
                    filters.iter().any(|(filter, from)| *from <= Offset(offset) && filter.matches(topic))
                })
            })
            .collect()
    }
}

async fn subscriber(hub: Arc<Hub>, seed: u64, finished: Arc<AtomicU64>) {
    let mut random = Random(seed);
    let mut model = Model::default();
    let from = hub.journal.durable_end();
    let (mut subscription, _) = hub.subscribe(Kind::EventStream, Interest::new(Form::Sse), from).unwrap();
    loop {
        if random.below(12) == 0 && model.filters.len() < FILTERS.len() {
            let filter = FILTERS[usize::try_from(random.below(FILTERS.len() as u64)).unwrap()];
            let end = hub.journal.durable_end();
            let from = if random.below(2) == 0 { end } else { Offset(random.below(end.0 + 1)) };
            // Subscribed again, a filter begins anew; the model has no word for that.
            if !model.filters.contains_key(filter) {
                model.filters.insert(filter, from);
                let filter = TopicFilter::new(filter).unwrap();
                let change = |interest: &mut Interest, position| {
                    interest.add(filter, from, position);
                    Some(from)
                };
                subscription.change_interest(change).await;
            }
        }
        for _ in 0..random.below(40) {
            tokio::task::yield_now().await;
        }
        let end = finished.load(Ordering::Acquire);
        if end > 0 && subscription.position() >= Offset(end) {
            break assert_eq!(model.got, model.wanted(end), "seed {seed}");
        }
        // Cancelled now and then, as by a `select!` in which something else comes first.
        tokio::select! {
            biased;
            delivery = subscription.next() => model.take(delivery),
            () = tokio::task::yield_now() => {}
        }
    }
}

#[test]
fn every_subscriber_gets_what_it_wants_once_at_any_pace() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for seed in 0..SEEDS {
        let options = Options { segment_bytes: 64 << 10, tail_bytes: 16 << 10, ..Options::default() };
        let (journal, appender) = Journal::open(Arc::new(MemoryStorage::default()), options).unwrap();
        let limits = Limits { subscribers_max: 100, queue_bytes_max: 4 << 10 };
        let encoder = Encoder::new(journal.id(), "tidegate");
        let (hub, follower) = Hub::start(journal.clone(), encoder, limits).unwrap();
        let finished = Arc::new(AtomicU64::new(0));
        let subscribers: Vec<_> = (0..8)
            .map(|n| runtime.spawn(subscriber(Arc::clone(&hub), seed * 100 + n, Arc::clone(&finished))))
            .collect();
        append_all(appender, &journal, seed);
        finished.store(journal.durable_end().0, Ordering::Release);
        for subscriber in subscribers {
            runtime.block_on(subscriber).unwrap();
        }
        assert_eq!(hub.counts().event_streams, 0, "a dropped subscription leaves the hub");
        assert_eq!(hub.table().live, 0, "the count of live subscribers is kept");
        drop(follower);
    }
}

#[test]
fn a_queue_never_holds_more_than_its_limit_and_one_event() {
    let (subscriber, _) = Subscriber::new(1, Kind::EventStream, Interest::new(Form::Sse), Offset(0));
    let mut state = subscriber.state();
    state.phase = Phase::Live { from: Offset(0) };
    // One event larger than the whole queue is taken when nothing else is in it.
    assert!(matches!(state.push(Offset(0), Bytes::from(vec![0; 5_000]), 1_000), Pushed::Queued));
    assert!(matches!(state.push(Offset(1), Bytes::from_static(b"x"), 1_000), Pushed::FellBehind));
    assert_eq!(state.phase, Phase::CatchingUp(Offset(0)));
    assert_eq!(state.take(usize::MAX).len(), 0, "what was queued is read from the journal again");
}
