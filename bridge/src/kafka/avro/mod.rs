//! JSON payloads as Avro, by schemas of a Schema Registry, in Confluent's wire format: a byte 0, the schema's id in
//! four bytes, big-endian, and Avro's binary form.
//!
//! A route whose encoding is Avro has its schema before its first record is produced: until the registry has said
//! what it is, the sink waits. What does not fit the schema is a record's own trouble and holds nothing up.

mod catalog;
mod encode;
mod json;
mod number;
mod registry;
mod schema;

pub use encode::Misfit;
pub use registry::RegistryConfig;
pub use schema::{Schema, SchemaError};

pub(super) use catalog::{Catalog, mistakes, unusable_files};

#[cfg(test)]
mod tests;
