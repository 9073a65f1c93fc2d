//! TLS to a real server, and a password by SCRAM under it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tidegate::health::Part;
use tidegate::postgres::{Config, PostgresSink};
use tidegate::pump::Sink;

use super::{JOURNAL, admit_ada, config, deliver, numbered, operator_message};
use crate::support::postgres::Database;
use crate::support::services::{Own, Service};
use crate::support::{PATIENCE, eventually};

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Gives the server a certificate for `names`; it must own its key.
fn certify(folder: &Path, authority: &CertifiedIssuer<'static, KeyPair>, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, authority).unwrap();
    let owner = fs::metadata(folder).unwrap();
    for (name, text) in [("server.crt", certificate.pem()), ("server.key", key.serialize_pem())] {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

#[tokio::test]
async fn tls_asks_of_the_certificate_what_sslmode_says_and_scram_works_under_it() {
    let server = Own::start(Service::Postgres);
    let database = Database::create(&server.url()).await;
    let folder = database.setting("data_directory").await;
    let folder = Path::new(&folder);
    let (trusted, other) = (authority("trusted"), authority("other"));
    certify(folder, &trusted, &["localhost"]);
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let file = files.path().join(name);
        fs::write(&file, text).unwrap();
        file
    };
    let (trusted_file, other_file) = (file("trusted.pem", trusted.pem()), file("other.pem", other.pem()));
    let empty_file = file("empty.pem", String::new());

    database.query("ALTER SYSTEM SET ssl = on", &[]).await;
    admit_ada(
        &database,
        "hostssl all ada 127.0.0.1/32 scram-sha-256\nhostssl all ada ::1/128 scram-sha-256\nhost all ada all reject\n",
    )
    .await;
    database.query(&format!("ALTER DATABASE {} OWNER TO ada", database.name()), &[]).await;

    let as_ada = |host: &str, mode: &str, ca: Option<&Path>| {
        let url = database.url.replace("postgres@127.0.0.1", &format!("ada:sesame@{host}"));
        let config =
            Config { tls_ca_file: ca.map(Path::to_owned), ..config(&format!("{url}?sslmode={mode}")) };
        assert_eq!(config.mistakes(), Vec::<String>::new());
        PostgresSink::new(config, JOURNAL, Part::new("postgres"))
    };
    // The reload reaches the server's main process a moment later.
    eventually("the server speaks TLS", PATIENCE, async || {
        as_ada("127.0.0.1", "require", None).connect().await.ok()
    })
    .await;
    let trusted_file = Some(trusted_file.as_path());
    for (host, mode, ca) in [
        ("127.0.0.1", "prefer", None),
        ("127.0.0.1", "verify-ca", trusted_file),
        ("127.0.0.1", "require", trusted_file),
        ("localhost", "verify-full", trusted_file),
    ] {
        let connected = as_ada(host, mode, ca).connect().await;
        assert!(connected.is_ok(), "{host} {mode}: {connected:?}");
    }
    let encrypted = "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity USING (pid) WHERE usename = 'ada' AND s.ssl";
    let mut sink = as_ada("localhost", "verify-full", trusted_file);
    deliver(&mut sink, &numbered(20, 50)).await;
    assert_eq!(database.count("SELECT count(*) FROM tidegate.readings").await, Some(1_000));
    assert!(database.count(encrypted).await >= Some(1), "it is under TLS");

    for (host, mode, ca, expected) in [
        ("127.0.0.1", "verify-full", trusted_file, "not valid for name"),
        ("localhost", "verify-full", Some(other_file.as_path()), "UnknownIssuer"),
        ("localhost", "verify-ca", Some(other_file.as_path()), "UnknownIssuer"),
        ("localhost", "require", Some(other_file.as_path()), "UnknownIssuer"),
        ("localhost", "verify-ca", Some(empty_file.as_path()), "no certificate"),
        ("localhost", "verify-ca", Some(Path::new("/nowhere.pem")), "/nowhere.pem"),
        ("127.0.0.1", "disable", None, "pg_hba.conf"),
    ] {
        let message = operator_message(as_ada(host, mode, ca).connect().await);
        assert!(message.contains(expected) && !message.contains("sesame"), "{host} {mode}: {message}");
    }

    // A certificate that is replaced takes effect at the next connect.
    certify(folder, &trusted, &["127.0.0.1"]);
    database.query("SELECT pg_reload_conf()", &[]).await;
    eventually("the new certificate is shown", PATIENCE, async || {
        as_ada("127.0.0.1", "verify-full", trusted_file).connect().await.ok()
    })
    .await;

    database.query("ALTER SYSTEM SET ssl = off", &[]).await;
    database.query("SELECT pg_reload_conf()", &[]).await;
    let message = eventually("the server speaks no TLS", PATIENCE, async || {
        as_ada("127.0.0.1", "require", None).connect().await.err()
    })
    .await;
    let message = operator_message::<()>(Err(message));
    assert!(message.contains("does not support TLS"), "{message}");
}
