//! What a client may publish, receive and subscribe.
//!
//! Three sets of rules: everything, those of an ACL file, and those for devices, which hold where nothing is
//! configured. Whatever the rules, no client publishes to `$SYS` and `$share`.

use super::acl_file::{AclFile, Action, Decision};
use super::filters;
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

/// The rules where no ACL file is configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultRules {
    /// Clients without credentials on this machine may do everything. Every other client is a device: it may publish
    /// `sensors/{id}/#` and `devices/{id}/status`, receive `commands/{id}/#` and `alerts/#`, and nothing else. Its
    /// id is its username, or its Client Identifier if it has none.
    #[default]
    Device,
    /// Who may connect may do everything.
    Open,
}

/// The rules in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Those that need no file.
    Default(DefaultRules),
    /// Those of an ACL file.
    Acl(AclFile),
}

impl Default for Rules {
    fn default() -> Self {
        Self::Default(DefaultRules::default())
    }
}

impl Rules {
    /// Whether `identity` may do everything with topics that do not begin with `$`, and receive from those too, so
    /// that nothing needs to be asked.
    pub fn is_unrestricted(&self, identity: &Identity) -> bool {
        match self {
            Self::Default(DefaultRules::Open) => true,
            Self::Default(DefaultRules::Device) => identity.is_local(),
            Self::Acl(_) => false,
        }
    }

    /// Whether it may publish to `topic`.
    pub fn may_publish(&self, identity: &Identity, topic: TopicName<'_>) -> Verdict {
        if topic.is_system() && matches!(topic.levels().next(), Some("$SYS" | "$share")) {
            return Verdict::Denied("clients do not publish to $SYS and $share".to_owned());
        }
        self.decide(identity, Action::Write, topic)
    }

    /// Whether what is published to `topic` may be sent to it.
    pub fn may_receive(&self, identity: &Identity, topic: TopicName<'_>) -> Verdict {
        self.decide(identity, Action::Read, topic)
    }

    /// As [`Rules::may_receive`], without a reason.
    pub fn lets_receive(&self, identity: &Identity, topic: TopicName<'_>) -> bool {
        match self {
            Self::Default(_) if self.is_unrestricted(identity) => true,
            Self::Default(_) => device_may(identity, Action::Read, topic.as_str()),
            Self::Acl(file) => file.decide(identity, Action::Read, topic.as_str()) == Decision::Allowed,
        }
    }

    /// Whether there can be a topic that `filter` matches and that it may receive. Of a Shared Subscription it is the
    /// filter in it.
    pub fn may_subscribe(&self, identity: &Identity, filter: &TopicFilter) -> Verdict {
        match self {
            Self::Default(_) if self.is_unrestricted(identity) => Verdict::Allowed,
            Self::Default(_) => device_verdict(device_may_subscribe(identity, filter.as_str())),
            Self::Acl(file) => verdict(file.decide_filter(identity, filter.as_str())),
        }
    }

    fn decide(&self, identity: &Identity, action: Action, topic: TopicName<'_>) -> Verdict {
        match self {
            Self::Default(_) if self.is_unrestricted(identity) => Verdict::Allowed,
            Self::Default(_) => device_verdict(device_may(identity, action, topic.as_str())),
            Self::Acl(file) => verdict(file.decide(identity, action, topic.as_str())),
        }
    }
}

fn verdict(decision: Decision<'_>) -> Verdict {
    match decision {
        Decision::Allowed => Verdict::Allowed,
        Decision::DeniedBy(rule) => Verdict::Denied(format!("ACL file, {rule}")),
        Decision::NotAllowed => Verdict::Denied("ACL file: no rule allows it".to_owned()),
    }
}

fn device_verdict(allowed: bool) -> Verdict {
    if allowed {
        Verdict::Allowed
    } else {
        Verdict::Denied(
            "a device has its own sensors/, devices/, commands/ and alerts/ (auth.acl_file and auth.default_rules \
             change that)"
                .to_owned(),
        )
    }
}

/// The name of a device in its topics. One with a level or a wildcard in it could reach other devices' topics.
fn device_id(identity: &Identity) -> Option<&str> {
    let id = identity.name().unwrap_or(identity.client());
    (!id.is_empty() && !id.contains(['/', '+', '#'])).then_some(id)
}

fn device_may(identity: &Identity, action: Action, topic: &str) -> bool {
    let Some((first, rest)) = topic.split_once('/') else {
        return action == Action::Read && topic == "alerts";
    };
    let Some(id) = device_id(identity) else { return false };
    let (second, below) = rest.split_once('/').map_or((rest, None), |(second, below)| (second, Some(below)));
    match (action, first) {
        (Action::Write, "sensors") | (Action::Read, "commands") => second == id,
        (Action::Write, "devices") => second == id && below == Some("status"),
        (Action::Read, "alerts") => true,
        (Action::Read | Action::Write, _) => false,
    }
}

fn device_may_subscribe(identity: &Identity, filter: &str) -> bool {
    device_id(identity).is_some_and(|id| {
        filters::overlap("alerts/#", filter) || filters::overlap(&format!("commands/{id}/#"), filter)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Rules {
        Rules::Default(DefaultRules::Device)
    }

    fn may(rules: &Rules, identity: &Identity, topic: &str) -> (bool, bool) {
        let topic = TopicName::new(topic).unwrap();
        let receive = rules.may_receive(identity, topic).is_allowed();
        assert_eq!(rules.lets_receive(identity, topic), receive, "{identity:?} {topic}");
        (rules.may_publish(identity, topic).is_allowed(), receive)
    }

    #[test]
    fn a_device_has_its_own_topics_and_the_alerts() {
        let table = [
            ("sensors/d1", (true, false)),
            ("sensors/d1/t", (true, false)),
            ("sensors/d1/a/b", (true, false)),
            ("sensors/d2/t", (false, false)),
            ("sensors/d11/t", (false, false)),
            ("sensors", (false, false)),
            ("devices/d1/status", (true, false)),
            ("devices/d1/status/x", (false, false)),
            ("devices/d1", (false, false)),
            ("devices/d2/status", (false, false)),
            ("commands/d1/reboot", (false, true)),
            ("commands/d1", (false, true)),
            ("commands/d2/reboot", (false, false)),
            ("commands", (false, false)),
            ("alerts", (false, true)),
            ("alerts/high", (false, true)),
            ("other", (false, false)),
            ("/sensors/d1", (false, false)),
            ("$SYS/uptime", (false, false)),
        ];
        for (topic, expected) in table {
            assert_eq!(may(&device(), &Identity::user("d1", "x"), topic), expected, "{topic}");
            assert_eq!(may(&device(), &Identity::anonymous("d1", false), topic), expected, "{topic}");
            let open = (!topic.starts_with('$'), true);
            assert_eq!(may(&device(), &Identity::anonymous("x", true), topic), open, "{topic}");
            let rules = Rules::Default(DefaultRules::Open);
            assert_eq!(may(&rules, &Identity::user("d1", "x"), topic), open, "{topic}");
        }
    }

    #[test]
    fn a_name_that_is_no_level_is_no_device() {
        for id in ["", "+", "#", "a/b", "d+", "x#"] {
            for topic in ["sensors/a/b", "sensors//x", "commands/a/b/c", "alerts/x", "sensors/d+/x"] {
                if let Ok(topic) = TopicName::new(topic) {
                    let identity = Identity::anonymous(id, false);
                    assert!(!device().may_publish(&identity, topic).is_allowed(), "{id:?} {topic}");
                    assert!(!device().may_receive(&identity, topic).is_allowed(), "{id:?} {topic}");
                }
            }
        }
    }

    #[test]
    fn a_device_may_subscribe_where_there_is_something_for_it() {
        let yes = [
            "#",
            "+",
            "+/+",
            "+/d1/#",
            "+/d2/x",
            "alerts/#",
            "alerts",
            "alerts/+/x",
            "commands/#",
            "commands/+",
            "commands/d1/#",
            "commands/d1",
        ];
        let no = [
            "commands/d2/#",
            "commands",
            "sensors/#",
            "sensors/d1/#",
            "devices/d1/status",
            "other/#",
            "$SYS/#",
        ];
        let filters = yes.iter().map(|filter| (filter, true)).chain(no.iter().map(|filter| (filter, false)));
        for (filter, expected) in filters {
            let filter = TopicFilter::new(filter).unwrap();
            let verdict = device().may_subscribe(&Identity::user("d1", "x"), &filter);
            assert_eq!(verdict.is_allowed(), expected, "{filter}");
            assert!(
                device().may_subscribe(&Identity::anonymous("x", true), &filter).is_allowed(),
                "{filter}"
            );
            assert!(!device().may_subscribe(&Identity::user("d/1", "x"), &filter).is_allowed(), "{filter}");
        }
    }

    #[test]
    fn no_rules_let_clients_publish_to_the_broker_s_own_topics() {
        let everything = AclFile::parse("acl".as_ref(), "topic #\ntopic $SYS/#\ntopic $share/#\n").unwrap();
        for rules in [device(), Rules::Default(DefaultRules::Open), Rules::Acl(everything)] {
            for topic in ["$SYS", "$SYS/uptime", "$share", "$share/g/a"] {
                let verdict =
                    rules.may_publish(&Identity::anonymous("x", true), TopicName::new(topic).unwrap());
                assert!(!verdict.is_allowed(), "{topic}");
            }
        }
    }
}
