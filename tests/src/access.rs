//! Who may connect, publish and receive: with the program and stock clients, and beside mosquitto.

mod beside_mosquitto;
mod files;
mod guesses;
mod tokens;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::support::process;

/// Makes a password file with mosquitto's tool; every password is `secret`.
fn write_users(path: &Path, users: &[&str]) {
    for (at, user) in users.iter().enumerate() {
        let mut command = Command::new("mosquitto_passwd");
        command.arg("-b");
        if at == 0 {
            command.arg("-c");
        }
        let status = command.arg(path).args([user, "secret"]).status().unwrap();
        assert!(status.success());
    }
}

/// Arguments that make a stock client `user`, or nobody.
fn credentials(user: Option<&str>) -> Vec<&str> {
    user.map_or_else(Vec::new, |user| vec!["-u", user, "-P", "secret"])
}

/// Publishes with `mosquitto_pub`; says whether it could connect and was acknowledged, and what it printed.
fn publish(address: SocketAddr, topic: &str, payload: &str, more: &[&str]) -> (bool, String) {
    let mut command = Command::new("mosquitto_pub");
    command
        .args([
            "-h",
            &address.ip().to_string(),
            "-p",
            &address.port().to_string(),
            "-t",
            topic,
            "-m",
            payload,
        ])
        .args(more)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let output = process::spawn(&mut command).wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}
