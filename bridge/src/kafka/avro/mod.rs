//! JSON payloads as Avro.

mod encode;
mod json;
mod number;
mod schema;

pub use encode::Misfit;
pub use schema::{Schema, SchemaError};

#[cfg(test)]
mod tests;
