//! `tidegate journal` as an operator uses it: on a journal that is sound, on one that is damaged, on a copy.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tidegate_broker::mqtt::Version;
use tidegate_broker::record::Qos;

use crate::support::mqtt::{Connection, Flags, Options, Received};
use crate::support::process;
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, free_address};

/// How many records each of the two devices publishes.
const EACH: u64 = 12;

/// What a run of the program ended with.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    fn lines(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs `tidegate journal` on the data in `folder`.
pub(crate) async fn journal(data: &Path, arguments: &[&str]) -> Ended {
    let folder = data.parent().unwrap();
    let (stdout, stderr) = (folder.join("stdout"), folder.join("stderr"));
    let mut command = Command::new(Tidegate::program());
    command
        .arg("journal")
        .args(arguments)
        .env_clear()
        .env("TIDEGATE_DATA_DIR", data)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(File::create(&stdout).unwrap())
        .stderr(File::create(&stderr).unwrap());
    let mut child = process::spawn(&mut command);
    let status = process::ended(&mut child, PATIENCE).await;
    let read = |path| fs::read_to_string(path).unwrap();
    Ended { code: status.code(), stdout: read(stdout), stderr: read(stderr) }
}

/// A Tidegate that has taken in records of two devices, a payload that is no text and a session, and has drained.
async fn filled() -> (Tidegate, PathBuf) {
    let away = free_address().to_string();
    let mut tidegate = Tidegate::start(Settings::default().kafka(&away)).await;
    let session = Options::persistent(Version::V5, "kept");
    let mut kept = Connection::open(tidegate.mqtt, &session).await.unwrap();
    kept.subscribe("nothing/+", Qos::AtLeastOnce).await.unwrap();
    kept.close().await.unwrap();
    for device in ["a", "b"] {
        let mut connection =
            Connection::open(tidegate.mqtt, &Options::clean(Version::V5, device)).await.unwrap();
        for number in 1..=EACH {
            // One after the other, so that each has a frame of its own.
            let topic = format!("sensors/{device}/n");
            publish(&mut connection, &topic, format!("{{\"n\":{number}}}").as_bytes(), number as u16).await;
        }
        publish(&mut connection, &format!("raw/{device}"), b"\xff\x00", 100).await;
        connection.close().await.unwrap();
    }
    assert_eq!(tidegate.drain().await.code(), Some(0));
    let data = tidegate.folder().join("data");
    (tidegate, data)
}

async fn publish(connection: &mut Connection, topic: &str, payload: &[u8], packet_id: u16) {
    connection.publish(topic, payload, Qos::AtLeastOnce, packet_id, Flags::default());
    connection.flush().await.unwrap();
    let answer = connection.receive().await.unwrap();
    assert!(matches!(answer, Received::PubAck { .. }), "{answer:?}");
}

fn segment(data: &Path) -> PathBuf {
    data.join("journal/00000000000000000000.log")
}

fn files(data: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(data.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let read =
        |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap());
    entries.map(read).collect()
}

/// Changes a byte of the payload `text` in the segment; returns where.
fn garble(data: &Path, text: &str) -> usize {
    let mut bytes = fs::read(segment(data)).unwrap();
    let at = bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    bytes[at] ^= 1;
    fs::write(segment(data), bytes).unwrap();
    at
}

fn offsets(lines: &[Value]) -> Vec<u64> {
    lines.iter().map(|line| line["offset"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn damage_is_refused_named_repaired_and_what_is_left_keeps_its_place() {
    let (mut tidegate, data) = filled().await;
    let sound = journal(&data, &["verify"]).await;
    assert_eq!(sound.code, Some(0), "{sound:?}");
    assert!(sound.stdout.contains("result     sound"), "{sound:?}");
    let before = journal(&data, &["dump"]).await.lines();
    assert_eq!(before.len() as u64, 2 * EACH + 2);

    let at = garble(&data, "{\"n\":7}");
    let file = segment(&data).display().to_string();
    tidegate.spawn();
    assert_eq!(tidegate.ended().await.code(), Some(74));
    let log = tidegate.log();
    let refusal = log.lines().last().unwrap();
    for part in [&*file, "is damaged at byte", "tidegate journal repair"] {
        assert!(refusal.contains(part), "{refusal}");
    }

    let damaged = files(&data);
    let verified = journal(&data, &["verify", "--json"]).await;
    assert_eq!(verified.code, Some(65), "{verified:?}");
    let report = verified.json();
    assert_eq!(report["sound"], false);
    let fault = &report["faults"][0];
    assert_eq!((&fault["file"], &fault["meaning"]), (&file.clone().into(), &"damage".into()));
    let begins = fault["at"].as_u64().unwrap() as usize;
    assert!(begins < at && at < begins + 200, "{fault} is the frame of byte {at}");
    let loss = &report["losses"][0];
    let (from, to) = (loss["from"].as_u64().unwrap(), loss["to"].as_u64().unwrap());
    assert_eq!(to - from, 1, "{report}");
    assert_eq!(loss["records_by_client_estimate"]["a"], 1, "{report}");

    let told = journal(&data, &["repair"]).await;
    assert_eq!(told.code, Some(65), "{told:?}");
    assert!(told.stdout.contains(&format!("lost       entries {from} to {from} (1)")), "{told:?}");
    assert!(told.stderr.contains("--yes"), "{told:?}");
    assert_eq!(files(&data), damaged, "without --yes nothing is changed");

    let repaired = journal(&data, &["repair", "--yes"]).await;
    assert_eq!(repaired.code, Some(0), "{repaired:?}");
    let after = files(&data);
    let kept = after.iter().find(|(name, _)| name.contains(".log.damaged-")).expect("the file is kept");
    assert_eq!(*kept.1, damaged["00000000000000000000.log"]);
    assert_eq!(journal(&data, &["verify"]).await.code, Some(0));
    assert_eq!(journal(&data, &["repair", "--yes"]).await.code, Some(0), "there is nothing left to do");

    let left = journal(&data, &["dump"]).await.lines();
    let expected: Vec<_> = before.iter().filter(|line| line["offset"] != from).cloned().collect();
    assert_eq!(left, expected);
    let gaps = journal(&data, &["dump", "--control"]).await.lines();
    assert!(gaps.iter().any(|line| line["gap"] == "lost" && line["offset"] == from && line["to"] == to));

    tidegate.spawn();
    tidegate.ready().await;
    let mut connection = Connection::open(tidegate.mqtt, &Options::clean(Version::V5, "a")).await.unwrap();
    publish(&mut connection, "sensors/a/n", b"new", 1).await;
    assert_eq!(tidegate.drain().await.code(), Some(0));
    let last = journal(&data, &["dump"]).await.lines().pop().unwrap();
    assert_eq!(last["payload"], "new");
    assert!(last["offset"].as_u64() > before.last().unwrap()["offset"].as_u64());
}

#[tokio::test]
async fn a_dump_has_what_the_filters_name_and_ends_quietly_when_nobody_reads() {
    let (_tidegate, data) = filled().await;
    let all = journal(&data, &["dump"]).await.lines();
    let places = offsets(&all);
    assert!(places.is_sorted());
    let first = &all[0];
    assert_eq!(
        (&first["client"], &first["topic"], &first["qos"]),
        (&"a".into(), &"sensors/a/n".into(), &1.into())
    );
    assert_eq!(first["payload"], "{\"n\":1}", "JSON stays a string");
    assert_eq!((&first["retain"], first.get("properties")), (&false.into(), None));

    let dump = async |arguments: &[&str]| {
        let ended = journal(&data, &[&["dump"], arguments].concat()).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.lines()
    };
    assert_eq!(dump(&["--client", "b"]).await, all[EACH as usize + 1..]);
    assert_eq!(dump(&["--filter", "sensors/b/#"]).await.len() as u64, EACH);
    let raw = dump(&["--filter", "raw/+"]).await;
    assert_eq!((raw.len(), &raw[0]["payload_base64"], raw[0].get("payload")), (2, &"/wA=".into(), None));
    let (from, to) = (places[3].to_string(), places[6].to_string());
    assert_eq!(dump(&["--from", &from, "--to", &to]).await, all[3..6]);
    assert_eq!(dump(&["--limit", "2"]).await, all[..2]);
    assert_eq!(dump(&["--since", "1h"]).await, all);
    assert_eq!(dump(&["--until", "1h"]).await, [] as [Value; 0]);
    let time = all[5]["time"].as_str().unwrap();
    assert!(dump(&["--since", time]).await.contains(&all[5]));
    assert!(!dump(&["--until", time]).await.contains(&all[5]));
    let control = dump(&["--control"]).await;
    let connected = control.iter().find(|line| line["control"] == "connected").expect("the session is told");
    assert_eq!(connected["client"], "kept");
    assert_eq!(
        control.len() as u64,
        control.last().unwrap()["offset"].as_u64().unwrap() + 1 - offsets(&control)[0]
    );
    let wrong = journal(&data, &["dump", "--filter", "a/#/b"]).await;
    assert_eq!(wrong.code, Some(64), "{wrong:?}");

    // `tidegate journal dump | head -1`, with more than a pipe holds.
    let mut command = Command::new(Tidegate::program());
    command.args(["journal", "dump", "--control"]).env("TIDEGATE_DATA_DIR", &data);
    let mut child = process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), &b""[..]));
}

#[tokio::test]
async fn an_export_starts_as_it_is_and_keeps_offsets_and_cursors() {
    let (mut tidegate, data) = filled().await;
    let all = journal(&data, &["dump"]).await.lines();
    let target = tidegate.folder().join("moved");
    let exported = journal(&data, &["export", target.to_str().unwrap()]).await;
    assert_eq!(exported.code, Some(0), "{exported:?}");
    assert_eq!(journal(&target, &["verify"]).await.code, Some(0));
    assert_eq!(journal(&target, &["dump"]).await.lines(), all);
    let (old, new) = (
        journal(&data, &["info", "--json"]).await.json(),
        journal(&target, &["info", "--json"]).await.json(),
    );
    for same in ["id", "start", "end"] {
        assert_eq!(old[same], new[same], "{same}");
    }
    let cursor = |info: &Value| (info["cursors"][0]["name"].clone(), info["cursors"][0]["position"].clone());
    assert_eq!(cursor(&old), cursor(&new));
    let again = journal(&data, &["export", target.to_str().unwrap()]).await;
    assert_eq!(again.code, Some(64), "nothing is overwritten: {again:?}");

    let part = tidegate.folder().join("part");
    let exported = journal(&data, &["export", part.to_str().unwrap(), "--client", "b"]).await;
    assert_eq!(exported.code, Some(0), "{exported:?}");
    assert_eq!(journal(&part, &["verify"]).await.code, Some(0));
    assert_eq!(journal(&part, &["dump"]).await.lines(), all[EACH as usize + 1..]);

    let lines = tidegate.folder().join("part.jsonl");
    let exported = journal(&data, &["export", lines.to_str().unwrap(), "--client", "b"]).await;
    assert_eq!(exported.code, Some(0), "{exported:?}");
    assert_eq!(fs::read_to_string(&lines).unwrap(), journal(&part, &["dump"]).await.stdout);

    // The copy goes on with the sessions of the original.
    fs::rename(&data, tidegate.folder().join("old")).unwrap();
    fs::rename(&target, &data).unwrap();
    tidegate.spawn();
    tidegate.ready().await;
    let kept = Connection::open(tidegate.mqtt, &Options::persistent(Version::V5, "kept")).await.unwrap();
    assert!(kept.session_present);
}

#[tokio::test]
async fn cursors_are_moved_back_at_once_and_forward_only_when_it_is_said() {
    let (mut tidegate, data) = filled().await;
    let kafka = async || {
        let cursors = journal(&data, &["cursors", "--json"]).await.json();
        let all = cursors.as_array().unwrap().clone();
        all.into_iter().find(|cursor| cursor["name"] == "kafka")
    };
    let before = kafka().await.expect("Kafka was switched on");
    assert_eq!(before["position"], 0);
    let end = journal(&data, &["info", "--json"]).await.json()["end"].as_u64().unwrap();

    let refused = journal(&data, &["cursors", "set", "kafka", "end"]).await;
    assert_eq!(refused.code, Some(64), "{refused:?}");
    assert!(refused.stderr.contains(&format!("{} records", 2 * EACH + 2)), "{refused:?}");
    assert_eq!(kafka().await.unwrap()["position"], 0);
    assert_eq!(journal(&data, &["cursors", "set", "kafka", "end", "--yes"]).await.code, Some(0));
    let moved = kafka().await.unwrap();
    assert_eq!((&moved["position"], &moved["skipped"]), (&end.into(), &(2 * EACH + 2).into()));
    let beyond = (end + 1).to_string();
    let refused = journal(&data, &["cursors", "set", "kafka", &beyond, "--yes"]).await;
    assert_eq!(refused.code, Some(64), "{refused:?}");
    assert_eq!(journal(&data, &["cursors", "set", "kafka", "5"]).await.code, Some(0));
    assert_eq!(kafka().await.unwrap()["position"], 5);
    assert_eq!(journal(&data, &["cursors", "set", "kafka", "oldest"]).await.code, Some(0));
    for name in ["sessions", "nobody"] {
        assert_eq!(journal(&data, &["cursors", "set", name, "oldest"]).await.code, Some(64), "{name}");
    }
    assert_eq!(journal(&data, &["cursors", "remove", "kafka"]).await.code, Some(0));
    assert_eq!(kafka().await, None);

    tidegate.spawn();
    tidegate.ready().await;
    for command in [
        &["info"][..],
        &["verify"],
        &["dump"],
        &["cursors"],
        &["cursors", "set", "kafka", "end", "--yes"],
        &["repair", "--yes"],
    ] {
        let ended = journal(&data, command).await;
        assert_eq!(ended.code, Some(69), "{command:?}: {ended:?}");
    }
}

/// A copy made with `cp` while the appliance runs: read as it is, and never changed.
#[tokio::test]
async fn a_copy_of_a_running_journal_can_be_read_where_it_lies() {
    let mut tidegate = Tidegate::start(Settings::default()).await;
    let mut connection = Connection::open(tidegate.mqtt, &Options::clean(Version::V5, "a")).await.unwrap();
    for number in 1..=5 {
        publish(&mut connection, "a/b", number.to_string().as_bytes(), number).await;
    }
    let copy = tidegate.folder().join("copy");
    fs::create_dir(&copy).unwrap();
    for (name, bytes) in files(&tidegate.folder().join("data")) {
        fs::write(copy.join(name), bytes).unwrap();
    }
    let mut command = Command::new("chmod");
    assert!(command.args(["-R", "a-w"]).arg(&copy).status().unwrap().success());
    let folder = copy.to_str().unwrap();
    let data = tidegate.folder().join("elsewhere/data");
    fs::create_dir_all(&data).unwrap();
    let verified = journal(&data, &["verify", "--folder", folder]).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    let dumped = journal(&data, &["dump", "--folder", folder]).await.lines();
    let payloads: Vec<_> = dumped.iter().map(|line| line["payload"].as_str().unwrap().to_owned()).collect();
    assert_eq!(payloads, ["1", "2", "3", "4", "5"]);
    let mut command = Command::new("chmod");
    assert!(command.args(["-R", "u+w"]).arg(&copy).status().unwrap().success());
    tidegate.assert_alive();
}
