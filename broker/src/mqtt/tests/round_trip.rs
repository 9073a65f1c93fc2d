//! Random valid packets.
