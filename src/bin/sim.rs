//! Runs the simulator from the command line: `sim --seed N` replays one seed with its trace, `sim --runs N`
//! soaks and reports the rate.

use clap::Parser;
use meshkv::mesh::Mutation;
use meshkv::sim;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

/// A soak says how far it is after so many seeds.
const PROGRESS: u64 = 1_000;

/// Whole meshes on virtual time, with faults; see ARCHITECTURE.md.
#[derive(Parser)]
struct Args {
    /// Replay this seed and print its trace.
    #[arg(long)]
    seed: Option<u64>,
    /// Replay the named scenario, or the script in a file, and print its trace; without a name: list them.
    #[arg(long, value_name = "NAME|FILE")]
    scenario: Option<Option<String>>,
    /// Run so many seeds.
    #[arg(long, default_value_t = 1000)]
    runs: u64,
    /// The first seed of the runs.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Go on after a violation.
    #[arg(long)]
    keep_going: bool,
    /// Switch off the rule with this number (see `Mutation`), to see it noticed.
    #[arg(long)]
    mutation: Option<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mutation = match args.mutation {
        None => Mutation::None,
        Some(number) if number < Mutation::ALL.len() => Mutation::ALL[number],
        Some(number) => {
            eprintln!("there is no mutation {number}: {:?}", Mutation::ALL);
            return ExitCode::from(2);
        }
    };
    if let Some(name) = args.scenario {
        let Some(name) = name else {
            sim::SCENARIOS.iter().for_each(|(name, _)| println!("{name}"));
            return ExitCode::SUCCESS;
        };
        let script = match sim::scenario(&name) {
            Some(script) => script.to_owned(),
            None => match std::fs::read_to_string(&name) {
                Ok(script) => script,
                Err(error) => {
                    eprintln!("there is no scenario {name}, and no file with a script: {error}");
                    return ExitCode::from(2);
                }
            },
        };
        return replay(sim::run_script(&script, mutation));
    }
    if let Some(seed) = args.seed {
        return replay(sim::run(seed, mutation, true));
    }
    let started = Instant::now();
    let mut faults = sim::Faults::new();
    let (mut requests, mut acked, mut violations) = (0, 0, 0);
    for seed in args.first..args.first + args.runs {
        match sim::run(seed, mutation, false) {
            Ok(outcome) => {
                requests += outcome.requests;
                acked += outcome.writes_acked;
                for (fault, count) in outcome.faults {
                    *faults.entry(fault).or_default() += count;
                }
            }
            Err(violation) => {
                violations += 1;
                say(&violation.to_string());
                if !args.keep_going {
                    return ExitCode::FAILURE;
                }
            }
        }
        let done = seed + 1 - args.first;
        if done.is_multiple_of(PROGRESS) && done < args.runs {
            let rate = done as f64 / started.elapsed().as_secs_f64();
            say(&format!("{done} seeds, {rate:.0} a second, {violations} violations"));
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} seeds in {seconds:.1} s ({:.0} a second), {violations} violations; {requests} requests, {acked} writes \
         acknowledged; {faults:?}",
        args.runs,
        args.runs as f64 / seconds
    );
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A line that is there at once, also in a file: a soak may be stopped before its end.
fn say(line: &str) {
    println!("{line}");
    // A reader that has gone needs none.
    let _ = std::io::stdout().flush();
}

fn replay(result: Result<sim::Outcome, Box<sim::Violation>>) -> ExitCode {
    match result {
        Ok(outcome) => {
            println!("{}no violation in {} virtual ms", outcome.trace, outcome.virtual_ms);
            println!("trace hash {:016x}, faults {:?}", outcome.trace_hash, outcome.faults);
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("{}{violation}", violation.trace);
            ExitCode::FAILURE
        }
    }
}
