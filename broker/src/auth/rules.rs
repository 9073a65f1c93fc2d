//! What a client may publish, receive and subscribe.

use super::identity::Identity;
use crate::topic::{TopicFilter, TopicName};

/// What the rules say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Allowed,
    /// No, and which rule it is that says so, for the log.
    Denied(String),
}

impl Verdict {
    /// Whether it is a yes.
    pub const fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed)
    }
}

/// The rules in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rules {
    /// Who may connect may do everything.
    #[default]
    Open,
}

impl Rules {
    /// Whether `identity` may do everything, so that nothing needs to be asked.
    pub fn is_unrestricted(&self, _identity: &Identity) -> bool {
        match self {
            Self::Open => true,
        }
    }

    /// Whether it may publish to `topic`.
    pub fn may_publish(&self, _identity: &Identity, _topic: TopicName<'_>) -> Verdict {
        match self {
            Self::Open => Verdict::Allowed,
        }
    }

    /// Whether what is published to `topic` may be sent to it.
    pub fn may_receive(&self, _identity: &Identity, _topic: TopicName<'_>) -> Verdict {
        match self {
            Self::Open => Verdict::Allowed,
        }
    }

    /// Whether there can be a topic that `filter` matches and that it may receive.
    pub fn may_subscribe(&self, _identity: &Identity, _filter: &TopicFilter) -> Verdict {
        match self {
            Self::Open => Verdict::Allowed,
        }
    }
}
