//! The node against its yardsticks: one command, one table.
//!
//! `cargo bench --bench node -- [--only NAME,…] [--tiny] [--runs 5] [--keys 10m]`
//!
//! Servers run on core 0, the load generator on core 1. Within a round all servers are measured one after
//! the other, rounds follow each other, and ratios are taken within a round: what disturbs the machine for
//! longer than a moment disturbs both sides of a ratio. Records are of 16-byte keys and 32-byte values, keys
//! are drawn uniformly. Tables are kept in `benches/records`.

mod parts;
#[path = "../support/mod.rs"]
mod support;

use parts::PARTS;
use std::error::Error;
use support::bench::{self, Options};
use support::floor;

/// Child processes are this program in another role; they never return.
fn play_a_role(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["floor", address, request_bytes, answer] => {
            Ok(floor::serve(address.parse()?, request_bytes.parse()?, &std::fs::read(answer)?)?)
        }
        ["embed", port, observers] => parts::embed(port.parse()?, observers.parse()?),
        _ => Ok(()),
    }
}

#[allow(dead_code, reason = "the smoke test, which includes this file, has a main of its own")]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    play_a_role(&arguments)?;
    bench::command("node", PARTS, &arguments)
}

/// Every part with small numbers, for `tests/bench_smoke.rs`; returns what the rows are about.
#[allow(dead_code, reason = "used by the smoke test only")]
pub(crate) fn smoke() -> Result<Vec<String>, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    play_a_role(&arguments)?;
    Ok(bench::measure(PARTS, Options::tiny())?.rows.into_iter().map(|row| row.what).collect())
}
