//! Moving bytes between clients and backends.

pub(super) mod listen;
mod pipe;
mod session;
mod worker;

pub(super) use worker::{Ways, Worker};
