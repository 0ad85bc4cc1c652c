//! meshkv: an in-memory key-value database that anything able to send an HTTP GET can use.
//!
//! The folders are the architecture; `ARCHITECTURE.md` explains it and the `tidy` test keeps the
//! directions of the imports.

pub mod balancer;
pub mod base;
pub mod config;
pub mod http;
pub mod limits;
pub mod mesh;
pub mod node;
pub mod peer;
pub mod server;
pub mod sim;
pub mod store;
pub mod system;

#[cfg(test)]
mod tidy;
