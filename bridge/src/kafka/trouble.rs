//! What an error of librdkafka means to delivery, and what an operator can do about it; pure.

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::pump::SinkError;

use super::config::Config;
use super::dead_letter::Wrong;

/// What is to be done about one record that was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It will never be stored: a short word for why.
    Reject(&'static str),
    /// Its topic takes no records, for this reason.
    Topic(&'static str),
    /// Everything from the last confirmed record on is to be offered again, through a new producer.
    Again,
    /// As `Again`, but somebody has to act first.
    Operator,
}

/// What `code` says of a record. A code that is not known is worth another attempt: nothing is lost by it.
pub(super) fn verdict(code: Code) -> Verdict {
    // The list of codes grows with every release of librdkafka, hence the wildcard.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the enum is as long as Kafka's list of errors")]
    match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => {
            Verdict::Reject(TOO_LARGE)
        }
        Code::InvalidRecord | Code::InvalidMessage | Code::InvalidArgument | Code::BadMessage => {
            Verdict::Reject("invalid")
        }
        Code::InvalidTimestamp => Verdict::Reject("invalid_timestamp"),
        Code::PolicyViolation => Verdict::Reject("policy"),
        // Nothing waits in librdkafka, and still it has no room: the record alone is more than its queue may hold.
        Code::QueueFull => Verdict::Reject(TOO_LARGE),
        Code::TopicAuthorizationFailed => Verdict::Topic(NOT_AUTHORISED),
        Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicOrPartition
        | Code::UnknownTopicId
        | Code::InvalidTopic => Verdict::Topic(UNKNOWN_TOPIC),
        code if needs_operator(code) => Verdict::Operator,
        _ => Verdict::Again,
    }
}

/// It is larger than its topic takes.
pub(super) const TOO_LARGE: &str = "too_large";
/// This client may not write the topic.
pub(super) const NOT_AUTHORISED: &str = "not_authorised";
/// There is no such topic, or it lost its partitions.
pub(super) const UNKNOWN_TOPIC: &str = "unknown_topic";

/// The topic called `topic` takes no records, for `reason`, because of `code`.
pub(super) fn topic_detail(topic: &str, reason: &str, code: Code) -> String {
    if reason == NOT_AUTHORISED {
        return format!(
            "this client may not write the Kafka topic {topic} ({code}): grant it Write and Describe"
        );
    }
    format!(
        "Kafka has no topic {topic} ({code}): create it, or let tidegate do that with kafka.topics.create = true"
    )
}

/// Whether nothing changes until somebody acts.
pub(super) fn needs_operator(code: Code) -> bool {
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::SSL
            | Code::UnsupportedSASLMechanism
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::SecurityDisabled
            | Code::UnsupportedFeature
            | Code::UnsupportedVersion
            | Code::InvalidReplicationFactor
            | Code::InvalidPartitions
            | Code::InvalidConfig
            | Code::InvalidTopic
            | Code::PolicyViolation
    )
}

/// Whether librdkafka let a record go because its producer has failed for good.
pub(super) fn lets_go(code: Code) -> bool {
    matches!(code, Code::Fatal | Code::PurgeQueue | Code::PurgeInflight)
}

/// No broker can be reached, because of `code`.
pub(super) fn unreachable(config: &Config, code: Code, reason: &str) -> SinkError {
    let told = unreachable_detail(config, code, reason);
    if needs_operator(code) { SinkError::Operator(told) } else { SinkError::Retry(told) }
}

/// What to say when no broker can be reached.
pub(super) fn unreachable_detail(config: &Config, code: Code, reason: &str) -> String {
    let servers = config.bootstrap_servers.trim();
    let reason = essence(reason);
    if needs_operator(code) {
        return format!("Kafka at {servers} refuses this client: {reason}; check user, password and rights");
    }
    format!(
        "Kafka at {servers} cannot be reached: {reason}; check that it runs and that kafka.bootstrap_servers is right"
    )
}

/// A topic could not be created, because of `code`: why it takes no records, or that it is to be tried again.
pub(super) fn not_created(topic: &str, code: Code) -> Result<Wrong, SinkError> {
    if !needs_operator(code) {
        return Err(SinkError::Retry(format!("Kafka did not create the topic {topic}: {code}")));
    }
    // Whether it exists Kafka does not tell those who may not see it.
    let reason = if code == Code::TopicAuthorizationFailed { NOT_AUTHORISED } else { UNKNOWN_TOPIC };
    Ok(Wrong::new(
        reason,
        format!(
            "Kafka does not create the topic {topic}: {code}; create it by hand, or change kafka.topics or the rights of \
             this client"
        ),
    ))
}

/// `reason` without the parts that differ from one attempt to the next, so that the same trouble is told once.
fn essence(reason: &str) -> &str {
    let end = [" (after ", " (connecting to ", " (add "].iter().filter_map(|part| reason.find(part)).min();
    reason[..end.unwrap_or(reason.len())].trim_end_matches(':').trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_trouble_reads_the_same_each_time() {
        let check = |reason: &str, expected: &str| assert_eq!(essence(reason), expected);
        check(
            "127.0.0.1:9/bootstrap: Connect to ipv4#127.0.0.1:9 failed: Connection refused (after 0ms in state \
             CONNECT, 3 identical error(s) suppressed)",
            "127.0.0.1:9/bootstrap: Connect to ipv4#127.0.0.1:9 failed: Connection refused",
        );
        check("Local: Broker transport failure", "Local: Broker transport failure");
        check("", "");
    }

    #[test]
    fn what_kafka_will_never_take_is_rejected_and_all_else_is_tried_again() {
        let check = |code, expected| assert_eq!(verdict(code), expected, "{code:?}");
        check(Code::MessageSizeTooLarge, Verdict::Reject(TOO_LARGE));
        check(Code::InvalidRecord, Verdict::Reject("invalid"));
        check(Code::TopicAuthorizationFailed, Verdict::Topic(NOT_AUTHORISED));
        check(Code::UnknownTopicOrPartition, Verdict::Topic(UNKNOWN_TOPIC));
        check(Code::UnknownTopic, Verdict::Topic(UNKNOWN_TOPIC));
        check(Code::ClusterAuthorizationFailed, Verdict::Operator);
        check(Code::SaslAuthenticationFailed, Verdict::Operator);
        check(Code::LeaderNotAvailable, Verdict::Again);
        check(Code::OutOfOrderSequenceNumber, Verdict::Again);
        check(Code::Fatal, Verdict::Again);
        check(Code::Unknown, Verdict::Again);
    }
}
