//! The core with clients made of encoded packets and a log made of batches; no time passes unless told.

mod access;
mod authenticate;
mod delivery;
mod failure;
mod limits;
mod rig;
mod sessions;
mod shared;
mod simulated;
mod size;
mod system;

use rig::{Client, Rig};
