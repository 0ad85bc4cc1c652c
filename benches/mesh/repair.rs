//! What it takes to make two nodes equal again after a cut in which a hundred records came to differ.

use super::members::{self, Client, Spec, await_mesh, local_sets, until};
use super::relay::Relay;
use super::support::bench::{Bench, Done};
use super::support::drive::{self, cpu_ns_of, key};
use super::support::fleet::{Peer, free_address};
use super::support::report::Spread;
use meshkv::limits::LOG_BYTES;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Records that each side changes.
const HALF: u64 = 50;
/// Length of the values that are written while the link is cut; others are one shorter.
const CHANGED: usize = 33;

/// What each side sent and spent, and how long it took.
struct Repaired {
    sent: [f64; 2],
    cpu_ms: [f64; 2],
    seconds: f64,
}

struct Pair {
    nodes: Vec<Peer>,
    /// Before each node; links go to the second through the second one.
    relays: [Relay; 2],
}

impl Pair {
    fn start(bench: &Bench) -> io::Result<Pair> {
        let (mut nodes, mut relays) = (Vec::new(), Vec::new());
        let mut join: Option<SocketAddr> = None;
        for name in ["a", "b"] {
            let peer = free_address()?;
            let relay = Relay::new(peer)?;
            let relayed = Some((peer.port(), relay.address));
            let node = members::start(
                &bench.yard,
                &Spec { name, join, workers: Some(1), relayed, ..Spec::default() },
            )?;
            join = Some(node.address);
            nodes.push(node);
            relays.push(relay);
        }
        await_mesh(&nodes)?;
        let relays: [Relay; 2] = relays.try_into().map_err(|_| drive::other("two relays"))?;
        Ok(Pair { nodes, relays })
    }

    /// Bytes that each has sent to the other.
    fn sent(&self) -> [u64; 2] {
        let [a, b] = &self.relays;
        [b.bytes().0 + a.bytes().1, a.bytes().0 + b.bytes().1]
    }

    fn cpu_ns(&self) -> [u64; 2] {
        [cpu_ns_of(self.nodes[0].pid()), cpu_ns_of(self.nodes[1].pid())]
    }

    fn is_equal(&self) -> io::Result<bool> {
        let wanted = format!("\"{}\"", "v".repeat(CHANGED));
        for node in &self.nodes {
            let mut client = Client::new(node.address)?;
            // From behind: those that come last tell the most.
            for n in (0..2 * HALF).rev() {
                if client.ask(&format!("/get?k={}", key(n)))?.1 != wanted.as_bytes() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Cuts, lets `meanwhile` happen, changes the hundred records, heals, and waits until both are equal.
    fn repair(&self, seconds: u64, meanwhile: impl FnOnce() -> io::Result<()>) -> io::Result<Repaired> {
        // Back to what both agree on.
        let mut same = local_sets(&self.nodes[0], 2 * HALF, 1);
        (same.each, same.connections) = (Some(0..2 * HALF), 1);
        drive::run(&same)?;
        members::await_held(&self.nodes[0])?;
        for relay in &self.relays {
            relay.cut()?;
        }
        meanwhile()?;
        for (node, range) in self.nodes.iter().zip([0..HALF, HALF..2 * HALF]) {
            let mut changes = local_sets(node, range.end, 1);
            (changes.each, changes.connections) = (Some(range), 1);
            changes.value_bytes = CHANGED..CHANGED + 1;
            drive::run(&changes)?;
        }
        std::thread::sleep(Duration::from_secs(seconds));
        if self.is_equal()? {
            return Err(drive::other("they are equal although the link is cut"));
        }
        let (sent, cpu, begun) = (self.sent(), self.cpu_ns(), Instant::now());
        self.relays.iter().for_each(Relay::heal);
        // Looked at seldom, for that costs CPU too, and is counted.
        let equal = until("both are equal", || {
            std::thread::sleep(Duration::from_millis(45));
            self.is_equal()
        })?;
        // What is left of it, such as the last acknowledgements.
        std::thread::sleep(Duration::from_millis(500));
        let (sent_after, cpu_after, window) = (self.sent(), self.cpu_ns(), begun.elapsed());
        // The same time again, idle, is what would have been spent anyway.
        let (idle_sent, idle_cpu) = (sent_after, cpu_after);
        std::thread::sleep(window);
        let (idle_sent_after, idle_cpu_after) = (self.sent(), self.cpu_ns());
        let beyond = |at: usize, of: ([u64; 2], [u64; 2]), idle: ([u64; 2], [u64; 2])| {
            (of.1[at] - of.0[at]) as f64 - (idle.1[at] - idle.0[at]) as f64
        };
        let bytes = |at| beyond(at, (sent, sent_after), (idle_sent, idle_sent_after));
        let cpu_ms = |at| beyond(at, (cpu, cpu_after), (idle_cpu, idle_cpu_after)) / 1e6;
        Ok(Repaired {
            sent: [bytes(0), bytes(1)],
            cpu_ms: [cpu_ms(0), cpu_ms(1)],
            seconds: equal.as_secs_f64(),
        })
    }
}

pub(crate) fn repair(bench: &mut Bench) -> Done {
    let keys = bench.options.keys;
    let pair = Pair::start(bench)?;
    members::load(&pair.nodes, keys)?;
    let seconds = if bench.options.tiny { 0 } else { 3 };
    // Each operation is longer than 64 bytes with its head.
    let overwrites = if bench.options.tiny { 1000 } else { 2 * LOG_BYTES as u64 / 64 };
    let pulls = || -> io::Result<u64> {
        pair.nodes.iter().map(|node| node.metric("meshkv_pulls_total{kind=\"partial\"}")).sum()
    };
    for (what, overwrites) in [("log kept", 0), ("log lost", overwrites)] {
        let (mut sent, mut cpu, mut took) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bench.options.runs {
            let before = pulls()?;
            let repaired = pair.repair(seconds, || {
                // The same records again and again, until the log does not reach back to the cut.
                let mut plan = local_sets(&pair.nodes[0], HALF, 16);
                plan.window = bench.options.window;
                let mut done = 0;
                while done < overwrites {
                    done += drive::run(&plan)?.requests_total;
                }
                Ok(())
            })?;
            if overwrites > 0 && !bench.options.tiny && pulls()? == before {
                return Err("nothing was pulled although the log did not reach back".into());
            }
            sent.push(repaired.sent.into_iter().fold(0.0, f64::max));
            cpu.push(repaired.cpu_ms.into_iter().fold(0.0, f64::max));
            took.push(repaired.seconds);
        }
        let what = format!("{} of {keys} records differ, {what}", 2 * HALF);
        let report = &mut bench.report;
        report.at_most(format!("{what}: bytes sent, the side with more"), Spread::of(sent), 1_048_576.0);
        report.at_most(format!("{what}: CPU, the side with more, ms"), Spread::of(cpu), 100.0);
        report.tell(format!("{what}: seconds until equal, redial included"), Spread::of(took));
    }
    Ok(())
}
