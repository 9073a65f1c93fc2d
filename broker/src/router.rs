//! Which subscriptions match a topic.
//!
//! Filters lie in a tree of levels. What a topic matches is worked out once and remembered until a subscription
//! changes, because devices publish to the same topics again and again. A session appears at most once in the
//! matches of a topic, however many of its filters overlap there. Who is connected is not known here, nor who may
//! receive what: whoever asks for matches says so.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::maps::HashMap;
use crate::record::{Offset, Qos};
use crate::slots::Key;
use crate::topic::{TopicFilter, TopicName};

/// How many topics' matches are remembered. When it is reached, all are forgotten and worked out anew.
const REMEMBERED_TOPICS_MAX: usize = 16_384;

/// How many bytes the remembered topics and their matches may take, likewise.
const REMEMBERED_BYTES_MAX: usize = 16 << 20;

/// What a session asked for with one filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SubscriptionOptions {
    /// The highest QoS at which it wants deliveries.
    pub qos: Qos,
    /// Not what it published itself [MQTT-3.8.3-3].
    pub no_local: bool,
    /// The RETAIN flag as it was published [MQTT-3.3.1-12].
    pub retain_as_published: bool,
    /// The Subscription Identifier to send along.
    pub identifier: Option<u32>,
    /// Records before this offset were there before the subscription and do not belong to it.
    pub since: Offset,
}

/// A session whose subscriptions match a topic, with the options of all matching filters taken together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The session.
    pub session: Key,
    /// The highest of the QoS asked for [MQTT-3.3.4-2].
    pub qos: Qos,
    /// Whether every matching filter excludes the session's own publishes.
    pub no_local: bool,
    /// Whether a matching filter wants the RETAIN flag kept.
    pub retain_as_published: bool,
    /// The Subscription Identifiers of all matching filters [MQTT-3.3.4-3].
    pub identifiers: SmallVec<[u32; 2]>,
    /// The offset from which on every one of the matching filters counts; below it a filter may be younger
    /// than the record.
    pub since: Offset,
}

impl Match {
    /// What `session` asked for with one filter.
    pub fn of(session: Key, options: &SubscriptionOptions) -> Self {
        Self {
            session,
            qos: options.qos,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            identifiers: options.identifier.into_iter().collect(),
            since: options.since,
        }
    }

    fn add(&mut self, options: &SubscriptionOptions) {
        self.qos = self.qos.max(options.qos);
        self.no_local &= options.no_local;
        self.retain_as_published |= options.retain_as_published;
        self.identifiers.extend(options.identifier);
        self.since = self.since.max(options.since);
    }

    /// What `session`'s own `filters` say of `topic` at `offset`, if any of them matches and is old enough.
    pub fn among<'f>(
        session: Key,
        filters: impl Iterator<Item = (&'f TopicFilter, &'f SubscriptionOptions)>,
        topic: TopicName<'_>,
        offset: Offset,
    ) -> Option<Self> {
        let mut found: Option<Self> = None;
        for (_, options) in
            filters.filter(|(filter, options)| options.since <= offset && filter.matches(topic))
        {
            match &mut found {
                Some(found) => found.add(options),
                None => found = Some(Self::of(session, options)),
            }
        }
        found
    }
}

/// The matches of one topic, ordered by session.
pub type Matches = Arc<[Match]>;

type Subscribers = Vec<(Key, SubscriptionOptions)>;

#[derive(Debug, Default)]
struct Node {
    below: HashMap<Box<str>, Self>,
    one_level: Option<Box<Self>>,
    here: Subscribers,
    /// Subscribers of `{this level}/#`.
    everything_below: Subscribers,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.below.is_empty()
            && self.one_level.is_none()
            && self.here.is_empty()
            && self.everything_below.is_empty()
    }
}

/// The subscriptions of all sessions.
#[derive(Debug)]
pub struct Router {
    root: Node,
    remembered: HashMap<Box<str>, Matches>,
    remembered_bytes: usize,
    nobody: Matches,
    subscriptions: usize,
}

impl Default for Router {
    fn default() -> Self {
        Self {
            root: Node::default(),
            remembered: HashMap::default(),
            remembered_bytes: 0,
            nobody: Arc::new([]),
            subscriptions: 0,
        }
    }
}

impl Router {
    /// How many subscriptions there are.
    pub const fn len(&self) -> usize {
        self.subscriptions
    }

    /// Whether there is no subscription.
    pub const fn is_empty(&self) -> bool {
        self.subscriptions == 0
    }

    /// Adds a subscription, or replaces the session's earlier one with the same filter [MQTT-3.8.4-3].
    pub fn subscribe(&mut self, filter: &TopicFilter, session: Key, options: SubscriptionOptions) {
        self.forget();
        let mut node = &mut self.root;
        let mut everything_below = false;
        for level in filter.levels() {
            match level {
                "#" => everything_below = true,
                "+" => node = node.one_level.get_or_insert_default(),
                name if node.below.contains_key(name) => {
                    node = node.below.get_mut(name).expect("it was there a line above");
                }
                name => node = node.below.entry(name.into()).or_default(),
            }
        }
        let subscribers = if everything_below { &mut node.everything_below } else { &mut node.here };
        match subscribers.iter_mut().find(|(subscriber, _)| *subscriber == session) {
            Some((_, earlier)) => *earlier = options,
            None => {
                subscribers.push((session, options));
                self.subscriptions += 1;
            }
        }
    }

    /// Removes a subscription; says whether there was one.
    pub fn unsubscribe(&mut self, filter: &TopicFilter, session: Key) -> bool {
        self.forget();
        let levels: SmallVec<[&str; 16]> = filter.levels().collect();
        let removed = remove(&mut self.root, &levels, session);
        self.subscriptions -= usize::from(removed);
        removed
    }

    /// What `topic` goes to when nobody has subscribed to it.
    pub fn nobody(&self) -> Matches {
        Arc::clone(&self.nobody)
    }

    /// Works every topic's matches out anew, because the answers of `may_receive` have changed.
    pub fn forget(&mut self) {
        self.remembered.clear();
        self.remembered_bytes = 0;
    }

    /// The sessions that `topic` goes to. `may_receive` says which of those that subscribed may; it is not asked again
    /// before [`Router::forget`].
    pub fn matches(&mut self, topic: TopicName<'_>, may_receive: impl Fn(Key) -> bool) -> Matches {
        if self.subscriptions == 0 {
            return Arc::clone(&self.nobody);
        }
        if let Some(matches) = self.remembered.get(topic.as_str()) {
            return Arc::clone(matches);
        }
        let matches = self.work_out(topic, may_receive);
        self.remembered_bytes += topic.as_str().len() + size_of_val(&*matches);
        if self.remembered.len() >= REMEMBERED_TOPICS_MAX || self.remembered_bytes > REMEMBERED_BYTES_MAX {
            self.forget();
        }
        self.remembered.insert(topic.as_str().into(), Arc::clone(&matches));
        matches
    }

    /// The same, without remembering it: for topics that hardly come again.
    pub fn look_up(&self, topic: TopicName<'_>, may_receive: impl Fn(Key) -> bool) -> Matches {
        if self.subscriptions == 0 { Arc::clone(&self.nobody) } else { self.work_out(topic, may_receive) }
    }

    /// Whether a filter has `level` as its first level.
    pub fn has_below(&self, level: &str) -> bool {
        self.root.below.contains_key(level)
    }

    fn work_out(&self, topic: TopicName<'_>, may_receive: impl Fn(Key) -> bool) -> Matches {
        let levels: SmallVec<[&str; 16]> = topic.levels().collect();
        let mut found = Vec::new();
        collect(&self.root, &levels, topic.is_system(), &mut found);
        found.retain(|(session, _)| may_receive(*session));
        if found.is_empty() {
            return Arc::clone(&self.nobody);
        }
        found.sort_by_key(|(session, _)| *session);
        let mut matches: Vec<Match> = Vec::with_capacity(found.len());
        for (session, options) in found {
            match matches.last_mut() {
                Some(last) if last.session == session => last.add(options),
                Some(_) | None => matches.push(Match::of(session, options)),
            }
        }
        matches.into()
    }
}

/// `wildcards_barred`: the topic begins with `$` and this is its first level [MQTT-4.7.2-1].
fn collect<'a>(
    node: &'a Node,
    levels: &[&str],
    wildcards_barred: bool,
    found: &mut Vec<(Key, &'a SubscriptionOptions)>,
) {
    if !wildcards_barred {
        // `a/#` also stands for `a` itself, so this holds whether or not levels are left [MQTT-4.7.1-2].
        found.extend(node.everything_below.iter().map(|(session, options)| (*session, options)));
    }
    let Some((level, rest)) = levels.split_first() else {
        found.extend(node.here.iter().map(|(session, options)| (*session, options)));
        return;
    };
    if let Some(below) = node.below.get(*level) {
        collect(below, rest, false, found);
    }
    if let Some(below) = node.one_level.as_deref().filter(|_| !wildcards_barred) {
        collect(below, rest, false, found);
    }
}

/// Removes one subscriber and every node that is empty without it.
fn remove(node: &mut Node, levels: &[&str], session: Key) -> bool {
    let subscribers = match levels.split_first() {
        None => &mut node.here,
        Some((&"#", _)) => &mut node.everything_below,
        Some((&"+", rest)) => {
            let Some(below) = node.one_level.as_deref_mut() else { return false };
            let removed = remove(below, rest, session);
            if below.is_empty() {
                node.one_level = None;
            }
            return removed;
        }
        Some((level, rest)) => {
            let Some(below) = node.below.get_mut(*level) else { return false };
            let removed = remove(below, rest, session);
            if below.is_empty() {
                node.below.remove(*level);
            }
            return removed;
        }
    };
    let Some(index) = subscribers.iter().position(|(subscriber, _)| *subscriber == session) else {
        return false;
    };
    subscribers.swap_remove(index);
    if subscribers.is_empty() {
        *subscribers = Vec::new();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Slots;

    fn options(qos: Qos) -> SubscriptionOptions {
        SubscriptionOptions {
            qos,
            no_local: false,
            retain_as_published: false,
            identifier: None,
            since: Offset(0),
        }
    }

    fn keys(count: usize) -> Vec<Key> {
        let mut slots = Slots::default();
        (0..count).map(|_| slots.insert(())).collect()
    }

    /// Every filter against every topic must give what [`TopicFilter::matches`] says, remembered or not, while
    /// subscriptions come and go.
    #[test]
    fn the_tree_agrees_with_matching_one_by_one() {
        let filters = [
            "#", "+", "+/+", "/+", "/#", "a", "a/#", "a/+", "a/b", "a/b/#", "a/+/c", "+/b/#", "$SYS/#",
            "$SYS/+", "$SYS/a", "a//b", "étage/+", "+/#",
        ];
        let topics = [
            "a", "a/b", "a/b/c", "a/c", "/", "/a", "$SYS/a", "$SYS", "a//b", "b", "étage/1", "a/b/c/d", "//",
        ];
        let sessions = keys(filters.len());
        let mut router = Router::default();
        let mut present = vec![false; filters.len()];
        let mut state = 7_u64;
        for _ in 0..2_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let chosen = (state >> 33) as usize % filters.len();
            let filter = TopicFilter::new(filters[chosen]).unwrap();
            if present[chosen] {
                assert!(router.unsubscribe(&filter, sessions[chosen]));
            } else {
                router.subscribe(&filter, sessions[chosen], options(Qos::AtMostOnce));
            }
            present[chosen] = !present[chosen];
            let topic = TopicName::new(topics[(state >> 40) as usize % topics.len()]).unwrap();
            let expected: Vec<Key> = (0..filters.len())
                .filter(|&at| present[at] && TopicFilter::new(filters[at]).unwrap().matches(topic))
                .map(|at| sessions[at])
                .collect();
            for _ in 0..2 {
                let found: Vec<Key> =
                    router.matches(topic, |_| true).iter().map(|found| found.session).collect();
                assert_eq!(found, expected, "{topic}");
            }
        }
        for (at, filter) in filters.iter().enumerate() {
            router.unsubscribe(&TopicFilter::new(filter).unwrap(), sessions[at]);
        }
        assert!(router.root.is_empty(), "unsubscribing leaves nothing behind");
        assert!(router.is_empty());
    }

    #[test]
    fn overlapping_filters_of_a_session_are_one_match() {
        let session = keys(1)[0];
        let mut router = Router::default();
        let mut subscribe = |filter: &str, qos, identifier, no_local| {
            let options = SubscriptionOptions { identifier, no_local, ..options(qos) };
            router.subscribe(&TopicFilter::new(filter).unwrap(), session, options);
        };
        subscribe("a/#", Qos::AtMostOnce, Some(1), true);
        subscribe("a/+", Qos::ExactlyOnce, Some(2), false);
        subscribe("a/b", Qos::AtLeastOnce, None, true);
        subscribe("b", Qos::AtLeastOnce, Some(9), true);
        let matches = router.matches(TopicName::new("a/b").unwrap(), |_| true);
        let [found] = &matches[..] else { panic!("{matches:?}") };
        assert_eq!(found.qos, Qos::ExactlyOnce);
        assert!(!found.no_local);
        let mut identifiers = found.identifiers.clone();
        identifiers.sort_unstable();
        assert_eq!(identifiers[..], [1, 2]);
    }

    #[test]
    fn subscribing_again_replaces() {
        let session = keys(1)[0];
        let filter = TopicFilter::new("a").unwrap();
        let mut router = Router::default();
        router.subscribe(&filter, session, options(Qos::AtMostOnce));
        router.subscribe(&filter, session, options(Qos::AtLeastOnce));
        assert_eq!(router.len(), 1);
        assert_eq!(router.matches(TopicName::new("a").unwrap(), |_| true)[0].qos, Qos::AtLeastOnce);
        assert!(router.unsubscribe(&filter, session));
        assert!(!router.unsubscribe(&filter, session));
        assert!(router.matches(TopicName::new("a").unwrap(), |_| true).is_empty());
    }

    #[test]
    fn who_may_not_receive_is_no_match_until_it_is_asked_again() {
        let sessions = keys(2);
        let mut router = Router::default();
        for session in &sessions {
            router.subscribe(&TopicFilter::new("a/#").unwrap(), *session, options(Qos::AtMostOnce));
        }
        let topic = TopicName::new("a/b").unwrap();
        let found = |matches: Matches| matches.iter().map(|found| found.session).collect::<Vec<_>>();
        assert_eq!(found(router.matches(topic, |session| session == sessions[1])), [sessions[1]]);
        assert_eq!(found(router.matches(topic, |_| true)), [sessions[1]], "it is remembered");
        router.forget();
        assert_eq!(found(router.matches(topic, |_| true)), sessions);
        router.forget();
        assert_eq!(found(router.matches(topic, |_| false)), []);
    }
}
