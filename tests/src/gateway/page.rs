//! The built-in page in a real browser: `tests/browser/page.mjs` says what is claimed of it.

use std::process::Stdio;

use tidegate::health::{Lag, Part, State};
use tidegate_broker::auth::{Access, Anonymous};
use tokio::process::Command;

use super::stage::{Setting, Stage};
use crate::support::{PATIENCE, http, root, target, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_sees_readings_arrive_and_misses_nothing() {
    for variable in ["TIDEGATE_TEST_CHROMIUM", "TIDEGATE_TEST_PLAYWRIGHT"] {
        assert!(
            std::env::var_os(variable).is_some(),
            "{variable} is not set: run tests/run, or eval \"$(tests/services start browser)\" first"
        );
    }
    let kafka = Part::new("kafka");
    kafka.update(|report| {
        report.state = State::Down;
        report.detail = Some("no broker answers at 127.0.0.1:9; it is tried again".into());
        report.lag = Some(Lag { entries: 1_520, age_ms: 95_000 });
    });
    let (stage, _folder) = Stage::new(Setting { sinks: vec![kafka], ..Setting::default() }).await;
    let token = "0123456789abcdef0123456789abcdef".to_owned();
    let closed = Setting {
        access: Access::new(Anonymous::Never, None),
        token: Some(token.clone()),
        ..Setting::default()
    };
    let (closed, _folder) = Stage::new(closed).await;
    let mut command = Command::new("node");
    command
        .arg(root().join("tests/browser/page.mjs"))
        .args([stage.address.to_string(), closed.address.to_string(), token])
        .arg(target().join("tests-page.png"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = within("the browser has seen everything", PATIENCE * 3, command.output()).await;
    let output = output.expect("node starts");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_for_browsers_and_follows_the_access_rule() {
    let html = [("Accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")];
    let (stage, _folder) = Stage::new(Setting::default()).await;
    let reply = http::request(stage.address, "GET", "/", &html, b"").await.unwrap();
    assert!(reply.header("content-type").unwrap().starts_with("text/html"));
    let policy = reply.header("content-security-policy").unwrap();
    let nonce = policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert_eq!(reply.text().matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    let again = http::request(stage.address, "GET", "/", &html, b"").await.unwrap();
    assert!(!again.text().contains(nonce), "the nonce is new each time");
    assert_eq!(http::get(stage.address, "/").await.json()["service"], "tidegate");

    let access = Access::new(Anonymous::Never, None);
    let (stage, _folder) = Stage::new(Setting { access, ..Setting::default() }).await;
    assert_eq!(http::request(stage.address, "GET", "/", &html, b"").await.unwrap().status, 401);
}
