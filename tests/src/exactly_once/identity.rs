//! Who has the transactional identity: two instances with one, an instance that was away for too long, others that hold up a reader.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::{PATIENCE, Stage, settings};
use crate::ledger::load::{Devices, Load};
use crate::support::process::{self, Signal};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{eventually, services, unique};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_instances_with_one_identity_the_later_delivers_and_the_earlier_says_so_and_loses_nothing() {
    let kafka = services::kafka();
    let run = unique("fence");
    let identity = format!("{run}-both");
    let same = |settings: Settings| settings.set("TIDEGATE_KAFKA_TRANSACTIONAL_ID", &identity);
    let cursors = format!("{run}-cursors");
    let mut first =
        Stage::start("first", kafka, |settings| same(settings.set("TIDEGATE_KAFKA_CURSOR_TOPIC", &cursors)))
            .await;
    let second =
        Stage::start("second", kafka, |settings| same(settings.set("TIDEGATE_KAFKA_CURSOR_TOPIC", &cursors)))
            .await;

    let told = eventually("the first says that another has taken over", PATIENCE, async || {
        Some(first.tidegate.sink("kafka").await).filter(|sink| sink.state == "failed")
    })
    .await;
    assert!(
        told.detail.contains("another instance has taken over") && told.detail.contains(&identity),
        "{told:?}"
    );
    assert!(told.detail.contains(&second.tidegate.journal_id().await), "it says which: {told:?}");
    // It accepts and does not deliver, while the second does; and does not fight back.
    first.load.more_acknowledged(500).await;
    second.delivers().await;
    eventually("the first is further behind, and still says so", PATIENCE, async || {
        let still = first.tidegate.sink("kafka").await;
        assert_eq!(still.state, "failed", "{still:?}");
        (still.lag_entries >= told.lag_entries + 500).then_some(())
    })
    .await;
    second.load.more_acknowledged(500).await;
    second.delivers().await;

    // Started again it takes the identity back, and finds its own place.
    first.tidegate.crash_and_restart().await;
    first.delivers().await;
    eventually("the second says that another has taken over", PATIENCE, async || {
        (second.tidegate.sink("kafka").await.state == "failed").then_some(())
    })
    .await;
    first.finish().await;
    let mut second = second;
    second.tidegate.crash_and_restart().await;
    second.finish().await;
}

/// Stands still for longer than the brokers wait for the end of a transaction: they end it, and take the identity away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_stood_still_in_a_transaction_goes_on_by_itself() {
    let kafka = services::kafka();
    let stage = Stage::start("still", kafka, |settings| {
        settings
            .set("TIDEGATE_KAFKA_PROPERTIES", "{ \"transaction.timeout.ms\" = \"3000\" }")
            .set("TIDEGATE_KAFKA_TRANSACTION_INTERVAL", "500ms")
    })
    .await;
    let (open, pid) = (Undecided::of(kafka, &stage.run), stage.tidegate.pid());
    // It has to be caught with a transaction open at the brokers.
    loop {
        process::send(pid, Signal::Stop);
        if open.is_any() {
            break;
        }
        process::send(pid, Signal::Continue);
        stage.load.more_acknowledged(20).await;
    }
    eventually("the brokers have ended its transaction", PATIENCE, async || (!open.is_any()).then_some(()))
        .await;
    process::send(pid, Signal::Continue);
    stage.delivers().await;
    stage.load.more_acknowledged(500).await;
    let (tidegate, _) = stage.finish().await;
    let log = tidegate.log();
    assert!(
        log.contains("did not end well") || log.contains("has to be made anew"),
        "the fault was none: {log}"
    );
}

/// Whether a topic has records of which it is not decided whether they will be visible.
struct Undecided {
    committed: BaseConsumer,
    all: BaseConsumer,
    topic: String,
}

impl Undecided {
    fn of(kafka: &str, topic: &str) -> Self {
        let consumer = |isolation: &str| {
            ClientConfig::new()
                .set("bootstrap.servers", kafka)
                .set("isolation.level", isolation)
                .set("group.id", unique("reader"))
                .create()
                .expect("the consumer's configuration is valid")
        };
        Self {
            committed: consumer("read_committed"),
            all: consumer("read_uncommitted"),
            topic: topic.to_owned(),
        }
    }

    fn is_any(&self) -> bool {
        let end = |consumer: &BaseConsumer, partition| {
            consumer
                .fetch_watermarks(&self.topic, partition, PATIENCE)
                .expect("Kafka tells where a partition ends")
                .1
        };
        // In this order: what is decided in between does not look undecided.
        (0..3).any(|partition| {
            let all = end(&self.all, partition);
            end(&self.committed, partition) < all
        })
    }
}

/// The cursor topic may be shared, and then a transaction of somebody else hides what was committed behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_another_in_the_cursor_topic_is_waited_for() {
    let kafka = services::kafka();
    let mut stage = Stage::start("hidden", kafka, |settings| settings).await;
    let topic = format!("{}-cursors", stage.run);
    let other: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .set("transactional.id", unique("other"))
        .create()
        .expect("the producer's configuration is valid");
    other.init_transactions(PATIENCE).unwrap();
    other.begin_transaction().unwrap();
    other.send(BaseRecord::to(&topic).key("other/0").payload("{}")).unwrap();
    other.flush(PATIENCE).unwrap();
    // From now on no cursor can be read, although cursors are committed.
    stage.delivers().await;
    stage.load.more_acknowledged(1_000).await;
    stage.delivers().await;
    stage.tidegate.crash_and_restart().await;
    let told = eventually("it says what it waits for", PATIENCE, async || {
        Some(stage.tidegate.sink("kafka").await).filter(|sink| sink.state == "down")
    })
    .await;
    assert!(told.detail.contains(&topic) && told.detail.contains("is open"), "{told:?}");
    other.abort_transaction(PATIENCE).unwrap();
    stage.delivers().await;
    stage.finish().await;
}

/// A topic that forgets is no place for cursors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_topic_that_forgets_is_refused_with_what_to_do() {
    let (kafka, run) = (services::kafka(), unique("forgets"));
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka).create().unwrap();
    let topic = format!("{run}-cursors");
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "delete");
    admin.create_topics([&new], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    let tidegate = Tidegate::start(settings(kafka, &run)).await;
    let told = eventually("it refuses the topic", PATIENCE, async || {
        Some(tidegate.sink("kafka").await).filter(|sink| sink.state == "failed")
    })
    .await;
    assert!(told.detail.contains(&topic) && told.detail.contains("cleanup.policy = compact"), "{told:?}");
}

/// While nothing is wrong with the identity, what has been delivered at least once before is not delivered again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appliance_that_was_at_least_once_goes_on_where_it_was() {
    let (kafka, run) = (services::kafka(), unique("switched"));
    let mut tidegate =
        Tidegate::start(settings(kafka, &run).set("TIDEGATE_KAFKA_EXACTLY_ONCE", "false")).await;
    let load = Load::start(tidegate.mqtt, &run, Devices::USUAL);
    load.more_acknowledged(2_000).await;
    // A drain leaves nothing behind, so the journal's own cursor is exact.
    assert!(tidegate.drain().await.success());
    tidegate.set("TIDEGATE_KAFKA_EXACTLY_ONCE", "true");
    tidegate.spawn();
    tidegate.ready().await;
    let stage = Stage { tidegate, load, run, kafka: kafka.to_owned() };
    stage.delivers().await;
    stage.finish().await;
}
