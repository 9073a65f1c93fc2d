//! The PostgreSQL sink: every record becomes rows of the table `readings`, exactly once.
//!
//! The way of a record: [`reading`] finds the readings in its topic and payload, [`copy`] encodes them as binary
//! `COPY` rows, [`sink`] groups them and stores each group in one transaction together with the sink's cursor. So
//! the database itself says how far it is: whatever happens to the connection, the server or this process, the next
//! connection goes on from there, and no row is stored twice or lost.
//!
//! [`migration`] makes and upgrades the tables; [`config`] says which database. Nothing here knows MQTT.

pub mod config;
pub mod copy;
mod failure;
mod json;
pub mod migration;
pub mod reading;
mod session;
pub mod sink;
mod timestamp;

pub use config::Config;
pub use sink::PostgresSink;
