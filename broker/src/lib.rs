//! Tidegate's MQTT broker core, its durable journal and its listeners.
//!
//! Read in the order of the data: [`mqtt`] turns bytes into packets, [`broker`] decides what they mean with the
//! help of [`session`], [`router`] and [`retained`], [`journal`] makes it durable, [`server`] holds the sockets.

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub mod auth;
pub mod broker;
pub mod journal;
mod maps;
pub mod mqtt;
pub mod plant;
pub mod record;
pub mod retained;
pub mod router;
#[cfg(feature = "server")]
pub mod server;
pub mod session;
pub mod slots;
pub mod topic;
