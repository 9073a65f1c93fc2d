//! The load: devices that publish until they are told to finish, and account for every acknowledgement.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_broker::mqtt::Version;
use tidegate_broker::record::Qos;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::PATIENCE;
use super::count::Account;
use crate::support::device::{Device, Done, Order};
use crate::support::{eventually, within};

/// Half of them publish at QoS 1, half at QoS 2, and half of each speak MQTT 3.1.1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Devices {
    pub(crate) count: usize,
    /// Publishes per second and device.
    pub(crate) pace: u32,
}

impl Devices {
    /// Enough that every fault hits some publishes on their way, and that the outputs keep up.
    pub(crate) const USUAL: Self = Self { count: 16, pace: 100 };

    /// All of them together.
    pub(crate) const fn per_second(self) -> u64 {
        self.count as u64 * self.pace as u64
    }
}

/// What device `device` sends as its publish `number`.
fn payload(device: &str, number: u64) -> Vec<u8> {
    format!(r#"{{"device":"{device}","seq":{number}}}"#).into_bytes()
}

/// Devices that publish.
#[derive(Debug)]
pub(crate) struct Load {
    orders: watch::Sender<Order>,
    acknowledged: Arc<AtomicU64>,
    devices: Vec<(String, Qos, JoinHandle<Done>)>,
    address: SocketAddr,
    run: String,
}

impl Load {
    /// Starts them; the names of all begin with `run`.
    pub(crate) fn start(address: SocketAddr, run: &str, devices: Devices) -> Self {
        let (orders, order) = watch::channel(Order::Publish);
        let acknowledged = Arc::new(AtomicU64::new(0));
        let start = |index: usize| {
            let id = format!("{run}_{index}");
            let qos = if index.is_multiple_of(2) { Qos::AtLeastOnce } else { Qos::ExactlyOnce };
            let version = if index % 4 < 2 { Version::V311 } else { Version::V5 };
            let device =
                Device { version, pace: Some(devices.pace), payload, ..Device::new(address, &id, qos) };
            (id, qos, tokio::spawn(device.run(order.clone(), Arc::clone(&acknowledged))))
        };
        let devices = (0..devices.count).map(start).collect();
        Self { orders, acknowledged, devices, address, run: run.to_owned() }
    }

    /// How many publishes were acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits for that many acknowledgements more.
    pub(crate) async fn more_acknowledged(&self, count: u64) {
        let goal = self.acknowledged() + count;
        eventually("more publishes are acknowledged", PATIENCE, async || {
            (self.acknowledged() >= goal).then_some(())
        })
        .await;
    }

    /// Lets every device end when all it has begun is acknowledged.
    pub(crate) async fn finish(self) -> Vec<Account> {
        self.orders.send(Order::Finish).expect("the devices listen");
        let mut accounts = Vec::new();
        for (device, qos, task) in self.devices {
            let done = within("a device finishes", PATIENCE, task).await;
            let done = done.expect("a device keeps to the rules");
            assert_eq!(done.sessions_lost, 0, "{device} lost its session: {done:?}");
            accounts.push(Account { device, qos, done });
        }
        accounts.push(last(self.address, &self.run).await);
        accounts
    }
}

/// One publish that every output gets behind everything else.
async fn last(address: SocketAddr, run: &str) -> Account {
    let device = format!("{run}{LAST}");
    let (_orders, order) = watch::channel(Order::Publish);
    let one = Device { limit: 1, payload, ..Device::new(address, &device, Qos::ExactlyOnce) };
    let publishing = one.run(order, Arc::new(AtomicU64::new(0)));
    let done = within("the last publish is acknowledged", PATIENCE, publishing).await;
    Account { device, qos: Qos::ExactlyOnce, done }
}

/// In the name of the device whose only publish comes last.
const LAST: &str = "_last";

/// Whether `device` is the one whose publish comes last.
pub(crate) fn is_last(device: &str) -> bool {
    device.ends_with(LAST)
}
