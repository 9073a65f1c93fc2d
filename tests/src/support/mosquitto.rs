//! The stock `mosquitto_pub` and `mosquitto_sub`, and mosquitto's broker.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};

use super::{PATIENCE, eventually, free_address, process, target, within};

/// A version of the protocol, as the tools name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V311,
    V5,
}

impl Version {
    const fn argument(self) -> &'static str {
        match self {
            Self::V311 => "mqttv311",
            Self::V5 => "mqttv5",
        }
    }
}

/// Publishes `payload` with `mosquitto_pub`; `more` are further arguments. Fails unless the tool says that it worked.
pub(crate) fn publish(
    address: SocketAddr,
    version: Version,
    qos: u8,
    topic: &str,
    payload: &[u8],
    more: &[&str],
) {
    let mut command = Command::new("mosquitto_pub");
    let command = arguments(&mut command, address, version, qos).args(["-t", topic, "-s"]).args(more);
    let mut child =
        process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    child.stdin.take().expect("stdin is piped").write_all(payload).expect("mosquitto_pub reads its stdin");
    let output = child.wait_with_output().expect("the child is ours");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "mosquitto_pub -t {topic} -q {qos} ({version:?}): {said}");
}

fn arguments(command: &mut Command, address: SocketAddr, version: Version, qos: u8) -> &mut Command {
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]).args([
        "-V",
        version.argument(),
        "-q",
        &qos.to_string(),
    ])
}

/// What `mosquitto_sub` received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) topic: String,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) payload: Bytes,
}

/// A running `mosquitto_sub`.
#[derive(Debug)]
pub(crate) struct Subscriber {
    child: Child,
    lines: Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Subscriber {
    /// Subscribes, and waits until the broker has confirmed it.
    pub(crate) async fn start(
        address: SocketAddr,
        version: Version,
        qos: u8,
        filter: &str,
        more: &[&str],
    ) -> Self {
        // Into a pipe it would hold its lines back until there are many.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "mosquitto_sub"]);
        // -d tells when the subscription is confirmed; its lines come between those of -F.
        arguments(&mut command, address, version, qos)
            .args(["-t", filter, "-d", "-F", "RECEIVED %q %r %x %t"])
            .args(more);
        let mut child =
            process::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()));
        let stdout = child.stdout.take().expect("stdout is piped");
        let stdout = tokio::process::ChildStdout::from_std(stdout).expect("a runtime is there");
        let mut subscriber = Self { child, lines: BufReader::new(stdout).lines() };
        while !subscriber.line().await.starts_with("Subscribed ") {}
        subscriber
    }

    /// The next record.
    pub(crate) async fn next(&mut self) -> Received {
        loop {
            let line = self.line().await;
            if let Some(received) = line.strip_prefix("RECEIVED ") {
                return parse(received).unwrap_or_else(|| panic!("mosquitto_sub printed {line:?}"));
            }
        }
    }

    async fn line(&mut self) -> String {
        let line = within("mosquitto_sub prints a line", PATIENCE, self.lines.next_line()).await;
        line.expect("mosquitto_sub prints UTF-8").expect("mosquitto_sub goes on")
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running mosquitto, as a broker to compare with.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
    _folder: TempDir,
}

impl Server {
    /// Starts one; `config` are further lines of its configuration.
    pub(crate) async fn start(config: &str) -> Self {
        let parent = target().join("tests");
        std::fs::create_dir_all(&parent).expect("target/ can be written");
        let folder = tempfile::tempdir_in(parent).expect("target/ can be written");
        let address = free_address();
        let path = folder.path().join("mosquitto.conf");
        let text = format!("listener {} {}\nuser root\n{config}", address.port(), address.ip());
        std::fs::write(&path, text).expect("the folder is ours");
        let log = std::fs::File::create(folder.path().join("log")).expect("the folder is ours");
        // Debian keeps it where the search path of an ordinary user does not look.
        let installed = Path::new("/usr/sbin/mosquitto");
        let program = if installed.is_file() { installed } else { Path::new("mosquitto") };
        let child = process::spawn(Command::new(program).arg("-c").arg(path).stderr(log));
        let connects = async || tokio::net::TcpStream::connect(address).await.ok();
        eventually("mosquitto listens", PATIENCE, connects).await;
        Self { address, child, _folder: folder }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(line: &str) -> Option<Received> {
    let mut fields = line.splitn(4, ' ');
    let qos = fields.next()?.parse().ok()?;
    let retain = fields.next()? == "1";
    let payload = unhex(fields.next()?)?;
    Some(Received { topic: fields.next()?.to_owned(), qos, retain, payload })
}

fn unhex(text: &str) -> Option<Bytes> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8]| Some((digit(pair[0])? * 16 + digit(*pair.get(1)?)?) as u8);
    text.as_bytes().chunks(2).map(byte).collect()
}
