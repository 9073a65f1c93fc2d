//! How filters that stand in rules relate to topics and to one another. They are compared as text, because those of
//! a pattern are made for each client; the rules of matching are those of [`TopicFilter`](crate::topic::TopicFilter).

/// Whether `filter` matches the Topic Name `topic`.
pub(super) fn matches(filter: &str, topic: &str) -> bool {
    // Every topic is a filter that matches nothing but itself.
    covers(filter, topic)
}

/// Whether every topic that `inner` matches is matched by `outer` too.
pub(super) fn covers(outer: &str, inner: &str) -> bool {
    if inner.starts_with('$') && outer.starts_with(['+', '#']) {
        return false;
    }
    // Every topic has a first level.
    let outer = if outer == "+/#" { "#" } else { outer };
    let mut inner = inner.split('/');
    for level in outer.split('/') {
        match (level, inner.next()) {
            // It also stands for its parent [MQTT-4.7.1-2].
            ("#", _) => return true,
            (_, Some("#")) | (_, None) => return false,
            ("+", Some(_)) => {}
            (level, Some(other)) if level == other => {}
            (_, Some(_)) => return false,
        }
    }
    inner.next().is_none()
}

/// Whether there is a topic that both match.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    let is_wild = |filter: &str| filter.starts_with(['+', '#']);
    if (one.starts_with('$') && is_wild(other)) || (other.starts_with('$') && is_wild(one)) {
        return false;
    }
    let (mut one, mut other) = (one.split('/'), other.split('/'));
    loop {
        match (one.next(), other.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
            (Some(level), Some(another)) if level == another => {}
            (Some(_), Some(_)) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::{TopicFilter, TopicName};

    const FILTERS: [&str; 19] = [
        "#", "+", "+/+", "/+", "/#", "a", "a/#", "a/+", "a/b", "a/b/#", "a/+/c", "+/b/#", "$SYS/#", "$SYS/+",
        "$SYS/a", "a//b", "+/#", "+/+/#", "$SYS",
    ];
    const TOPICS: [&str; 14] = [
        "a", "a/b", "a/b/c", "a/c", "/", "/a", "$SYS/a", "$SYS", "a//b", "b", "a/x/c", "a/b/c/d", "//",
        "$SYS/a/b",
    ];

    #[test]
    fn filters_match_as_those_of_subscriptions_do() {
        for filter in FILTERS {
            for topic in TOPICS {
                let expected = TopicFilter::new(filter).unwrap().matches(TopicName::new(topic).unwrap());
                assert_eq!(matches(filter, topic), expected, "{filter} against {topic}");
            }
        }
    }

    /// Against every topic of up to four levels of a small alphabet that holds whatever the filters name; also
    /// against the empty one, which cannot be published to, but which filters need not know.
    #[test]
    fn covering_and_overlapping_agree_with_the_topics_that_are_matched() {
        let mut topics = vec![String::new()];
        let mut longest = topics.clone();
        for depth in 0..4 {
            let levels = ["a", "b", "c", "x", "", "$SYS"].iter();
            longest = levels
                .flat_map(|level| {
                    longest.iter().map(move |topic| match depth {
                        0 => (*level).to_owned(),
                        _ => format!("{topic}/{level}"),
                    })
                })
                .collect();
            topics.extend(longest.iter().cloned());
        }
        for one in FILTERS {
            for other in FILTERS {
                let both = topics.iter().any(|topic| matches(one, topic) && matches(other, topic));
                assert_eq!(overlap(one, other), both, "{one} and {other} overlap");
                let all = topics.iter().all(|topic| matches(one, topic) || !matches(other, topic));
                assert_eq!(covers(one, other), all, "{one} covers {other}");
            }
        }
    }
}
