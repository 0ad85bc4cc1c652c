//! The life of a simulated process: its start, with a clock of its own, and its end.

use super::check::Violation;
use super::world::{Event, MS, PEER_PORT, Process, TICK_MS, World, address};
use crate::base::clock::Now;
use crate::base::version::{Incarnation, Version};
use crate::config::AckLevel;
use crate::mesh::members::Members;
use crate::mesh::time::DriverClock;
use crate::mesh::{MeshConfig, Portions};
use crate::node::engine::Engine;
use crate::node::extension::Extensions;
use crate::node::metrics::ProcessFacts;
use crate::node::{Node, Settings};
use crate::peer::frame::MemberInfo;
use crate::peer::link::Keys;
use crate::store::{Marks, MemoryStore, NewRecord, Stamp, Storage, StoreConfig};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// Much more often than real nodes do, in milliseconds.
const COMPARE_MS: u64 = 1_000;
/// Between two questions of a node's discovery, in milliseconds.
const DISCOVERY_MS: u64 = 5_000;

impl World {
    pub(super) fn start(&mut self, host: usize, name: usize) {
        if self.processes.values().any(|process| process.host == host) {
            return;
        }
        let serial = self.next_process;
        self.next_process += 1;
        let skew_ms = self.random.between(0, 2 * self.plan.skew_ms) as i64 - self.plan.skew_ms as i64;
        let skew_ms = skew_ms + self.plan.start_skew_ms;
        if skew_ms != 0 {
            self.fault("skew");
        }
        if self.plan.portions.scan_records < Portions::default().scan_records {
            self.fault("tiny limits");
        }
        let random = self.random.bits();
        let bits = u128::from(self.random.bits()) << 64 | u128::from(random);
        let incarnation = Incarnation::new(self.wall_ms(skew_ms), bits);
        let config = MeshConfig {
            me: MemberInfo {
                incarnation,
                name: format!("n{name}"),
                address: SocketAddr::from(([0, 0, 0, 0], PEER_PORT)),
                http_port: 8080,
                workers: self.plan.workers as u16,
            },
            seeds_expected: true,
            keys: Keys::default(),
            log_bytes: self.plan.log_bytes,
            portions: self.plan.portions,
            forget_ms: self.plan.forget_ms,
            tombstones_max: self.plan.tombstones_max,
            compare_ms: COMPARE_MS,
            random,
            mutation: self.plan.mutation,
        };
        let settings = Settings {
            name: config.me.name.clone(),
            port: 8080,
            max_key_chars: 64,
            max_value_chars: 256,
            acks: AckLevel::All,
            cors_origin: None,
            workers: self.plan.workers,
            max_connections: 100,
        };
        let store = StoreConfig { stripes: 4, memory_limit_bytes: 1 << 30, seed: Some(random) };
        let Ok(store) = MemoryStore::new(store) else { return };
        let now = Now { wall_ms: self.wall_ms(skew_ms), mono_ns: 1 };
        let node = Node::new(store, settings, config, now, Extensions::new(), ProcessFacts::default);
        let node = Arc::new(node);
        // What a balancer would name: anybody, ourselves included.
        let mut seeds = vec![address(host)];
        for _ in 0..2 {
            seeds.push(address(self.random.below(self.plan.hosts as u64) as usize));
        }
        if !self.script.is_empty() {
            // A script says what goes wrong.
            let all = || (0..self.plan.hosts).collect();
            seeds = self.plan.start_knows.clone().unwrap_or_else(all).into_iter().map(address).collect();
        }
        node.mesh.discovered(&seeds);
        let engines = (0..self.plan.workers).map(|worker| Engine::new(Arc::clone(&node), worker)).collect();
        let process = Process {
            serial,
            host,
            name,
            node,
            engines,
            links: BTreeMap::new(),
            waiting: Vec::new(),
            paused_until: 0,
            leaving_since: None,
            skew_ms,
            jump_ms: 0,
            clock: Cell::new(DriverClock::new(now)),
            boot_ns: self.now_ns,
        };
        // One of that name that lives gives way, with what it holds; so does whoever is forgotten.
        let is_namesake = |other: &&Process| other.name == name;
        self.checker.excused.extend(self.processes.values().filter(is_namesake).map(|other| other.serial));
        if self.plan.may_forget() {
            self.checker.excused.insert(serial);
        }
        self.checker.started(&process, &self.processes, self.cuts.any());
        self.processes.insert(serial, process);
        let text =
            format!("start   n{name} as process {serial} on host {host}, skew {skew_ms} ms, {incarnation:?}");
        self.say(format_args!("{text}"));
        for worker in 0..self.plan.workers {
            let after = self.random.below(TICK_MS) * MS;
            self.later(after, Event::Tick { process: serial, worker });
        }
    }

    /// Writes to a store behind its node's back, without a log: a value, or a tombstone.
    pub(super) fn plant(&mut self, serial: usize, key: &str, value: Option<&str>) {
        // The checker would see it at once; whether the nodes find it is the question.
        self.is_planted = true;
        let Some(process) = self.processes.get(&serial) else { return };
        let store = &process.node.store;
        let floor = process.node.mesh.with_members(crate::mesh::members::Members::floor);
        let Some(writer) = store.writer(process.node.view().me) else { return };
        let stamp = Stamp::Given(Version { hlc: floor, writer });
        let (hash, now_ms) = (store.hash(key.as_bytes()), self.wall_ms(0));
        let record = value.map(|value| NewRecord {
            key: key.as_bytes(),
            value: value.as_bytes(),
            marks: Marks(3),
            expires_at_ms: 0,
        });
        let done = match record {
            Some(record) => store.set(hash, record, stamp, now_ms),
            None => store.rm(hash, key.as_bytes(), stamp, now_ms),
        };
        self.say(format_args!("plant   {key} at {floor:?} with process {serial}: {done:?}"));
    }

    /// A process is gone, with its memory.
    pub(super) fn kill(&mut self, serial: usize) {
        if self.processes.remove(&serial).is_none() {
            return;
        }
        let conns: Vec<usize> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.ends.iter().any(|end| end.process == serial))
            .map(|(id, _)| *id)
            .collect();
        self.checker.disturbed();
        for conn in conns {
            self.reset(conn);
        }
    }

    pub(super) fn farewell(&mut self, serial: usize) -> Result<(), Box<Violation>> {
        let Some(process) = self.processes.get(&serial) else { return Ok(()) };
        let Some(since) = process.leaving_since else { return Ok(()) };
        let late = self.now_ns - since > 5_000 * MS;
        if process.node.mesh.has_left() || late {
            // One who was told that it is over has said farewell to somebody who holds everything, or was given up.
            if !late && !process.node.mesh.is_over() {
                self.checker.left_in_peace(process, &self.processes, self.wall_ms(0))?;
            }
            self.say(format_args!("gone    process {serial}{}", if late { ", late" } else { "" }));
            self.kill(serial);
        }
        Ok(())
    }

    /// What a node's discovery does by and by: it asks its balancer again, which names anybody. Here only once the
    /// faults are over, and only to those that can no longer reach each other by what they know: whether members
    /// find each other again is the mesh's affair. Another mesh between two of one does not help them.
    pub(super) fn discover(&mut self) {
        let since_heal_ns = self.now_ns.saturating_sub(self.plan.chaos_ms * MS);
        if self.chaos || since_heal_ns < DISCOVERY_MS * MS {
            return;
        }
        let lineage = |process: &Process| process.node.mesh.with_members(Members::lineage);
        let lineages: BTreeSet<u128> = self.processes.values().map(lineage).collect();
        let meshes =
            lineages.iter().map(|ours| self.processes.values().filter(|p| lineage(p) == *ours).collect());
        let all = std::iter::once(self.processes.values().collect());
        let apart: Vec<Vec<&Process>> =
            all.chain(meshes).filter(|group: &Vec<&Process>| !can_meet(group)).collect();
        let mut named = Vec::new();
        for group in apart {
            let Some(first) = group.first().map(|process| address(process.host)) else { continue };
            for process in &group {
                process.node.mesh.discovered(&[first]);
            }
            named.push((first, group.len()));
        }
        for (first, others) in named {
            self.say(format_args!("found   {first} is named to {others}"));
        }
    }
}

/// Whether each of them can find each other by the addresses that they know.
fn can_meet(group: &[&Process]) -> bool {
    let Some(first) = group.first().map(|process| address(process.host)) else { return true };
    let mut known: Vec<(SocketAddr, SocketAddr)> = Vec::new();
    for process in group {
        let here = address(process.host);
        process.node.mesh.with_members(|members| {
            known.extend(members.seeds().into_iter().map(|there| (here, there)));
            known.extend(members.others().map(|member| (here, member.info.address)));
        });
    }
    let alive: BTreeSet<SocketAddr> = group.iter().map(|process| address(process.host)).collect();
    known.retain(|(_, there)| alive.contains(there));
    let mut reached = BTreeSet::from([first]);
    while let Some((a, b)) = known.iter().find(|(a, b)| reached.contains(a) != reached.contains(b)) {
        reached.extend([*a, *b]);
    }
    reached == alive
}
