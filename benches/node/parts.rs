//! The parts of the table. Each starts what it needs; servers that hold all records are shared by them.

use super::support::bench::{Bench, CPU, Contender, Done, Parts, RATE, contender, load, named, over, ratio};
use super::support::drive::{Address, Operation};
use super::support::report::Spread;
use meshkv::config::NodeConfig;
use meshkv::node::extension::{Extensions, Observer, RequestEvent};
use std::io;

pub(crate) const PARTS: Parts = &[
    ("get", get),
    ("deep", deep),
    ("set", set),
    ("hot", hot),
    ("unix", unix),
    ("idle", idle),
    ("listing", listing),
    ("observer", observer),
    ("memory", memory),
    ("churn", churn),
    ("workers", workers),
];

const DEPTH: usize = 16;
const IDLE_CONNECTIONS: usize = 10_000;

fn get(bench: &mut Bench) -> Done {
    let keys = bench.options.keys;
    let node = bench.node()?;
    let plan = node.plan(Operation::Get, keys, 1);
    let floor = bench.yard.floor(&plan)?;
    let mut contenders =
        vec![contender("meshkv", plan), contender("floor", floor.plan(Operation::Get, keys, 1))];
    for name in ["redis", "memcached", "nginx"] {
        if let Some(peer) = bench.peer(name)? {
            contenders.push(contender(name, peer.plan(Operation::Get, keys, 1)));
        }
    }
    bench.rounds(&mut contenders)?;
    let what = "GET unpipelined, 32 connections";
    let meshkv = &contenders[0];
    for (name, limit) in [("floor", 1.10), ("redis", 0.68), ("memcached", 0.62)] {
        if let Some(peer) = named(&contenders, name) {
            bench.report.at_most(format!("{what}: CPU ÷ {name}"), ratio(meshkv, peer, CPU), limit);
        }
    }
    for (name, limit) in [("floor", 0.95), ("nginx", 1.0)] {
        if let Some(peer) = named(&contenders, name) {
            let rates = ratio(meshkv, peer, RATE);
            bench.report.at_least(format!("{what}: requests per second ÷ {name}"), rates, limit);
        }
    }
    bench.tell_all(what, &contenders);
    Ok(())
}

fn deep(bench: &mut Bench) -> Done {
    let keys = bench.options.keys;
    let node = bench.node()?;
    let plan = node.plan(Operation::Get, keys, DEPTH);
    let floor = bench.yard.floor(&plan)?;
    let mut contenders =
        vec![contender("meshkv", plan), contender("floor", floor.plan(Operation::Get, keys, DEPTH))];
    if let Some(redis) = bench.peer("redis")? {
        contenders.push(contender("redis", redis.plan(Operation::Get, keys, DEPTH)));
    }
    bench.rounds(&mut contenders)?;
    let what = "GET 16 deep";
    for (name, limit) in [("floor", 1.5), ("redis", 0.32)] {
        if let Some(peer) = named(&contenders, name) {
            bench.report.at_most(format!("{what}: CPU ÷ {name}"), ratio(&contenders[0], peer, CPU), limit);
        }
    }
    bench.tell_all(what, &contenders);
    Ok(())
}

fn set(bench: &mut Bench) -> Done {
    let keys = bench.options.keys;
    let node = bench.node()?;
    let floor = bench.yard.floor(&node.plan(Operation::Set, keys, 1))?;
    for (depth, limit, what) in [(1, 1.15, "SET unpipelined"), (DEPTH, 2.2, "SET 16 deep")] {
        let mut contenders = [
            contender("meshkv", node.plan(Operation::Set, keys, depth)),
            contender("floor", floor.plan(Operation::Set, keys, depth)),
        ];
        bench.rounds(&mut contenders)?;
        let cpu = ratio(&contenders[0], &contenders[1], CPU);
        bench.report.at_most(format!("{what}: CPU ÷ floor"), cpu, limit);
        bench.tell_all(what, &contenders);
    }
    Ok(())
}

fn hot(bench: &mut Bench) -> Done {
    let keys = bench.options.keys;
    let node = bench.node()?;
    let mut contenders = [
        contender("uniform", node.plan(Operation::Get, keys, 1)),
        contender("one key", node.plan(Operation::Get, 1, 1)),
    ];
    bench.rounds(&mut contenders)?;
    let cpu = ratio(&contenders[0], &contenders[1], CPU);
    bench.report.at_most("GET unpipelined: CPU of uniform keys ÷ of one hot key", cpu, 1.10);
    Ok(())
}

fn unix(bench: &mut Bench) -> Done {
    let keys = bench.options.keys;
    let node = bench.node()?;
    let mut plan = node.plan(Operation::Get, keys, 1);
    plan.address = Address::Unix(node.unix.clone().ok_or("the node has a UNIX socket")?);
    let mut contenders = [contender("unix", plan), contender("tcp", node.plan(Operation::Get, keys, 1))];
    bench.rounds(&mut contenders)?;
    let cpu = ratio(&contenders[0], &contenders[1], CPU);
    bench.report.at_most("GET unpipelined: CPU over the UNIX socket ÷ over loopback TCP", cpu, 0.6);
    let rate = ratio(&contenders[0], &contenders[1], RATE);
    bench.report.tell("GET unpipelined: requests per second, UNIX socket ÷ TCP", rate);
    Ok(())
}

fn idle(bench: &mut Bench) -> Done {
    let keys = bench.options.keys;
    let node = bench.node()?;
    let plan = node.plan(Operation::Get, keys, 1);
    let wanted = if bench.options.tiny { 100 } else { IDLE_CONNECTIONS };
    let (mut alone, mut beside) = (contender("alone", plan.clone()), contender("beside idle", plan));
    let mut bytes_each = Vec::new();
    for _ in 0..bench.options.runs {
        alone.rounds.push(bench.once(&alone.plan)?);
        let before = node.resident_bytes();
        let mut connections = Vec::new();
        for _ in 0..wanted {
            connections.push(std::net::TcpStream::connect(node.address)?);
        }
        // Accepted for sure once the node has answered on a connection that came last.
        node.metric("meshkv_keys")?;
        bytes_each.push(node.resident_bytes().saturating_sub(before) as f64 / wanted as f64);
        let open = node.metric("meshkv_connections")?;
        if open < wanted as u64 {
            return Err(format!("{open} of {wanted} connections are open").into());
        }
        beside.rounds.push(bench.once(&beside.plan)?);
        drop(connections);
        while node.metric("meshkv_connections")? > 64 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    let cpu = ratio(&beside, &alone, CPU);
    bench.report.at_most(format!("{wanted} idle connections: CPU per GET ÷ without"), cpu, 1.05);
    // Only the first round shows what they need: later ones find the memory already there.
    let first = Spread::of(vec![bytes_each[0]]);
    bench.report.at_most(format!("{wanted} idle connections: resident bytes each"), first, 100.0);
    Ok(())
}

fn listing(bench: &mut Bench) -> Done {
    let keys = bench.options.keys;
    let node = bench.node()?;
    let plan = node.plan(Operation::Get, keys, 1);
    let mut beside = plan.clone();
    beside.slow_listing = true;
    let mut contenders = [contender("beside a listing", beside), contender("alone", plan)];
    bench.rounds(&mut contenders)?;
    if contenders[0].rounds.iter().any(|round| round.listed_bytes == 0) && !bench.options.tiny {
        return Err("the listing sent nothing".into());
    }
    let tail = ratio(&contenders[0], &contenders[1], |round| round.p999_ns as f64);
    bench.report.at_most("GET p99.9 beside a slow /getAll ÷ without", tail, 2.0);
    for Contender { name, rounds, .. } in &contenders {
        let tail = over(rounds, |round| round.p999_ns as f64 / 1000.0);
        bench.report.tell(format!("GET p99.9 {name}, µs"), tail);
    }
    let speed = over(&contenders[0].rounds, |round| round.listed_bytes as f64 / round.seconds / 1e6);
    bench.report.tell("the slow reader took, MB/s", speed);
    Ok(())
}

/// Sees everything and does nothing.
struct Silent;
impl Observer for Silent {
    fn request_started(&self, request: RequestEvent<'_>) {
        std::hint::black_box(request.serial);
    }
}

/// The role of a program with a node inside it.
pub(crate) fn embed(port: u16, observers: usize) -> Done {
    let config = NodeConfig { port, workers: 1, ..NodeConfig::default() };
    let extensions = Extensions::new();
    for _ in 0..observers {
        extensions.observe(Silent);
    }
    let server = meshkv::server::Server::start(config, extensions)?;
    Ok(server.wait()?)
}

fn observer(bench: &mut Bench) -> Done {
    let keys = bench.options.keys.min(100_000);
    let plain = bench.yard.node(1)?;
    let (none, one) = (bench.yard.embedded(0)?, bench.yard.embedded(1)?);
    for (depth, what) in [(1, "GET unpipelined"), (DEPTH, "GET 16 deep")] {
        let mut contenders = Vec::new();
        for (name, peer) in [("plain", &plain), ("none", &none), ("one", &one)] {
            load(peer, 0, keys, |_| {})?;
            contenders.push(contender(name, peer.plan(Operation::Get, keys, depth)));
        }
        bench.rounds(&mut contenders)?;
        let [plain, none, one] = &contenders[..] else { return Err("three nodes".into()) };
        let cpu = ratio(none, plain, CPU);
        bench.report.at_most(format!("{what}: CPU, embedded without observers ÷ the binary"), cpu, 1.05);
        let cpu = ratio(one, none, CPU);
        bench.report.tell(format!("{what}: CPU, embedded with an observer ÷ without"), cpu);
    }
    Ok(())
}

fn memory(bench: &mut Bench) -> Done {
    for (key_bytes, value_bytes, limit) in [(16, 32, 76.0), (24, 128, 182.0)] {
        let node = bench.yard.node(1)?;
        let empty_resident = node.resident_bytes();
        let (mut each, mut from) = (Vec::new(), 0);
        // From a tenth of the keys to twice as many, at steps that are no powers of two.
        for tenths in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20] {
            let to = bench.options.keys * tenths / 10;
            load(&node, from, to, |plan| {
                plan.key_bytes = key_bytes;
                plan.value_bytes = value_bytes..value_bytes + 1;
            })?;
            from = to;
            let bytes = node.metric("meshkv_memory_bytes")? as f64 / to as f64;
            each.push(bytes);
            if tenths == 10 {
                let resident = (node.resident_bytes() - empty_resident) as f64 / to as f64;
                let what = format!("{key_bytes}+{value_bytes}, {to} records");
                bench.report.at_most(format!("bytes an entry, {what}"), Spread::of(vec![bytes]), limit);
                let resident = Spread::of(vec![resident]);
                bench.report.tell(format!("resident bytes an entry, {what}"), resident);
            }
        }
        let highest = each.iter().copied().fold(0.0, f64::max);
        let lowest = each.iter().copied().fold(f64::MAX, f64::min);
        let what = format!(
            "bytes an entry, {key_bytes}+{value_bytes}, {} to {} records: highest ÷ lowest",
            bench.options.keys / 10,
            bench.options.keys * 2
        );
        bench.report.at_most(what, Spread::of(vec![highest / lowest]), 1.10);
        bench.report.tell(format!("bytes an entry, {key_bytes}+{value_bytes}, all sizes"), Spread::of(each));
    }
    Ok(())
}

/// Live data is what a fresh node needs for records of the same sizes.
fn churn(bench: &mut Bench) -> Done {
    let keys = bench.options.keys / 10;
    let resident_of_fresh = |bench: &Bench, value_bytes: std::ops::Range<usize>| -> io::Result<u64> {
        let fresh = bench.yard.node(1)?;
        let empty = fresh.resident_bytes();
        load(&fresh, 0, keys, |plan| plan.value_bytes = value_bytes.clone())?;
        Ok(fresh.resident_bytes().saturating_sub(empty).max(1))
    };
    let node = bench.yard.node(1)?;
    let empty = node.resident_bytes();
    for pass in 0..6 {
        let largest = if pass % 2 == 0 { 33 } else { 200 };
        load(&node, 0, keys, |plan| plan.value_bytes = 8..largest)?;
    }
    let settle =
        || std::thread::sleep(std::time::Duration::from_secs(if bench.options.tiny { 0 } else { 3 }));
    settle();
    let churned =
        node.resident_bytes().saturating_sub(empty) as f64 / resident_of_fresh(bench, 8..200)? as f64;
    load(&node, 0, keys, |plan| plan.value_bytes = 8..9)?;
    settle();
    let shrunk = node.resident_bytes().saturating_sub(empty) as f64 / resident_of_fresh(bench, 8..9)? as f64;
    bench.report.at_most("resident ÷ live after value sizes churn", Spread::of(vec![churned]), 1.25);
    bench.report.at_most("resident ÷ live after shrinking", Spread::of(vec![shrunk]), 1.4);
    Ok(())
}

fn workers(bench: &mut Bench) -> Done {
    let keys = bench.options.keys / 10;
    for (depth, what) in [(1, "GET unpipelined"), (DEPTH, "GET 16 deep")] {
        let mut contenders = Vec::new();
        let nodes = [("one worker", bench.yard.node(1)?), ("two workers", bench.yard.node(2)?)];
        for (name, node) in &nodes {
            load(node, 0, keys, |_| {})?;
            contenders.push(contender(name, node.plan(Operation::Get, keys, depth)));
        }
        bench.rounds(&mut contenders)?;
        let rate = ratio(&contenders[1], &contenders[0], RATE);
        bench.report.tell(format!("{what}: requests per second, two workers ÷ one"), rate);
        for Contender { name, rounds, .. } in &contenders {
            let share = over(rounds, |round| {
                round.client_cpu_ns as f64 / (round.client_cpu_ns + round.server_cpu_ns) as f64
            });
            bench.report.tell(format!("{what}: {name}, the load generator's share of all CPU"), share);
        }
        bench.tell_all(what, &contenders);
    }
    Ok(())
}
