//! The node against its yardsticks: one command, one table.
//!
//! `cargo bench --bench node -- [--only NAME,…] [--tiny] [--runs 5] [--keys 10m]`
//!
//! Servers run on core 0, the load generator on core 1. Within a round all servers are measured one after
//! the other, rounds follow each other, and ratios are taken within a round: what disturbs the machine for
//! longer than a moment disturbs both sides of a ratio. Records are of 16-byte keys and 32-byte values, keys
//! are drawn uniformly. Tables are kept in `benches/records`.

mod drive;
mod fleet;
mod floor;
mod parts;
mod report;

use parts::{Bench, PARTS};
use std::error::Error;
use std::time::Duration;

/// What the command line asks for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) only: Vec<String>,
    pub(crate) runs: usize,
    pub(crate) keys: u64,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    pub(crate) tiny: bool,
}

impl Options {
    fn tiny() -> Options {
        let (warm_up, window) = (Duration::from_millis(10), Duration::from_millis(50));
        Options { only: Vec::new(), runs: 2, keys: 2000, warm_up, window, tiny: true }
    }

    fn parse(arguments: &[String]) -> Result<Options, String> {
        let mut options = Options {
            runs: 5,
            keys: 10_000_000,
            warm_up: Duration::from_millis(200),
            window: Duration::from_millis(1200),
            tiny: false,
            only: Vec::new(),
        };
        if arguments.iter().any(|argument| argument == "--tiny") {
            options = Options::tiny();
        }
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                // `--bench` is what cargo adds.
                "--tiny" | "--bench" => {}
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                "--runs" => options.runs = value()?.parse().map_err(|_| "--runs: expected a number")?,
                "--keys" => {
                    let text = value()?.to_lowercase();
                    let (digits, unit) = match text.strip_suffix('m') {
                        Some(millions) => (millions, 1_000_000),
                        None => (text.as_str(), 1),
                    };
                    options.keys =
                        digits.parse::<u64>().map_err(|_| "--keys: expected 10m or 500000")? * unit;
                }
                other => return Err(format!("unknown argument {other}")),
            }
        }
        let unknown = options.only.iter().find(|name| !PARTS.iter().any(|(part, _)| part == name));
        if let Some(name) = unknown {
            let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
            return Err(format!("--only {name}: there are {}", names.join(", ")));
        }
        if options.runs == 0 || options.keys < 1000 {
            return Err("at least one run and 1000 keys".to_owned());
        }
        Ok(options)
    }
}

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

fn measure(options: Options) -> Result<report::Report, Box<dyn Error>> {
    meshkv::system::raise_descriptor_limit();
    let yard = fleet::Yard::new(std::path::Path::new(env!("CARGO_BIN_EXE_meshkv")))?;
    if yard.cores < 2 {
        eprintln!("one core only: server and load generator share it, times mean little");
    }
    fleet::pin_this_thread(yard.client_core())?;
    let mut bench = Bench::new(yard, options);
    for (name, part) in PARTS {
        if bench.options.only.is_empty() || bench.options.only.iter().any(|only| only == name) {
            eprintln!("{name}");
            part(&mut bench).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    Ok(std::mem::take(&mut bench.report))
}

#[allow(dead_code, reason = "the smoke test, which includes this file, has a main of its own")]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    play_a_role(&arguments)?;
    let options = Options::parse(&arguments)?;
    let tiny = options.tiny;
    let report = measure(options)?;
    print!("{}", report.table());
    if tiny {
        println!("\nTiny: this shows that everything runs; the figures mean nothing.");
    } else {
        let shown: Vec<&str> =
            arguments.iter().map(String::as_str).filter(|argument| *argument != "--bench").collect();
        println!("\nkept in {}", report.record(&shown.join(" "))?.display());
    }
    Ok(())
}

/// Every part with small numbers, for `tests/bench_smoke.rs`; returns what the rows are about.
#[allow(dead_code, reason = "used by the smoke test only")]
pub(crate) fn smoke() -> Result<Vec<String>, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    play_a_role(&arguments)?;
    Ok(measure(Options::tiny())?.rows.into_iter().map(|row| row.what).collect())
}
