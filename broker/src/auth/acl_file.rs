//! An ACL file in mosquitto's format.
//!
//! ```text
//! # for clients without a name, because no user line comes before it
//! topic read alerts/#
//! user ada
//! topic readwrite plant/#
//! topic deny plant/secret/#
//! # for everybody
//! pattern write sensors/%u/#
//! ```
//!
//! A line that begins with `#` is a comment. Words are set apart by blanks, tabs belong to words; what follows the
//! access word is the topic, blanks within it too. A topic without an access word may be read and written. `%c` stands
//! for the Client Identifier, `%u` for the username. What no rule allows is denied; among the rules of a user, and
//! among the patterns, those that deny come first. Topics that begin with `$` are reached only by rules that do.
//! Where mosquitto refuses to start at the first mistake, every mistake is told here.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::filters;
use super::identity::Identity;
use super::password_file::Mistakes;
use crate::topic::TopicFilter;

/// What a rule grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grant {
    Read,
    Write,
    ReadWrite,
    Deny,
}

/// What a client wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Write,
}

impl Grant {
    const fn allows(self, action: Action) -> bool {
        matches!(
            (self, action),
            (Self::ReadWrite, _) | (Self::Read, Action::Read) | (Self::Write, Action::Write)
        )
    }
}

/// A line that says something about topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    line: usize,
    grant: Grant,
    topic: Box<str>,
    is_pattern: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_pattern { "pattern" } else { "topic" };
        let grant = match self.grant {
            Grant::Read => "read",
            Grant::Write => "write",
            Grant::ReadWrite => "readwrite",
            Grant::Deny => "deny",
        };
        write!(f, "line {}: {kind} {grant} {}", self.line, self.topic)
    }
}

/// What the file says of one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision<'a> {
    Allowed,
    DeniedBy(&'a Rule),
    /// No rule allows it.
    NotAllowed,
}

/// Rules by user, and patterns for everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AclFile {
    /// Denials first.
    users: HashMap<Box<str>, Vec<Rule>>,
    anonymous: Vec<Rule>,
    patterns: Vec<Rule>,
}

/// Why an ACL file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AclFileError {
    /// The file cannot be read.
    #[error("cannot read the ACL file {}: {error}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// Lines of the file are wrong.
    #[error("the ACL file {} has mistakes:{}", path.display(), Mistakes(mistakes))]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Line numbers, from 1, each with what is wrong.
        mistakes: Vec<(usize, String)>,
    },
}

impl AclFile {
    /// Reads the file at `path`.
    pub fn open(path: &Path) -> Result<Self, AclFileError> {
        let content =
            fs::read_to_string(path).map_err(|error| AclFileError::Read { path: path.to_owned(), error })?;
        Self::parse(path, &content)
    }

    /// Reads the content of an ACL file; `path` is what errors call it.
    pub fn parse(path: &Path, content: &str) -> Result<Self, AclFileError> {
        let mut file = Self::default();
        let mut mistakes = Vec::new();
        let mut user = None;
        for (at, line) in content.lines().enumerate() {
            if let Err(mistake) = file.push(at + 1, line, &mut user) {
                mistakes.push((at + 1, mistake));
            }
        }
        if mistakes.is_empty() {
            Ok(file)
        } else {
            Err(AclFileError::Malformed { path: path.to_owned(), mistakes })
        }
    }

    fn push(&mut self, number: usize, line: &str, user: &mut Option<Box<str>>) -> Result<(), String> {
        let line = line.trim_end_matches(is_space);
        if line.starts_with('#') {
            return Ok(());
        }
        let line = line.trim_start_matches(' ');
        if line.is_empty() {
            return Ok(());
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "topic" | "pattern" => {
                let rule = rule(number, word == "pattern", rest)?;
                let rules = match (word, &*user) {
                    ("pattern", _) => &mut self.patterns,
                    (_, Some(user)) => self.users.entry(user.clone()).or_default(),
                    (_, None) => &mut self.anonymous,
                };
                match rule.grant {
                    Grant::Deny => rules.insert(0, rule),
                    Grant::Read | Grant::Write | Grant::ReadWrite => rules.push(rule),
                }
                Ok(())
            }
            "user" => match rest.trim_matches(is_space) {
                "" => Err("the user has no name".to_owned()),
                name => {
                    *user = Some(name.into());
                    Ok(())
                }
            },
            _ => Err(format!("{word:?} is none of user, topic and pattern (tabs do not set words apart)")),
        }
    }

    /// Whether `identity` may do `action` with `topic`.
    pub(super) fn decide(&self, identity: &Identity, action: Action, topic: &str) -> Decision<'_> {
        for rule in self.own(identity) {
            if filters::matches(&rule.topic, topic) {
                match rule.grant {
                    Grant::Deny => return Decision::DeniedBy(rule),
                    grant if grant.allows(action) => return Decision::Allowed,
                    Grant::Read | Grant::Write | Grant::ReadWrite => {}
                }
            }
        }
        for (rule, filter) in self.patterns(identity) {
            if filters::matches(&filter, topic) {
                match rule.grant {
                    Grant::Deny => return Decision::DeniedBy(rule),
                    grant if grant.allows(action) => return Decision::Allowed,
                    Grant::Read | Grant::Write | Grant::ReadWrite => {}
                }
            }
        }
        Decision::NotAllowed
    }

    /// Whether nothing that `filter` matches can be read. What several denials leave over between them is not looked
    /// at; it is left out when it is delivered.
    pub(super) fn decide_filter(&self, identity: &Identity, filter: &str) -> Decision<'_> {
        for rule in self.own(identity) {
            match rule.grant {
                Grant::Deny if filters::covers(&rule.topic, filter) => return Decision::DeniedBy(rule),
                Grant::Read | Grant::ReadWrite if filters::overlap(&rule.topic, filter) => {
                    return Decision::Allowed;
                }
                Grant::Deny | Grant::Read | Grant::Write | Grant::ReadWrite => {}
            }
        }
        for (rule, own) in self.patterns(identity) {
            match rule.grant {
                Grant::Deny if filters::covers(&own, filter) => return Decision::DeniedBy(rule),
                Grant::Read | Grant::ReadWrite if filters::overlap(&own, filter) => return Decision::Allowed,
                Grant::Deny | Grant::Read | Grant::Write | Grant::ReadWrite => {}
            }
        }
        Decision::NotAllowed
    }

    fn own(&self, identity: &Identity) -> &[Rule] {
        match identity.name() {
            Some(name) => self.users.get(name).map_or(&[], Vec::as_slice),
            None => &self.anonymous,
        }
    }

    /// The patterns that hold for `identity`, as filters. None do for a name with a wildcard in it: what it may reach
    /// would be for the client to choose.
    fn patterns<'a, 'b>(
        &'a self,
        identity: &'b Identity,
    ) -> impl Iterator<Item = (&'a Rule, Cow<'a, str>)> + use<'a, 'b> {
        let is_dangerous = |name: &str| name.contains(['+', '#']);
        let barred = is_dangerous(identity.client()) || identity.name().is_some_and(is_dangerous);
        let patterns = if barred { &[][..] } else { &self.patterns };
        patterns.iter().filter_map(|rule| Some((rule, filled(&rule.topic, identity)?)))
    }
}

/// As C's `isspace`, which decides what mosquitto trims.
const fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

fn rule(line: usize, is_pattern: bool, rest: &str) -> Result<Rule, String> {
    let rest = rest.trim_start_matches(' ');
    if rest.is_empty() {
        return Err("the topic is missing".to_owned());
    }
    let (grant, topic) = match rest.split_once(' ') {
        // One word is a topic, also if it is an access word.
        None => (Grant::ReadWrite, rest),
        Some((access, topic)) => {
            let grant = match access {
                "read" => Grant::Read,
                "write" => Grant::Write,
                "readwrite" => Grant::ReadWrite,
                "deny" => Grant::Deny,
                other => return Err(format!("{other:?} is none of read, write, readwrite and deny")),
            };
            (grant, topic.trim_matches(is_space))
        }
    };
    TopicFilter::new(topic).map_err(|error| format!("{topic:?}: {error}"))?;
    Ok(Rule { line, grant, topic: topic.into(), is_pattern })
}

/// A pattern for one client; `None` if it asks for a username and there is none.
fn filled<'a>(pattern: &'a str, identity: &Identity) -> Option<Cow<'a, str>> {
    if !pattern.contains('%') {
        return Some(Cow::Borrowed(pattern));
    }
    let mut filled = String::with_capacity(pattern.len() + 32);
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('%') {
        filled.push_str(before);
        rest = match after.as_bytes().first() {
            Some(b'c') => {
                filled.push_str(identity.client());
                &after[1..]
            }
            Some(b'u') => {
                filled.push_str(identity.name()?);
                &after[1..]
            }
            Some(_) | None => {
                filled.push('%');
                after
            }
        };
    }
    filled.push_str(rest);
    Some(Cow::Owned(filled))
}

#[cfg(test)]
mod tests;
