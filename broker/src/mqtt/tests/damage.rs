//! Damaged packets.
