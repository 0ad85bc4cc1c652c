//! meshkv: an in-memory key-value database that anything able to send an HTTP GET can use.
//!
//! The folders are the architecture; `ARCHITECTURE.md` explains it and the `tidy` test keeps the
//! directions of the imports.
//!
//! # Embedding
//!
//! A program can run a node inside itself. [`server::Server::start`] returns when it listens;
//! [`node::extension::Extensions`] adds GET routes and [observers](node::extension::Observer) of its lifecycle,
//! also while it runs.
//!
//! ```
//! use meshkv::config::NodeConfig;
//! use meshkv::node::extension::{Extensions, Reply};
//! use meshkv::server::Server;
//! use std::io::{Read, Write};
//! use std::net::TcpStream;
//!
//! let extensions = Extensions::new();
//! extensions.route("/version", |_| Reply::json(r#"{"version":7}"#))?;
//! // Port 0: one that is free.
//! let config = NodeConfig { port: 0, workers: 1, ..NodeConfig::default() };
//! let server = Server::start(config, extensions)?;
//!
//! for (path, body) in [("/set?k=a&v=1", r#"{"success":true}"#), ("/get?k=a", r#""1""#), ("/version", r#"{"version":7}"#)] {
//!     let mut client = TcpStream::connect(server.http_address())?;
//!     client.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
//!     let mut answer = String::new();
//!     client.read_to_string(&mut answer)?;
//!     assert!(answer.ends_with(body), "{answer}");
//! }
//!
//! // Lets answers in flight finish; `wait` says whether it ended because it was asked to.
//! server.stop();
//! server.wait()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod balancer;
pub mod base;
pub mod config;
pub mod http;
pub mod limits;
mod listeners;
pub mod mesh;
pub mod node;
pub mod peer;
pub mod server;
pub mod sim;
pub mod store;
pub mod system;

#[cfg(test)]
mod tidy;
