//! The pump and the Kafka sink from a real journal into a real Kafka, checked with a consumer.

mod dead_letters;
mod delivery;
mod routes;
pub(crate) mod stage;
