//! What the fuzz targets check, as ordinary functions from bytes: `tests/fuzz` calls them with what libFuzzer makes up,
//! `fuzz_corpus.rs` with the kept corpora.
//!
//! A body panics when something is wrong and returns whatever the bytes are otherwise.

pub(crate) mod acl;
pub(crate) mod connect;
pub(crate) mod decode;
pub(crate) mod passwords;
pub(crate) mod session;
