//! A load generator whose numbers can be believed. `workload`, `response`, `arrival`, `stats` and `significance`
//! are pure; `worker` is one thread's loop, `run` the threads together; `report` is what comes out, `modes` what
//! can be asked for.

pub mod arrival;
pub mod compare;
mod compat;
mod connection;
pub mod intervals;
mod lag;
pub mod machine;
pub mod modes;
pub mod options;
mod progress;
pub mod report;
pub mod response;
pub mod run;
pub mod significance;
pub mod slo;
pub mod stats;
mod status;
mod sweep;
mod tally;
pub mod target;
mod worker;
pub mod workload;
