//! What an ACL file allows, as tables.

use super::*;

fn parse(content: &str) -> AclFile {
    AclFile::parse(Path::new("acl"), content).unwrap_or_else(|error| panic!("{error}"))
}

/// `user@client`, or `@client` for one without a name.
fn identity(text: &str) -> Identity {
    match text.split_once('@').unwrap() {
        ("", client) => Identity::anonymous(client, false),
        (user, client) => Identity::user(user, client),
    }
}

/// What may be done with a topic: any of `r` and `w`, or `-`.
#[track_caller]
fn check(file: &AclFile, who: &str, topic: &str, expected: &str) {
    let identity = identity(who);
    let allowed = |action| file.decide(&identity, action, topic) == Decision::Allowed;
    let found = match (allowed(Action::Read), allowed(Action::Write)) {
        (true, true) => "rw",
        (true, false) => "r",
        (false, true) => "w",
        (false, false) => "-",
    };
    assert_eq!(found, expected, "{who} and {topic}");
}

#[test]
fn each_user_has_the_rules_behind_its_name() {
    let file = parse(
        "topic read public/#\n\
         \n\
         # a comment\n\
         user ada\n\
         topic plant/#\n\
         topic write log\n\
         user bob builder\n\
         topic read plant/+\n\
         user ada\n\
         topic readwrite more\n",
    );
    for (who, topic, expected) in [
        ("@x", "public/a", "r"),
        ("@x", "plant/a", "-"),
        ("ada@x", "plant/a/b", "rw"),
        ("ada@x", "plant", "rw"),
        ("ada@x", "log", "w"),
        ("ada@x", "more", "rw"),
        ("ada@x", "public/a", "-"),
        ("bob builder@x", "plant/a", "r"),
        ("bob builder@x", "plant/a/b", "-"),
        ("bob@x", "plant/a", "-"),
        ("eve@x", "public/a", "-"),
        ("@ada", "plant/a", "-"),
    ] {
        check(&file, who, topic, expected);
    }
}

#[test]
fn denials_come_first_wherever_they_stand() {
    let file = parse(
        "user ada\ntopic a/#\ntopic deny a/secret/#\ntopic readwrite a/secret/b\n\
         pattern readwrite p/%u/#\npattern deny p/+/secret\n",
    );
    for (topic, expected) in [
        ("a/b", "rw"),
        ("a/secret", "-"),
        ("a/secret/b", "-"),
        ("p/ada/x", "rw"),
        ("p/ada/secret", "-"),
        ("p/bob/x", "-"),
    ] {
        check(&file, "ada@c", topic, expected);
    }
    // What a user's own rule allows, no pattern can deny.
    let file = parse("user ada\ntopic read p/#\npattern deny p/#\n");
    check(&file, "ada@c", "p/x", "r");
}

#[test]
fn patterns_hold_for_everybody_with_the_names_they_ask_for() {
    let file = parse(
        "user ada\npattern read c/%c/#\npattern write u/%u\npattern both/%u-%c/%%/%x\n\
         pattern read fixed\npattern write twice/%c%c\n",
    );
    for (who, topic, expected) in [
        ("@one", "c/one/x", "r"),
        ("@one", "c/two/x", "-"),
        ("@one", "u/one", "-"),
        ("@one", "u/%u", "-"),
        ("@one", "fixed", "r"),
        ("@one", "twice/oneone", "w"),
        ("bob@one", "u/bob", "w"),
        ("bob@one", "c/one", "r"),
        ("bob@one", "both/bob-one/%%/%x", "rw"),
        // A slash in a name is taken as it is; only wildcards are dangerous.
        ("bob@a/b", "c/a/b/x", "r"),
        // What is filled in is not looked through again.
        ("bob@%u", "c/%u/x", "r"),
        ("bob@%u", "c/bob/x", "-"),
    ] {
        check(&file, who, topic, expected);
    }
    for who in ["@+", "@#", "@a+b", "ada@+", "a+b@one", "#@one"] {
        for topic in ["c/one/x", "c/+/x", "c/#", "u/ada", "fixed", "c/a+b/x", "u/#"] {
            check(&file, who, topic, "-");
        }
    }
    // Its own rules still hold.
    check(&parse("user a+b\ntopic read x\npattern read y\n"), "a+b@c", "x", "r");
    check(&parse("user a+b\ntopic read x\npattern read y\n"), "a+b@c", "y", "-");
}

#[test]
fn topics_of_the_system_are_reached_only_by_name() {
    let file = parse("user ada\ntopic #\ntopic +/x\ntopic read $SYS/#\npattern $own/%u\npattern +/%u\n");
    check(&file, "ada@c", "a/b", "rw");
    check(&file, "ada@c", "$SYS/uptime", "r");
    check(&file, "ada@c", "$other/x", "-");
    check(&file, "ada@c", "$own/ada", "rw");
    check(&file, "ada@c", "$any/ada", "-");
}

#[test]
fn an_empty_file_allows_nothing() {
    check(&parse(""), "ada@c", "a", "-");
    check(&parse("# nothing\n\n   \n"), "@c", "a", "-");
}

#[test]
fn blanks_are_read_as_mosquitto_reads_them() {
    let file = parse(
        "  topic   read    a b/c d  \t\r\nuser   ada lovelace \t\n topic write\ntopic read read\n  pattern  x/%u\n",
    );
    check(&file, "@c", "a b/c d", "r");
    check(&file, "ada lovelace@c", "write", "rw");
    check(&file, "ada lovelace@c", "read", "r");
    check(&file, "ada lovelace@c", "x/ada lovelace", "rw");
}

#[test]
fn every_mistake_is_told_with_its_line() {
    let check = |content: &str, expected: &[(usize, &str)]| {
        let error = AclFile::parse(Path::new("acl"), content).unwrap_err();
        let AclFileError::Malformed { mistakes, .. } = &error else { panic!("{error}") };
        let lines: Vec<usize> = mistakes.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, expected.iter().map(|(line, _)| *line).collect::<Vec<_>>(), "{error}");
        for ((_, mistake), (_, text)) in mistakes.iter().zip(expected) {
            assert!(mistake.contains(text), "{content:?}: {mistake}");
        }
        assert!(error.to_string().contains("the ACL file acl has mistakes"), "{error}");
    };
    check("topic", &[(1, "missing")]);
    check("topic   \n", &[(1, "missing")]);
    check("user\ntopic a\nuser   \n", &[(1, "no name"), (3, "no name")]);
    check("topic a b", &[(1, "none of read")]);
    check("topic Read b", &[(1, "none of read")]);
    check("topic\tread a", &[(1, "none of user")]);
    check("Topic a", &[(1, "none of user")]);
    check(" # not at the beginning", &[(1, "none of user")]);
    check("topic read a/#/b\npattern write a+\ntopic a\n", &[(1, "wildcard"), (2, "wildcard")]);
}

#[test]
fn a_denial_names_its_rule() {
    let file = parse("user ada\ntopic a/#\ntopic deny a/b\n");
    let Decision::DeniedBy(rule) = file.decide(&identity("ada@c"), Action::Write, "a/b") else { panic!() };
    assert_eq!(rule.to_string(), "line 3: topic deny a/b");
    assert_eq!(file.decide(&identity("ada@c"), Action::Write, "b"), Decision::NotAllowed);
}

#[test]
fn a_subscription_is_refused_only_if_nothing_it_matches_can_be_read() {
    let file = parse(
        "topic write w/#\ntopic read r/+/x\ntopic deny r/no/#\nuser ada\ntopic deny #\npattern read c/%c/#\n\
         pattern deny c/+/no\n",
    );
    for (who, filter, expected) in [
        ("@one", "#", true),
        ("@one", "+/+/+", true),
        ("@one", "r/#", true),
        ("@one", "r/a/x", true),
        ("@one", "r/a/y", false),
        ("@one", "r/no/x", false),
        ("@one", "r/no/#", false),
        ("@one", "r/+/x", true),
        ("@one", "w/#", false),
        ("@one", "c/one", true),
        ("@one", "c/one/no", false),
        ("@one", "c/+", true),
        ("@one", "c/two/#", false),
        ("@one", "$SYS/#", false),
        ("ada@one", "c/one", false),
        ("ada@one", "#", false),
        ("bob@one", "#", true),
        ("bob@one", "r/a/x", false),
    ] {
        let found = file.decide_filter(&identity(who), filter) == Decision::Allowed;
        assert_eq!(found, expected, "{who} and {filter}");
    }
}
