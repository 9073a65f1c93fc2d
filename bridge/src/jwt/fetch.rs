//! Keys from the address at which an issuer publishes them, fetched again from time to time, and when a token names a
//! key that is not known. The keys of before stay while the address is away.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use super::{Expected, NamedKey, Tokens};

/// Between two fetches when nothing happens.
const INTERVAL: Duration = Duration::from_secs(600);
/// Between two fetches at least, however many tokens name unknown keys.
const INTERVAL_MIN: Duration = Duration::from_secs(10);
/// For one fetch.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest set in bytes.
const SET_BYTES_MAX: u64 = 1 << 20;

/// The thread that fetches. It ends with the process.
#[derive(Debug)]
pub struct JwksThread;

impl JwksThread {
    /// Tokens checked with the keys at `url`. Until they were fetched for the first time, none is believed.
    pub fn start(url: String, expected: Expected) -> std::io::Result<Arc<Tokens>> {
        // One wish is as good as many.
        let (sender, wishes) = sync_channel(1);
        let tokens = Arc::new(Tokens { unknown_key: Some(sender), ..Tokens::new(Vec::new(), expected) });
        let kept = Arc::downgrade(&tokens);
        std::thread::Builder::new().name("jwks".into()).spawn(move || {
            let mut told = None;
            while let Some(tokens) = kept.upgrade() {
                let outcome = fetch(&url);
                let what = outcome.as_ref().map(Vec::len).map_err(Clone::clone);
                if told.as_ref() != Some(&what) {
                    match &what {
                        Ok(keys) => tracing::info!(url, keys, "keys for tokens were fetched"),
                        Err(error) => tracing::warn!(
                            url,
                            error,
                            "cannot fetch keys for tokens; those of before stay: see auth.jwt_jwks_url"
                        ),
                    }
                    told = Some(what);
                }
                let failed = outcome.is_err();
                if let Ok(keys) = outcome {
                    tokens.replace_keys(keys);
                }
                drop(tokens);
                if !wait(&wishes, failed) {
                    return;
                }
            }
        })?;
        Ok(tokens)
    }
}

/// Waits until it is time for another fetch; false when nobody wants keys any more.
fn wait(wishes: &Receiver<()>, failed: bool) -> bool {
    let begun = Instant::now();
    let outcome = wishes.recv_timeout(if failed { INTERVAL_MIN } else { INTERVAL });
    if outcome == Err(RecvTimeoutError::Disconnected) {
        return false;
    }
    std::thread::sleep(INTERVAL_MIN.saturating_sub(begun.elapsed()));
    // Wishes of meanwhile are fulfilled by the same fetch.
    while wishes.try_recv().is_ok() {}
    true
}

fn fetch(url: &str) -> Result<Vec<NamedKey>, String> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).max_redirects(0).build().into();
    let mut reply = agent.get(url).call().map_err(|error| error.to_string())?;
    if reply.status() != 200 {
        return Err(format!("its answer is {}; redirects are not followed", reply.status()));
    }
    let body = reply.body_mut().with_config().limit(SET_BYTES_MAX).read_to_vec();
    let keys = NamedKey::from_jwks(&body.map_err(|error| error.to_string())?);
    keys.map_err(|error| error.to_string())
}
