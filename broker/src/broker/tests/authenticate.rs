//! Enhanced authentication, proofs that expire, and refusals that wait.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use super::rig::{Client, Rig, Seen};
use crate::auth::{Access, Anonymous, PasswordFile, ScramFile, Token, VerifyToken};
use crate::broker::Limits;
use crate::mqtt::{Auth, Connect, ReasonCode, UserProperties, Version, encode};
use crate::record::{Qos, Timestamp};

const SCRAM: &str = "SCRAM-SHA-256";

/// Takes tokens of the form `user:milliseconds`.
#[derive(Debug)]
struct Tokens;

impl VerifyToken for Tokens {
    fn verify(&self, token: &str, now: Timestamp) -> Result<Token, String> {
        let (user, expires) = token.split_once(':').ok_or("no token")?;
        let expires = Timestamp(expires.parse().map_err(|_| "no time")?);
        if expires <= now {
            return Err("expired".into());
        }
        Ok(Token { user: user.into(), expires: Some(expires) })
    }
}

fn rig() -> Rig {
    let mut passwords = PasswordFile::default();
    passwords.set("ada", b"secret").unwrap();
    let access = Access::new(Anonymous::Never, Some(passwords));
    let mut users = ScramFile::default();
    users.set("ada", b"secret").unwrap();
    access.replace_scram(Some(users));
    access.replace_tokens(Some(Arc::new(Tokens)));
    Rig::guarded(Limits::default(), Arc::new(access))
}

fn hmac(key: &[u8], message: &str) -> [u8; 32] {
    Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(message).finalize().into_bytes().into()
}

/// The client's last message, and the signature that the server must answer with.
fn answer(user: &str, password: &str, challenge: &str) -> (String, String) {
    let part = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name)).unwrap();
    let salt = BASE64.decode(part("s=")).unwrap();
    let salted =
        pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), &salt, part("i=").parse().unwrap());
    let without_proof = format!("c=biws,r={}", part("r="));
    let signed = format!("n={user},r=nonce,{challenge},{without_proof}");
    let mut proof = hmac(&salted, "Client Key");
    let signature = hmac(&Sha256::digest(proof), &signed);
    proof.iter_mut().zip(signature).for_each(|(byte, other)| *byte ^= other);
    let expected = BASE64.encode(hmac(&hmac(&salted, "Server Key"), &signed));
    (format!("{without_proof},p={}", BASE64.encode(proof)), format!("v={expected}"))
}

fn first(user: &str) -> String {
    format!("n,,n={user},r=nonce")
}

fn auth(rig: &mut Rig, client: &Client, reason: ReasonCode, method: &str, data: &str) -> Vec<Seen> {
    let auth = Auth {
        reason,
        method: Some(method),
        data: Some(data.as_bytes()),
        reason_string: None,
        user_properties: UserProperties::NONE,
    };
    rig.send(client, |out| encode::auth(out, &auth));
    rig.sync();
    rig.seen(client)
}

fn connect(rig: &mut Rig, peer: [u8; 4], method: &str, data: &str) -> (Client, Vec<Seen>) {
    let client = rig.open_from(peer, Version::V5);
    let connect = Connect {
        authentication_method: Some(method),
        authentication_data: Some(data.as_bytes()),
        ..Connect::new(Version::V5, "c")
    };
    rig.send(&client, |out| encode::connect(out, &connect));
    rig.sync();
    let seen = rig.seen(&client);
    (client, seen)
}

fn challenge(seen: &[Seen]) -> &str {
    match seen {
        [Seen::Auth(ReasonCode::ContinueAuthentication, data)] => data,
        other => panic!("{other:?}"),
    }
}

fn refused(reason: ReasonCode) -> Vec<Seen> {
    vec![Seen::ConnAck { present: false, reason }]
}

const HERE: [u8; 4] = [127, 0, 0, 1];
const THERE: [u8; 4] = [192, 0, 2, 1];
const CONTINUE: ReasonCode = ReasonCode::ContinueAuthentication;

#[test]
fn scram_lets_in_who_knows_the_password_and_can_be_repeated() {
    let mut rig = rig();
    let (client, seen) = connect(&mut rig, THERE, SCRAM, &first("ada"));
    let (last, _) = answer("ada", "secret", challenge(&seen));
    assert_eq!(auth(&mut rig, &client, CONTINUE, SCRAM, &last), refused(ReasonCode::Success));
    rig.publish(&client, "sensors/ada/t", "x", Qos::AtLeastOnce, 1);
    rig.sync();
    assert_eq!(rig.seen(&client), [Seen::PubAck(1, ReasonCode::Success)], "it is ada");

    let seen = auth(&mut rig, &client, ReasonCode::Reauthenticate, SCRAM, &first("ada"));
    let (last, expected) = answer("ada", "secret", challenge(&seen));
    let seen = auth(&mut rig, &client, CONTINUE, SCRAM, &last);
    assert_eq!(seen, [Seen::Auth(ReasonCode::Success, expected)], "the server proves itself, too");

    let seen = auth(&mut rig, &client, ReasonCode::Reauthenticate, SCRAM, &first("ada"));
    let (last, _) = answer("ada", "wrong", challenge(&seen));
    let seen = auth(&mut rig, &client, CONTINUE, SCRAM, &last);
    assert_eq!(seen, [Seen::Disconnect(ReasonCode::NotAuthorized)]);
}

#[test]
fn a_wrong_proof_and_an_unknown_user_are_told_apart_by_nothing() {
    for (user, password) in [("ada", "wrong"), ("eve", "secret")] {
        let mut rig = rig();
        let (client, seen) = connect(&mut rig, HERE, SCRAM, &first(user));
        let (last, _) = answer(user, password, challenge(&seen));
        assert_eq!(auth(&mut rig, &client, CONTINUE, SCRAM, &last), refused(ReasonCode::NotAuthorized));
        // The salt of an unknown user does not change from one attempt to the next either.
        let salt = |seen: &[Seen]| challenge(seen).split(',').nth(1).unwrap().to_owned();
        let again = connect(&mut rig, HERE, SCRAM, &first(user)).1;
        assert_eq!(salt(&seen), salt(&again));
    }
}

#[test]
fn before_the_end_of_the_exchange_nothing_else_is_taken() {
    let sent: [(&str, ReasonCode); 4] = [
        ("publish", ReasonCode::ProtocolError),
        ("ping", ReasonCode::ProtocolError),
        ("method", ReasonCode::BadAuthenticationMethod),
        ("reauthenticate", ReasonCode::ProtocolError),
    ];
    for (what, expected) in sent {
        let mut rig = rig();
        let (client, seen) = connect(&mut rig, HERE, SCRAM, &first("ada"));
        challenge(&seen);
        let seen = match what {
            "publish" => {
                rig.publish(&client, "sensors/ada/t", "x", Qos::AtLeastOnce, 1);
                rig.seen(&client)
            }
            "ping" => {
                rig.send(&client, encode::pingreq);
                rig.seen(&client)
            }
            "method" => auth(&mut rig, &client, CONTINUE, "JWT", "x"),
            _ => auth(&mut rig, &client, ReasonCode::Reauthenticate, SCRAM, &first("ada")),
        };
        assert_eq!(seen, refused(expected), "{what}");
        assert_eq!(rig.broker.stats().publishes_in_total, 0);
    }
    // The connect timeout goes on.
    let mut rig = rig();
    let (client, _) = connect(&mut rig, HERE, SCRAM, &first("ada"));
    rig.pass(11);
    assert!(rig.broker.output(client.key).unwrap().1, "it is closed");
}

#[test]
fn methods_that_are_not_offered_are_refused() {
    let mut rig = rig();
    let (_, seen) = connect(&mut rig, HERE, "SCRAM-SHA-1", "x");
    assert_eq!(seen, refused(ReasonCode::BadAuthenticationMethod));
    let mut bare = Rig::guarded(Limits::default(), Arc::new(Access::new(Anonymous::Always, None)));
    for method in [SCRAM, "JWT"] {
        assert_eq!(connect(&mut bare, HERE, method, "x").1, refused(ReasonCode::BadAuthenticationMethod));
    }
    let plain = bare.client(Version::V5, "c");
    let seen = auth(&mut bare, &plain, ReasonCode::Reauthenticate, SCRAM, "x");
    assert_eq!(seen, [Seen::Disconnect(ReasonCode::ProtocolError)], "nothing was agreed on");
    let (client, _) = connect(&mut rig, HERE, "JWT", "ada:90000");
    let seen = auth(&mut rig, &client, ReasonCode::Reauthenticate, SCRAM, "x");
    assert_eq!(seen, [Seen::Disconnect(ReasonCode::ProtocolError)], "the method stays the same");
}

#[test]
fn a_connection_ends_with_its_token_unless_there_is_a_new_one() {
    // The wall clock of the rig begins at one second.
    let mut rig = rig();
    let (client, seen) = connect(&mut rig, THERE, "JWT", "ada:5000");
    assert_eq!(seen, refused(ReasonCode::Success));
    rig.pass(3);
    let seen = auth(&mut rig, &client, ReasonCode::Reauthenticate, "JWT", "ada:20000");
    assert_eq!(seen, [Seen::Auth(ReasonCode::Success, String::new())]);
    rig.pass(3);
    assert_eq!(rig.seen(&client), []);
    rig.pass(20);
    assert_eq!(rig.seen(&client), [Seen::Disconnect(ReasonCode::MaximumConnectTime)]);
    assert_eq!(rig.broker.stats().credentials_expired_total, 1);

    let (client, _) = connect(&mut rig, THERE, "JWT", "ada:90000");
    let seen = auth(&mut rig, &client, ReasonCode::Reauthenticate, "JWT", "bob:90000");
    assert_eq!(seen, [Seen::Disconnect(ReasonCode::NotAuthorized)], "not as another user");
    assert_eq!(connect(&mut rig, HERE, "JWT", "ada:5000").1, refused(ReasonCode::NotAuthorized));
}

#[test]
fn wrong_passwords_are_answered_later_and_later() {
    let mut rig = rig();
    let wrong =
        Connect { username: Some("ada"), password: Some(b"wrong"), ..Connect::new(Version::V311, "c") };
    for delay in [100, 200, 400] {
        let client = rig.open_from(THERE, Version::V311);
        rig.send(&client, |out| encode::connect(out, &wrong));
        assert_eq!(rig.seen(&client), []);
        rig.now.monotonic += Duration::from_millis(delay - 1);
        rig.now.wall.0 += delay - 1;
        rig.pass(0);
        assert_eq!(rig.seen(&client), []);
        rig.now.monotonic += Duration::from_millis(1);
        rig.now.wall.0 += 1;
        rig.pass(0);
        assert_eq!(rig.seen(&client), refused(ReasonCode::BadUserNameOrPassword));
    }
    // Sixteen may wait; the others are not even looked at.
    let mut clients = Vec::new();
    for _ in 0..20 {
        let client = rig.open_from(THERE, Version::V311);
        rig.send(&client, |out| encode::connect(out, &wrong));
        clients.push(client);
    }
    let at_once = clients.iter().filter(|client| !rig.seen(client).is_empty()).count();
    assert_eq!(at_once, 4);
    assert_eq!(rig.broker.stats().logins_unchecked_total, 4);
    let right = Connect { password: Some(b"secret"), ..wrong.clone() };
    let client = rig.open_from([192, 0, 2, 2], Version::V311);
    rig.send(&client, |out| encode::connect(out, &right));
    rig.sync();
    assert_eq!(rig.seen(&client), refused(ReasonCode::Success), "other addresses are not held up");
    rig.pass(10);
    let client = rig.open_from(THERE, Version::V311);
    rig.send(&client, |out| encode::connect(out, &right));
    rig.sync();
    assert_eq!(rig.seen(&client), refused(ReasonCode::Success), "nor is the right password");
}
