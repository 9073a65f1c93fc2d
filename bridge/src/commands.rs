//! The subcommands other than `run`: one file each.

pub(crate) mod check;
pub(crate) mod journal;
pub(crate) mod passwd;
