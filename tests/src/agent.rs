//! `tidegate-agent` as a device's owner meets it: a process that is fed lines, whose link is cut and which is killed, against
//! mosquitto and against tidegate.
//!
//! Lines are numbered. The agent has accepted a line when it has answered `ok`; whoever writes goes on behind the last accepted
//! one after a crash. What is checked every time: what was accepted arrives, in order; it may arrive again, but a number never
//! comes before all smaller ones have.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tidegate_broker::mqtt::Version;
use tidegate_broker::record::Qos;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::task::JoinHandle;

use crate::support::mqtt::{Connection, Options, Received};
use crate::support::process::{self, Signal};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, eventually, free_address, target, unique, within};

/// What the agent may have resident at most; a device has other things to do.
const MEMORY_BYTES_MAX: u64 = 12 << 20;

fn folder() -> TempDir {
    let parent = target().join("tests");
    std::fs::create_dir_all(&parent).expect("target/ can be written");
    tempfile::tempdir_in(parent).expect("target/ can be written")
}

/// A mosquitto that keeps everything for slow subscribers.
struct Mosquitto {
    address: SocketAddr,
    child: Child,
    _folder: TempDir,
}

impl Mosquitto {
    async fn start() -> Self {
        Self::start_with("allow_anonymous true", folder()).await
    }

    /// Takes nobody but the user `device` with this password.
    async fn with_password(password: &str) -> Self {
        let folder = folder();
        let file = folder.path().join("passwords");
        let status = Command::new("mosquitto_passwd")
            .arg("-b")
            .arg("-c")
            .arg(&file)
            .args(["device", password])
            .status();
        assert!(status.unwrap().success());
        Self::start_with(&format!("allow_anonymous false\npassword_file {}", file.display()), folder).await
    }

    async fn start_with(access: &str, folder: TempDir) -> Self {
        let address = free_address();
        let config = folder.path().join("mosquitto.conf");
        let text = format!(
            "listener {} {}\n{access}\nmax_queued_messages 0\nuser root\n",
            address.port(),
            address.ip()
        );
        std::fs::write(&config, text).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        // Debian keeps it where the search path of an ordinary user does not look.
        let installed = Path::new("/usr/sbin/mosquitto");
        let program = if installed.is_file() { installed } else { Path::new("mosquitto") };
        let child = process::spawn(Command::new(program).arg("-c").arg(config).stderr(log));
        let connects = async || TcpStream::connect(address).await.ok();
        eventually("mosquitto listens", PATIENCE, connects).await;
        Self { address, child, _folder: folder }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The network between agent and broker: connections through it can be cut, and new ones kept out.
struct Network {
    /// Where the agent finds the broker.
    address: SocketAddr,
    broker: SocketAddr,
    up: Option<JoinHandle<()>>,
}

impl Network {
    fn down(broker: SocketAddr) -> Self {
        Self { address: free_address(), broker, up: None }
    }

    async fn up(broker: SocketAddr) -> Self {
        let mut network = Self::down(broker);
        network.restore().await;
        network
    }

    async fn restore(&mut self) {
        let (address, broker) = (self.address, self.broker);
        let listener =
            eventually("the port is free again", PATIENCE, async || TcpListener::bind(address).await.ok());
        let listener = listener.await;
        self.up = Some(tokio::spawn(async move {
            // Dropped with this task, and with it every connection.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    let Ok(mut far) = TcpStream::connect(broker).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        }));
    }

    /// Cuts every connection at whatever byte it is, and refuses new ones.
    async fn cut(&mut self) {
        if let Some(task) = self.up.take() {
            task.abort();
            let _ = task.await;
        }
    }
}

/// An agent that is fed lines and answers them.
struct Agent {
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

fn program() -> PathBuf {
    std::env::var_os("TIDEGATE_TEST_AGENT_BIN")
        .map_or_else(|| target().join("release/tidegate-agent"), PathBuf::from)
}

fn command(broker: SocketAddr, device: &str, folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .args(["--broker", &broker.to_string(), "--device-id", device, "--reconnect-seconds-max", "1"])
        .arg("--data-dir")
        .arg(folder.join("queue"))
        .args(more);
    command
}

impl Agent {
    fn start(broker: SocketAddr, device: &str, folder: &Path, more: &[&str]) -> Self {
        let log = folder.join("log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = command(broker, device, folder, more);
        command.args(["--stdin", "--ack", "--sensors=false"]);
        let mut child = process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file));
        let stdin = ChildStdin::from_std(child.stdin.take().unwrap()).unwrap();
        let stdout = ChildStdout::from_std(child.stdout.take().unwrap()).unwrap();
        Self { child, stdin: Some(stdin), answers: BufReader::new(stdout).lines(), log }
    }

    /// Writes one line for each number, and does not wait for answers.
    async fn write(&mut self, numbers: std::ops::Range<u64>) {
        let stdin = self.stdin.as_mut().expect("it is fed");
        let mut text = String::new();
        for number in numbers {
            text.push_str(&format!("{{\"metric\":\"n\",\"value\":{number},\"timestamp\":0}}\n"));
        }
        within("the agent takes lines", PATIENCE, stdin.write_all(text.as_bytes())).await.unwrap();
    }

    async fn answer(&mut self) -> String {
        let answer = within("the agent answers", PATIENCE, self.answers.next_line()).await.unwrap();
        answer.unwrap_or_else(|| panic!("the agent ended without an answer; it said:\n{}", self.said()))
    }

    /// Waits until `count` lines are accepted.
    async fn accept(&mut self, count: u64) {
        for _ in 0..count {
            let answer = self.answer().await;
            assert!(answer.starts_with("ok "), "{answer}");
        }
    }

    async fn feed(&mut self, numbers: std::ops::Range<u64>) {
        let count = numbers.end - numbers.start;
        self.write(numbers).await;
        self.accept(count).await;
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it ends by itself, successfully.
    async fn ended(&mut self) {
        let status = process::ended(&mut self.child, PATIENCE).await;
        assert!(status.success(), "the agent ended with {status}; it said:\n{}", self.said());
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn says(&self, what: &str) {
        let said = async || self.said().contains(what).then_some(());
        eventually(&format!("the agent says {what:?}"), PATIENCE, said).await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the agent said:\n{}", self.said());
        }
    }
}

/// Receives what one device publishes, and holds its numbers against the rule.
struct Observer {
    connection: Connection,
    address: SocketAddr,
    options: Options,
    device: String,
    /// Every number before it has arrived.
    next: u64,
    repeated: u64,
    statuses: Vec<String>,
}

impl Observer {
    async fn start(address: SocketAddr, device: &str) -> Self {
        let options = Options::persistent(Version::V5, &unique("observer"));
        let mut connection = Connection::open(address, &options).await.unwrap();
        for filter in [format!("sensors/{device}/#"), format!("devices/{device}/status")] {
            assert_eq!(connection.subscribe(&filter, Qos::AtLeastOnce).await.unwrap(), []);
        }
        let device = device.to_owned();
        Self { connection, address, options, device, next: 0, repeated: 0, statuses: Vec::new() }
    }

    /// Receives until every number before `end` has arrived.
    async fn until(&mut self, end: u64) {
        while self.next < end {
            self.receive().await;
        }
    }

    async fn until_status(&mut self, statuses: &[&str]) {
        while self.statuses.len() < statuses.len() {
            self.receive().await;
        }
        assert_eq!(self.statuses, statuses);
    }

    async fn receive(&mut self) {
        let Ok(received) = self.connection.receive().await else { return self.reconnect().await };
        let Received::Publish { topic, payload, packet_id, qos, .. } = received else { return };
        assert_eq!(qos, Qos::AtLeastOnce);
        self.connection.puback(packet_id);
        // If this fails, so does the next receive, and the broker sends again.
        let _ = self.connection.flush().await;
        if topic == format!("devices/{}/status", self.device) {
            self.statuses.push(String::from_utf8(payload.to_vec()).unwrap());
            return;
        }
        assert_eq!(topic, format!("sensors/{}/n", self.device));
        let payload: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        let number = payload["value"].as_u64().unwrap();
        assert!(number <= self.next, "{number} came, but {} has not", self.next);
        if number == self.next {
            self.next += 1;
        } else {
            self.repeated += 1;
        }
    }

    async fn reconnect(&mut self) {
        let (address, options) = (self.address, self.options.clone());
        let connects = async || Connection::open(address, &options).await.ok();
        self.connection = eventually("the broker is back", PATIENCE, connects).await;
        assert!(self.connection.session_present, "the broker has forgotten the observer");
    }
}

/// What is retained as the device's status.
async fn retained_status(address: SocketAddr, device: &str) -> Option<String> {
    let options = Options::clean(Version::V5, &unique("reader"));
    let mut connection = Connection::open(address, &options).await.unwrap();
    connection.subscribe(&format!("devices/{device}/status"), Qos::AtMostOnce).await.unwrap();
    // Retained records come before the answer to a later packet.
    connection.subscribe(&unique("nothing"), Qos::AtMostOnce).await.unwrap().into_iter().find_map(
        |received| {
            let Received::Publish { payload, retain, .. } = received else { return None };
            assert!(retain);
            Some(String::from_utf8(payload.to_vec()).unwrap())
        },
    )
}

async fn readings_and_status_arrive(broker: SocketAddr) {
    let (folder, device) = (folder(), unique("device"));
    let mut observer = Observer::start(broker, &device).await;
    let mut agent = Agent::start(broker, &device, folder.path(), &[]);
    agent.feed(0..500).await;
    observer.until(500).await;
    observer.until_status(&["online"]).await;
    assert_eq!(retained_status(broker, &device).await.as_deref(), Some("online"));
    process::send(agent.child.id(), Signal::Term);
    agent.ended().await;
    observer.until_status(&["online", "offline"]).await;
    assert_eq!(retained_status(broker, &device).await.as_deref(), Some("offline"));
}

#[tokio::test]
async fn the_agents_readings_arrive_in_order_at_mosquitto_and_its_status_is_retained() {
    readings_and_status_arrive(Mosquitto::start().await.address).await;
}

#[tokio::test]
async fn the_agents_readings_arrive_in_order_at_tidegate_and_its_status_is_retained() {
    readings_and_status_arrive(Tidegate::start(Settings::default()).await.mqtt).await;
}

#[tokio::test]
async fn the_agent_loses_and_reorders_nothing_while_its_link_is_cut_again_and_again() {
    const READINGS: u64 = 20_000;
    const CUTS: u64 = 8;
    let (mosquitto, folder, device) = (Mosquitto::start().await, folder(), unique("device"));
    let mut network = Network::up(mosquitto.address).await;
    let mut observer = Observer::start(mosquitto.address, &device).await;
    let mut agent = Agent::start(network.address, &device, folder.path(), &[]);
    let fed = async {
        for start in (0..READINGS).step_by(100) {
            agent.feed(start..start + 100).await;
        }
    };
    let observed = async {
        for cut in 1..=CUTS {
            observer.until(READINGS * cut / (CUTS + 1)).await;
            network.cut().await;
            network.restore().await;
        }
        observer.until(READINGS).await;
    };
    tokio::join!(fed, observed);
    let memory = process::peak_memory_bytes(agent.child.id());
    println!("{READINGS} readings over {CUTS} cuts: {} repeated, {memory} bytes at most", observer.repeated);
    assert!(memory < MEMORY_BYTES_MAX, "the agent had {memory} bytes resident");
}

#[tokio::test]
async fn the_agent_keeps_what_it_accepted_through_an_outage_in_which_it_is_killed() {
    let (mosquitto, folder, device) = (Mosquitto::start().await, folder(), unique("device"));
    let mut network = Network::down(mosquitto.address);
    let mut observer = Observer::start(mosquitto.address, &device).await;
    let mut accepted = 0;
    for life in 1..=4 {
        let mut agent = Agent::start(network.address, &device, folder.path(), &[]);
        // Killed with lines in the pipe, in its memory and on their way to the disk.
        agent.write(accepted..accepted + 1_000).await;
        agent.accept(200 * life).await;
        accepted += 200 * life;
        agent.kill();
    }
    assert_eq!(observer.next, 0);
    network.restore().await;
    let mut agent = Agent::start(network.address, &device, folder.path(), &[]);
    agent.feed(accepted..accepted + 10).await;
    observer.until(accepted + 10).await;
    println!("{} accepted over four lives, {} repeated", accepted + 10, observer.repeated);
}

#[tokio::test]
async fn an_agent_killed_while_it_sends_sends_the_rest_in_its_next_life_and_its_will_is_seen() {
    let (mosquitto, folder, device) = (Mosquitto::start().await, folder(), unique("device"));
    let mut observer = Observer::start(mosquitto.address, &device).await;
    // One in flight makes sure that much is left.
    let mut agent = Agent::start(mosquitto.address, &device, folder.path(), &["--in-flight-max", "1"]);
    agent.feed(0..3_000).await;
    observer.until(100).await;
    agent.kill();
    observer.until_status(&["online", "offline"]).await;
    assert_eq!(retained_status(mosquitto.address, &device).await.as_deref(), Some("offline"));
    let _agent = Agent::start(mosquitto.address, &device, folder.path(), &[]);
    observer.until(3_000).await;
    observer.until_status(&["online", "offline", "online"]).await;
}

#[tokio::test]
async fn the_agent_loses_nothing_while_tidegate_is_killed_and_restarted() {
    let (mut tidegate, folder, device) =
        (Tidegate::start(Settings::default()).await, folder(), unique("device"));
    let mut observer = Observer::start(tidegate.mqtt, &device).await;
    let mut agent = Agent::start(tidegate.mqtt, &device, folder.path(), &[]);
    for round in 0..4 {
        agent.feed(round * 1_000..round * 1_000 + 500).await;
        // Somewhere in the middle of sending.
        observer.until(round * 1_000 + 100).await;
        tidegate.kill();
        agent.feed(round * 1_000 + 500..(round + 1) * 1_000).await;
        tidegate.spawn();
    }
    observer.until(4_000).await;
}

#[tokio::test]
async fn the_agent_ends_by_itself_when_its_input_ended_and_not_before_everything_is_acknowledged() {
    let (mosquitto, folder, device) = (Mosquitto::start().await, folder(), unique("device"));
    let mut network = Network::down(mosquitto.address);
    let mut observer = Observer::start(mosquitto.address, &device).await;
    let mut agent = Agent::start(network.address, &device, folder.path(), &[]);
    agent.write(0..50).await;
    agent.stdin = None;
    agent.accept(50).await;
    agent.says("not connected").await;
    assert!(agent.child.try_wait().unwrap().is_none(), "it ended with 50 readings unsent");
    network.restore().await;
    agent.ended().await;
    observer.until(50).await;
    observer.until_status(&["online", "offline"]).await;
}

#[tokio::test]
async fn a_full_queue_that_refuses_holds_the_writer_back_and_loses_nothing() {
    const READINGS: u64 = 40_000;
    let (mosquitto, folder, device) = (Mosquitto::start().await, folder(), unique("device"));
    let mut network = Network::down(mosquitto.address);
    let mut observer = Observer::start(mosquitto.address, &device).await;
    let more = ["--queue-bytes-max", "1048576", "--queue-full", "refuse"];
    let mut agent = Agent::start(network.address, &device, folder.path(), &more);
    let mut stdin = agent.stdin.take().unwrap();
    let text: String = (0..READINGS)
        .map(|number| format!("{{\"metric\":\"n\",\"value\":{number},\"timestamp\":0}}\n"))
        .collect();
    let written = tokio::spawn(async move { stdin.write_all(text.as_bytes()).await });
    // The queue has room for fewer than half of them, so the first half is never accepted while the link is down.
    let mut accepted = 0;
    let mut held_back = false;
    while accepted < READINGS {
        match tokio::time::timeout(std::time::Duration::from_secs(2), agent.answers.next_line()).await {
            Ok(answer) => {
                let answer = answer.unwrap().unwrap();
                assert!(answer.starts_with("ok "), "{answer}");
                accepted += 1;
            }
            Err(_) => {
                assert!(!held_back, "nothing was accepted for two seconds although the link is up");
                held_back = true;
                assert!(!written.is_finished(), "everything was taken at {accepted} accepted");
                network.restore().await;
            }
        }
        if held_back && observer.next < accepted {
            observer.until(accepted.min(observer.next + 50)).await;
        }
    }
    written.await.unwrap().unwrap();
    assert!(held_back, "1 MiB held {READINGS} readings");
    observer.until(READINGS).await;
}

#[tokio::test]
async fn bad_lines_are_answered_with_the_reason_and_harm_no_other() {
    let (mosquitto, folder, device) = (Mosquitto::start().await, folder(), unique("device"));
    let mut observer = Observer::start(mosquitto.address, &device).await;
    let mut agent = Agent::start(mosquitto.address, &device, folder.path(), &[]);
    agent.feed(0..1).await;
    let stdin = agent.stdin.as_mut().unwrap();
    let too_long = vec![b'x'; 1 << 20];
    for line in [&b"22.5"[..], b"", b"{", b"\xff\x00", b"{\"metric\":\"a/b\"}", &too_long] {
        stdin.write_all(line).await.unwrap();
        stdin.write_all(b"\n").await.unwrap();
    }
    for (number, reason) in
        [(2, "object"), (3, "not JSON"), (4, "not JSON"), (5, "not JSON"), (6, "a/b"), (7, "longer")]
    {
        let answer = agent.answer().await;
        assert!(answer.starts_with(&format!("error {number} ")) && answer.contains(reason), "{answer}");
    }
    agent.feed(1..2).await;
    observer.until(2).await;
}

#[tokio::test]
async fn readings_wait_while_the_password_is_wrong_and_go_when_it_is_right() {
    let (folder, device) = (folder(), unique("device"));
    let mosquitto = Mosquitto::with_password("right").await;
    let password = folder.path().join("password");
    std::fs::write(&password, "wrong\n").unwrap();
    let more = ["--username", "device", "--password-file", password.to_str().unwrap()];
    let mut agent = Agent::start(mosquitto.address, &device, folder.path(), &more);
    agent.feed(0..5).await;
    agent.says("check username and password").await;
    process::send(agent.child.id(), Signal::Term);
    agent.ended().await;
    agent.says("5 readings wait").await;

    std::fs::write(&password, "right\n").unwrap();
    let mut agent = Agent::start(mosquitto.address, &device, folder.path(), &more);
    agent.stdin = None;
    // It ends when everything is acknowledged, and not before.
    agent.ended().await;
}

#[tokio::test]
async fn a_device_that_is_only_told_its_broker_publishes_its_own_load_and_memory() {
    let (mosquitto, folder, device) = (Mosquitto::start().await, folder(), unique("device"));
    let mut observer =
        Connection::open(mosquitto.address, &Options::clean(Version::V311, "observer")).await.unwrap();
    observer.subscribe("sensors/#", Qos::AtMostOnce).await.unwrap();
    let file = folder.path().join("agent.toml");
    std::fs::write(&file, format!("device_id = \"{device}\"\ninterval_seconds = 1\n")).unwrap();
    let mut agent = process::spawn(
        Command::new(program())
            .arg("--config")
            .arg(file)
            .env("TIDEGATE_AGENT_BROKER", format!("mqtt://{}", mosquitto.address))
            .env("TIDEGATE_AGENT_DATA_DIR", folder.path().join("queue")),
    );
    let mut missing = vec!["load1", "load5", "load15", "memory_available", "memory_used"];
    // Every one of them twice, so that it goes on.
    missing.extend(missing.clone());
    while !missing.is_empty() {
        let Received::Publish { topic, payload, .. } = observer.receive().await.unwrap() else { continue };
        let metric = topic.strip_prefix(&format!("sensors/{device}/")).unwrap_or_else(|| panic!("{topic}"));
        if let Some(at) = missing.iter().position(|missing| *missing == metric) {
            missing.remove(at);
        }
        let payload: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert!(payload["value"].is_number() && payload["unit"].is_string(), "{payload}");
        assert!(payload["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{payload}");
    }
    process::send(agent.id(), Signal::Term);
    assert!(process::ended(&mut agent, PATIENCE).await.success());
}

#[tokio::test]
async fn mistakes_are_told_at_once_with_the_exit_codes_of_sysexits() {
    let (folder, address) = (folder(), free_address());
    let check = |command: &mut Command, code: i32, words: &[&str]| {
        let output =
            process::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
                .wait_with_output()
                .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} are not all in {said:?}");
    };
    let wrong = ["--interval-seconds", "0", "--in-flight-max", "0"];
    check(&mut command(address, "a/b", folder.path(), &wrong), 64, &["device_id", "interval", "in_flight"]);
    check(&mut command(address, "a", folder.path(), &["--nonsense"]), 64, &["--nonsense"]);
    let mut variable = command(address, "a", folder.path(), &[]);
    check(variable.env("TIDEGATE_AGENT_KEEP_ALIVE_SECONDS", "1"), 64, &["keep_alive"]);
    let file = folder.path().join("agent.toml");
    std::fs::write(&file, "devise_id = \"a\"").unwrap();
    let file = file.to_str().unwrap();
    check(&mut command(address, "a", folder.path(), &["--config", file]), 64, &["devise_id"]);
    // Below a file there can be no folder, and a folder has one agent at a time.
    std::fs::write(folder.path().join("file"), "").unwrap();
    check(&mut command(address, "a", &folder.path().join("file"), &[]), 73, &["file/queue"]);
    let mut first = Agent::start(address, "a", folder.path(), &[]);
    first.feed(0..1).await;
    check(&mut command(address, "a", folder.path(), &[]), 73, &["queue"]);
}
