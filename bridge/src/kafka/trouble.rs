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

/// The topic called `topic` is there, and this client may not write it.
pub(super) fn not_writable(topic: &str) -> Wrong {
    Wrong::new(NOT_AUTHORISED, topic_detail(topic, NOT_AUTHORISED, Code::TopicAuthorizationFailed))
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
    if is_refusal(code, reason) { SinkError::Operator(told) } else { SinkError::Retry(told) }
}

/// What to say when no broker can be reached.
pub(super) fn unreachable_detail(config: &Config, code: Code, reason: &str) -> String {
    let servers = config.bootstrap_servers.trim();
    let told = essence(reason);
    match Refusal::of(code, reason) {
        Some(refusal) => format!("{}: {told}; {}", refusal.what(servers), refusal.advice()),
        None => format!("Kafka at {servers} cannot be reached: {told}; {}", advice(reason)),
    }
}

/// Whether there is no connection until somebody acts.
pub(super) fn is_refusal(code: Code, reason: &str) -> bool {
    Refusal::of(code, reason).is_some()
}

/// Why there is no connection until somebody acts, here or at the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// It does not believe who we say we are.
    Password,
    /// It has no such way to say who we are.
    Mechanism,
    /// It wants a certificate, or another one.
    Certificate,
    /// We do not believe that it is the broker.
    Broker,
    /// Whatever else somebody has to act upon.
    Other,
}

impl Refusal {
    fn of(code: Code, reason: &str) -> Option<Self> {
        // What a TLS alert says of a certificate (RFC 8446 section 6.2): bad, unsupported, revoked, expired, unknown, of an
        // unknown authority, missing.
        let alerts = [42, 43, 44, 45, 46, 48, 116].map(|number| format!("SSL alert number {number}"));
        if reason.contains("certificate verify failed") || reason.contains("could not be verified") {
            return Some(Self::Broker);
        }
        if alerts
            .iter()
            .any(|alert| reason.trim_end().ends_with(alert) || reason.contains(&format!("{alert} ")))
        {
            return Some(Self::Certificate);
        }
        if code == Code::UnsupportedSASLMechanism || reason.contains("mechanism handshake failed") {
            return Some(Self::Mechanism);
        }
        if matches!(code, Code::Authentication | Code::SaslAuthenticationFailed) {
            return Some(Self::Password);
        }
        needs_operator(code).then_some(Self::Other)
    }

    fn what(self, servers: &str) -> String {
        match self {
            Self::Broker => format!("whoever answers at {servers} does not prove to be Kafka's broker"),
            Self::Password | Self::Mechanism | Self::Certificate | Self::Other => {
                format!("Kafka at {servers} refuses this client")
            }
        }
    }

    const fn advice(self) -> &'static str {
        match self {
            Self::Password => {
                "check kafka.username and the password (kafka.password_file), or the user's password at Kafka"
            }
            Self::Mechanism => "check sasl.mechanism in kafka.properties: the broker takes others",
            Self::Certificate => {
                "it wants a certificate of an authority that it knows: check ssl.certificate.location and \
                 ssl.key.location in kafka.properties"
            }
            Self::Broker => {
                "name the authority of its certificate, in PEM, as ssl.ca.location in kafka.properties, and the broker as \
                 its certificate does in kafka.bootstrap_servers"
            }
            Self::Other => "check user, password and rights",
        }
    }
}

/// What to look at when a connection cannot be made or does not last.
fn advice(reason: &str) -> &'static str {
    // A broker that is spoken to in another way than its listener expects closes the connection without a word.
    let is_silent = reason.contains("in state APIVERSION_QUERY") || reason.contains("in state UP");
    if reason.contains("PLAINTEXT broker listener") || reason.contains("SSL handshake failed") {
        return "check security.protocol in kafka.properties: this listener does not seem to speak TLS";
    }
    if is_silent && (reason.contains("closed by peer") || reason.contains("Disconnected")) {
        return "if it runs, check security.protocol in kafka.properties (ssl or sasl_ssl for TLS, sasl_plaintext or \
                sasl_ssl for a user with a password): this listener may ask for another one";
    }
    "check that it runs and that kafka.bootstrap_servers is right"
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
    fn a_refusal_says_where_to_look() {
        let check = |code, reason: &str, refusal: Option<Refusal>, word: &str| {
            assert_eq!(Refusal::of(code, reason), refusal, "{reason}");
            let told = unreachable_detail(
                &Config { bootstrap_servers: "k:9".into(), ..Config::default() },
                code,
                reason,
            );
            assert!(told.contains("k:9") && told.contains(word), "{told}");
        };
        let sasl = "sasl_ssl://k:9/bootstrap: SASL authentication error: Authentication failed: Invalid username or \
                    password (after 5ms in state AUTH_REQ)";
        check(Code::Authentication, sasl, Some(Refusal::Password), "kafka.password_file");
        let mechanism = "sasl_plaintext://k:9/bootstrap: SASL SCRAM-SHA-256 mechanism handshake failed: Broker: \
                         Unsupported SASL mechanism: broker's supported mechanisms: PLAIN (after 1ms in state AUTH_HANDSHAKE)";
        check(Code::Authentication, mechanism, Some(Refusal::Mechanism), "sasl.mechanism");
        let authority = "ssl://k:9/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: \
                         broker certificate could not be verified (after 3ms in state SSL_HANDSHAKE)";
        check(Code::SSL, authority, Some(Refusal::Broker), "ssl.ca.location");
        let alert = |number: u16| {
            format!(
                "ssl://k:9/bootstrap: Receive failed: error:0A000412:SSL routines::ssl/tls alert: SSL alert number {number} \
                 (after 4ms in state APIVERSION_QUERY)"
            )
        };
        for number in [42, 43, 44, 45, 46, 48, 116] {
            check(
                Code::BrokerTransportFailure,
                &alert(number),
                Some(Refusal::Certificate),
                "ssl.key.location",
            );
        }
        check(Code::BrokerTransportFailure, &alert(80), None, "cannot be reached");
        check(Code::ClusterAuthorizationFailed, "no", Some(Refusal::Other), "rights");
        let closed = "k:9/bootstrap: Disconnected: connection closed by peer: receive 0 after POLLIN (after 0ms in state UP)";
        check(Code::BrokerTransportFailure, closed, None, "sasl_ssl");
        let plain = "ssl://k:9/bootstrap: SSL handshake failed: Disconnected: SSL connection closed by peer: connecting to a \
                     PLAINTEXT broker listener? (after 1ms in state SSL_HANDSHAKE)";
        check(Code::BrokerTransportFailure, plain, None, "does not seem to speak TLS");
        let refused = "k:9/bootstrap: Connect to ipv4#127.0.0.1:9 failed: Connection refused (after 0ms in state CONNECT)";
        check(Code::BrokerTransportFailure, refused, None, "check that it runs");
    }

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
