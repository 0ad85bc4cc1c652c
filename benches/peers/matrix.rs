//! Every server at every size, with uniform and with Zipf keys, reading, writing and both, one request at a
//! time on a connection and sixteen.

use super::support::bench::{Bench, Done, contender, load, over, ratio};
use super::support::bench::{CPU, RATE};
use super::support::drive::{Operation, other};
use super::support::fleet::Peer;
use super::support::report::Spread;
use std::fmt::Write;
use std::io;
use std::time::Duration;

/// So many cells that each gets less time than a row of the node's benchmark.
const WINDOW: Duration = Duration::from_millis(500);
const WARM_UP: Duration = Duration::from_millis(100);
const RUNS: usize = 3;
const DEPTHS: [usize; 2] = [1, 16];
const ZIPF: f64 = 0.99;
/// Of 32 connections, those that set in the mix.
const SETTERS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Get,
    Set,
    Mix,
}

/// The columns, in this order.
const SERVERS: [&str; 5] = ["meshkv", "floor", "redis", "memcached", "nginx"];

pub(super) fn matrix(bench: &mut Bench) -> Done {
    let before = bench.options.clone();
    let options = &mut bench.options;
    options.window = options.window.min(WINDOW);
    options.warm_up = options.warm_up.min(WARM_UP);
    options.runs = options.runs.min(RUNS);
    let done = measure(bench);
    bench.options = before;
    done
}

fn measure(bench: &mut Bench) -> Done {
    let mut stores = vec![bench.yard.node(1)?];
    for name in ["redis", "memcached"] {
        stores.extend(bench.yard.foreign(name)?);
    }
    let nginx = bench.yard.foreign("nginx")?;
    let empty: Vec<u64> = stores.iter().map(Peer::resident_bytes).collect();
    let mut floors: Option<[Peer; 2]> = None;
    let mut table = format!(
        "\nCPU nanoseconds a request / thousand requests a second, 32 connections, 16+32 bytes, medians of {} rounds of {:?}.\n\
         A mix is {SETTERS} of the connections setting, the others getting. Behind: peers that took less CPU.\n\n\
         | keys | drawn | | deep | {} | behind |\n|{}\n",
        bench.options.runs,
        bench.options.window,
        SERVERS.join(" | "),
        "---|".repeat(5 + SERVERS.len())
    );
    let mut from = 0;
    for keys in [bench.options.keys / 1000, bench.options.keys / 10, bench.options.keys] {
        for (store, empty) in stores.iter().zip(&empty) {
            load(store, from, keys, |_| {})?;
            let each = store.resident_bytes().saturating_sub(*empty) as f64 / keys as f64;
            let what = format!("resident bytes an entry, 16+32, {keys} records: {}", store.name);
            bench.report.tell(what, Spread::of(vec![each]));
        }
        from = keys;
        if floors.is_none() {
            let floor = |operation| bench.yard.floor(&stores[0].plan(operation, keys, 1));
            floors = Some([floor(Operation::Get)?, floor(Operation::Set)?]);
        }
        for zipf in [0.0, ZIPF] {
            for work in [Work::Get, Work::Set, Work::Mix] {
                for depth in DEPTHS {
                    let mut servers: Vec<(&'static str, &Peer)> =
                        stores.iter().map(|store| (store.name, store)).collect();
                    // A floor knows one request and one answer.
                    match (&floors, work) {
                        (Some([get, _]), Work::Get) => servers.push(("floor", get)),
                        (Some([_, set]), Work::Set) => servers.push(("floor", set)),
                        _ => {}
                    }
                    // It answers a constant, whatever it is asked for: that is a GET at best.
                    if work == Work::Get {
                        servers.extend(nginx.as_ref().map(|nginx| ("nginx", nginx)));
                    }
                    let row = cell(bench, &servers, keys, zipf, work, depth)?;
                    let drawn = if zipf > 0.0 { "zipf 0.99" } else { "uniform" };
                    let name = format!("{work:?}").to_uppercase();
                    let row = format!("| {keys} | {drawn} | {name} | {depth} | {row} |");
                    eprintln!("  {row}");
                    let _ = writeln!(table, "{row}");
                }
            }
        }
    }
    bench.report.more.push_str(&table);
    Ok(())
}

/// One row: a cell for each server, and who was better.
fn cell(
    bench: &Bench,
    servers: &[(&'static str, &Peer)],
    keys: u64,
    zipf: f64,
    work: Work,
    depth: usize,
) -> io::Result<String> {
    let operation = if work == Work::Set { Operation::Set } else { Operation::Get };
    let mut contenders: Vec<_> = servers
        .iter()
        .map(|(name, peer)| {
            let mut plan = peer.plan(operation, keys, depth);
            plan.zipf = zipf;
            plan.setters = if work == Work::Mix { SETTERS } else { 0 };
            contender(name, plan)
        })
        .collect();
    bench.rounds(&mut contenders)?;
    let own = contenders.first().ok_or_else(|| other("the node is always there"))?;
    let mut cells = Vec::new();
    for name in SERVERS {
        let found = contenders.iter().find(|contender| contender.name == name);
        cells.push(found.map_or(String::new(), |found| {
            let (cpu, rate) = (over(&found.rounds, CPU).median, over(&found.rounds, RATE).median);
            format!("{cpu:.0} / {:.0}", rate / 1000.0)
        }));
    }
    // The floor is no peer: nothing can be below it.
    let behind: Vec<String> = contenders
        .iter()
        .filter(|peer| peer.name != own.name && peer.name != "floor")
        .map(|peer| (peer.name, ratio(own, peer, CPU).median))
        .filter(|(_, ratio)| *ratio > 1.0)
        .map(|(name, ratio)| format!("{name} ({ratio:.2})"))
        .collect();
    cells.push(behind.join(", "));
    Ok(cells.join(" | "))
}
