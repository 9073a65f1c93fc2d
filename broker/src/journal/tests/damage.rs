//! Damaged disks.
