//! The deterministic simulator: whole clusters of real nodes on virtual time and a virtual network, with
//! faults, and a checker that knows every write. One seed decides everything; the same seed gives the same
//! trace.
//!
//! Nodes are the real ones: engines, stores, logs, links and frames. What is made up here is time, the
//! network, the clients and the failures.

mod check;
mod clients;
mod faults;
mod network;
mod processes;
mod world;

pub use check::Violation;
pub use world::{Outcome, Plan};

use crate::mesh::Mutation;
use std::collections::BTreeMap;

/// Faults that happened in a run, by name.
pub type Faults = BTreeMap<&'static str, u64>;

/// Faults that a batch of runs must have seen, or it has tested nothing.
pub const REQUIRED_FAULTS: [&str; 15] = [
    "crash",
    "restart",
    "partition",
    "one-way partition",
    "reset",
    "pause",
    "leave",
    "double start",
    "slow link",
    "log overflow",
    "skew",
    "clock jump",
    "forgotten",
    "full pull",
    "partial pull",
];

/// Runs one seed.
///
/// # Errors
/// The first violation, with the seed and the trace that led to it.
pub fn run(seed: u64, mutation: Mutation, trace: bool) -> Result<Outcome, Box<Violation>> {
    world::World::new(Plan::of(seed, mutation), trace).run()
}

#[cfg(test)]
mod tests;
