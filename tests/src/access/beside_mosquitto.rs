//! The same ACL file given to mosquitto and to Tidegate: every client publishes to every topic and subscribes to
//! everything at both, and what is delivered must be the same.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{credentials, publish, write_users};
use crate::support::mosquitto::{Server, Subscriber, Version};
use crate::support::target;
use crate::support::tidegate::{Settings, Tidegate};

const ACL: &str = "\
# anonymous clients
topic read end
topic read public/#
topic write inbox/+
topic deny public/not

user admin
topic readwrite #
topic readwrite $own/#

user ada
topic read end
topic plant/#
topic deny plant/secret
topic write plant/secret/below
topic   read   with blanks/in it\t
topic write log
topic read $own/#

user bob builder
topic read end
topic read plant/#
topic deny plant/+/x
topic write #

user a+b
topic read end
topic read plant/+/x

user ada
topic read more

user carol
topic read end
topic deny devices/carol/no
pattern read devices/%c/#
pattern write devices/%u/up
pattern deny devices/+/never
pattern %u-%c/%%
pattern read fixed
pattern %u/x

user $own
topic read end
";

/// User and Client Identifier.
const CLIENTS: [(Option<&str>, &str); 9] = [
    (None, "one"),
    (None, "a+c"),
    (Some("ada"), "one-ada"),
    (Some("ada"), "sl/ash"),
    (Some("bob builder"), "two"),
    (Some("a+b"), "three"),
    (Some("carol"), "carol"),
    (Some("carol"), "#"),
    (Some("$own"), "four"),
];

const TOPICS: [&str; 25] = [
    "public",
    "public/a",
    "public/not",
    "inbox/x",
    "inbox/x/y",
    "plant",
    "plant/a/x",
    "plant/secret",
    "plant/secret/below",
    "with blanks/in it",
    "log",
    "more",
    "$own/x",
    "devices/one/a",
    "devices/one-ada/a",
    "devices/sl/ash/a",
    "devices/carol/a",
    "devices/carol/up",
    "devices/carol/no",
    "devices/carol/never",
    "devices/ada/up",
    "devices",
    "ada-one-ada/%%",
    "carol-carol/%%",
    "fixed",
];

/// Who received what: `client <- topic`, and whose publishes arrived: `client -> topic`.
type Deliveries = BTreeSet<String>;

async fn deliveries(address: SocketAddr) -> Deliveries {
    let mut found = Deliveries::new();
    let admin = credentials(Some("admin"));
    let mut readers = Vec::new();
    for (user, client) in CLIENTS {
        let name = format!("{}@{client}", user.unwrap_or_default());
        let more = [credentials(user), vec!["-i", client, "-t", "$own/#"]].concat();
        readers.push((name, Subscriber::start(address, Version::V311, 0, "#", &more).await));
    }
    for topic in TOPICS {
        assert!(publish(address, topic, "x", &admin).0, "{topic}");
    }
    assert!(publish(address, "end", "x", &admin).0);
    for (name, mut reader) in readers {
        loop {
            let received = reader.next().await;
            if received.topic == "end" {
                break;
            }
            found.insert(format!("{name} <- {}", received.topic));
        }
    }
    let more = [admin.clone(), vec!["-t", "$own/#"]].concat();
    let mut watcher = Subscriber::start(address, Version::V311, 0, "#", &more).await;
    for (user, client) in CLIENTS {
        let name = format!("{}@{client}", user.unwrap_or_default());
        for topic in TOPICS {
            let more = [credentials(user), vec!["-i", client, "-q", "1"]].concat();
            let (done, said) = publish(address, topic, &name, &more);
            assert!(done, "{name} {topic}: {said}");
        }
    }
    assert!(publish(address, "end", "x", &admin).0);
    loop {
        let received = watcher.next().await;
        if received.topic == "end" {
            return found;
        }
        found.insert(format!("{} -> {}", String::from_utf8_lossy(&received.payload), received.topic));
    }
}

#[tokio::test]
async fn an_acl_file_means_what_it_means_to_mosquitto() {
    let parent = target().join("tests");
    std::fs::create_dir_all(&parent).unwrap();
    let folder = tempfile::tempdir_in(parent).unwrap();
    let (users, acl) = (folder.path().join("users"), folder.path().join("acl"));
    write_users(&users, &["admin", "ada", "bob builder", "a+b", "carol", "$own"]);
    std::fs::write(&acl, ACL).unwrap();

    let config =
        format!("allow_anonymous true\npassword_file {}\nacl_file {}\n", users.display(), acl.display());
    let mosquitto = Server::start(&config).await;
    let settings = Settings::default()
        .set("TIDEGATE_AUTH_ANONYMOUS", "always")
        .set("TIDEGATE_AUTH_PASSWORD_FILE", &users.display().to_string())
        .set("TIDEGATE_AUTH_ACL_FILE", &acl.display().to_string());
    let tidegate = Tidegate::start(settings).await;

    let expected = deliveries(mosquitto.address).await;
    assert!(expected.len() > 30, "the table says something: {expected:#?}");
    let found = deliveries(tidegate.mqtt).await;
    let missing: Vec<_> = expected.difference(&found).collect();
    let more: Vec<_> = found.difference(&expected).collect();
    assert!(missing.is_empty() && more.is_empty(), "not delivered: {missing:#?}, delivered: {more:#?}");
}
