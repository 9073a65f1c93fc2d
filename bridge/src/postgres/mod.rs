//! The PostgreSQL sink: every record becomes rows of the table `readings`, exactly once.
//!
//! The way of a record: [`reading`] finds the readings in its topic and payload, [`copy`] encodes them as binary
//! `COPY` rows, [`rollup`] sums them up per minute, [`sink`] groups them and [`session`] stores each group in one
//! transaction together with the sink's cursor. So the database itself says how far it is: whatever happens to the
//! connection, the server or this process, the next connection goes on from there, and no row is stored twice or lost.
//! [`follower`] writes the rollups on a second connection, a moment later and with a cursor of its own; [`series`]
//! remembers which devices and metrics there are.
//!
//! [`upkeep`] makes partitions ahead, drops what is older than its retention, and lets analysts read.
//! [`migration`] makes and upgrades the tables; [`config`] says which database. Nothing here knows MQTT.

pub mod config;
mod connection;
pub mod copy;
mod failure;
mod follower;
mod json;
pub mod migration;
mod reader;
pub mod reading;
mod rollup;
mod series;
mod session;
pub mod sink;
mod timestamp;
mod tls;
mod upkeep;

pub use config::Config;
pub use sink::PostgresSink;
