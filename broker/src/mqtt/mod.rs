//! The wire: bytes to packets and back; knows no sessions.
