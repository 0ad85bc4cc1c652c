//! What the benchmarks of the node and of the mesh share.
#![allow(dead_code, reason = "each benchmark uses a part of this")]

pub(crate) mod arrivals;
pub(crate) mod bench;
pub(crate) mod drive;
pub(crate) mod fleet;
pub(crate) mod floor;
pub(crate) mod report;
pub(crate) mod slow;
