//! Composes, waits, drains.
