//! Tests of the password file, some of them against `mosquitto_passwd`.

use std::process::Command;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;

fn name() -> &'static Path {
    Path::new("passwords")
}

#[track_caller]
fn mosquitto_passwd(arguments: &[&str], file: &Path, rest: &[&str]) {
    let status = Command::new("mosquitto_passwd").args(arguments).arg(file).args(rest).status();
    let status = status.expect("these tests need mosquitto_passwd, of the package mosquitto");
    assert!(status.success());
}

#[test]
fn files_of_mosquitto_passwd_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("passwords");
    mosquitto_passwd(&["-c", "-b"], &path, &["default", "secret one"]);
    mosquitto_passwd(&["-H", "sha512", "-b"], &path, &["sha512", "secret two"]);
    mosquitto_passwd(&["-H", "sha512-pbkdf2", "-b"], &path, &["pbkdf2", "sécret"]);
    let file = PasswordFile::open(&path).unwrap();
    assert_eq!(file.usernames().collect::<Vec<_>>(), ["default", "sha512", "pbkdf2"]);
    assert!(file.verify("default", Some(b"secret one")));
    assert!(file.verify("sha512", Some(b"secret two")));
    assert!(file.verify("pbkdf2", Some("sécret".as_bytes())));
    assert!(!file.verify("default", Some(b"secret two")));
    assert!(!file.verify("sha512", Some(b"secret one")));
    assert!(!file.verify("pbkdf2", Some(b"secret")));
    assert!(!file.verify("nobody", Some(b"secret one")));
    assert!(!file.verify("default", None));
}

#[test]
fn mosquitto_passwd_changes_files_written_here() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("passwords");
    let mut file = PasswordFile::default();
    file.set("ours", b"one").unwrap();
    file.save(&path).unwrap();
    mosquitto_passwd(&["-b"], &path, &["theirs", "two"]);
    let mut file = PasswordFile::open(&path).unwrap();
    assert!(file.verify("ours", Some(b"one")) && file.verify("theirs", Some(b"two")));
    file.set("theirs", b"three").unwrap();
    file.save(&path).unwrap();
    mosquitto_passwd(&["-D"], &path, &["ours"]);
    let file = PasswordFile::open(&path).unwrap();
    assert!(!file.contains("ours") && file.verify("theirs", Some(b"three")));
}

#[test]
fn what_is_not_an_entry_is_kept_when_the_file_changes() {
    let mut made = PasswordFile::default();
    made.set("a", b"1").unwrap();
    let hash = made.to_string().trim_end().split_once(':').unwrap().1.to_owned();
    let content = format!("# devices\n\nno colon here\n  a  : {hash} \r\n#x:{hash}\nb:{hash}:more\n");
    let mut file = PasswordFile::parse(name(), &content).unwrap();
    assert_eq!(file.len(), 2);
    assert!(file.verify("a", Some(b"1")) && file.verify("b", Some(b"1")));
    file.set("c", b"3").unwrap();
    assert!(file.remove("a"));
    assert!(!file.remove("a"));
    file.set("b", b"2").unwrap();
    assert!(!file.verify("a", Some(b"1")));
    assert!(file.verify("b", Some(b"2")) && !file.verify("b", Some(b"1")));
    assert!(file.verify("c", Some(b"3")));
    let written = file.to_string();
    let lines: Vec<&str> = written.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(lines, ["# devices", "", "no colon here", "#x", "b", "c"]);
    let again = PasswordFile::parse(name(), &written).unwrap();
    assert_eq!(again.to_string(), written);
}

#[test]
fn every_mistake_is_told_with_its_line() {
    let mut made = PasswordFile::default();
    made.set("a", b"1").unwrap();
    let entry = made.to_string();
    let error = PasswordFile::parse(
        Path::new("/etc/passwords"),
        &format!("{entry}plain:secret\n# fine\n:$6$x$y\n{entry}b:$6$AA==$AA==\n"),
    )
    .unwrap_err()
    .to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 5, "{error}");
    assert!(lines[0].contains("/etc/passwords"), "{error}");
    assert!(lines[1].contains("line 2: user plain: the password is not hashed"), "{error}");
    assert!(lines[2].contains("line 4: the username \"\": it is empty"), "{error}");
    assert!(lines[3].contains("line 5: user a has an entry already"), "{error}");
    assert!(lines[4].contains("line 6: user b: the hash has 1 bytes"), "{error}");
    assert!(!error.contains("secret"), "a password must not reach a log: {error}");
}

#[test]
fn a_missing_file_is_named() {
    let error = PasswordFile::open(Path::new("/nonexistent/passwords")).unwrap_err();
    assert!(matches!(error, PasswordFileError::Read { .. }));
    assert!(error.to_string().contains("/nonexistent/passwords"), "{error}");
}

#[test]
fn usernames_that_could_not_be_read_back_are_refused() {
    let mut file = PasswordFile::default();
    for username in ["", "a:b", "a\nb", "#a", " a", "a ", "a\0", &"a".repeat(65_536)] {
        assert!(matches!(file.set(username, b"x"), Err(PasswordFileError::Username { .. })), "{username:?}");
    }
    assert!(matches!(file.set("a", &[0; 65_536]), Err(PasswordFileError::PasswordTooLong)));
    assert!(file.is_empty());
    for username in ["a b", "é", "a#", "$7$"] {
        file.set(username, b"x").unwrap();
    }
    let file = PasswordFile::parse(name(), &file.to_string()).unwrap();
    assert_eq!(file.usernames().collect::<Vec<_>>(), ["a b", "é", "a#", "$7$"]);
}

#[test]
fn a_saved_file_is_its_owners_alone_and_replaces_the_old_one_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("passwords"), folder.path().join("link"));
    fs::write(&path, "# old\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let mut file = PasswordFile::open(&link).unwrap();
    file.set("a", b"1").unwrap();
    file.save(&link).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(&path).unwrap(), file.to_string());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside it");

    let nowhere = folder.path().join("missing/passwords");
    assert!(matches!(file.save(&nowhere), Err(PasswordFileError::Write { .. })));
}

#[test]
fn no_password_is_not_an_empty_password() {
    let mut file = PasswordFile::default();
    file.set("a", b"").unwrap();
    for _ in 0..2 {
        assert!(!file.verify("a", None));
        assert!(file.verify("a", Some(b"")));
    }
}

#[test]
fn mosquitto_admits_users_written_here() {
    let folder = tempfile::tempdir().unwrap();
    // When the tests run as root, mosquitto takes another user for itself and must reach the file all the same.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (passwords, config) = (folder.path().join("passwords"), folder.path().join("mosquitto.conf"));
    let mut file = PasswordFile::default();
    file.set("sensor01", b"secret").unwrap();
    file.save(&passwords).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let lines = format!("listener {port} 127.0.0.1\nuser root\npassword_file {}\n", passwords.display());
    fs::write(&config, lines).unwrap();
    let mosquitto =
        Command::new("mosquitto").arg("-c").arg(&config).stderr(std::process::Stdio::null()).spawn();
    let mut mosquitto = mosquitto.expect("this test needs the package mosquitto");
    let publish = |password: &str| {
        let port = port.to_string();
        let arguments =
            ["-h", "127.0.0.1", "-p", &port, "-t", "t", "-m", "m", "-u", "sensor01", "-P", password];
        Command::new("mosquitto_pub").args(arguments).output().expect("this test needs mosquitto-clients")
    };
    // mosquitto_pub ends with 0 once mosquitto is there and admits it.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut admitted = publish("secret");
    while !admitted.status.success() && std::time::Instant::now() < deadline {
        admitted = publish("secret");
    }
    let refused = publish("Secret");
    mosquitto.kill().unwrap();
    mosquitto.wait().unwrap();
    assert!(admitted.status.success(), "{}", String::from_utf8_lossy(&admitted.stderr));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("not authorised"), "{said}");
}

#[test]
fn an_unknown_user_is_checked_against_an_entry_of_the_file() {
    let mut file = PasswordFile::parse(name(), "# only a comment\n").unwrap();
    assert!(!file.verify("nobody", Some(b"x")));
    file.set("a", b"1").unwrap();
    // Also when the password is that of the entry that stands in.
    assert!(file.verify("a", Some(b"1")));
    assert!(!file.verify("nobody", Some(b"1")));
}
