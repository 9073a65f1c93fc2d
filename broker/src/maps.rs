//! Hash maps. Clients choose many keys, so every process hashes in another way; only a simulation, which must be
//! replayed exactly, has maps that always stand in the same order.

#[cfg(not(feature = "planted-bugs"))]
pub(crate) use foldhash::HashMap;

/// As `foldhash::HashMap`, with a fixed seed.
#[cfg(feature = "planted-bugs")]
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::FixedState>;
