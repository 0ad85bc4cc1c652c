//! The node beside other servers, at three sizes, and what waits for an answer: one command, three tables.
//!
//! `cargo bench --bench peers -- [--only matrix,tails,balanced] [--tiny] [--runs 3] [--keys 10m] [--print]`
//!
//! Servers run on core 0, the load generator on core 1; within a round all servers of a row are measured one
//! after the other, and ratios are taken within a round. Sizes are the keys, a tenth, and a thousandth of
//! them: the same servers grow from one to the next. Unlike `--bench node` this judges nothing; a row says
//! which peers took less CPU a request. Tables are kept in `benches/records`.

mod matrix;
#[allow(dead_code, reason = "the mesh's benchmark uses the rest")]
#[path = "../mesh/members.rs"]
mod members;
#[path = "../support/mod.rs"]
mod support;
mod tails;

use std::error::Error;
use support::bench::{self, Options, Parts};
use support::floor;

pub(crate) const PARTS: Parts =
    &[("matrix", matrix::matrix), ("tails", tails::tails), ("balanced", tails::balanced)];

/// The floor is this program in another role, which never returns.
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
    bench::command("peers", PARTS, &arguments)
}

/// Every part with small numbers, for `tests/bench_smoke.rs`; returns the tables' lines.
#[allow(dead_code, reason = "used by the smoke test only")]
pub(crate) fn smoke() -> Result<Vec<String>, Box<dyn Error>> {
    let report = bench::measure(PARTS, Options::tiny())?;
    Ok(report.table().lines().map(str::to_owned).collect())
}
