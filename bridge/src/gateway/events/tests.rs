//! The fan-out against a model, under seeds: subscribers come, subscribe in the past, read at their own pace, fall
//! behind and catch up while records come in batches of every size. Whatever happens, a subscriber gets each record
//! that it wants and may receive once, and all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::thread;

use futures_util::FutureExt as _;
use tidegate_broker::auth::{AclFile, Anonymous, Identity};
use tidegate_broker::journal::{Appender, MemoryStorage, Options};
use tidegate_broker::record::{Append as _, Properties, Qos};
use tidegate_broker::topic::TopicFilter;

use super::*;
use crate::gateway::subscription::Delivery;

const TOPICS: [&str; 4] = ["a", "a/b", "a/c", "d"];
const FILTERS: [&str; 6] = ["#", "a/#", "a/+", "d", "a", "a/b"];
const RECORDS: u64 = 3_000;
const SEEDS: u64 = 8;
const RELOAD_EVERY: u64 = 50;

/// Who may not receive `a/b`.
const RESTRICTED: &str = "ada";

fn rules(text: &str) -> Rules {
    Rules::Acl(AclFile::parse("acl".as_ref(), text).unwrap())
}

fn access(text: &str) -> Arc<Access> {
    let access = Access::new(Anonymous::Never, None);
    access.replace_rules(rules(text));
    Arc::new(access)
}

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
    restricted: bool,
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

    /// Exactly what some filter wants, as far as it is allowed.
    fn wanted(&self, end: u64) -> BTreeSet<u64> {
        let filters: Vec<_> =
            self.filters.iter().map(|(filter, from)| (TopicFilter::new(filter).unwrap(), *from)).collect();
        (0..end)
            .filter(|&offset| {
                topic_of(offset).is_some_and(|topic| {
                    let allowed = !self.restricted || topic.as_str() != "a/b";
                    allowed
                        && filters
                            .iter()
                            .any(|(filter, from)| *from <= Offset(offset) && filter.matches(topic))
                })
            })
            .collect()
    }
}

async fn subscriber(hub: Arc<Hub>, seed: u64, finished: Arc<AtomicU64>) {
    let mut random = Random(seed);
    let restricted = seed % 2 == 1;
    let caller =
        if restricted { Caller::Client(Identity::user(RESTRICTED, "http")) } else { Caller::Operator };
    let mut model = Model { restricted, ..Model::default() };
    let from = hub.journal.durable_end();
    let (mut subscription, _) =
        hub.subscribe(Kind::EventStream, caller, Interest::new(Form::Sse), from).unwrap();
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
                subscription.change_interest(change);
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
        let access = access("user ada\ntopic read #\ntopic deny a/b\n");
        let (hub, follower) = Hub::start(journal.clone(), Arc::clone(&access), encoder, limits).unwrap();
        let finished = Arc::new(AtomicU64::new(0));
        let subscribers: Vec<_> = (0..8)
            .map(|n| runtime.spawn(subscriber(Arc::clone(&hub), seed * 100 + n, Arc::clone(&finished))))
            .collect();
        // Rules are read again and say the same: all is judged anew, in the middle of everything.
        let reloading = thread::spawn({
            let (access, journal) = (Arc::clone(&access), journal.clone());
            move || {
                for reload_at in (RELOAD_EVERY..RECORDS).step_by(RELOAD_EVERY as usize) {
                    while journal.durable_end() < Offset(reload_at) {
                        thread::yield_now();
                    }
                    access.replace_rules(Rules::clone(&access.rules()));
                }
            }
        });
        append_all(appender, &journal, seed);
        finished.store(journal.durable_end().0, Ordering::Release);
        for subscriber in subscribers {
            runtime.block_on(subscriber).unwrap();
        }
        reloading.join().unwrap();
        assert_eq!(hub.counts().event_streams, 0, "a dropped subscription leaves the hub");
        assert_eq!(hub.table().live, 0, "the count of live subscribers is kept");
        drop(follower);
    }
}

/// What a subscriber has been given, by topic.
fn topics(delivery: Delivery) -> Vec<String> {
    let Delivery::Events(events) = delivery else { panic!("{delivery:?}") };
    let topic = |event: Bytes| {
        let text = String::from_utf8(event.to_vec()).unwrap();
        text.split("\"topic\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
    };
    events.into_iter().map(topic).collect()
}

fn append(appender: &mut Appender, journal: &Journal, topic: &'static str) {
    let record = Record {
        time: Timestamp(1),
        client: "device",
        topic: TopicName::new(topic).unwrap(),
        properties: Properties::NONE,
        payload: b"1",
        qos: Qos::AtLeastOnce,
        retain: false,
        packet_id: 0,
    };
    let end = appender.append(&Entry::Record(record)).unwrap().offset.plus(1);
    while journal.durable_end() < end {
        appender.submit();
        thread::yield_now();
    }
    while appender.take_durable().is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_a_queue_is_judged_by_the_rules_of_when_it_is_taken() {
    let options = Options { segment_bytes: 64 << 10, tail_bytes: 16 << 10, ..Options::default() };
    let (journal, mut appender) = Journal::open(Arc::new(MemoryStorage::default()), options).unwrap();
    let access = access("user ada\ntopic read a\n");
    let limits = Limits { subscribers_max: 100, queue_bytes_max: 4 << 10 };
    let encoder = Encoder::new(journal.id(), "tidegate");
    let (hub, _follower) = Hub::start(journal.clone(), Arc::clone(&access), encoder, limits).unwrap();
    let subscribe = |caller| {
        let mut interest = Interest::new(Form::Sse);
        interest.add(TopicFilter::new("#").unwrap(), Offset(0), Offset(0));
        hub.subscribe(Kind::EventStream, caller, interest, Offset(0)).unwrap().0
    };
    let mut ada = subscribe(Caller::Client(Identity::user("ada", "http")));
    let mut operator = subscribe(Caller::Operator);
    append(&mut appender, &journal, "d");
    append(&mut appender, &journal, "a");
    let next = async |subscription: &mut Subscription| loop {
        let topics = topics(subscription.next().await);
        if !topics.is_empty() {
            break topics;
        }
    };
    assert_eq!(next(&mut ada).await, ["a"]);
    assert_eq!(next(&mut operator).await, ["d", "a"]);
    // Both wait at the end, and are live from then on.
    for subscription in [&mut ada, &mut operator] {
        while !matches!(subscription.subscriber().state().phase, Phase::Live { .. }) {
            let waited = tokio::time::timeout(std::time::Duration::from_millis(1), subscription.next()).await;
            assert!(waited.is_err() || topics(waited.unwrap()).is_empty());
        }
    }
    append(&mut appender, &journal, "a");
    append(&mut appender, &journal, "d");
    while operator.subscriber().state().queued() < 2 {
        thread::yield_now();
    }
    assert_eq!(ada.subscriber().state().queued(), 1, "what may not be received is not even queued");
    access.replace_rules(rules("user ada\ntopic read d\n"));
    assert_eq!(next(&mut ada).await, ["d"], "the rules have changed since it was queued");
    assert_eq!(next(&mut operator).await, ["a", "d"]);
    assert_eq!(hub.interested(TopicName::new("a").unwrap()), 1);
    assert_eq!(hub.interested(TopicName::new("d").unwrap()), 2);
}

#[test]
fn what_was_read_by_rules_that_have_changed_since_is_read_again() {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    let (journal, mut appender) =
        Journal::open(Arc::new(MemoryStorage::default()), Options::default()).unwrap();
    let access = access("user ada\ntopic read a\n");
    let limits = Limits { subscribers_max: 100, queue_bytes_max: 1_000 };
    let encoder = Encoder::new(journal.id(), "tidegate");
    for topic in ["a", "d"] {
        append(&mut appender, &journal, topic);
    }
    let (hub, _follower) = Hub::start(journal.clone(), Arc::clone(&access), encoder, limits).unwrap();
    let mut interest = Interest::new(Form::Sse);
    interest.add(TopicFilter::new("#").unwrap(), Offset(0), Offset(0));
    let ada = Caller::Client(Identity::user("ada", "http"));
    let (mut subscription, _) = hub.subscribe(Kind::EventStream, ada, interest, Offset(0)).unwrap();
    // The only thread that reads journals has something else to do, so that the read cannot be over at once.
    let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
    let occupied = runtime.spawn_blocking(move || released.recv());
    let first = runtime.block_on(async { subscription.next().now_or_never() });
    assert!(first.is_none(), "it is being read");
    assert!(hub.reads.available_permits() < CATCH_UP_READS_MAX, "it is being read");
    release.send(()).unwrap();
    runtime.block_on(occupied).unwrap().unwrap();
    while hub.reads.available_permits() < CATCH_UP_READS_MAX {
        thread::yield_now();
    }
    access.replace_rules(rules("user ada\ntopic read d\n"));
    let mut got = Vec::new();
    while got.is_empty() {
        got = topics(runtime.block_on(subscription.next()));
    }
    assert_eq!(got, ["d"]);
}

#[test]
fn what_is_queued_when_a_filter_is_added_comes_once_also_after_falling_behind() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (journal, mut appender) =
        Journal::open(Arc::new(MemoryStorage::default()), Options::default()).unwrap();
    let limits = Limits { subscribers_max: 100, queue_bytes_max: 1_000 };
    let encoder = Encoder::new(journal.id(), "tidegate");
    let (hub, _follower) = Hub::start(journal.clone(), Arc::default(), encoder, limits).unwrap();
    let mut interest = Interest::new(Form::Sse);
    interest.add(TopicFilter::new("a").unwrap(), Offset(0), Offset(0));
    let (mut subscription, _) =
        hub.subscribe(Kind::EventStream, Caller::Operator, interest, Offset(0)).unwrap();
    assert!(hub.go_live(subscription.subscriber(), Offset(0)));
    append(&mut appender, &journal, "a");
    while subscription.subscriber().state().queued() < 1 {
        thread::yield_now();
    }
    subscription.change_interest(|interest, position| {
        interest.add(TopicFilter::new("d").unwrap(), Offset(1), position);
        Some(Offset(1))
    });
    for _ in 0..20 {
        append(&mut appender, &journal, "d");
    }
    let mut got = Vec::new();
    while got.iter().filter(|topic| *topic == "d").count() < 20 {
        got.extend(topics(runtime.block_on(subscription.next())));
    }
    assert_eq!(got.iter().filter(|topic| *topic == "a").count(), 1);
    assert_eq!(got.len(), 21);
}

#[test]
fn a_queue_never_holds_more_than_its_limit_and_one_event() {
    let (subscriber, _) =
        Subscriber::new(1, Kind::EventStream, Caller::Operator, Interest::new(Form::Sse), Offset(0));
    let mut state = subscriber.state();
    state.phase = Phase::Live { from: Offset(0) };
    // One event larger than the whole queue is taken when nothing else is in it.
    assert!(matches!(state.push(Offset(0), Bytes::from(vec![0; 5_000]), 1_000), Pushed::Queued));
    assert!(matches!(state.push(Offset(1), Bytes::from_static(b"x"), 1_000), Pushed::FellBehind));
    assert_eq!(state.phase, Phase::CatchingUp(Offset(0)));
    assert_eq!(state.take(usize::MAX).len(), 0, "what was queued is read from the journal again");
}
