//! Thousands of clients lose their connections and return at once; those that stayed hardly notice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidegate_broker::mqtt::Version;
use tidegate_broker::record::Qos;

use super::support::mqtt::{Connection, Flags, Options, Received};
use super::support::process::open_files_max;
use super::support::tidegate::{Settings, Tidegate};
use super::support::{PATIENCE, report, within};

const QOS1: Qos = Qos::AtLeastOnce;
const RETURNING: usize = 5_000;
const OTHERS: usize = 200;
/// Publishes that wait for each of those that return.
const WAITING: u16 = 2;
/// How long the others are watched while all is calm.
const CALM: Duration = Duration::from_secs(4);
/// How often each of the others publishes.
const PACE: Duration = Duration::from_millis(50);
/// What counts as calm at most: a machine that does other things as well has delays of its own, also when nothing
/// happens.
const CALM_FLOOR: Duration = Duration::from_millis(60);

/// What happens while a publish of the others is under way.
const IS_CALM: u8 = 0;
const IS_STORM: u8 = 1;
const IS_OVER: u8 = 2;

fn options(number: usize) -> Options {
    Options::persistent(Version::V5, &format!("storm-{number}"))
}

/// The others in a thread of their own: what the thousands cost this program must not be taken for what they cost
/// the broker.
fn watch_others(address: SocketAddr, weather: &Arc<AtomicU8>) -> JoinHandle<Vec<(u8, Duration)>> {
    let weather = Arc::clone(weather);
    let watch = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let others: Vec<_> = (0..OTHERS)
                .map(|number| tokio::spawn(publish_steadily(address, number, Arc::clone(&weather))))
                .collect();
            let mut took = Vec::new();
            for other in others {
                took.extend(other.await.unwrap());
            }
            took
        })
    };
    std::thread::Builder::new().name("others".to_owned()).spawn(watch).unwrap()
}

/// Publishes at a steady pace; returns how long each PUBACK took, and what went on when it was sent.
async fn publish_steadily(address: SocketAddr, number: usize, weather: Arc<AtomicU8>) -> Vec<(u8, Duration)> {
    let mut client =
        Connection::open(address, &Options::clean(Version::V5, &format!("other-{number}"))).await.unwrap();
    let topic = format!("others/{number}");
    let mut took = Vec::new();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        let now = weather.load(Ordering::Relaxed);
        if now == IS_OVER {
            return took;
        }
        let started = Instant::now();
        client.publish(&topic, b"1", QOS1, 1, Flags::default());
        client.flush().await.unwrap();
        assert!(matches!(client.receive().await.unwrap(), Received::PubAck { .. }));
        took.push((now, started.elapsed()));
    }
}

/// Connects, and receives what waits.
async fn come_back(address: SocketAddr, number: usize) -> Connection {
    let mut client = Connection::open(address, &options(number)).await.unwrap();
    assert!(client.session_present, "its session was kept");
    for expected in 0..WAITING {
        match client.receive().await.unwrap() {
            Received::Publish { payload, packet_id, .. } => {
                assert_eq!(payload, expected.to_string(), "in order");
                client.puback(packet_id);
            }
            other => panic!("instead of what waits comes {other:?}"),
        }
    }
    client.flush().await.unwrap();
    client
}

async fn prepare(address: SocketAddr, numbers: std::ops::Range<usize>) -> Vec<Connection> {
    let mut clients = Vec::with_capacity(numbers.len());
    for number in numbers {
        let mut client = Connection::open(address, &options(number)).await.unwrap();
        client.subscribe(&format!("storm/{number}"), QOS1).await.unwrap();
        clients.push(client);
    }
    clients
}

fn p99(took: &mut [Duration]) -> Duration {
    took.sort();
    took[(took.len() - 1) * 99 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn thousands_return_at_once_and_the_others_hardly_notice() {
    let tidegate = Tidegate::start(Settings::default()).await;
    let address = tidegate.mqtt;
    let returning = RETURNING.min(open_files_max().saturating_sub(1_000));
    assert!(returning >= 500, "raise ulimit -n: this process may open too few files");
    let parts = 20;
    let all: Vec<_> = (0..parts)
        .map(|part| tokio::spawn(prepare(address, returning * part / parts..returning * (part + 1) / parts)))
        .collect();
    let mut clients = Vec::new();
    for part in all {
        clients.extend(part.await.unwrap());
    }
    let weather = Arc::new(AtomicU8::new(IS_CALM));
    let others = watch_others(address, &weather);
    tokio::time::sleep(CALM).await;

    // Without a word, all together.
    weather.store(IS_STORM, Ordering::Relaxed);
    drop(clients);
    let mut publisher = Connection::open(address, &Options::clean(Version::V5, "publisher")).await.unwrap();
    for number in 0..returning {
        for turn in 0..WAITING {
            publisher.publish(
                &format!("storm/{number}"),
                turn.to_string().as_bytes(),
                QOS1,
                turn + 1,
                Flags::default(),
            );
        }
        publisher.flush().await.unwrap();
        for _ in 0..WAITING {
            assert!(matches!(publisher.receive().await.unwrap(), Received::PubAck { .. }));
        }
    }
    let started = Instant::now();
    let back: Vec<_> = (0..returning).map(|number| tokio::spawn(come_back(address, number))).collect();
    let mut clients = Vec::new();
    for client in back {
        clients.push(within("everybody is back", PATIENCE, client).await.unwrap());
    }
    let returned = started.elapsed();
    weather.store(IS_OVER, Ordering::Relaxed);
    let (mut calm, mut storm) = (Vec::new(), Vec::new());
    for (weather, took) in others.join().unwrap() {
        if weather == IS_CALM { calm.push(took) } else { storm.push(took) }
    }
    let (calm_count, storm_count) = (calm.len(), storm.len());
    let (calm, storm) = (p99(&mut calm), p99(&mut storm));
    let figures = format!(
        "{returning} clients back with {WAITING} publishes each in {returned:.2?}; p99 of {OTHERS} others: {calm:.1?} \
         calm ({calm_count} publishes), {storm:.1?} in the storm ({storm_count}), {:.1} times",
        storm.as_secs_f64() / calm.as_secs_f64()
    );
    report("storm", &figures);
    assert!(calm_count > OTHERS && storm_count > OTHERS, "{figures}");
    assert!(storm <= 5 * calm.max(CALM_FLOOR), "{figures}");
}
