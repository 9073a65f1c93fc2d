//! Who sent a request, and what the rules of MQTT let it do.
//!
//! A caller is let in as an MQTT client would be, and the same rules then say what it may publish and receive. Only
//! the operator token stands above them. What the gateway tells about itself is for operators: those with the token,
//! callers without credentials on this machine, and whoever the rules let do everything.
//!
//! What always holds: a record is given to a caller only if the rules in force when it is taken allow that. The answers
//! are remembered, by [`Verdicts`] and by the fan-out, until the rules change.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_broker::auth::{Access, Identity, Rules};
use tidegate_broker::record::Timestamp;
use tidegate_broker::topic::TopicName;

use super::encode;

/// Topics whose answer is remembered for one caller that reads the journal; above it, all are forgotten.
const VERDICTS_MAX: usize = 1_024;
/// How long the wait for the end of a token is at most before the clock is looked at again.
const EXPIRY_CHECK: Duration = Duration::from_secs(60);

/// Who sent a request.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// Somebody with the operator token, who may do everything.
    Operator,
    /// Let in like an MQTT client: the rules in force say what it may do.
    Client(Identity),
    /// Not let in, on a path that answers everybody.
    Stranger,
}

impl Caller {
    /// Whether the rules have no say in what it receives.
    pub(super) const fn is_above_rules(&self) -> bool {
        matches!(self, Self::Operator)
    }

    /// Whether what the gateway tells about itself is for it.
    pub(super) fn is_operator(&self, rules: &Rules) -> bool {
        match self {
            Self::Operator => true,
            Self::Client(identity) => identity.is_local() || rules.is_unrestricted(identity),
            Self::Stranger => false,
        }
    }

    /// Whether `rules` let it receive every topic.
    fn receives_everything(&self, rules: &Rules) -> bool {
        match self {
            Self::Operator => true,
            Self::Client(identity) => rules.is_unrestricted(identity),
            Self::Stranger => false,
        }
    }

    /// Whether `rules` let it receive what is published to `topic`.
    pub(super) fn may_receive(&self, rules: &Rules, topic: TopicName<'_>) -> bool {
        match self {
            Self::Operator => true,
            Self::Client(identity) => rules.lets_receive(identity, topic),
            Self::Stranger => false,
        }
    }

    /// Waits until its token has expired: for ever, if it has come without one.
    pub(super) async fn expired(&self) {
        let expires = match self {
            Self::Operator | Self::Stranger => None,
            Self::Client(identity) => identity.expires(),
        };
        let Some(Timestamp(expires_ms)) = expires else { return std::future::pending().await };
        // The clock may be set meanwhile.
        loop {
            let left = Duration::from_millis(expires_ms.saturating_sub(encode::now().0));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(EXPIRY_CHECK)).await;
        }
    }
}

/// What one caller may receive, topic by topic, by the rules of one version.
#[derive(Debug)]
pub(super) struct Verdicts {
    version: u64,
    rules: Arc<Rules>,
    everything: bool,
    by_topic: HashMap<Box<str>, bool>,
}

impl Verdicts {
    /// None yet, by the rules in force.
    pub(super) fn new(caller: &Caller, access: &Access) -> Self {
        // In this order: rules that change in between are only asked for once more.
        let version = access.rules_version();
        let rules = access.rules();
        let everything = caller.receives_everything(&rules);
        Self { version, rules, everything, by_topic: HashMap::new() }
    }

    /// Whether the rules are still those in force.
    pub(super) fn are_current(&self, access: &Access) -> bool {
        self.version == access.rules_version()
    }

    /// Whether `caller` may receive what is published to `topic`.
    pub(super) fn may_receive(&mut self, caller: &Caller, topic: TopicName<'_>) -> bool {
        if self.everything {
            return true;
        }
        if let Some(known) = self.by_topic.get(topic.as_str()) {
            return *known;
        }
        let allowed = caller.may_receive(&self.rules, topic);
        if self.by_topic.len() >= VERDICTS_MAX {
            self.by_topic.clear();
        }
        self.by_topic.insert(topic.as_str().into(), allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures_util::FutureExt as _;
    use tidegate_broker::auth::{AclFile, Anonymous, DefaultRules};

    use super::*;

    fn acl(text: &str) -> Rules {
        Rules::Acl(AclFile::parse(Path::new("acl"), text).unwrap())
    }

    #[test]
    fn what_the_gateway_tells_about_itself_is_for_operators() {
        let device = Caller::Client(Identity::user("d1", "http"));
        let somebody = Caller::Client(Identity::anonymous("http", false));
        let here = Caller::Client(Identity::anonymous("http", true));
        let (by_default, open) = (Rules::default(), Rules::Default(DefaultRules::Open));
        let everything = acl("topic #\nuser d1\ntopic #\n");
        let check = |caller: &Caller, expected: [bool; 3]| {
            let found = [&by_default, &open, &everything].map(|rules| caller.is_operator(rules));
            assert_eq!(found, expected, "{caller:?}");
        };
        check(&Caller::Operator, [true, true, true]);
        check(&here, [true, true, true]);
        check(&device, [false, true, false]);
        check(&somebody, [false, true, false]);
        check(&Caller::Stranger, [false, false, false]);
    }

    #[test]
    fn verdicts_are_few_and_end_with_their_rules() {
        let access = Access::new(Anonymous::Never, None);
        let device = Caller::Client(Identity::user("d1", "http"));
        let mut verdicts = Verdicts::new(&device, &access);
        for n in 0..3 * VERDICTS_MAX {
            for (topic, expected) in [(format!("commands/d1/{n}"), true), (format!("commands/d2/{n}"), false)]
            {
                let topic = TopicName::new(&topic).unwrap();
                for _ in 0..2 {
                    assert_eq!(verdicts.may_receive(&device, topic), expected, "{topic}");
                }
            }
            assert!(verdicts.by_topic.len() <= VERDICTS_MAX);
        }
        assert!(verdicts.are_current(&access));
        access.replace_rules(acl("user d1\ntopic read commands/d2/#\n"));
        assert!(!verdicts.are_current(&access));
    }

    #[tokio::test]
    async fn only_a_token_expires() {
        let until = |expires| Caller::Client(Identity::user("d1", "http").until(expires));
        let has_expired = |caller: Caller| caller.expired().now_or_never().is_some();
        assert!(has_expired(until(Some(Timestamp(1)))));
        assert!(!has_expired(until(Some(Timestamp(u64::MAX)))));
        assert!(!has_expired(until(None)));
        assert!(!has_expired(Caller::Operator));
    }
}
