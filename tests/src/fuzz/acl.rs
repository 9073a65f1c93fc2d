//! An ACL file, as an operator may have written or damaged it; what it allows is compared with a plain reading of the
//! same lines, made after what mosquitto does with them: word by word as `strtok` takes them, level by level.

use std::collections::BTreeSet;
use std::path::Path;

use tidegate_broker::auth::{AclFile, AclFileError, Identity, Rules};
use tidegate_broker::topic::{TopicFilter, TopicName};

/// More rules and users of one file are read, and not asked about.
const ASKED_MAX: usize = 12;

/// Topics that everybody asks about.
const TOPICS: [&str; 12] =
    ["a", "a/b", "a/b/c", "/", "/a", "a/", "a//c", "$own", "$own/x", "$SYS/x", "%c", "ada/one"];
/// Filters that everybody asks about.
const FILTERS: [&str; 9] = ["#", "+", "+/#", "a/#", "a/+", "+/b/#", "$own/#", "$own/+", "/+"];

/// Reads `bytes` as an ACL file.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let file = match AclFile::parse(Path::new("acl"), text) {
        Ok(file) => file,
        Err(AclFileError::Malformed { mistakes, .. }) => {
            let lines = text.lines().count();
            assert!(!mistakes.is_empty());
            assert!(mistakes.iter().all(|(line, what)| (1..=lines).contains(line) && !what.is_empty()));
            assert!(mistakes.is_sorted_by_key(|(line, _)| *line));
            return;
        }
        Err(other) => panic!("reading text fails with {other}"),
    };
    let plain = plain_reading(text);
    let rules = Rules::Acl(file);
    let mut users: BTreeSet<Option<&str>> = plain.iter().take(ASKED_MAX).map(|rule| rule.user).collect();
    users.extend([None, Some("ada"), Some("$own"), Some("a+b")]);
    for user in users {
        for client in ["one", "$own", "sl/ash", "#"] {
            ask(&rules, &plain, user, client);
        }
    }
}

/// Asks about every topic that could matter, and compares.
fn ask(rules: &Rules, plain: &[Plain<'_>], user: Option<&str>, client: &str) {
    let identity = match user {
        Some(user) => Identity::user(user, client),
        None => Identity::anonymous(client, false),
    };
    let mut topics: BTreeSet<String> = TOPICS.map(str::to_owned).into();
    for rule in plain.iter().take(ASKED_MAX) {
        let filled = rule.topic.replace("%c", client).replace("%u", user.unwrap_or("nobody"));
        topics.extend([filled.replace(['+', '#'], "b"), filled.replace('+', "$x").replace('#', "c/d")]);
        topics.extend(filled.strip_suffix("/#").map(str::to_owned));
        topics.insert(filled);
    }
    let mut readable = Vec::new();
    for text in &topics {
        let Ok(topic) = TopicName::new(text) else { continue };
        let reads = plain_answer(plain, user, client, Access::Read, text);
        assert_eq!(
            rules.may_receive(&identity, topic).is_allowed(),
            reads,
            "{user:?}@{client} reads {text:?}"
        );
        let closed = matches!(text.split('/').next(), Some("$SYS" | "$share"));
        let writes = !closed && plain_answer(plain, user, client, Access::Write, text);
        assert_eq!(
            rules.may_publish(&identity, topic).is_allowed(),
            writes,
            "{user:?}@{client} writes {text:?}"
        );
        readable.extend(reads.then_some(topic));
    }
    let own = plain.iter().take(ASKED_MAX).map(|rule| rule.topic);
    for filter in FILTERS.into_iter().chain(own) {
        let Ok(filter) = TopicFilter::new(filter) else { continue };
        if !rules.may_subscribe(&identity, &filter).is_allowed() {
            let lost = readable.iter().find(|topic| filter.matches(**topic));
            assert_eq!(lost, None, "{user:?}@{client} is refused {filter} and may read this");
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// A rule of a file that was accepted.
struct Plain<'a> {
    is_pattern: bool,
    /// Of a pattern, the user line before it, which says nothing.
    user: Option<&'a str>,
    /// The access word; none is `readwrite`.
    access: &'a str,
    topic: &'a str,
}

/// C's `strtok_r` with one delimiter.
fn strtok<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let begun = rest.trim_start_matches(' ');
    let (token, behind) = begun.split_once(' ').unwrap_or((begun, ""));
    *rest = behind;
    (!token.is_empty()).then_some(token)
}

fn plain_reading(text: &str) -> Vec<Plain<'_>> {
    let is_space = |character| matches!(character, ' ' | '\t'..='\r');
    let mut rules = Vec::new();
    let mut user = None;
    for line in text.split('\n') {
        let mut rest = line.trim_end_matches(is_space);
        if rest.starts_with('#') {
            continue;
        }
        match strtok(&mut rest) {
            None => {}
            Some("user") => user = Some(rest.trim_matches(is_space)),
            Some(kind) => {
                let first = strtok(&mut rest).expect("a rule without a topic is a mistake");
                let topic = rest.trim_matches(is_space);
                let (access, topic) = if topic.is_empty() { ("readwrite", first) } else { (first, topic) };
                rules.push(Plain { is_pattern: kind == "pattern", user, access, topic });
            }
        }
    }
    rules
}

fn plain_answer(plain: &[Plain<'_>], user: Option<&str>, client: &str, wanted: Access, topic: &str) -> bool {
    let own = plain.iter().filter(|rule| !rule.is_pattern && rule.user == user);
    let own: Vec<(&str, String)> = own.map(|rule| (rule.access, rule.topic.to_owned())).collect();
    if let Some(answer) = first_that_matches(&own, wanted, topic) {
        return answer;
    }
    let has_wildcard = |name: &str| name.contains('+') || name.contains('#');
    if has_wildcard(client) || user.is_some_and(has_wildcard) {
        return false;
    }
    let patterns = plain.iter().filter(|rule| rule.is_pattern);
    let patterns = patterns.filter(|rule| user.is_some() || !rule.topic.contains("%u"));
    let patterns: Vec<(&str, String)> =
        patterns.map(|rule| (rule.access, fill(rule.topic, user.unwrap_or_default(), client))).collect();
    first_that_matches(&patterns, wanted, topic).unwrap_or(false)
}

/// One pass from the left: what is filled in is not looked at again.
fn fill(pattern: &str, user: &str, client: &str) -> String {
    let mut filled = String::new();
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        if let Some(behind) = rest.strip_prefix("%c") {
            filled += client;
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix("%u") {
            filled += user;
            rest = behind;
        } else {
            filled.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    filled
}

/// Denials are asked first, then what grants.
fn first_that_matches(rules: &[(&str, String)], wanted: Access, topic: &str) -> Option<bool> {
    let is_match = |filter: &str| {
        let filter: Vec<&str> = filter.split('/').collect();
        let levels: Vec<&str> = topic.split('/').collect();
        (topic.starts_with('$') == filter[0].starts_with('$')) && levels_match(&filter, &levels)
    };
    if rules.iter().any(|(access, filter)| *access == "deny" && is_match(filter)) {
        return Some(false);
    }
    let grants = |access: &str| match wanted {
        Access::Read => access.starts_with("read"),
        Access::Write => access.ends_with("write"),
    };
    rules.iter().any(|(access, filter)| grants(access) && is_match(filter)).then_some(true)
}

fn levels_match(filter: &[&str], levels: &[&str]) -> bool {
    match (filter, levels) {
        (["#"], _) => true,
        ([], []) => true,
        (["+", filter @ ..], [_, levels @ ..]) => levels_match(filter, levels),
        ([one, filter @ ..], [other, levels @ ..]) => one == other && levels_match(filter, levels),
        ([], [_, ..]) | ([_, ..], []) => false,
    }
}
