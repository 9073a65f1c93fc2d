//! Tidegate: carries the journal outwards and composes the appliance.
//!
//! Each destination reads the same journal at its own cursor: [`kafka`] and [`postgres`] through a [`pump`],
//! browsers through the [`gateway`]. [`appliance`] puts them together from one [`config`].

pub mod appliance;
pub mod balance;
pub mod config;
pub mod gateway;
pub mod health;
pub mod jwt;
pub mod kafka;
pub mod postgres;
pub mod pump;
pub mod route;

mod secret;
