//! offline.
