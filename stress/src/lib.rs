//! The parts of the stress tool that touch neither sockets nor clocks (`target` alone resolves names).

pub mod response;
pub mod run;
pub mod stats;
pub mod target;
pub mod workload;
