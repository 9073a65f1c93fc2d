//! Asks the brokers which topics this client may write, without writing any.
//!
//! The answer is worth most for a transaction: when its coordinator refuses a topic it says neither which, nor that the others
//! are fine.

use std::collections::HashSet;
use std::ffi::CString;
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::bindings::rd_kafka_resp_err_t as Response;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;

use super::text;

/// Those of `topics` that are there and that this client may not write. Brokers that do not tell (before Kafka 2.3, or within
/// `patience`) are taken to have nothing against it. Blocks.
pub(in crate::kafka) fn unwritable<'t, C: ClientContext>(
    client: &Client<C>,
    topics: impl IntoIterator<Item = &'t str>,
    patience: Duration,
) -> HashSet<String> {
    // librdkafka refuses to answer when a name comes twice.
    let names: HashSet<&str> = topics.into_iter().collect();
    let names: Vec<_> =
        names.into_iter().map(|name| CString::new(name).expect("a legal Kafka topic has no NUL")).collect();
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client lives. The names end in NUL and are copied into the collection, and the request copies collection
    // and options, so each is destroyed once, here. An answer that comes later than the poll goes with its queue.
    unsafe {
        let native = client.native_ptr();
        let collection = rd::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let options =
            rd::rd_kafka_AdminOptions_new(native, rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let refused = rd::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
        assert!(refused.is_null(), "DescribeTopics has this option");
        let queue = rd::rd_kafka_queue_new(native);
        rd::rd_kafka_DescribeTopics(native, collection, options, queue);
        rd::rd_kafka_AdminOptions_destroy(options);
        rd::rd_kafka_TopicCollection_destroy(collection);
        let event = rd::rd_kafka_queue_poll(queue, patience);
        let found = if event.is_null() { HashSet::new() } else { answer(event) };
        rd::rd_kafka_event_destroy(event);
        rd::rd_kafka_queue_destroy(queue);
        found
    }
}

/// # Safety
///
/// `event` is a live event.
unsafe fn answer(event: *mut rd::rd_kafka_event_t) -> HashSet<String> {
    let mut found = HashSet::new();
    // SAFETY: `event` is live, and so is what it holds, which is copied here; the brokers' answer has `count` topics, and a
    // topic with known rights as many as it says.
    unsafe {
        let error = rd::rd_kafka_event_error(event);
        let result = rd::rd_kafka_event_DescribeTopics_result(event);
        if error != Response::RD_KAFKA_RESP_ERR_NO_ERROR || result.is_null() {
            tracing::debug!("Kafka does not tell the rights to topics: {}", RDKafkaErrorCode::from(error));
            return found;
        }
        let mut count = 0;
        let topics = rd::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        for index in 0..count {
            let topic = *topics.add(index);
            let unknown = rd::rd_kafka_error_code(rd::rd_kafka_TopicDescription_error(topic));
            let mut rights = 0;
            let operations = rd::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut rights);
            // Null says that the broker does not tell.
            if unknown != Response::RD_KAFKA_RESP_ERR_NO_ERROR || operations.is_null() {
                continue;
            }
            let write = rd::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE;
            if (0..rights).all(|right| *operations.add(right) != write) {
                found.insert(text(rd::rd_kafka_TopicDescription_name(topic)));
            }
        }
    }
    found
}
