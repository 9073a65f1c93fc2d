//! The shipped `tidegate` as a process: started on free ports with a folder of its own, killed and started again.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::process::{self, Signal};
use super::small_disk::SmallDisk;
use super::{PATIENCE, eventually, free_address, http, target};

/// What a `tidegate` is started with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    variables: Vec<(String, String)>,
    /// A program and its arguments that the command line is handed to.
    wrapper: Vec<String>,
}

impl Settings {
    /// Carries the journal to this Kafka.
    pub(crate) fn kafka(self, bootstrap_servers: &str) -> Self {
        self.set("TIDEGATE_KAFKA_BOOTSTRAP_SERVERS", bootstrap_servers)
    }

    /// Carries the journal to this database.
    pub(crate) fn postgres(self, url: &str) -> Self {
        self.set("TIDEGATE_POSTGRES_URL", url)
    }

    /// Keeps its data on `disk`.
    pub(crate) fn on(mut self, disk: &SmallDisk) -> Self {
        self.wrapper = disk.enter();
        self.set("TIDEGATE_DATA_DIR", disk.mounted_at().join("data").to_str().expect("our folders are text"))
    }

    /// Any variable of its environment.
    pub(crate) fn set(mut self, variable: &str, value: &str) -> Self {
        self.variables.push((variable.to_owned(), value.to_owned()));
        self
    }

    /// What is added to its environment.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().map(|(variable, value)| (variable.as_str(), value.as_str()))
    }

    /// May open so many files only.
    pub(crate) fn open_files_max(self, count: u32) -> Self {
        let limit = format!("ulimit -n {count} && exec \"$0\"");
        Self { wrapper: ["sh", "-c", &limit].map(str::to_owned).to_vec(), ..self }
    }
}

/// A `tidegate` with its data folder; both end with the test. After a failed test the folder stays and is named.
#[derive(Debug)]
pub(crate) struct Tidegate {
    /// Where it accepts MQTT.
    pub(crate) mqtt: SocketAddr,
    /// Where it accepts HTTP.
    pub(crate) http: SocketAddr,
    settings: Settings,
    folder: Option<TempDir>,
    child: Option<Child>,
}

impl Tidegate {
    /// Starts one with empty data and waits until it is ready.
    pub(crate) async fn start(settings: Settings) -> Self {
        let mut tidegate = Self::prepare(settings);
        tidegate.spawn();
        tidegate.ready().await;
        tidegate
    }

    /// One with empty data that is not started yet.
    pub(crate) fn prepare(settings: Settings) -> Self {
        let parent = target().join("tests");
        fs::create_dir_all(&parent).expect("target/ can be written");
        let folder = tempfile::tempdir_in(parent).expect("target/ can be written");
        let (mqtt, http) = (free_address(), free_address());
        Self { mqtt, http, settings, folder: Some(folder), child: None }
    }

    /// The program: built by `tests/run`, or the one that `TIDEGATE_TEST_BIN` names.
    pub(crate) fn program() -> PathBuf {
        std::env::var_os("TIDEGATE_TEST_BIN").map_or_else(|| target().join("release/tidegate"), PathBuf::from)
    }

    /// The folder with its data and its log.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.as_ref().expect("the folder lives as long as the test").path()
    }

    /// What it has printed.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder().join("log")).unwrap_or_default()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Sets a variable from the next start on.
    pub(crate) fn set(&mut self, variable: &str, value: &str) {
        self.settings.variables.push((variable.to_owned(), value.to_owned()));
    }

    /// Leaves a variable out from the next start on.
    pub(crate) fn unset(&mut self, variable: &str) {
        self.settings.variables.retain(|(name, _)| name != variable);
    }

    /// Sets a variable from the next start on.
    pub(crate) fn also(&mut self, variable: &str, value: &str) {
        self.unset(variable);
        self.settings.variables.push((variable.to_owned(), value.to_owned()));
    }

    /// Starts the program, and does not wait. It must not run.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.folder().join("log")).unwrap();
        let program = Self::program().to_str().expect("the program's path is text").to_owned();
        let mut words = self.settings.wrapper.iter().chain([&program]);
        let mut command = Command::new(words.next().expect("there is at least the program"));
        command
            .args(words)
            .env("TIDEGATE_DATA_DIR", self.folder().join("data"))
            .env("TIDEGATE_MQTT_LISTEN", self.mqtt.to_string())
            .env("TIDEGATE_HTTP_LISTEN", self.http.to_string())
            // Its port is the same for every test.
            .env("TIDEGATE_MQTT_WS_LISTEN", "off")
            .envs(self.settings.variables.iter().map(|(variable, value)| (variable, value)))
            .current_dir(self.folder())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(process::spawn(&mut command));
    }

    /// Waits until it says that it is ready.
    pub(crate) async fn ready(&mut self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Ok(reply) = http::try_get(self.http, "/health/ready").await
                && reply.status == 200
            {
                return;
            }
            if let Some(status) = self.child.as_mut().expect("it was started").try_wait().unwrap() {
                panic!("tidegate ended while starting ({status}); it said:\n{}", self.log());
            }
            let in_time = tokio::time::Instant::now() < deadline;
            assert!(in_time, "tidegate is not ready within {PATIENCE:?}; it said:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("the child is ours");
        child.wait().expect("the child is ours");
    }

    /// Waits until it has printed a line with `text`; returns everything it has printed.
    pub(crate) async fn log_has(&self, text: &str) -> String {
        let find = async || Some(self.log()).filter(|log| log.contains(text));
        eventually(&format!("tidegate prints {text:?}"), PATIENCE, find).await
    }

    /// Asks it to finish with SIGTERM, and waits for that.
    pub(crate) async fn drain(&mut self) -> ExitStatus {
        self.end(Signal::Term).await
    }

    /// Sends `signal`, which is to end it, and waits for that.
    pub(crate) async fn end(&mut self, signal: Signal) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        process::send(child.id(), signal);
        process::ended(&mut child, PATIENCE).await
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it was started");
        process::ended(&mut child, PATIENCE).await
    }

    /// Kills it, starts it on the same data and waits until it is ready.
    pub(crate) async fn crash_and_restart(&mut self) {
        self.kill();
        self.spawn();
        self.ready().await;
    }

    /// Whether it runs, started and not ended by itself.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Fails if it has ended by itself.
    pub(crate) fn assert_alive(&mut self) {
        if let Some(status) = self.child.as_mut().expect("it runs").try_wait().unwrap() {
            panic!("tidegate ended by itself ({status}); it said:\n{}", self.log());
        }
    }

    /// What `/health` says.
    pub(crate) async fn health(&self) -> serde_json::Value {
        http::get(self.http, "/health").await.json()
    }

    /// The id of its journal, which stands in every record that leaves.
    pub(crate) async fn journal_id(&self) -> String {
        self.health().await["journal"]["id"].as_str().expect("/health tells the journal's id").to_owned()
    }

    /// What `/health` says of one sink.
    pub(crate) async fn sink(&self, name: &str) -> SinkHealth {
        let health = self.health().await;
        let sinks = health["sinks"].as_array().expect("/health tells of every sink");
        let sink = sinks.iter().find(|sink| sink["name"] == name);
        let sink = sink.unwrap_or_else(|| panic!("/health does not tell of {name}: {health}"));
        SinkHealth {
            state: sink["state"].as_str().expect("a sink has a state").to_owned(),
            lag_entries: sink["lag"]["entries"].as_u64().unwrap_or_default(),
            lag_age_ms: sink["lag"]["age_ms"].as_u64().unwrap_or_default(),
            rejected: sink["rejected"].as_u64().expect("a sink tells what was rejected"),
            detail: sink["detail"].as_str().unwrap_or_default().to_owned(),
        }
    }

    /// Waits until a sink is up and has everything that is durable now, except `entries_max` at most.
    pub(crate) async fn caught_up(&self, sink: &str, entries_max: u64, patience: Duration) {
        eventually(&format!("{sink} has caught up"), patience, async || {
            let health = self.sink(sink).await;
            (health.state == "up" && health.lag_entries <= entries_max).then_some(())
        })
        .await;
    }
}

/// A sink's line in `/health`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SinkHealth {
    pub(crate) state: String,
    pub(crate) lag_entries: u64,
    pub(crate) lag_age_ms: u64,
    pub(crate) rejected: u64,
    pub(crate) detail: String,
}

impl Drop for Tidegate {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            let folder = folder.keep();
            let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("tidegate's folder is kept in {}; its last lines:", folder.display());
            tail.iter().rev().for_each(|line| eprintln!("    {line}"));
        }
    }
}
