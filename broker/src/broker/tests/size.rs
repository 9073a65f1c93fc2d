//! What a client costs that is connected and silent.

use std::cmp::Reverse;
use std::mem::size_of;
use std::sync::Arc;
use std::time::Duration;

use super::super::Connection;
use super::super::timers::Timer;
use crate::router::SubscriptionOptions;
use crate::session::Session;
use crate::slots::Key;
use crate::topic::TopicFilter;

/// The parts that every client has, without what the tables keep free and the memory allocator adds. All of it
/// together must stay within 3 KB of the process (`compare --load idle` in `benches/` measures that), so whoever
/// makes one of these larger finds out here.
#[test]
fn the_parts_of_an_idle_client_are_small() {
    let parts = [
        ("connection", size_of::<Option<Connection>>(), 304),
        ("session", size_of::<Option<Session>>(), 640),
        ("timers", 2 * size_of::<Reverse<(Duration, Timer)>>(), 64),
        ("by client", size_of::<(Arc<str>, Key)>(), 24),
        ("by number", size_of::<(u64, Key)>(), 16),
        ("filter", size_of::<(TopicFilter, SubscriptionOptions)>(), 64),
    ];
    for (part, bytes, bytes_max) in parts {
        println!("{part}: {bytes} bytes");
        assert!(bytes <= bytes_max, "{part}: {bytes} bytes, at most {bytes_max} are meant to be");
    }
}
