//! What who was let in may do: publish, subscribe, look at the gateway itself.
//!
//! The rules are MQTT's, asked at each request; what they deny is counted and logged with what they deny there, and
//! answered 403 with the topic and the rule. What a stream sends is judged where it is read, by
//! [`Caller::may_receive`].

use std::sync::Arc;

use axum::http::StatusCode;
use tidegate_broker::auth::{Attempt, Identity, Rules, Verdict};
use tidegate_broker::topic::{TopicFilter, TopicName};

use super::caller::Caller;
use super::guard::{Guard, now, unauthorized};
use super::reply::Refusal;

/// What stands in the log for the topic of a broadcast.
const BROADCAST: &str = "/realtime/broadcast";

impl Guard {
    /// The rules in force.
    pub(super) fn rules(&self) -> Arc<Rules> {
        self.access.rules()
    }

    /// Whether what the gateway tells about itself is for `caller`.
    pub(super) fn is_operator(&self, caller: &Caller) -> bool {
        caller.is_operator(&self.rules())
    }

    /// Whether `caller` may have what is at `path`, as far as that does not depend on topics.
    pub(super) fn may_open(&self, caller: &Caller, path: &str) -> Result<(), Refusal> {
        if !is_for_operators(path) || self.is_operator(caller) {
            return Ok(());
        }
        let detail = format!(
            "{path} is for operators: send the operator token (the file operator-token in the data folder) as \
             \"Authorization: Bearer TOKEN\""
        );
        Err(Refusal::new(StatusCode::FORBIDDEN, "operators_only", detail))
    }

    /// Whether `caller` may publish to `topic`.
    pub(super) fn may_publish(&self, caller: &Caller, topic: TopicName<'_>) -> Result<(), Refusal> {
        let verdict = |identity: &Identity| self.rules().may_publish(identity, topic);
        self.decide(caller, Attempt::Publish, topic.as_str(), verdict)
    }

    /// Whether there is anything in `filter` for `caller`.
    pub(super) fn may_subscribe(&self, caller: &Caller, filter: &TopicFilter) -> Result<(), Refusal> {
        let verdict = |identity: &Identity| self.rules().may_subscribe(identity, filter);
        self.decide(caller, Attempt::Subscribe, filter.as_str(), verdict)
    }

    /// Whether `caller` may send something to every WebSocket. That has no topic for which a rule could allow it.
    pub(super) fn may_broadcast(&self, caller: &Caller) -> Result<(), Refusal> {
        let verdict = |_: &Identity| {
            if self.is_operator(caller) {
                Verdict::Allowed
            } else {
                Verdict::Denied("a broadcast reaches everybody and is for operators".to_owned())
            }
        };
        self.decide(caller, Attempt::Publish, BROADCAST, verdict)
    }

    fn decide(
        &self,
        caller: &Caller,
        attempt: Attempt,
        topic: &str,
        verdict: impl FnOnce(&Identity) -> Verdict,
    ) -> Result<(), Refusal> {
        let identity = match caller {
            Caller::Operator => return Ok(()),
            Caller::Client(identity) => identity,
            Caller::Stranger => return Err(unauthorized("unauthorized", "credentials are needed")),
        };
        let rule = match verdict(identity) {
            Verdict::Allowed => return Ok(()),
            Verdict::Denied(rule) => rule,
        };
        self.access.note_denial(identity, attempt, topic, &rule, now());
        let who = identity.name().unwrap_or("a caller without credentials");
        let action = match attempt {
            Attempt::Publish => "publish to",
            Attempt::Subscribe => "subscribe to",
        };
        let detail = format!("{who} may not {action} {topic}: {rule}");
        Err(Refusal::new(StatusCode::FORBIDDEN, "denied", detail))
    }
}

/// What tells of all devices and of the appliance itself.
fn is_for_operators(path: &str) -> bool {
    matches!(path, "/metrics" | "/realtime/status" | "/realtime/connections")
}
