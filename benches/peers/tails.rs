//! How long answers take when requests come at random times, whatever the server does, at half and at four
//! fifths of what it can take; and three nodes behind the balancer.

use super::members;
use super::support::bench::{Bench, Done, load, over};
use super::support::drive::{Operation, Outcome, Plan, Protocol, cpu_ns_of, other};
use super::support::fleet::{Peer, SERVER_CORE, Yard, free_address};
use super::support::report::Spread;
use std::fmt::Write;
use std::io;
use std::process::Command;

/// The objective of the knee, as that of `meshkv-stress sweep`.
const P99_NS_MAX: u64 = 10_000_000;
/// Between half of what a closed loop reached and all of it.
const STEPS: [u32; 10] = [100, 95, 90, 85, 80, 75, 70, 65, 60, 55];

pub(super) fn tails(bench: &mut Bench) -> Done {
    let keys = bench.options.keys / 10;
    let mut table = format!(
        "\nOpen loop, requests due at random times, 32 connections, one request each, GETs among {keys} keys; times count from\n\
         when a request was due. The knee is the greatest rate, in steps of 5 % of what a closed loop reached, whose p99 is at\n\
         most {} ms; the client has one core, its share at 80 % is the last column. Medians of {} rounds, microseconds.\n\n\
         | | closed loop, 1/s | knee, 1/s | p50, p99, p99.9 at 50 % | at 80 % | client busy |\n|---|---|---|---|---|---|\n",
        P99_NS_MAX / 1_000_000,
        bench.options.runs,
    );
    for name in ["meshkv", "redis", "memcached", "nginx"] {
        let started = match name {
            "meshkv" => Some(bench.yard.node(1)?),
            _ => bench.yard.foreign(name)?,
        };
        let Some(peer) = started else { continue };
        if name != "nginx" {
            load(&peer, 0, keys, |_| {})?;
        }
        row(bench, name, &peer.plan(Operation::Get, keys, 1), &mut table)?;
    }
    let (nodes, balancer) = behind(&bench.yard)?;
    members::load(&nodes, keys)?;
    row(bench, "three nodes behind the balancer", &balancer.plan(Operation::Get, keys, 1), &mut table)?;
    bench.report.more.push_str(&table);
    Ok(())
}

fn row(bench: &Bench, name: &str, plan: &Plan, table: &mut String) -> io::Result<()> {
    let closed = bench.once(plan)?.per_second();
    let mut knee = 0.0;
    let at = |rate: f64| bench.once(&Plan { rate, ..plan.clone() });
    for percent in STEPS {
        let rate = closed * f64::from(percent) / 100.0;
        if at(rate)?.p99_ns <= P99_NS_MAX {
            knee = rate;
            break;
        }
    }
    let mut cells = vec![name.to_owned(), format!("{closed:.0}")];
    if knee == 0.0 {
        cells.push(format!("none: p99 over 10 ms at {} % already", STEPS[STEPS.len() - 1]));
        cells.extend([String::new(), String::new(), String::new()]);
    } else {
        cells.push(format!("{knee:.0} ({:.0} %)", knee * 100.0 / closed));
        let mut busy = 0.0;
        for share in [0.5, 0.8] {
            let rounds: Vec<Outcome> =
                (0..bench.options.runs).map(|_| at(knee * share)).collect::<io::Result<_>>()?;
            let us = |ns: fn(&Outcome) -> u64| over(&rounds, |round| ns(round) as f64 / 1e3).median;
            cells.push(format!(
                "{:.0}, {:.0}, {:.0}",
                us(|round| round.p50_ns),
                us(|round| round.p99_ns),
                us(|round| round.p999_ns)
            ));
            busy = over(&rounds, |round| round.client_cpu_ns as f64 / (round.seconds * 1e9)).median;
        }
        cells.push(format!("{busy:.2}"));
    }
    let row = format!("| {} |", cells.join(" | "));
    eprintln!("  {row}");
    let _ = writeln!(table, "{row}");
    Ok(())
}

/// A mesh of three and a balancer in front of it, all on the servers' core.
fn behind(yard: &Yard) -> io::Result<(Vec<Peer>, Peer)> {
    let nodes = members::mesh(yard, 3)?;
    let address = free_address()?;
    let backends: Vec<String> = nodes.iter().map(|node| node.address.to_string()).collect();
    let mut command = Command::new(&yard.node);
    command.args([
        "balance",
        "--workers",
        "1",
        "--status-port",
        "0",
        "--check",
        "tcp",
        "--log-level",
        "warn",
    ]);
    command.args(["--port", &address.port().to_string(), "--backends", &backends.join(",")]);
    let balancer = yard.start_on(&SERVER_CORE.to_string(), "balancer", Protocol::Http, address, command)?;
    // It listens before it has found its backends in order.
    members::until("the balancer reaches a node", || {
        Ok(balancer.ask("/healthcheck").is_ok_and(|page| page.starts_with("HTTP/1.1 200")))
    })?;
    Ok((nodes, balancer))
}

/// A round, and the CPU nanoseconds a request of all these processes together.
fn together(bench: &Bench, plan: &Plan, processes: &[&Peer]) -> io::Result<(Outcome, f64)> {
    let sum = || processes.iter().map(|process| cpu_ns_of(process.pid())).sum::<u64>();
    let before = sum();
    let outcome = bench.once(plan)?;
    Ok((outcome, (sum() - before) as f64 / outcome.requests_total.max(1) as f64))
}

/// On one core three nodes are no faster than one: what counts here is what all of them take for a request.
pub(super) fn balanced(bench: &mut Bench) -> Done {
    let keys = bench.options.keys / 10;
    let alone = bench.yard.node(1)?;
    load(&alone, 0, keys, |_| {})?;
    let (nodes, balancer) = behind(&bench.yard)?;
    members::load(&nodes, keys)?;
    let all: Vec<&Peer> = nodes.iter().chain([&balancer]).collect();
    for (operation, what) in [(Operation::Get, "GET"), (Operation::Set, "SET")] {
        let ways = [
            ("a node alone", &alone, vec![&alone]),
            ("a node of three, asked directly", &nodes[0], nodes.iter().collect()),
            ("three nodes behind the balancer", &balancer, all.clone()),
        ];
        let mut rounds: Vec<Vec<(Outcome, f64)>> = vec![Vec::new(); ways.len()];
        for _ in 0..bench.options.runs {
            for ((_, asked, processes), rounds) in ways.iter().zip(&mut rounds) {
                let mut plan = asked.plan(operation, keys, 1);
                // A mesh names the write in its answer, and answers when all three have it.
                plan.varies = operation == Operation::Set && processes.len() > 1;
                rounds.push(together(bench, &plan, processes)?);
            }
        }
        if rounds.iter().any(|rounds| rounds.iter().any(|(round, _)| round.requests == 0)) {
            return Err(other("nothing was answered").into());
        }
        let spread = |at: usize, figure: &dyn Fn(&(Outcome, f64)) -> f64| {
            Spread::of(rounds[at].iter().map(figure).collect())
        };
        for (at, (name, ..)) in ways.iter().enumerate() {
            let what = format!("{what}, {name}");
            let report = &mut bench.report;
            report.tell(format!("{what}: requests per second"), spread(at, &|round| round.0.per_second()));
            report.tell(format!("{what}: CPU ns per request, all processes"), spread(at, &|round| round.1));
            report.tell(format!("{what}: p99, µs"), spread(at, &|round| round.0.p99_ns as f64 / 1e3));
        }
        let ratio =
            rounds[2].iter().zip(&rounds[1]).map(|(behind, directly)| behind.1 / directly.1).collect();
        bench
            .report
            .tell(format!("{what}: CPU of all, behind the balancer ÷ asked directly"), Spread::of(ratio));
    }
    Ok(())
}
