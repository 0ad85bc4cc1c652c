//! What the mesh costs: one command, one table.
//!
//! `cargo bench --bench mesh -- [--only NAME,…] [--tiny] [--runs 5] [--keys 10m]`
//!
//! With two cores the client has one (1) and all servers of a contender share the other (0), whoever they
//! are: a node with its two peers, Redis with its two replicas, a node alone. So a writer is measured by its
//! CPU a request, and contenders by what all their processes take together; requests per second of three
//! servers on one core are not what three machines would do. Within a round all contenders are measured one
//! after the other, and ratios are taken within a round. A tenth of the keys is the number of records where
//! the size does not matter. Tables are kept in `benches/records`.

mod members;
mod parts;
mod relay;
mod repair;
mod replication;
#[path = "../support/mod.rs"]
mod support;

use parts::PARTS;
use std::error::Error;
use support::bench::{self, Options};
use support::floor;

/// The round trip's yardstick is this program in another role, which never returns.
fn play_a_role(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["floor", address, request_bytes, answer] => {
            Ok(floor::serve(address.parse()?, request_bytes.parse()?, &std::fs::read(answer)?)?)
        }
        _ => Ok(()),
    }
}

#[allow(dead_code, reason = "the smoke test, which includes this file, has a main of its own")]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    play_a_role(&arguments)?;
    bench::command("mesh", PARTS, &arguments)
}

/// Every part with small numbers, for `tests/bench_smoke.rs`; returns what the rows are about.
#[allow(dead_code, reason = "used by the smoke test only")]
pub(crate) fn smoke() -> Result<Vec<String>, Box<dyn Error>> {
    Ok(bench::measure(PARTS, Options::tiny())?.rows.into_iter().map(|row| row.what).collect())
}
