//! HTTP/1.x as a pure state machine: bytes in, requests and refusals out; answers as bytes.
//!
//! Nothing here knows a socket, a clock or a store. [`session::Session`] finds the requests in a
//! connection's bytes, [`query`] takes their parameters apart, [`answer`] writes what goes back.

pub mod answer;
pub mod error;
pub mod head;
pub mod json;
pub mod plain;
pub mod query;
pub mod repeat;
pub mod session;
