//! The HTTP side against real sockets and a real browser: streams that resume, the WebSocket envelope, publishing,
//! health, and who is let in.
//!
//! A [`stage::Stage`] runs the gateway on a journal in this process, with a publisher that writes into it; so a
//! test can fail any part at will. The whole appliance is tested elsewhere.

mod access;
mod guesses;
mod health;
mod page;
mod publish;
mod rules;
mod stage;
mod stream;
mod websocket;
