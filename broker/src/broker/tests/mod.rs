//! The core with clients made of encoded packets and a log made of batches; no time passes unless told.

mod delivery;
mod rig;
mod sessions;
mod shared;

use rig::{Client, Rig};
