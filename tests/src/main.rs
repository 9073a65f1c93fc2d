//! Tidegate against real clients, real services and simulated disasters: one module per subject.

mod agent;
mod appliance;
mod bad_input;
mod crash;
mod gateway;
mod kafka;
mod offline;
mod outage;
mod postgres;
mod real_input;
mod simulation;
mod support;
mod tidy;
