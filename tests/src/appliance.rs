//! The program as its operator meets it: what it prints, how it ends, what it says to mistakes, who may connect.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::support::process::{self, Signal};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, eventually, free_address, http, target};

/// An empty folder below `target/`.
fn folder() -> TempDir {
    let parent = target().join("tests");
    fs::create_dir_all(&parent).unwrap();
    tempfile::tempdir_in(parent).unwrap()
}

/// What a run of the program ended with.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    /// What it says of its failure: the lines of stderr that begin with its name.
    said: Vec<String>,
}

/// Runs the program in `folder` with nothing in its environment but `variables`, and waits until it has ended.
async fn run(folder: &Path, arguments: &[&str], variables: &[(&str, &OsStr)], stdin: &str) -> Ended {
    let (stdout, stderr, input) = (folder.join("stdout"), folder.join("stderr"), folder.join("stdin"));
    fs::write(&input, stdin).unwrap();
    let mut command = Command::new(Tidegate::program());
    command
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .current_dir(folder)
        .stdin(File::open(&input).unwrap())
        .stdout(File::create(&stdout).unwrap())
        .stderr(File::create(&stderr).unwrap());
    let mut child = process::spawn(&mut command);
    let status = process::ended(&mut child, PATIENCE).await;
    let lines = fs::read_to_string(stderr).unwrap();
    let said = lines.lines().filter_map(|line| line.strip_prefix("tidegate: ")).map(str::to_owned);
    Ended { code: status.code(), stdout: fs::read_to_string(stdout).unwrap(), said: said.collect() }
}

/// Runs it with variables that are texts.
async fn run_with(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
    let variables: Vec<(&str, &OsStr)> =
        variables.iter().map(|(name, value)| (*name, OsStr::new(*value))).collect();
    run(folder, arguments, &variables, "").await
}

/// Expects that the program ends with `code` and says exactly `said`, and leaves nothing behind.
async fn refuses(arguments: &[&str], variables: &[(&str, &str)], code: i32, said: &[&str]) {
    let folder = folder();
    let ended = run_with(folder.path(), arguments, variables).await;
    assert_eq!(
        (ended.code, &ended.said[..]),
        (Some(code), &said.map_owned()[..]),
        "{arguments:?} {variables:?}"
    );
    assert_eq!(ended.stdout, "", "{arguments:?} {variables:?}");
}

/// `&["a"]` as owned texts.
trait MapOwned {
    fn map_owned(&self) -> Vec<String>;
}

impl MapOwned for [&str] {
    fn map_owned(&self) -> Vec<String> {
        self.iter().map(|each| (*each).to_owned()).collect()
    }
}

#[tokio::test]
async fn with_nothing_configured_it_says_what_runs_and_drains_on_both_signals() {
    let mut tidegate = Tidegate::start(Settings::default()).await;
    let data = tidegate.folder().join("data").display().to_string();
    let expected = [
        format!("MQTT      {}", tidegate.mqtt),
        format!("HTTP      {}", tidegate.http),
        format!("data      {data}"),
        format!(
            "without credentials from this machine; others need a username: tidegate passwd NAME writes {data}/passwords"
        ),
        format!("the token in {data}/operator-token"),
        "kafka     off: set TIDEGATE_KAFKA_BOOTSTRAP_SERVERS".to_owned(),
        "postgres  off: set TIDEGATE_POSTGRES_URL".to_owned(),
        format!("mosquitto_pub -p {} -t sensors/demo/temperature -m 21.5", tidegate.mqtt.port()),
        format!("curl -N 'http://{}/stream/events?filter=sensors/%23'", tidegate.http),
        format!("http://{}/ in a browser", tidegate.http),
    ];
    let printed = tidegate.log();
    for line in expected {
        assert!(printed.contains(&line), "{line:?} is not in what it printed:\n{printed}");
    }

    assert_eq!(tidegate.drain().await.code(), Some(0), "after SIGTERM");
    assert!(tidegate.log().contains("SIGTERM: draining") && tidegate.log().contains(" drained"));
    tidegate.spawn();
    tidegate.ready().await;
    assert_eq!(tidegate.end(Signal::Interrupt).await.code(), Some(0), "after SIGINT");
    assert!(tidegate.log().contains("SIGINT: draining"));
}

/// The lines that the program prints for pasting do what they promise.
#[tokio::test]
async fn the_lines_to_paste_work() {
    let tidegate = Tidegate::start(Settings::default()).await;
    let printed = tidegate.log();
    let line =
        |start: &str| printed.lines().map(str::trim).find(|line| line.starts_with(start)).unwrap().to_owned();
    let publish = line("mosquitto_pub");
    let follow = line("curl").replace("curl -N", "curl -sN --max-time 60");

    let mut shell = Command::new("sh");
    let pipe = format!("{follow} | grep -m 1 21.5");
    let mut curl = process::spawn(shell.args(["-c", &pipe]).stdout(Stdio::piped()).stderr(Stdio::null()));
    // Published again and again, because curl does not tell when it has begun to listen.
    eventually("the event arrives", PATIENCE, async || {
        let mut shell = Command::new("sh");
        assert!(process::spawn(shell.args(["-c", &publish])).wait().unwrap().success(), "{publish}");
        curl.try_wait().unwrap()
    })
    .await;
    let output = curl.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("21.5"), "{follow}: {output:?}");
}

#[tokio::test]
async fn a_busy_port_is_named_with_the_variable_that_moves_it() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let (busy, free) = (busy.local_addr().unwrap(), free_address());
    for (variable, other) in
        [("TIDEGATE_MQTT_LISTEN", "TIDEGATE_HTTP_LISTEN"), ("TIDEGATE_HTTP_LISTEN", "TIDEGATE_MQTT_LISTEN")]
    {
        let said = format!(
            "port {} on 127.0.0.1 is in use by another program; stop it or set {variable}",
            busy.port()
        );
        let variables = [(variable, &*busy.to_string()), (other, &*free.to_string())];
        refuses(&[], &variables, 69, &[&said]).await;
    }
}

#[tokio::test]
async fn an_address_of_another_machine_is_a_mistake_in_the_configuration() {
    let ended = refused_start(&[("TIDEGATE_MQTT_LISTEN", "192.0.2.1:1883")]).await;
    assert_eq!(ended.code, Some(64));
    let said = "192.0.2.1 is not an address of this machine; set TIDEGATE_MQTT_LISTEN to one that is, or to 0.0.0.0:1883";
    assert_eq!(ended.said, [said]);
}

/// Starts the appliance with these variables, on free ports where they name none.
async fn refused_start(variables: &[(&str, &str)]) -> Ended {
    let (mqtt, http) = (free_address().to_string(), free_address().to_string());
    let mut all = vec![("TIDEGATE_MQTT_LISTEN", &*mqtt), ("TIDEGATE_HTTP_LISTEN", &*http)];
    all.extend(variables);
    let folder = folder();
    run_with(folder.path(), &[], &all).await
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    // Below a file nobody can make a folder, also not root.
    let folder = folder();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let path = file.join("data").display().to_string();
    let ended = refused_start(&[("TIDEGATE_DATA_DIR", &path)]).await;
    assert_eq!(ended.code, Some(74));
    assert_eq!(ended.said.len(), 1, "{ended:?}");
    assert!(ended.said[0].starts_with(&format!("cannot use the data folder {path}: ")), "{ended:?}");
    assert!(ended.said[0].ends_with("make it writable for this user, or set TIDEGATE_DATA_DIR"), "{ended:?}");
}

#[tokio::test]
async fn a_mistake_in_the_command_ends_with_64_and_one_line() {
    refuses(&["--colour"], &[], 64, &["unexpected argument '--colour' found; see tidegate --help"]).await;
    refuses(&["start"], &[], 64, &["unrecognized subcommand 'start'; see tidegate --help"]).await;
    refuses(&["--set", "mqtt.listen"], &[], 64, &["--set mqtt.listen: write --set KEY=VALUE"]).await;
    let missing = "cannot read the configuration file missing.toml: No such file or directory (os error 2)";
    refuses(&["check", "--config", "missing.toml"], &[], 64, &[missing]).await;
}

#[tokio::test]
async fn all_mistakes_of_a_configuration_are_told_at_once() {
    let folder = folder();
    let file = "data_dirr = \"x\"\n[journal]\nmax_bytes = \"8 GiBs\"\n[http]\nlisten = \"nowhere\"\n";
    fs::write(folder.path().join("tidegate.toml"), file).unwrap();
    let variables = [("TIDEGATE_KAFKA_SERVERS", "x"), ("TIDEGATE_AUTH_ANONYMOUS", "sometimes")];
    let ended =
        run_with(folder.path(), &["run", "--config", "tidegate.toml", "--set", "mqtt.qos=2"], &variables)
            .await;
    assert_eq!(ended.code, Some(64));
    let starts = [
        "tidegate.toml:1: data_dirr: no such key; did you mean data_dir?",
        "TIDEGATE_KAFKA_SERVERS: no such key",
        "--set: mqtt.qos: no such key",
        "tidegate.toml:5: http.listen: \"nowhere\" is not an address",
        "tidegate.toml:3: journal.max_bytes: \"8 GiBs\" is not a size",
        "TIDEGATE_AUTH_ANONYMOUS: auth.anonymous: \"sometimes\" is not one of: loopback, never, always",
    ];
    for start in starts {
        assert!(
            ended.said.iter().any(|line| line.starts_with(start)),
            "{start:?} is not in {:#?}",
            ended.said
        );
    }
    assert_eq!(ended.said.len(), starts.len(), "{:#?}", ended.said);
    assert!(
        !folder.path().join("tidegate-data").exists(),
        "nothing is touched before the configuration is right"
    );
}

#[tokio::test]
async fn check_shows_what_is_in_effect_and_where_it_came_from_and_no_secret() {
    let folder = folder();
    let file = "[http]\nlisten = \"127.0.0.1:2\"\n[mqtt]\nlisten = \"127.0.0.1:1\"\n";
    fs::write(folder.path().join("edge.toml"), file).unwrap();
    let variables = [
        ("TIDEGATE_CONFIG", "edge.toml"),
        ("TIDEGATE_MQTT_LISTEN", "127.0.0.1:3"),
        ("TIDEGATE_POSTGRES_URL", "postgres://tide:hunter2@db/sensors"),
        ("TIDEGATE_JOURNAL_SYNC", ""),
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka:9092"),
        ("KAFKA_PASSWORD", "hunter2"),
        ("PORT", "4"),
        ("LOG_LEVEL", "WARNING"),
    ];
    let ended = run_with(folder.path(), &["check", "--anonymous", "never"], &variables).await;
    assert_eq!((ended.code, ended.said.len()), (Some(0), 0), "{ended:?}");
    for line in [
        "listen = \"127.0.0.1:2\"  # edge.toml:2",
        "listen = \"127.0.0.1:3\"  # TIDEGATE_MQTT_LISTEN",
        "url = \"postgres://tide:***@db/sensors\"  # TIDEGATE_POSTGRES_URL",
        "sync = \"always\"",
        "bootstrap_servers = \"kafka:9092\"  # KAFKA_BOOTSTRAP_SERVERS",
        "properties = { \"sasl.password\" = \"***\" }  # KAFKA_PASSWORD",
        "level = \"warn\"  # LOG_LEVEL",
        "anonymous = \"never\"  # --anonymous",
    ] {
        assert!(ended.stdout.lines().any(|each| each == line), "{line:?} is not in\n{}", ended.stdout);
    }
    assert!(!ended.stdout.contains("hunter2"));
    // What is shown can be used as a configuration file, but for the secrets.
    fs::write(folder.path().join("shown.toml"), &ended.stdout).unwrap();
    let again = run_with(folder.path(), &["check", "--config", "shown.toml"], &[]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
}

#[tokio::test]
async fn the_example_is_the_shipped_file() {
    let folder = folder();
    let shipped = fs::read_to_string(crate::support::root().join("deploy/tidegate.toml")).unwrap();
    assert_eq!(run_with(folder.path(), &["check", "--example"], &[]).await.stdout, shipped);
}

#[tokio::test]
async fn a_second_process_on_the_same_data_is_refused_and_harms_nothing() {
    let mut first = Tidegate::start(Settings::default()).await;
    let data = first.folder().join("data").display().to_string();
    let second = refused_start(&[("TIDEGATE_DATA_DIR", &data)]).await;
    assert_eq!(second.code, Some(69), "{second:?}");
    assert_eq!(second.said.len(), 1);
    let (folder, holder) = (format!("the data folder {data} is in use"), format!("process {}", first.pid()));
    assert!(second.said[0].starts_with(&folder) && second.said[0].contains(&holder), "{second:?}");

    let looked = run_with(first.folder(), &["journal", "info", "--data-dir", &data], &[]).await;
    assert_eq!(looked.code, Some(69), "{looked:?}");

    first.assert_alive();
    assert!(publish(first.mqtt, &[]).status.success());
    assert_eq!(first.drain().await.code(), Some(0));
    let looked = run_with(first.folder(), &["journal", "info", "--data-dir", &data], &[]).await;
    assert!(looked.stdout.contains("entries    0 to 1 "), "{looked:?}");
}

/// Publishes once at QoS 1 with mosquitto's client; `more` are further arguments.
fn publish(address: SocketAddr, more: &[&str]) -> Output {
    let mut command = Command::new("mosquitto_pub");
    command
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
        .args(["-q", "1", "-t", "sensors/door/open", "-m", "1"])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    process::spawn(&mut command).wait_with_output().unwrap()
}

/// Adds a user to the password file in `data`.
async fn passwd(data: &Path, name: &str, password: &str) {
    let folder = folder();
    let variables = [("TIDEGATE_DATA_DIR", data.as_os_str())];
    let ended = run(folder.path(), &["passwd", name], &variables, &format!("{password}\n")).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[tokio::test]
async fn with_anonymous_never_only_users_get_in_and_new_ones_after_sighup() {
    let tidegate = Tidegate::prepare(Settings::default().set("TIDEGATE_AUTH_ANONYMOUS", "never"));
    let data: PathBuf = tidegate.folder().join("data");
    passwd(&data, "ada", "lovelace").await;
    let mut tidegate = tidegate;
    tidegate.spawn();
    let ready = tidegate.log_has("is running").await;
    assert!(ready.contains("everybody needs a username from"), "{ready}");

    let code = |more: &[&str]| {
        let output = publish(tidegate.mqtt, more);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).trim().to_owned())
    };
    assert!(code(&["-u", "ada", "-P", "lovelace"]).0);
    let (let_in, said) = code(&[]);
    assert!(!let_in && said.contains("not authorised"), "{said}");
    assert!(!code(&["-u", "ada", "-P", "wrong"]).0);
    assert!(!code(&["-u", "grace", "-P", "hopper"]).0);
    assert_eq!(http::get(tidegate.http, "/stream/events").await.status, 401);

    passwd(&data, "grace", "hopper").await;
    process::send(tidegate.pid(), Signal::Hangup);
    tidegate.log_has("users are read again").await;
    assert!(code(&["-u", "grace", "-P", "hopper"]).0);
    assert!(code(&["-u", "ada", "-P", "lovelace"]).0);

    // A file that cannot be read locks nobody out.
    fs::remove_file(data.join("passwords")).unwrap();
    fs::create_dir(data.join("passwords")).unwrap();
    process::send(tidegate.pid(), Signal::Hangup);
    tidegate.log_has("the users are those of before").await;
    assert!(code(&["-u", "grace", "-P", "hopper"]).0);
    tidegate.assert_alive();
}

#[tokio::test]
async fn users_are_added_changed_and_removed_from_stdin() {
    let folder = folder();
    let data = folder.path().join("data");
    let file = data.join("passwords");
    passwd(&data, "ada", "first").await;
    let first = fs::read_to_string(&file).unwrap();
    passwd(&data, "bob", "second").await;
    passwd(&data, "ada", "third").await;
    let third = fs::read_to_string(&file).unwrap();
    assert_eq!(third.lines().count(), 2, "{third}");
    assert!(!third.contains(first.trim()), "the password was changed");
    assert!(!third.contains("second") && !third.contains("third"), "passwords are hashed");

    let variables = [("TIDEGATE_DATA_DIR", data.as_os_str())];
    let run = async |arguments: &[&str], stdin| run(folder.path(), arguments, &variables, stdin).await;
    assert_eq!(run(&["passwd", "--delete", "ada"], "").await.code, Some(0));
    assert!(fs::read_to_string(&file).unwrap().starts_with("bob:"));
    let unknown = run(&["passwd", "--delete", "ada"], "").await;
    assert_eq!(unknown.said, [format!("there is no user ada in {}", file.display())]);
    assert_eq!(unknown.code, Some(64));
    let empty = run(&["passwd", "ada"], "\n").await;
    assert_eq!((empty.code, &*empty.said[0]), (Some(64), "the password is empty; nothing was changed"));
    assert!(fs::read_to_string(&file).unwrap().starts_with("bob:"));
}

#[tokio::test]
async fn a_password_file_that_was_asked_for_must_be_there() {
    let ended = refused_start(&[("TIDEGATE_AUTH_PASSWORD_FILE", "/nonexistent/passwords")]).await;
    assert_eq!(ended.code, Some(64), "{ended:?}");
    assert!(ended.said[0].contains("/nonexistent/passwords"), "{ended:?}");
}

#[tokio::test]
async fn sinks_that_are_away_do_not_stop_the_start_and_health_says_so() {
    let away = free_address().to_string();
    let settings = Settings::default().kafka(&away).postgres(&format!("postgres://nobody@{away}/nothing"));
    let mut tidegate = Tidegate::start(settings).await;
    let printed = tidegate.log();
    assert!(
        printed.contains(&format!("kafka     on: {away}")) && printed.contains("postgres  on"),
        "{printed}"
    );
    assert!(publish(tidegate.mqtt, &[]).status.success());
    eventually("both sinks say that they are down and lag", PATIENCE, async || {
        let health = tidegate.health().await;
        let sinks = health["sinks"].as_array()?;
        let is_away = |sink: &serde_json::Value| sink["state"] == "down" && sink["lag"]["entries"] == 1;
        (sinks.len() == 2 && sinks.iter().all(is_away)).then_some(())
    })
    .await;
    assert_eq!(tidegate.drain().await.code(), Some(0));

    // Switched off, their cursors stay and are named, until they are forgotten.
    let data = tidegate.folder().join("data").display().to_string();
    let folder = tidegate.folder().to_owned();
    let journal = async |arguments: &[&str]| {
        let mut all = vec!["journal", "--data-dir", &data];
        all.extend(arguments);
        run_with(&folder, &all, &[]).await
    };
    let info = journal(&["info"]).await.stdout;
    assert!(info.contains("cursor     kafka at 0, 1 entries behind"), "{info}");
    assert_eq!(journal(&["forget", "kafka"]).await.code, Some(0));
    let info = journal(&["info"]).await.stdout;
    assert!(!info.contains("cursor     kafka") && info.contains("cursor     postgres at 0"), "{info}");
    let refused = journal(&["forget", "sessions"]).await;
    assert_eq!(refused.code, Some(64), "the broker's own cursor is not an operator's: {refused:?}");
}

/// Opens a request that the appliance waits for, as long as the drain may take.
fn unfinished_request(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"POST /ingest HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n").unwrap();
    stream
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_also_when_a_client_does_not() {
    let mut tidegate = Tidegate::start(Settings::default().set("TIDEGATE_DRAIN_TIMEOUT", "1s")).await;
    let _held = unfinished_request(tidegate.http);
    assert!(publish(tidegate.mqtt, &[]).status.success());
    assert_eq!(tidegate.drain().await.code(), Some(0));
    assert!(tidegate.log().contains("draining for up to 1s"), "{}", tidegate.log());
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_loses_nothing() {
    let mut tidegate = Tidegate::start(Settings::default().set("TIDEGATE_DRAIN_TIMEOUT", "1h")).await;
    let _held = unfinished_request(tidegate.http);
    assert!(publish(tidegate.mqtt, &[]).status.success());
    process::send(tidegate.pid(), Signal::Term);
    tidegate.log_has("SIGTERM: draining for up to 1h").await;
    tidegate.assert_alive();
    assert_eq!(tidegate.end(Signal::Interrupt).await.code(), Some(130));
    assert!(tidegate.log().contains("SIGINT again: ended without draining"), "{}", tidegate.log());
    tidegate.spawn();
    tidegate.ready().await;
    assert_eq!(tidegate.health().await["journal"]["durable_end"], 1);
}

/// Publishes `bytes` bytes at QoS 1 with mosquitto's client, which has a while to get its answer; what it said if
/// they were not acknowledged.
async fn publish_bytes(tidegate: &Tidegate, version: &str, bytes: usize) -> Result<(), String> {
    let payload = tidegate.folder().join("payload");
    let said = tidegate.folder().join("said");
    fs::write(&payload, vec![b'x'; bytes]).unwrap();
    let mut command = Command::new("mosquitto_pub");
    command
        .args(["-h", &tidegate.mqtt.ip().to_string(), "-p", &tidegate.mqtt.port().to_string(), "-V", version])
        .args(["-q", "1", "-t", "sensors/camera/image", "-f"])
        .arg(&payload)
        .stderr(File::create(&said).unwrap());
    let status = process::ended(&mut process::spawn(&mut command), PATIENCE).await;
    if status.success() { Ok(()) } else { Err(fs::read_to_string(said).unwrap()) }
}

#[tokio::test]
async fn a_disk_that_fails_refuses_everybody_says_so_and_loses_nothing() {
    let mut tidegate = Tidegate::start(Settings::default()).await;
    process::limit_files(tidegate.pid(), 1 << 20);
    let mut acknowledged = 0;
    while publish_bytes(&tidegate, "mqttv5", 200_000).await.is_ok() {
        acknowledged += 1;
        assert!(acknowledged < 6, "more is acknowledged than fits into the file");
    }
    assert!(acknowledged > 0);
    let log = tidegate.log_has("the journal takes nothing more, because a write failed: ").await;
    assert!(log.contains("Repair the disk, then start tidegate again"), "{log}");
    let health = tidegate.health().await;
    assert_eq!(
        (&health["status"], &health["journal"]["state"]),
        (&"unhealthy".into(), &"failed".into()),
        "{health}"
    );
    assert_eq!(http::get(tidegate.http, "/health/ready").await.status, 503);

    // Whoever comes now is told, and not left waiting.
    for version in ["mqttv311", "mqttv5"] {
        let said = publish_bytes(&tidegate, version, 1).await.unwrap_err();
        assert!(said.contains("unavailable"), "{version}: {said}");
    }
    assert_eq!(http::post(tidegate.http, "/ingest", "application/json", b"{}").await.status, 503);

    assert_eq!(tidegate.drain().await.code(), Some(0));
    tidegate.spawn();
    tidegate.ready().await;
    assert_eq!(tidegate.health().await["journal"]["durable_end"], acknowledged);
    publish_bytes(&tidegate, "mqttv5", 200_000).await.unwrap();
}

/// Without a reader that is behind, a journal that reaches its size makes room and refuses nobody.
#[tokio::test]
async fn a_journal_at_its_size_makes_room_for_more() {
    let settings = Settings::default()
        .set("TIDEGATE_JOURNAL_MAX_BYTES", "2MiB")
        .set("TIDEGATE_JOURNAL_SEGMENT_BYTES", "1MiB");
    let mut tidegate = Tidegate::start(settings).await;
    for _ in 0..30 {
        publish_bytes(&tidegate, "mqttv311", 200_000).await.unwrap();
    }
    let health = tidegate.health().await;
    assert!(health["journal"]["bytes"].as_u64().unwrap() <= 2 << 20, "{health}");
    assert!(health["journal"]["start"].as_u64().unwrap() > 0, "{health}");
    assert_eq!(tidegate.drain().await.code(), Some(0));
}

/// With one that is behind it holds publishers back, tells them, and goes on when that reader is let go of.
#[tokio::test]
async fn a_full_journal_tells_publishers_and_names_the_reader_that_holds_it() {
    let away = free_address().to_string();
    let small = [("TIDEGATE_JOURNAL_MAX_BYTES", "2MiB"), ("TIDEGATE_JOURNAL_SEGMENT_BYTES", "1MiB")];
    let settings =
        small.iter().fold(Settings::default().kafka(&away), |all, (name, value)| all.set(name, value));
    let mut tidegate = Tidegate::start(settings).await;
    let mut published = 0;
    while tidegate.health().await["journal"]["state"] != "full" {
        // Mosquitto's client warns of a Reason Code and ends well all the same.
        publish_bytes(&tidegate, "mqttv5", 200_000).await.unwrap();
        published += 1;
        assert!(published < 30, "the journal is never full");
    }
    publish_bytes(&tidegate, "mqttv5", 200_000).await.unwrap();
    let said = fs::read_to_string(tidegate.folder().join("said")).unwrap();
    assert!(said.contains("Quota exceeded"), "{said}");
    tidegate.log_has("the slowest reader is kafka").await;
    assert_eq!(
        http::post(tidegate.http, "/realtime/topic/a/b", "text/plain", &[b'1'; 200_000]).await.status,
        503
    );
    let kept = tidegate.health().await["journal"]["durable_end"].as_u64().unwrap();
    assert_eq!(tidegate.health().await["journal"]["start"], 0, "nothing is trimmed that Kafka has not got");
    assert_eq!(tidegate.drain().await.code(), Some(0));

    let data = tidegate.folder().join("data").display().to_string();
    let ended =
        run_with(tidegate.folder(), &["journal", "forget", "kafka", "--data-dir", &data], &small).await;
    assert_eq!(ended.stdout, format!("kafka is forgotten; it had not read {kept} entries\n"), "{ended:?}");
}
