//! Several appliances on one Kafka: each gets the others' commands once, and nothing goes round.

use rdkafka::consumer::Consumer as _;

use crate::support::metrics::Metrics;
use crate::support::mosquitto::{self, Subscriber, Version};
use crate::support::tidegate::Tidegate;
use crate::support::{PATIENCE, eventually, services};

use super::stage::{Stage, consumes, metric};

async fn records(stage: &Stage, topic: &str) -> i64 {
    stage.ends(topic).await.values().sum()
}

#[tokio::test]
async fn two_appliances_command_each_others_devices_and_not_for_ever() {
    let stage = Stage::new(services::kafka());
    let mut appliances = Vec::new();
    for number in 0..2 {
        let tidegate = Tidegate::start(stage.told(&format!("{}-{number}", stage.group))).await;
        consumes(&tidegate).await;
        let subscriber = Subscriber::start(tidegate.mqtt, Version::V5, 1, "commands/#", &[]).await;
        appliances.push((tidegate, subscriber));
    }
    // An appliance sends its records in their order: with its last one everything before it would have come back as well.
    for (from, payload) in
        [(Some(0), "from 0"), (None, "from Kafka"), (Some(0), "last of 0"), (Some(1), "last of 1")]
    {
        match from {
            Some(from) => {
                let (tidegate, _): &(Tidegate, Subscriber) = &appliances[from];
                let (address, version) = (tidegate.mqtt, Version::V5);
                mosquitto::publish(address, version, 1, "commands/valve/open", payload.as_bytes(), &[]);
            }
            None => {
                stage.produce("commands", Some("valve"), &[("action", "open")], payload.as_bytes()).await;
            }
        }
        for (_, subscriber) in &mut appliances {
            assert_eq!(subscriber.next().await.payload, payload);
        }
    }
    eventually("both have sent what there is", PATIENCE, async || {
        (records(&stage, "commands").await >= 4).then_some(())
    })
    .await;
    for (tidegate, _) in &appliances {
        tidegate.caught_up("kafka", 0, PATIENCE).await;
    }
    assert_eq!(records(&stage, "commands").await, 4, "each command is in Kafka once");
}

/// One consumes x and routes to y, the other the other way round.
#[tokio::test]
async fn a_detour_through_another_appliance_ends_where_it_began() {
    let mut stage = Stage::new(services::kafka());
    let (x, y) = (stage.topic("commands"), stage.topic("alerts"));
    let route = |filter: &str, topic: &str| {
        format!("[{{ filter = \"{filter}\", topic = \"{topic}\", key = \"level:2\" }}]")
    };
    stage.consumed = vec![("commands", "x/{device_id}", 1, false)];
    let group = format!("{}-0", stage.group);
    let first = Tidegate::start(stage.told(&group).set("TIDEGATE_KAFKA_ROUTES", &route("x/#", &y))).await;
    stage.consumed = vec![("alerts", "y/{device_id}", 1, false)];
    let group = format!("{}-1", stage.group);
    let second = Tidegate::start(stage.told(&group).set("TIDEGATE_KAFKA_ROUTES", &route("y/#", &x))).await;
    consumes(&first).await;
    consumes(&second).await;

    stage.produce("commands", Some("d"), &[], b"1").await;
    eventually("it came back to the first", PATIENCE, async || {
        let families = Metrics::of(&first).await;
        let came_back = families.sum("tidegate_source_passed_over_total", "reason=\"came_back\"");
        (came_back > 0.0).then_some(())
    })
    .await;
    first.caught_up("kafka", 0, PATIENCE).await;
    second.caught_up("kafka", 0, PATIENCE).await;
    assert_eq!((records(&stage, "commands").await, records(&stage, "alerts").await), (2, 1));
    for tidegate in [&first, &second] {
        assert_eq!(metric(tidegate, "tidegate_source_published_total", "topic").await, 1.0);
    }
}

#[tokio::test]
async fn members_of_one_group_share_the_partitions_and_one_that_drains_hands_over() {
    let mut stage = Stage::new(services::kafka());
    // Of two topics each could have one.
    stage.consumed.truncate(1);
    let mut first = stage.start().await;
    let second = stage.start().await;
    eventually("the group has two members that are in balance", PATIENCE, async || {
        (members(&stage.group).await.len() == 2).then_some(())
    })
    .await;
    let published = async |tidegate: &Tidegate| {
        metric(tidegate, "tidegate_source_published_total", &stage.topic("commands")).await
    };
    const COUNT: u64 = 60;
    for number in 0..COUNT {
        stage.command(&format!("d{number}"), number).await;
    }
    eventually("every command is published once", PATIENCE, async || {
        let (one, other) = (published(&first).await, published(&second).await);
        (one + other == COUNT as f64).then_some(())
    })
    .await;
    let (one, other) = (published(&first).await, published(&second).await);
    assert!(one > 0.0 && other > 0.0, "one had {one} commands, the other {other}");

    assert!(first.drain().await.success());
    for number in 0..COUNT {
        stage.command(&format!("d{number}"), number).await;
    }
    eventually("the other has all partitions now", PATIENCE, async || {
        (published(&second).await == other + COUNT as f64).then_some(())
    })
    .await;
    assert_eq!(stage.committed("commands").await, stage.ends("commands").await);
}

/// An appliance that is told no group has one of its own, and after a crash its own place in it.
#[tokio::test]
async fn without_a_group_an_appliance_is_one_that_stays_the_same_member() {
    let stage = Stage::new(services::kafka());
    let mut tidegate = Tidegate::start(stage.told("")).await;
    consumes(&tidegate).await;
    let journal = tidegate.journal_id().await;
    let mut valve = Subscriber::start(tidegate.mqtt, Version::V5, 1, "commands/#", &[]).await;
    stage.command("valve", 1).await;
    assert_eq!(valve.next().await.payload, "1");
    tidegate.crash_and_restart().await;
    consumes(&tidegate).await;
    let mut valve = Subscriber::start(tidegate.mqtt, Version::V5, 1, "commands/#", &[]).await;
    stage.command("valve", 2).await;
    while valve.next().await.payload != "2" {}
    let members = members(&format!("tidegate-{journal}")).await;
    assert_eq!(members.len(), 1, "{members:?}");
    assert!(members[0].starts_with(&journal), "{members:?}");
}

/// Members of the group, none while it is not in balance.
async fn members(group: &str) -> Vec<String> {
    let group = group.to_owned();
    let servers = services::kafka().to_owned();
    tokio::task::spawn_blocking(move || {
        let consumer: rdkafka::consumer::BaseConsumer =
            rdkafka::ClientConfig::new().set("bootstrap.servers", &servers).create().unwrap();
        let groups = consumer.fetch_group_list(Some(&group), PATIENCE).expect("Kafka tells of the group");
        let stable = groups.groups().iter().find(|found| found.name() == group && found.state() == "Stable");
        let ids = |group: &rdkafka::groups::GroupInfo| {
            group.members().iter().map(|member| member.id().to_owned()).collect()
        };
        stable.map_or_else(Vec::new, ids)
    })
    .await
    .unwrap()
}
