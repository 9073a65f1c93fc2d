//! Who may connect, and what who is connected may publish and receive.
//!
//! [`Access`] decides from the peer's address and what a client brings along ([`Login`]) who it is ([`Identity`]);
//! [`PasswordFile`] holds usernames with hashed passwords in mosquitto's format; [`Rules`] say what an identity may
//! do.

mod acl_file;
mod denial_log;
mod enhanced;
mod filters;
mod guesses;
mod hash;
mod identity;
mod password_file;
mod rules;
mod scram;
mod scram_file;
mod throttle;
mod token;
mod whole_file;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

pub use acl_file::{AclFile, AclFileError};
use denial_log::Denials;
pub use denial_log::{Attempt, DenialCounts};
pub use enhanced::{Exchange, Method, Step};
use guesses::Guesses;
pub use guesses::LoginCounts;
pub use identity::{Identity, Login};
pub use password_file::{PasswordFile, PasswordFileError};
pub use rules::{DefaultRules, Rules, Verdict};
pub use scram_file::{ScramFile, ScramFileError};
pub use token::{Token, VerifyToken};

use crate::record::Timestamp;
use crate::topic::{TopicFilter, TopicName};

/// Who may connect without credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anonymous {
    /// Clients on this machine.
    #[default]
    Loopback,
    /// Nobody.
    Never,
    /// Everybody.
    Always,
}

impl Anonymous {
    /// Whether a client at `peer` may do without credentials.
    fn admits(self, peer: IpAddr) -> bool {
        match self {
            // A dual-stack listener sees 127.0.0.1 as ::ffff:127.0.0.1.
            Self::Loopback => peer.to_canonical().is_loopback(),
            Self::Never => false,
            Self::Always => true,
        }
    }
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Unknown username or wrong password: 0x86 in v5, 4 in v3.
    #[error("unknown username or wrong password")]
    BadCredentials,
    /// No credentials where they are needed: 0x87 in v5, 5 in v3.
    #[error("credentials are needed")]
    NotAuthorised,
}

/// The rules for connecting.
///
/// | credentials | password file | decision |
/// |---|---|---|
/// | none | any | [`Anonymous`] |
/// | given | yes | must be right, wherever the client is |
/// | given | none | nothing to check them against: as if none had been given |
///
/// A client has given credentials when its CONNECT holds a User Name; a password alone names nobody and counts for
/// nothing. These are mosquitto's rules, with [`Anonymous::Loopback`] added to `allow_anonymous`. A client with a
/// certificate is who the certificate says, and needs no password. Where tokens are configured, a password that is one
/// decides alone, and the client is who the token says, whatever its User Name.
#[derive(Debug, Default)]
pub struct Access {
    anonymous: Anonymous,
    passwords: RwLock<Option<PasswordFile>>,
    scram: RwLock<Option<Arc<ScramFile>>>,
    tokens: RwLock<Option<Arc<dyn VerifyToken>>>,
    /// Makes decoys that stay the same while the process lives.
    secret: OnceLock<[u8; 32]>,
    rules: RwLock<Arc<Rules>>,
    /// Counts changes of `rules`, so that whoever remembers answers sees at once that they are old.
    rules_version: AtomicU64,
    denials: Denials,
    guesses: Guesses,
}

impl Access {
    /// `anonymous` says who may connect without credentials; those who give some are checked against `passwords`.
    pub fn new(anonymous: Anonymous, passwords: Option<PasswordFile>) -> Self {
        Self { anonymous, passwords: RwLock::new(passwords), ..Self::default() }
    }

    /// Who the client is, if it may connect at `now`.
    ///
    /// The first time that a password is seen to be right takes as long as its hash asks for (about a millisecond
    /// with the hashes that [`PasswordFile::set`] makes), later times take microseconds. A refusal always takes that
    /// long, whether the username is known or not.
    pub fn connect(&self, login: &Login<'_>, now: Timestamp) -> Result<Identity, Denied> {
        if let Some(name) = login.certificate {
            return Ok(Identity::user(name, login.client));
        }
        if let Some(token) = login.password.and_then(token::looks_like_token)
            && self.tokens().is_some()
        {
            return self.by_token(token, login, now);
        }
        let passwords = self.passwords.read().unwrap_or_else(PoisonError::into_inner);
        match (&*passwords, login.username) {
            (Some(passwords), Some(username)) => {
                if passwords.verify(username, login.password) {
                    Ok(Identity::user(username, login.client))
                } else {
                    Err(Denied::BadCredentials)
                }
            }
            (None, _) | (Some(_), None) => {
                if self.anonymous.admits(login.peer) {
                    let local = login.peer.to_canonical().is_loopback();
                    Ok(Identity::anonymous(login.client, local))
                } else {
                    Err(Denied::NotAuthorised)
                }
            }
        }
    }

    /// Whether `identity` may publish to `topic`.
    pub fn may_publish(&self, identity: &Identity, topic: TopicName<'_>) -> Verdict {
        self.rules().may_publish(identity, topic)
    }

    /// Whether what is published to `topic` may be sent to `identity`.
    pub fn may_receive(&self, identity: &Identity, topic: TopicName<'_>) -> Verdict {
        self.rules().may_receive(identity, topic)
    }

    /// Whether there can be a topic that `filter` matches and that `identity` may receive.
    pub fn may_subscribe(&self, identity: &Identity, filter: &TopicFilter) -> Verdict {
        self.rules().may_subscribe(identity, filter)
    }

    /// Counts that `rule` denied `identity` the topic, and logs it unless too much is logged already.
    pub fn note_denial(
        &self,
        identity: &Identity,
        attempt: Attempt,
        topic: &str,
        rule: &str,
        now: Timestamp,
    ) {
        self.denials.note(identity, attempt, topic, rule, now);
    }

    /// What was denied since the start, to whomever.
    pub fn denials(&self) -> DenialCounts {
        self.denials.counts()
    }

    /// Whether logins from `peer` are refused unchecked, and for how long: so many have failed. That it was asked is
    /// counted, if they are.
    pub fn wait_of(&self, peer: IpAddr, now: Timestamp) -> Option<Duration> {
        self.guesses.wait_of(peer, now)
    }

    /// Counts a login that failed, and logs it unless too much is logged already; says how long the refusal is to
    /// wait. Addresses are slowed for guesses over MQTT and HTTP together.
    pub fn login_failed(&self, peer: IpAddr, client: &str, denied: Denied, now: Timestamp) -> Duration {
        self.guesses.failed(peer, client, denied, now)
    }

    /// Counts a client that was let in and has failed to prove itself again.
    pub fn note_not_renewed(&self) {
        self.guesses.not_renewed();
    }

    /// Counts a client that was let in and whose token has expired.
    pub fn note_expired(&self) {
        self.guesses.expired();
    }

    /// What has become of logins since the start, whoever they were.
    pub fn logins(&self) -> LoginCounts {
        self.guesses.counts()
    }

    fn by_token(&self, token: &str, login: &Login<'_>, now: Timestamp) -> Result<Identity, Denied> {
        let tokens = self.tokens().ok_or(Denied::BadCredentials)?;
        match tokens.verify(token, now) {
            Ok(Token { user, expires }) => Ok(Identity::user(&user, login.client).until(expires)),
            Err(reason) => {
                self.guesses.disbelieved(login, &reason, now);
                Err(Denied::BadCredentials)
            }
        }
    }

    /// From now on checks SCRAM against `users`; without them SCRAM is not offered.
    pub fn replace_scram(&self, users: Option<ScramFile>) {
        *self.scram.write().unwrap_or_else(PoisonError::into_inner) = users.map(Arc::new);
    }

    /// From now on checks tokens with `tokens`; without it a token is a password like any other.
    pub fn replace_tokens(&self, tokens: Option<Arc<dyn VerifyToken>>) {
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens;
    }

    fn scram(&self) -> Option<Arc<ScramFile>> {
        self.scram.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tokens(&self) -> Option<Arc<dyn VerifyToken>> {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn secret(&self) -> &[u8; 32] {
        self.secret.get_or_init(|| {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).expect("the operating system gives randomness once it has started");
            secret
        })
    }

    /// From now on `rules` are in force, also for clients that are connected.
    pub fn replace_rules(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        self.rules_version.fetch_add(1, Ordering::Release);
    }

    /// Another number whenever the rules have changed.
    pub fn rules_version(&self) -> u64 {
        self.rules_version.load(Ordering::Acquire)
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on checks credentials against `passwords`. Clients that are connected stay.
    pub fn replace_passwords(&self, passwords: Option<PasswordFile>) {
        *self.passwords.write().unwrap_or_else(PoisonError::into_inner) = passwords;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: [&str; 4] = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"];
    const ELSEWHERE: [&str; 4] = ["192.0.2.7", "0.0.0.0", "2001:db8::1", "::ffff:192.0.2.7"];

    fn file() -> PasswordFile {
        let mut file = PasswordFile::default();
        file.set("sensor01", b"secret").unwrap();
        file
    }

    #[track_caller]
    fn check(
        access: &Access,
        peers: &[&str],
        username: Option<&str>,
        password: Option<&str>,
        expected: Result<(), Denied>,
    ) {
        for peer in peers {
            let peer = peer.parse().unwrap();
            let password_bytes = password.map(str::as_bytes);
            let login = Login { username, password: password_bytes, ..Login::anonymous(peer, "client") };
            let decided = access.connect(&login, Timestamp(0));
            assert_eq!(decided.map(|_| ()), expected, "{access:?} {peer} {username:?} {password:?}");
        }
    }

    #[test]
    fn without_credentials_the_anonymous_rule_decides() {
        for passwords in [None, Some(file())] {
            let access = Access::new(Anonymous::Loopback, passwords.clone());
            check(&access, &HERE, None, None, Ok(()));
            check(&access, &ELSEWHERE, None, None, Err(Denied::NotAuthorised));
            let access = Access::new(Anonymous::Never, passwords.clone());
            check(&access, &HERE, None, None, Err(Denied::NotAuthorised));
            check(&access, &ELSEWHERE, None, None, Err(Denied::NotAuthorised));
            let access = Access::new(Anonymous::Always, passwords);
            check(&access, &HERE, None, None, Ok(()));
            check(&access, &ELSEWHERE, None, None, Ok(()));
        }
        check(&Access::default(), &HERE, None, None, Ok(()));
        check(&Access::default(), &ELSEWHERE, None, None, Err(Denied::NotAuthorised));
    }

    #[test]
    fn credentials_are_checked_wherever_the_client_is() {
        for anonymous in [Anonymous::Loopback, Anonymous::Never, Anonymous::Always] {
            let access = Access::new(anonymous, Some(file()));
            for peers in [&HERE, &ELSEWHERE] {
                // Twice, because a password that was right once is recognised in another way.
                for _ in 0..2 {
                    check(&access, peers, Some("sensor01"), Some("secret"), Ok(()));
                    check(&access, peers, Some("sensor01"), Some("Secret"), Err(Denied::BadCredentials));
                    check(&access, peers, Some("sensor01"), Some(""), Err(Denied::BadCredentials));
                    check(&access, peers, Some("sensor01"), None, Err(Denied::BadCredentials));
                    check(&access, peers, Some("sensor02"), Some("secret"), Err(Denied::BadCredentials));
                    check(&access, peers, Some(""), Some(""), Err(Denied::BadCredentials));
                }
            }
        }
    }

    #[test]
    fn credentials_without_a_password_file_count_for_nothing() {
        let access = Access::new(Anonymous::Loopback, None);
        check(&access, &HERE, Some("anyone"), Some("anything"), Ok(()));
        check(&access, &ELSEWHERE, Some("anyone"), Some("anything"), Err(Denied::NotAuthorised));
    }

    #[test]
    fn a_password_without_a_username_names_nobody() {
        let access = Access::new(Anonymous::Loopback, Some(file()));
        check(&access, &HERE, None, Some("secret"), Ok(()));
        check(&access, &ELSEWHERE, None, Some("secret"), Err(Denied::NotAuthorised));
    }

    #[test]
    fn an_empty_password_file_admits_nobody_by_credentials() {
        let access = Access::new(Anonymous::Always, Some(PasswordFile::default()));
        check(&access, &HERE, Some("sensor01"), Some("secret"), Err(Denied::BadCredentials));
        check(&access, &HERE, None, None, Ok(()));
    }

    #[test]
    fn replaced_passwords_hold_from_then_on() {
        let access = Access::new(Anonymous::Never, Some(file()));
        check(&access, &HERE, Some("sensor01"), Some("secret"), Ok(()));
        let mut changed = file();
        changed.set("sensor01", b"other").unwrap();
        access.replace_passwords(Some(changed));
        check(&access, &HERE, Some("sensor01"), Some("secret"), Err(Denied::BadCredentials));
        check(&access, &HERE, Some("sensor01"), Some("other"), Ok(()));
    }
}
