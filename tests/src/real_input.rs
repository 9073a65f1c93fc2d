//! real_input.
