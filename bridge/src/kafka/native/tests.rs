//! Against a librdkafka that reaches nobody.

use std::time::Instant;

use tidegate_broker::record::{BatchBuilder, Properties, Qos, Timestamp};
use tidegate_broker::topic::TopicName;

use super::*;

fn batch(base: u64, payloads: &[&[u8]]) -> Batch {
    let mut builder = BatchBuilder::new(Offset(base), Timestamp(1), 0, 64);
    for payload in payloads {
        builder.push(&Entry::Control(b"between"));
        builder.push(&Entry::Record(Record {
            time: Timestamp(1),
            client: "c",
            topic: TopicName::new("t").unwrap(),
            properties: Properties::NONE,
            payload,
            qos: Qos::AtLeastOnce,
            retain: false,
            packet_id: 1,
        }));
    }
    builder.finish(|_| {}).1
}

/// A producer that reaches nobody and gives records up after `timeout_ms`.
fn producer(timeout_ms: u32, records_max: u32) -> Producer {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", "127.0.0.1:1")
        .set("message.timeout.ms", timeout_ms.to_string())
        .set("message.max.bytes", "2000")
        .set("queue.buffering.max.messages", records_max.to_string());
    let topic = KafkaTopic { name: "t".into(), partitions: None, retention_ms: None };
    Producer::new(&config, &[topic]).unwrap()
}

fn all<'r>(_: Offset, record: &Record<'r>) -> Option<Outgoing<'r>> {
    let mut headers = Headers::new(1);
    headers.add("name", b"value");
    let key = Some(Cow::Borrowed(record.client.as_bytes()));
    Some(Outgoing { topic: 0, key, value: Value::Payload, headers: Some(headers) })
}

/// Polls until `done`, or fails after ten seconds.
fn poll_until(producer: &mut Producer, mut done: impl FnMut(&mut Producer, Vec<Event>) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let wake = producer.wake();
    loop {
        let mut events = Vec::new();
        producer.poll(|event| events.push(event));
        if done(producer, events) {
            return;
        }
        assert!(Instant::now() < deadline, "nothing came within ten seconds");
        let _ =
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), wake.notified()).await });
    }
}

#[test]
fn librdkafka_holds_the_pointer_into_the_batch_and_releases_the_batch_with_its_last_report() {
    let batch = batch(1 << 33, &[b"one", b"", b"three"]);
    let payloads: Vec<_> = batch.records().map(|(_, record)| record.payload.as_ptr()).collect();
    let memory = {
        let (_, record) = batch.records().next().unwrap();
        batch.share(record.payload)
    };
    let mut producer = producer(50, 100);
    producer.hold(batch);
    producer.hand_over(all).unwrap();
    assert!(!producer.is_idle());
    assert_eq!(memory.as_ptr(), payloads[0]);

    // The reports are read here as raw messages, to see the very pointers that librdkafka kept.
    let (mut seen, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(10));
    while seen.len() < payloads.len() {
        assert!(Instant::now() < deadline, "no delivery reports within ten seconds");
        assert!(!memory.is_unique(), "the batch is held while librdkafka may read it");
        // SAFETY: as in `Producer::poll`.
        unsafe {
            let event = rd::rd_kafka_queue_poll(producer.queue, 100);
            if event.is_null() {
                continue;
            }
            if rd::rd_kafka_event_type(event) == rd::RD_KAFKA_EVENT_DR {
                loop {
                    let message = rd::rd_kafka_event_message_next(event);
                    if message.is_null() {
                        break;
                    }
                    seen.push((*message).payload.cast_const().cast::<u8>());
                    producer.settle((*message)._private as usize).unwrap();
                }
            }
            rd::rd_kafka_event_destroy(event);
        }
    }
    assert_eq!(seen, payloads);
    assert_eq!(producer.release(), Some(Offset((1 << 33) + 6)));
    assert!(memory.is_unique(), "nobody holds the batch any more");
}

#[test]
fn every_record_is_reported_with_its_offset() {
    let mut producer = producer(50, 100);
    producer.hold(batch(7, &[b"a", b"b"]));
    producer.hold(batch(11, &[b"c"]));
    producer.hand_over(all).unwrap();
    let mut failed = Vec::new();
    poll_until(&mut producer, |producer, events| {
        for event in events {
            if let Event::Failed(offset, code) = event {
                assert_eq!(code, RDKafkaErrorCode::MessageTimedOut);
                assert!(producer.record(offset).is_some());
                failed.push(offset.0);
            }
        }
        failed.len() == 3
    });
    assert_eq!(failed, [8, 10, 12]);
    assert_eq!(producer.release(), Some(Offset(13)));
    assert!(producer.is_idle());
}

#[test]
fn a_destroyed_producer_holds_nothing() {
    let batch = batch(0, &[b"one"]);
    let memory = batch.share(batch.records().next().unwrap().1.payload);
    let mut producer = producer(60_000, 100);
    producer.hold(batch);
    producer.hand_over(all).unwrap();
    assert!(!memory.is_unique());
    drop(producer);
    assert!(memory.is_unique());
}

#[test]
fn a_full_queue_halts_and_goes_on_where_it_stopped() {
    let mut producer = producer(50, 2);
    producer.hold(batch(0, &[b"a", b"b", b"c"]));
    assert_eq!(producer.hand_over(all), Err(Halt::Full));
    let mut reported = 0;
    poll_until(&mut producer, |producer, events| {
        reported += events.iter().filter(|event| matches!(event, Event::Failed(..))).count();
        let _ = producer.hand_over(all);
        reported == 3
    });
    assert_eq!(producer.release(), Some(Offset(6)));
}

#[test]
fn a_record_that_is_too_large_is_refused_and_the_rest_goes_on() {
    let mut producer = producer(50, 100);
    let large = [0; 3_000];
    producer.hold(batch(0, &[b"a", &large, b"c"]));
    let refused = Err(Halt::Refused(Offset(3), RDKafkaErrorCode::MessageSizeTooLarge));
    assert_eq!(producer.hand_over(all), refused);
    assert_eq!(producer.hand_over(all), Ok(()));
    let mut reported = 0;
    poll_until(&mut producer, |_, events| {
        reported += events.iter().filter(|event| matches!(event, Event::Failed(..))).count();
        reported == 2
    });
    assert_eq!(producer.release(), Some(Offset(6)));
}

#[test]
fn a_record_that_failed_holds_its_batch_until_somebody_else_has_it() {
    let mut producer = producer(50, 100);
    producer.hold(batch(0, &[b"a", b"b"]));
    producer.hand_over(all).unwrap();
    let (mut again, mut failed) = (0, 0);
    poll_until(&mut producer, |producer, events| {
        for event in events {
            let Event::Failed(offset, _) = event else { continue };
            failed += 1;
            if offset == Offset(1) && again == 0 {
                producer.hold_back(offset);
                assert_eq!(producer.release(), None, "it is held back");
                producer.hand_over_again(offset, all).unwrap();
                again += 1;
            }
        }
        failed == 3
    });
    assert_eq!(producer.release(), Some(Offset(4)));

    producer.hold(batch(4, &[b"a"]));
    producer.hand_over(all).unwrap();
    poll_until(&mut producer, |producer, events| {
        events.iter().any(|event| matches!(event, Event::Failed(Offset(5), _))) && {
            producer.hold_back(Offset(5));
            true
        }
    });
    assert_eq!(producer.release(), None);
    producer.hand_over_again(Offset(5), |_, _| None).unwrap();
    assert_eq!(producer.release(), Some(Offset(6)));
    assert!(producer.is_idle());
}

#[test]
fn the_size_of_a_record_batch_is_known_before_it_is_made() {
    let check = |length, expected| assert_eq!(sized(length), expected, "{length}");
    check(0, 1);
    check(63, 64);
    check(64, 66);
    check(8_191, 8_193);
    check(8_192, 8_195);
    let batch = batch(0, &[b"12345"]);
    let (offset, record) = batch.records().next().unwrap();
    let outgoing = all(offset, &record).unwrap();
    // Key `c`, value `12345`, header `name` = `value`.
    assert_eq!(outgoing.batch_bytes(&record), BATCH_OF_ONE_BYTES + 2 + 6 + 5 + 6);
}

#[test]
fn a_batch_of_which_nothing_is_produced_is_done_at_once() {
    let mut producer = producer(50, 100);
    producer.hold(batch(0, &[b"a"]));
    producer.hold(batch(2, &[]));
    producer.hand_over(|_, _| None).unwrap();
    assert_eq!(producer.release(), Some(Offset(2)));
    assert!(producer.is_idle());
}

#[test]
fn what_was_rewound_is_handed_over_again_from_its_beginning() {
    let mut producer = producer(50, 100);
    producer.hold(batch(0, &[b"a", b"b"]));
    producer.hold(batch(4, &[b"c"]));
    for _ in 0..2 {
        producer.hand_over(all).unwrap();
        let mut failed = Vec::new();
        poll_until(&mut producer, |_, events| {
            failed.extend(events.iter().filter_map(|event| match event {
                Event::Failed(offset, _) => Some(offset.0),
                Event::Trouble { .. } => None,
            }));
            failed.len() >= 3
        });
        failed.sort_unstable();
        assert_eq!(failed, [1, 3, 5]);
        producer.rewind();
        assert_eq!(producer.release(), None, "it is to be handed over again");
    }
}
