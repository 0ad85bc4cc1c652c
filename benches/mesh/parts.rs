//! The parts of the table. Each starts what it needs.

use super::members::{self, Client, Spec, await_held, await_mesh, local_sets, until};
use super::repair::repair;
use super::replication::{acks, set, visible};
use super::support::bench::{Bench, Done, Parts};
use super::support::drive::{self, Operation, other};
use super::support::fleet::Peer;
use super::support::report::Spread;
use meshkv::limits::LOG_BYTES;
use rustix::process::Signal;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(crate) const PARTS: Parts = &[
    ("set", set),
    ("acks", acks),
    ("visible", visible),
    ("idle", idle),
    ("join", join),
    ("repair", repair),
    ("memory", memory),
];

/// CPU of a mesh of six that nobody asks anything, with workers as they are by default.
fn idle(bench: &mut Bench) -> Done {
    let mut nodes: Vec<Peer> = Vec::new();
    let cores = format!("0-{}", bench.yard.cores - 1);
    for name in ["a", "b", "c", "d", "e", "f"] {
        let join = nodes.first().map(|first| first.address);
        let spec = Spec { name, join, cores: Some(cores.clone()), ..Spec::default() };
        nodes.push(members::start(&bench.yard, &spec)?);
    }
    await_mesh(&nodes)?;
    members::load(&nodes, bench.options.keys / 100)?;
    let window = if bench.options.tiny { Duration::from_millis(300) } else { Duration::from_secs(20) };
    let before: Vec<u64> = nodes.iter().map(|node| drive::cpu_ns_of(node.pid())).collect();
    let begun = Instant::now();
    std::thread::sleep(window);
    let ns = begun.elapsed().as_nanos() as f64;
    let share = |(node, before): (&Peer, u64)| (drive::cpu_ns_of(node.pid()) - before) as f64 / ns * 100.0;
    let shares: Vec<f64> = nodes.iter().zip(before).map(share).collect();
    let worst = shares.iter().copied().fold(0.0, f64::max);
    bench.report.tell("idle mesh of 6, percent of a core per node", Spread::of(shares));
    bench.report.at_most("idle mesh of 6, the busiest node, percent of a core", Spread::of(vec![worst]), 1.0);
    Ok(())
}

fn join(bench: &mut Bench) -> Done {
    join_under_writes(bench)?;
    donor_beside_copy(bench)
}

/// Somebody joins while another writes new records, one after the other, each held by all.
fn join_under_writes(bench: &mut Bench) -> Done {
    let keys = bench.options.keys / 10;
    let (mut took, mut missed, mut written) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.options.runs {
        let nodes = members::mesh(&bench.yard, 2)?;
        members::load(&nodes, keys)?;
        let over = Arc::new(AtomicBool::new(false));
        let (stop, address) = (Arc::clone(&over), nodes[0].address);
        let writer = std::thread::Builder::new().spawn(move || -> io::Result<u64> {
            let mut client = Client::new(address)?;
            let mut count = 0;
            while !stop.load(Ordering::Acquire) {
                let (status, body) = client.ask(&format!("/set?k=new{count}&v={count}"))?;
                match status {
                    200 => count += 1,
                    // On a busy machine somebody may not acknowledge within the second; the same once more.
                    503 => {}
                    _ => return Err(other(format!("{status} {}", String::from_utf8_lossy(body)))),
                }
            }
            Ok(count)
        })?;
        std::thread::sleep(bench.options.warm_up);
        let begun = Instant::now();
        // On the client's core, as another machine would be: the donor keeps its own.
        let cores = Some(bench.yard.client_core().to_string());
        let spec =
            Spec { name: "joiner", join: Some(nodes[1].address), workers: Some(1), cores, ..Spec::default() };
        let joiner = members::start(&bench.yard, &spec)?;
        until("the joiner is ready", || members::is_ready(&joiner))?;
        took.push(begun.elapsed().as_secs_f64());
        std::thread::sleep(bench.options.warm_up);
        over.store(true, Ordering::Release);
        let count = writer.join().map_err(|_| "the writer panicked")??;
        // Counted at the joiner: each of the new ones by its value, and the number of all, `held` included.
        let mut client = Client::new(joiner.address)?;
        let mut lost = 0;
        for n in 0..count {
            let (_, body) = client.ask(&format!("/get?k=new{n}"))?;
            lost += u64::from(body != format!("\"{n}\"").as_bytes());
        }
        let all = members::status(&joiner)?["availableRecords"].as_u64().unwrap_or(0);
        missed.push((lost + (keys + 1 + count).abs_diff(all)) as f64);
        written.push(count as f64);
    }
    let what = format!("joining a mesh with {keys} records under writes");
    bench.report.at_most(format!("{what}: seconds from its start until ready"), Spread::of(took), 3.0);
    bench.report.at_most(format!("{what}: records missed, or too many"), Spread::of(missed), 0.0);
    bench.report.tell(format!("{what}: records written meanwhile"), Spread::of(written));
    Ok(())
}

/// The donor has its core; the joiner shares the client's and gives way to it.
fn donor_beside_copy(bench: &mut Bench) -> Done {
    let keys = bench.options.keys;
    let rate = if bench.options.tiny { 500.0 } else { 10_000.0 };
    let donor = members::start(&bench.yard, &Spec { name: "donor", workers: Some(1), ..Spec::default() })?;
    let alone = std::slice::from_ref(&donor);
    await_mesh(alone)?;
    members::load(alone, keys)?;
    let mut plan = donor.plan(Operation::Get, keys, 1);
    (plan.rate, plan.warm_up) = (rate, bench.options.warm_up);
    let (mut ratios, mut idle_us, mut copy_us, mut took) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // All of it before the first joiner: what one leaves behind takes a while to be over (its memory goes back to the
    // system, a comparison with it is given up).
    for _ in 0..bench.options.runs {
        let mut calm = plan.clone();
        calm.window = bench.options.window * 2;
        idle_us.push(drive::run(&calm)?.p99_ns as f64 / 1e3);
    }
    let calm_us = Spread::of(idle_us.clone()).median;
    for _ in 0..bench.options.runs {
        let mut busy = plan.clone();
        let over = Arc::new(AtomicBool::new(false));
        (busy.window, busy.over, busy.warm_up) =
            (Duration::from_secs(300), Some(Arc::clone(&over)), Duration::ZERO);
        let begun = Instant::now();
        let spec = Spec {
            name: "joiner",
            join: Some(donor.address),
            workers: Some(1),
            yields: true,
            cores: Some(bench.yard.client_core().to_string()),
            ..Spec::default()
        };
        let joiner = members::start(&bench.yard, &spec)?;
        let waiting = std::thread::scope(|scope| -> io::Result<_> {
            let wait = scope.spawn(|| {
                let ready = until("the joiner is ready", || members::is_ready(&joiner));
                over.store(true, Ordering::Release);
                ready.map(|_| begun.elapsed())
            });
            let outcome = drive::run(&busy)?;
            let ready = wait.join().map_err(|_| other("the watcher panicked"))?;
            Ok((outcome, ready?))
        });
        let (beside, ready) = waiting?;
        took.push(ready.as_secs_f64());
        copy_us.push(beside.p99_ns as f64 / 1e3);
        ratios.push(beside.p99_ns as f64 / 1e3 / calm_us);
        // It leaves, so that the next round begins with the donor alone.
        rustix::process::kill_process(joiner.process(), Signal::TERM)?;
        until("the joiner has left", || Ok(members::status(&donor)?["mesh"]["size"] == 1))?;
    }
    let what = format!("GET p99 of a donor of {keys} records at {rate} requests per second");
    bench.report.at_most(format!("{what}: during the copy ÷ idle"), Spread::of(ratios), 2.0);
    bench.report.tell(format!("{what}: idle, µs"), Spread::of(idle_us));
    bench.report.tell(format!("{what}: during the copy, µs"), Spread::of(copy_us));
    bench.report.tell(
        format!("copy of {keys} records, the joiner only in the client's pauses: seconds"),
        Spread::of(took),
    );
    Ok(())
}

/// A peer is stopped while its writer goes on at full speed, past everything that it keeps for peers.
fn memory(bench: &mut Bench) -> Done {
    let keys = bench.options.keys / 10;
    let nodes = members::mesh(&bench.yard, 2)?;
    members::load(&nodes, keys)?;
    let (writer, stopped) = (&nodes[0], &nodes[1]);
    let log_bytes = || writer.metric("meshkv_replication_log_bytes");
    let resident = writer.resident_bytes();
    rustix::process::kill_process(stopped.process(), Signal::STOP)?;
    let mut plan = local_sets(writer, keys, 16);
    plan.window = if bench.options.tiny { bench.options.window } else { Duration::from_secs(1) };
    let (mut logs, mut grown, mut sets) = (Vec::new(), Vec::new(), 0);
    let measured = (|| -> io::Result<()> {
        // Past the ten seconds after which it counts as down.
        for _ in 0..if bench.options.tiny { 2 } else { 15 } {
            sets += drive::run(&plan)?.requests_total;
            logs.push(log_bytes()? as f64 / LOG_BYTES as f64);
            grown.push(writer.resident_bytes().saturating_sub(resident) as f64 / LOG_BYTES as f64);
        }
        Ok(())
    })();
    rustix::process::kill_process(stopped.process(), Signal::CONT)?;
    measured?;
    let begun = Instant::now();
    until("the peer is back", || Ok(members::status(writer)?["mesh"]["peers"][0]["state"] == "alive"))?;
    await_held(writer)?;
    let caught_up = begun.elapsed().as_secs_f64();
    let highest = |of: &[f64]| Spread::of(vec![of.iter().copied().fold(0.0, f64::max)]);
    let what = format!("a peer stopped, {sets} SETs");
    // One block beyond the bound, of which there are a thousand.
    bench.report.at_most(
        format!("{what}: highest log ÷ its bound of {LOG_BYTES} bytes"),
        highest(&logs),
        1.01,
    );
    bench.report.at_most(
        format!("{what}: most that resident memory grew ÷ the log's bound"),
        highest(&grown),
        1.25,
    );
    bench
        .report
        .tell(format!("{what}: seconds from SIGCONT until all is held again"), Spread::of(vec![caught_up]));
    Ok(())
}
