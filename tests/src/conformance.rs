//! Every normative statement of MQTT 3.1.1 and 5.0 that binds a server, at a running broker over TCP.
//!
//! `tests/clauses/` lists the statements, each with the tests that show it; [`table`] holds lists and tests together. The
//! tests are claims with data: bytes go out, bytes come back, both written and read without the product's codec. They
//! share one broker as long as any of them runs, and keep apart by topics and Client Identifiers of their own.

mod client;
mod connect;
mod malformed;
mod properties;
mod qos;
mod reasons;
mod retained;
mod sessions;
mod shared;
mod subscriptions;
mod table;
mod topics;
mod v31;
mod will;
mod wire;

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::support::tidegate::{Settings, Tidegate};

const LEVELS: [u8; 3] = [3, 4, 5];

/// A broker that ends when nobody needs it any more.
#[derive(Debug)]
struct Broker {
    mqtt: SocketAddr,
    _lease: mpsc::SyncSender<()>,
}

/// The broker that the tests share, started if none runs. It ends with the last test that has asked for it.
fn broker() -> Arc<Broker> {
    thread_local! {
        // Every test is a thread of its own.
        static OWN: OnceCell<Arc<Broker>> = const { OnceCell::new() };
    }
    static SHARED: Mutex<Weak<Broker>> = Mutex::new(Weak::new());
    OWN.with(|own| {
        let shared = || {
            let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            shared.upgrade().unwrap_or_else(|| {
                let broker = Arc::new(start(Settings::default()));
                *shared = Arc::downgrade(&broker);
                broker
            })
        };
        Arc::clone(own.get_or_init(shared))
    })
}

/// Starts a broker. The kernel ends it with the thread that started it, so that is one of its own, which waits until nobody
/// needs the broker any more.
fn start(settings: Settings) -> Broker {
    let (lease, leases) = mpsc::sync_channel(0);
    let (ready, started) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let tidegate = runtime.expect("a runtime can be made").block_on(Tidegate::start(settings));
        ready.send(tidegate.mqtt).expect("the starter waits");
        let ended: Result<(), mpsc::RecvError> = leases.recv();
        debug_assert!(ended.is_err(), "nothing is ever sent");
    });
    Broker { mqtt: started.recv().expect("the broker starts"), _lease: lease }
}
