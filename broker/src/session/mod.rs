//! One client's protocol state.
