//! Fuzzes ACL files.

#![no_main]
#![allow(dead_code, reason = "each target uses one body")]

#[path = "../../src/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::acl::check(bytes));
