//! Tidegate against real clients, real services and simulated disasters: one module per subject.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test names what it expects, everything else fails it")]

mod access;
mod agent;
mod appliance;
mod bad_input;
mod commands;
mod conformance;
mod conservation;
mod descriptors;
mod exactly_once;
mod fuzz;
mod fuzz_corpus;
mod gateway;
mod hostile;
mod journal_tools;
mod kafka;
mod kafka_outages;
mod kafka_security;
mod ledger;
mod limits;
mod makers;
mod offline;
mod postgres;
mod real_input;
mod retention;
mod schema_registry;
mod shared;
mod simulation;
mod storm;
mod support;
mod system;
mod tidy;
mod transports;
