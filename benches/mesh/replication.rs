//! What a write costs its node and the others, how long it waits for them, and when they have it.

use super::members::{self, Client, await_held, idle_cpu_ns, local_sets};
use super::support::bench::{Bench, Done};
use super::support::drive::{self, Operation, Outcome, Plan, cpu_ns_of, other};
use super::support::fleet::{Peer, Yard};
use super::support::report::Spread;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DEPTH: usize = 16;

/// A writer and whoever follows it.
struct Group {
    name: &'static str,
    /// The writer first.
    nodes: Vec<Peer>,
    /// CPU nanoseconds a second of the followers when nothing happens.
    followers_idle: f64,
}

/// What one of them did in a round, from the first request until every follower held everything.
#[derive(Clone, Copy, Debug)]
struct Round {
    sets: f64,
    seconds: f64,
    writer_ns: f64,
    followers_ns: f64,
    /// Of those, what they would have taken idle.
    idle_ns: f64,
    followers: f64,
}

impl Round {
    fn writer_ns_each(&self) -> f64 {
        self.writer_ns / self.sets
    }

    fn all_ns_each(&self) -> f64 {
        (self.writer_ns + self.followers_ns) / self.sets
    }

    fn follower_ns_each(&self) -> f64 {
        (self.followers_ns - self.idle_ns) / (self.sets * self.followers)
    }

    fn per_second(&self) -> f64 {
        self.sets / self.seconds
    }
}

impl Group {
    fn once(&self, plan: &Plan) -> io::Result<Round> {
        let writer = &self.nodes[0];
        let cpu = || -> Vec<u64> { self.nodes.iter().map(|node| cpu_ns_of(node.pid())).collect() };
        let (before, begun) = (cpu(), Instant::now());
        let outcome = drive::run(plan)?;
        if self.nodes.len() > 1 {
            await_held(writer)?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let took: Vec<f64> =
            cpu().iter().zip(before).map(|(after, before)| (after - before) as f64).collect();
        Ok(Round {
            sets: outcome.requests_total as f64,
            seconds,
            writer_ns: took[0],
            followers_ns: took[1..].iter().sum(),
            idle_ns: self.followers_idle * seconds,
            followers: (self.nodes.len() - 1) as f64,
        })
    }
}

fn groups(yard: &Yard, keys: u64, idle: Duration) -> io::Result<Vec<Group>> {
    let mut groups = Vec::new();
    for (name, nodes) in [
        ("alone", Some(members::mesh(yard, 1)?)),
        ("mesh of 3", Some(members::mesh(yard, 3)?)),
        ("redis of 3", members::redis(yard)?),
    ] {
        let Some(nodes) = nodes else { continue };
        let mut plan = local_sets(&nodes[0], keys, 64);
        (plan.each, plan.connections) = (Some(0..keys), 8);
        plan.varies = name == "mesh of 3";
        drive::run(&plan)?;
        if nodes.len() > 1 {
            await_held(&nodes[0])?;
        }
        nodes.iter().for_each(Peer::settle);
        let followers: Vec<&Peer> = nodes[1..].iter().collect();
        let followers_idle = idle_cpu_ns(&followers, idle);
        groups.push(Group { name, nodes, followers_idle });
    }
    Ok(groups)
}

/// What replication costs the writer and the receivers, against nothing and against Redis.
pub(crate) fn set(bench: &mut Bench) -> Done {
    let keys = bench.options.keys / 10;
    let groups = groups(&bench.yard, keys, bench.options.window)?;
    for (depth, what) in [(1, "SET unpipelined"), (DEPTH, "SET 16 deep")] {
        let mut rounds: Vec<Vec<Round>> = groups.iter().map(|_| Vec::new()).collect();
        for _ in 0..bench.options.runs {
            for (group, rounds) in groups.iter().zip(&mut rounds) {
                let mut plan = local_sets(&group.nodes[0], keys, depth);
                plan.varies = group.name == "mesh of 3";
                (plan.warm_up, plan.window) = (bench.options.warm_up, bench.options.window);
                rounds.push(group.once(&plan)?);
            }
        }
        let ratio = |of: usize, by: usize, figure: fn(&Round) -> f64| {
            let pairs = rounds[of].iter().zip(&rounds[by]);
            Spread::of(pairs.map(|(of, by)| figure(of) / figure(by)).collect())
        };
        let over =
            |of: usize, figure: &dyn Fn(&Round) -> f64| Spread::of(rounds[of].iter().map(figure).collect());
        let report = &mut bench.report;
        let per_cpu = ratio(0, 1, Round::writer_ns_each);
        report.at_least(format!("{what}: SETs per CPU of the writer, mesh of 3 ÷ alone"), per_cpu, 0.7);
        let each = over(1, &|round| round.follower_ns_each() / 1e3);
        report.at_most(format!("{what}: CPU of a receiver per operation, µs"), each, 0.5);
        if groups.len() > 2 {
            let rate = ratio(1, 2, Round::per_second);
            report.at_least(format!("{what}: SETs per second, mesh ÷ Redis with 2 replicas"), rate, 1.0);
            let all = ratio(2, 1, Round::all_ns_each);
            report.at_least(format!("{what}: SETs per CPU of all three, mesh ÷ Redis"), all, 1.0);
        }
        for (at, group) in groups.iter().enumerate() {
            let name = group.name;
            report.tell(format!("{what}: {name}, SETs per second"), over(at, &Round::per_second));
            report.tell(format!("{what}: {name}, writer's CPU ns each"), over(at, &Round::writer_ns_each));
            if group.nodes.len() > 1 {
                let all = over(at, &Round::all_ns_each);
                report.tell(format!("{what}: {name}, CPU ns each of all three"), all);
            }
        }
    }
    Ok(())
}

fn once(bench: &Bench, plan: &Plan) -> io::Result<Outcome> {
    let mut plan = plan.clone();
    (plan.warm_up, plan.window) = (bench.options.warm_up, bench.options.window);
    drive::run(&plan)
}

/// Half of what a closed loop of 32 connections gets done.
fn half_load(bench: &Bench, plan: &Plan) -> io::Result<Plan> {
    let mut half = plan.clone();
    half.rate = once(bench, plan)?.per_second() / 2.0;
    half.connections = 64;
    Ok(half)
}

const US: f64 = 1e3;

/// How much longer a write takes that all three must hold.
pub(crate) fn acks(bench: &mut Bench) -> Done {
    let keys = bench.options.keys / 10;
    let nodes = members::mesh(&bench.yard, 3)?;
    members::load(&nodes, keys)?;
    let local = local_sets(&nodes[0], keys, 1);
    let mut all = local.clone();
    all.query = "&w=all";
    let floor = bench.yard.floor(&local)?;
    let mut trip = floor.plan(Operation::Set, keys, 1);
    trip.query = local.query;
    let (mut beyond, mut tails, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    let mut middles = [Vec::new(), Vec::new(), Vec::new()];
    let mut half_middles = Vec::new();
    for _ in 0..bench.options.runs {
        let mut round = [0.0; 3];
        for (at, plan) in [&trip, &local, &all].into_iter().enumerate() {
            let mut single = plan.clone();
            single.connections = 1;
            round[at] = once(bench, &single)?.p50_ns as f64 / US;
            middles[at].push(round[at]);
        }
        let [trip, local, whole] = round;
        beyond.push(whole - local - trip);
        let half = half_load(bench, &all)?;
        let outcome = once(bench, &half)?;
        rates.push(half.rate);
        tails.push(outcome.p99_ns as f64 / US);
        half_middles.push(outcome.p50_ns as f64 / US);
    }
    let what = "w=all, three nodes";
    let report = &mut bench.report;
    let beyond = Spread::of(beyond);
    report.at_most(format!("{what}: p50 beyond w=local and one round trip, µs"), beyond, 100.0);
    report.at_most(format!("{what}: p99 at half load, µs"), Spread::of(tails), 2000.0);
    report.tell(format!("{what}: p50 at half load, µs"), Spread::of(half_middles));
    report.tell(format!("{what}: half load, SETs per second"), Spread::of(rates));
    for (name, middles) in ["a round trip", "w=local", "w=all"].into_iter().zip(middles) {
        report.tell(format!("{what}: p50 of {name}, one connection, µs"), Spread::of(middles));
    }
    Ok(())
}

/// When a write that only its node holds can be read at another.
pub(crate) fn visible(bench: &mut Bench) -> Done {
    let keys = bench.options.keys / 10;
    let nodes = members::mesh(&bench.yard, 3)?;
    members::load(&nodes, keys)?;
    let plan = local_sets(&nodes[0], keys, 1);
    let (mut middles, mut tails, mut rates, mut probes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.options.runs {
        let half = half_load(bench, &plan)?;
        let over = AtomicBool::new(false);
        let (latencies, background) = std::thread::scope(|scope| -> io::Result<_> {
            let prober = scope.spawn(|| probe(&nodes[0], &nodes[1], &over));
            let background = once(bench, &half);
            over.store(true, Ordering::Release);
            Ok((prober.join().map_err(|_| other("the prober panicked"))??, background?))
        })?;
        middles.push(latencies.value_at_quantile(0.5) as f64 / US);
        tails.push(latencies.value_at_quantile(0.99) as f64 / US);
        probes.push(latencies.len() as f64);
        rates.push(background.per_second());
    }
    let what = "from the answer on A until it is read on B";
    bench.report.at_most(format!("{what}, at half load: p99, µs"), Spread::of(tails), 1000.0);
    bench.report.tell(format!("{what}, at half load: p50, µs"), Spread::of(middles));
    bench.report.tell("probes a round", Spread::of(probes));
    bench.report.tell("half load, SETs per second", Spread::of(rates));
    Ok(())
}

/// Sets at one node, then asks the other until it has it.
fn probe(a: &Peer, b: &Peer, over: &AtomicBool) -> io::Result<hdrhistogram::Histogram<u64>> {
    let mut latencies = hdrhistogram::Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(other)?;
    let (mut a, mut b) = (Client::new(a.address)?, Client::new(b.address)?);
    let mut n = 0u64;
    while !over.load(Ordering::Acquire) {
        n += 1;
        if a.ask(&format!("/set?k=probe&v={n}&w=local"))?.0 != 200 {
            return Err(other("the write was refused"));
        }
        let answered = Instant::now();
        let wanted = format!("\"{n}\"");
        while b.ask("/get?k=probe")?.1 != wanted.as_bytes() {
            if answered.elapsed() > Duration::from_secs(10) {
                return Err(other("it never became visible"));
            }
        }
        latencies.saturating_record(answered.elapsed().as_nanos() as u64);
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(latencies)
}
