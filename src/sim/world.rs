//! A run: processes, time, clients and faults.

use super::Faults;
use super::check::{Checker, Violation};
use super::compared;
use super::network::{Conn, Cuts, End, Pipe};
use super::plan::Plan;
use super::script::Step;
use crate::base::clock::Now;
use crate::base::random::Random;
use crate::limits::UNLISTED_MS;
use crate::mesh::time::DriverClock;
use crate::mesh::worker::Effect;
use crate::node::acks::Held;
use crate::node::engine::Engine;
use crate::node::{Connection, Node};
use crate::store::{MemoryStore, Storage};
use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

pub(super) const MS: u64 = 1_000_000;
const WALL_START_MS: u64 = 1_700_000_000_000;
pub(super) const TICK_MS: u64 = 25;
/// In runs with lulls, milliseconds between two of them, and of one, at most.
const LULLS_APART_MS: u64 = 12_000;
const LULL_MS: u64 = 6_000;
pub(super) const PEER_PORT: u16 = 7373;

/// What a run without a violation came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    pub faults: Faults,
    pub requests: u64,
    pub writes_acked: u64,
    pub reads: u64,
    /// The same for the same seed, whatever else changes on the machine.
    pub trace_hash: u64,
    pub virtual_ms: u64,
    pub trace: String,
}

impl Process {
    /// Some worker's log keeps more than it was told to.
    pub(super) fn log_bytes_exceeded(&self) -> bool {
        // Beyond the bound at most a block and an operation.
        let bound = self.node.mesh.config.log_bytes * 5 / 4 + 512;
        self.engines.iter().any(|engine| engine.mesh.log().bytes() > bound)
    }
}

pub(super) struct NoAddress;

impl Connection for NoAddress {
    fn local_address(&self) -> Option<SocketAddr> {
        None
    }
}

/// Answers that wait, with the write that the checker is to be told of.
pub(super) struct Waiting {
    pub(super) worker: usize,
    pub(super) held: Held,
    pub(super) bytes: Vec<u8>,
    pub(super) write: usize,
}

pub(super) struct Process {
    pub(super) serial: usize,
    pub(super) host: usize,
    pub(super) name: usize,
    pub(super) node: Arc<Node<MemoryStore>>,
    pub(super) engines: Vec<Engine<MemoryStore>>,
    pub(super) links: BTreeMap<(usize, u64), usize>,
    pub(super) waiting: Vec<Waiting>,
    pub(super) paused_until: u64,
    pub(super) leaving_since: Option<u64>,
    pub(super) skew_ms: i64,
    /// By how much its wall clock has jumped since it started.
    pub(super) jump_ms: i64,
    pub(super) clock: Cell<DriverClock>,
    pub(super) boot_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    Tick {
        process: usize,
        worker: usize,
    },
    Deliver {
        conn: usize,
        direction: usize,
    },
    /// A dial comes through, or fails.
    Dialed {
        process: usize,
        worker: usize,
        link: u64,
        address: SocketAddr,
    },
    Request,
    Fault,
    Heal,
    Exile,
    Start {
        host: usize,
        name: usize,
    },
    Check,
    /// A step of the script.
    Scripted(usize),
}

/// See the module.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) random: Random,
    pub(super) now_ns: u64,
    serial: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    pub(super) processes: BTreeMap<usize, Process>,
    pub(super) next_process: usize,
    pub(super) conns: BTreeMap<usize, Conn>,
    next_conn: usize,
    pub(super) cuts: Cuts,
    pub(super) chaos: bool,
    /// When clients fall silent next.
    lull_ns: u64,
    pub(super) checker: Checker,
    deciding: compared::Deciding,
    pub(super) faults: Faults,
    pub(super) requests: u64,
    pub(super) reads: u64,
    pub(super) value: u64,
    hash: u64,
    trace: Option<String>,
    pub(super) is_exiled: bool,
    /// A store was changed behind its node's back: nothing but the nodes' comparisons is checked.
    pub(super) is_planted: bool,
    pub(super) script: Vec<Step>,
}

impl World {
    pub(super) fn new(plan: Plan, trace: bool) -> World {
        World {
            random: Random::new(plan.seed),
            now_ns: 1,
            serial: 0,
            queue: BinaryHeap::new(),
            processes: BTreeMap::new(),
            next_process: 0,
            conns: BTreeMap::new(),
            next_conn: 0,
            cuts: Cuts::none(plan.hosts + 1),
            chaos: true,
            lull_ns: 0,
            checker: Checker::default(),
            deciding: compared::Deciding::default(),
            faults: Faults::new(),
            requests: 0,
            reads: 0,
            value: 0,
            hash: plan.seed,
            trace: trace.then(String::new),
            is_exiled: false,
            is_planted: false,
            script: Vec::new(),
            plan,
        }
    }

    pub(super) fn say(&mut self, text: std::fmt::Arguments<'_>) {
        let line = text.to_string();
        for byte in line.bytes() {
            self.hash = Random::new(self.hash ^ u64::from(byte)).bits();
        }
        if let Some(trace) = &mut self.trace {
            let _ = writeln!(trace, "{:>9.3} s  {line}", self.now_ns as f64 / 1e9);
        }
    }

    pub(super) fn later(&mut self, after_ns: u64, event: Event) {
        self.serial += 1;
        self.queue.push(Reverse((self.now_ns + after_ns, self.serial, event)));
    }

    pub(super) fn fault(&mut self, name: &'static str) {
        *self.faults.entry(name).or_default() += 1;
    }

    pub(super) fn run(mut self) -> Result<Outcome, Box<Violation>> {
        match self.live() {
            Ok(()) => Ok(Outcome {
                seed: self.plan.seed,
                faults: self.faults,
                requests: self.requests,
                writes_acked: self.checker.acked(),
                reads: self.reads,
                trace_hash: self.hash,
                virtual_ms: self.now_ns / MS,
                trace: self.trace.unwrap_or_default(),
            }),
            Err(mut violation) => {
                violation.seed = self.plan.seed;
                violation.trace = self.trace.take().unwrap_or_default();
                for process in self.processes.values() {
                    violation.trace.push_str(&process.node.mesh.describe());
                }
                Err(violation)
            }
        }
    }

    fn live(&mut self) -> Result<(), Box<Violation>> {
        if self.script.is_empty() {
            self.begin_chaos();
        }
        self.pass_time()
    }

    fn begin_chaos(&mut self) {
        for host in 0..self.plan.hosts {
            let after = self.random.below(2_000) * MS;
            self.later(after, Event::Start { host, name: host });
        }
        self.later(500 * MS, Event::Request);
        self.later(1_500 * MS, Event::Fault);
        self.later(1_000 * MS, Event::Check);
        self.later(self.plan.chaos_ms * MS, Event::Heal);
        if let Some((_, from_ms)) = self.plan.exile {
            self.later(from_ms * MS, Event::Exile);
        }
    }

    fn pass_time(&mut self) -> Result<(), Box<Violation>> {
        let end_ms = self.plan.chaos_ms + self.plan.calm_ms;
        self.pass_until(end_ms * MS)?;
        let waits = |process: &Process| {
            let mesh = &process.node.mesh;
            mesh.with_members(|members| members.holds_unlisted(mesh.progress()))
        };
        // The floor waits for those whom nobody lists.
        if self.plan.is_long && self.processes.values().any(waits) {
            self.fault("unlisted");
            self.pass_until((end_ms + UNLISTED_MS + self.plan.calm_ms) * MS)?;
        }
        if !self.checker.at_the_end(&self.processes, self.wall_ms(0), self.plan.is_long)? {
            self.fault("split lineage");
            return Ok(());
        }
        self.deciding.all_equal(&self.processes, self.now_ns, &mut self.faults)
    }

    fn pass_until(&mut self, end_ns: u64) -> Result<(), Box<Violation>> {
        while self.queue.peek().is_some_and(|Reverse((at, ..))| *at <= end_ns) {
            let Some(Reverse((at, _, event))) = self.queue.pop() else { break };
            self.now_ns = self.now_ns.max(at);
            self.step(event)?;
        }
        self.now_ns = end_ns;
        Ok(())
    }

    pub(super) fn wall_ms(&self, skew_ms: i64) -> u64 {
        (WALL_START_MS + self.now_ns / MS).saturating_add_signed(skew_ms)
    }

    pub(super) fn now_of(&self, process: &Process) -> Now {
        // A monotonic clock of its own: it begins with the process.
        let wall_ms = self.wall_ms(process.skew_ms + process.jump_ms);
        let raw = Now { wall_ms, mono_ns: self.now_ns - process.boot_ns + 1 };
        let mut clock = process.clock.get();
        let now = clock.read(raw, &process.node.mesh);
        process.clock.set(clock);
        now
    }

    fn step(&mut self, event: Event) -> Result<(), Box<Violation>> {
        match event {
            Event::Tick { process, worker } => {
                let Some(known) = self.processes.get(&process) else { return Ok(()) };
                let is_paused = known.paused_until > self.now_ns;
                let mesh = &known.engines[worker].mesh;
                let rests =
                    self.plan.portions.rests && !is_paused && mesh.due_ns() > self.now_of(known).mono_ns;
                if rests && self.chaos && mesh.is_quiet() {
                    self.fault("rest");
                }
                if !is_paused && !rests {
                    self.turn(process, worker, true)?;
                }
                self.later(TICK_MS * MS, Event::Tick { process, worker });
            }
            Event::Deliver { conn, direction } => self.deliver(conn, direction)?,
            Event::Dialed { process, worker, link, address } => {
                self.dialed(process, worker, link, address)?
            }
            Event::Request => {
                if self.chaos {
                    self.request()?;
                    let mut after = self.random.between(1, 2 * self.plan.request_ms) * MS;
                    if self.plan.lulls && self.now_ns >= self.lull_ns {
                        after = self.random.between(1_000, LULL_MS) * MS;
                        self.lull_ns = self.now_ns + after + self.random.between(1, LULLS_APART_MS) * MS;
                        self.fault("lull");
                    }
                    self.later(after, Event::Request);
                }
            }
            Event::Fault => {
                if self.chaos {
                    self.make_fault();
                    let after = self.random.between(1, 2 * self.plan.fault_ms) * MS;
                    self.later(after, Event::Fault);
                }
            }
            Event::Heal => self.heal(),
            Event::Exile => self.exile(),
            Event::Scripted(number) => self.scripted(number)?,
            Event::Start { host, name } => self.start(host, name),
            Event::Check => {
                if !self.is_planted {
                    self.checker.during(&self.processes, self.cuts.any(), self.wall_ms(0))?;
                }
                self.deciding.note(&self.processes, self.now_ns)?;
                self.discover();
                self.later(250 * MS, Event::Check);
            }
        }
        Ok(())
    }

    /// One turn of a worker: time, what it wants to send, dial and close, and answers that may leave.
    pub(super) fn turn(&mut self, process: usize, worker: usize, ticks: bool) -> Result<(), Box<Violation>> {
        let Some(known) = self.processes.get(&process) else { return Ok(()) };
        let now = self.now_of(known);
        let Some(process_ref) = self.processes.get_mut(&process) else { return Ok(()) };
        if ticks && worker == 0 {
            let node = &process_ref.node;
            let floor = node.floor(now.wall_ms);
            node.store.maintain(now.wall_ms, floor, 64);
        }
        let (mesh, context) = process_ref.engines[worker].mesh_at(now);
        if ticks {
            mesh.tick(context);
        }
        for _ in 0..8 {
            if !mesh.pump(context) {
                break;
            }
        }
        let effects = mesh.take_effects();
        let mut writable = Vec::new();
        mesh.writable(&mut writable);
        let mut outputs = Vec::new();
        for link in writable {
            let bytes = mesh.output(link).to_vec();
            mesh.wrote(link, bytes.len());
            outputs.push((link, bytes));
        }
        let mut closes = Vec::new();
        for effect in effects {
            match effect {
                Effect::Dial { link, address } => {
                    let after = self.random.between(100_000, 3 * MS);
                    self.later(after, Event::Dialed { process, worker, link, address });
                }
                Effect::Close { link } => {
                    let Some(known) = self.processes.get_mut(&process) else { continue };
                    let (mesh, _) = known.engines[worker].mesh_at(now);
                    let last = mesh.output(link).to_vec();
                    mesh.forget_last_words(link);
                    closes.push((link, last));
                }
            }
        }
        let notes = self.processes.get(&process).map(|known| known.node.mesh.take_notes());
        for note in notes.into_iter().flatten() {
            self.say(format_args!("node    process {process}: {}", note.text));
        }
        for (link, bytes) in outputs {
            self.send(process, worker, link, bytes);
        }
        for (link, last) in closes {
            if !last.is_empty() {
                self.send(process, worker, link, last);
            }
            self.send(process, worker, link, Vec::new());
            if let Some(known) = self.processes.get_mut(&process) {
                known.links.remove(&(worker, link));
            }
        }
        if let Some(known) = self.processes.get(&process) {
            self.checker.may_be_ready(known, &self.processes, self.wall_ms(0))?;
        }
        self.release(process, worker)?;
        self.farewell(process)
    }

    /// Puts bytes on their way; none: the end of the connection.
    fn send(&mut self, process: usize, worker: usize, link: u64, bytes: Vec<u8>) {
        let Some(conn_id) = self.processes.get(&process).and_then(|p| p.links.get(&(worker, link)).copied())
        else {
            return;
        };
        let Some(conn) = self.conns.get_mut(&conn_id) else { return };
        let me = End { process, worker, link };
        let direction = usize::from(conn.ends[0] != me);
        if bytes.is_empty() {
            conn.over[direction] = true;
        }
        let delay = self.random.between(50_000, 2 * MS) + conn.slow_ms * MS;
        let pipe = &mut conn.pipes[direction];
        let arrival = (self.now_ns + delay).max(pipe.last_arrival);
        pipe.last_arrival = arrival;
        // In pieces, wherever they may be cut.
        if bytes.len() > 1 && self.random.chance(1, 4) {
            let cut = self.random.between(1, bytes.len() as u64 - 1) as usize;
            pipe.pieces.push_back((arrival, bytes[..cut].to_vec()));
            pipe.pieces.push_back((arrival, bytes[cut..].to_vec()));
        } else {
            pipe.pieces.push_back((arrival, bytes));
        }
        let after = arrival - self.now_ns;
        self.later(after, Event::Deliver { conn: conn_id, direction });
    }

    fn deliver(&mut self, conn_id: usize, direction: usize) -> Result<(), Box<Violation>> {
        let Some(conn) = self.conns.get_mut(&conn_id) else { return Ok(()) };
        let (from, to) = (conn.hosts[direction], conn.hosts[1 - direction]);
        let end = conn.ends[1 - direction];
        if conn.pipes[direction].pieces.front().is_none_or(|(arrival, _)| *arrival > self.now_ns) {
            return Ok(());
        }
        if self.cuts.blocks(from, to) {
            // Retransmitted until the cut heals or one side gives up.
            let since = *conn.blocked_since.get_or_insert(self.now_ns);
            if self.now_ns - since > 8_000 * MS {
                self.reset(conn_id);
                return Ok(());
            }
            let after = self.random.between(50, 200) * MS;
            self.later(after, Event::Deliver { conn: conn_id, direction });
            return Ok(());
        }
        conn.blocked_since = None;
        let Some(receiver) = self.processes.get(&end.process) else {
            self.reset(conn_id);
            return Ok(());
        };
        if receiver.paused_until > self.now_ns {
            let after = receiver.paused_until - self.now_ns;
            self.later(after, Event::Deliver { conn: conn_id, direction });
            return Ok(());
        }
        let now = self.now_of(receiver);
        let mut arrived = Vec::new();
        let mut is_over = false;
        if let Some(conn) = self.conns.get_mut(&conn_id) {
            let pipe = &mut conn.pipes[direction];
            while pipe.pieces.front().is_some_and(|(arrival, _)| *arrival <= self.now_ns) {
                let Some((_, piece)) = pipe.pieces.pop_front() else { break };
                is_over |= piece.is_empty();
                arrived.push(piece);
            }
        }
        let Some(receiver) = self.processes.get_mut(&end.process) else { return Ok(()) };
        if !receiver.links.contains_key(&(end.worker, end.link)) {
            return Ok(());
        }
        let (mesh, context) = receiver.engines[end.worker].mesh_at(now);
        mesh.begin(context);
        for piece in arrived.iter().filter(|piece| !piece.is_empty()) {
            mesh.received(end.link, piece, context);
        }
        if is_over {
            mesh.closed(end.link, context);
            receiver.links.remove(&(end.worker, end.link));
            if let Some(conn) = self.conns.get_mut(&conn_id) {
                conn.over[1 - direction] = true;
            }
        }
        self.turn(end.process, end.worker, false)
    }

    fn dialed(
        &mut self,
        process: usize,
        worker: usize,
        link: u64,
        address: SocketAddr,
    ) -> Result<(), Box<Violation>> {
        let Some(dialer) = self.processes.get(&process) else { return Ok(()) };
        let host = dialer.host;
        let now = self.now_of(dialer);
        let target_host = host_of(address);
        let cut = target_host.is_none_or(|to| self.cuts.blocks(host, to) || self.cuts.blocks(to, host));
        let target = self.processes.values().find(|p| Some(p.host) == target_host).map(|p| p.serial);
        let (Some(target), false) = (target, cut) else {
            if let Some(dialer) = self.processes.get_mut(&process) {
                let (mesh, context) = dialer.engines[worker].mesh_at(now);
                mesh.dial_failed(link, !cut, context);
            }
            return Ok(());
        };
        let acceptor = self.random.below(self.plan.workers as u64) as usize;
        let Some(accepting) = self.processes.get(&target) else { return Ok(()) };
        let accept_now = self.now_of(accepting);
        let Some(accepting) = self.processes.get_mut(&target) else { return Ok(()) };
        let (mesh, context) = accepting.engines[acceptor].mesh_at(accept_now);
        let accepted = mesh.accepted(self::address(host), context);
        let conn_id = self.next_conn;
        self.next_conn += 1;
        accepting.links.insert((acceptor, accepted), conn_id);
        let accepting_host = accepting.host;
        self.conns.insert(
            conn_id,
            Conn {
                ends: [
                    End { process, worker, link },
                    End { process: target, worker: acceptor, link: accepted },
                ],
                pipes: [Pipe::default(), Pipe::default()],
                hosts: [host, accepting_host],
                over: [false; 2],
                slow_ms: if self.chaos {
                    self.random.between(self.plan.latency_least_ms, self.plan.latency_ms)
                } else {
                    0
                },
                blocked_since: None,
            },
        );
        if let Some(dialer) = self.processes.get_mut(&process) {
            dialer.links.insert((worker, link), conn_id);
            let (mesh, context) = dialer.engines[worker].mesh_at(now);
            mesh.connected(link, context);
        }
        self.turn(process, worker, false)
    }

    /// A connection breaks: both ends hear of it, what was on its way is lost.
    pub(super) fn reset(&mut self, conn_id: usize) {
        let Some(conn) = self.conns.remove(&conn_id) else { return };
        for end in conn.ends {
            let Some(known) = self.processes.get(&end.process) else { continue };
            let now = self.now_of(known);
            let Some(known) = self.processes.get_mut(&end.process) else { continue };
            if known.links.remove(&(end.worker, end.link)).is_some() {
                let (mesh, context) = known.engines[end.worker].mesh_at(now);
                mesh.closed(end.link, context);
            }
        }
    }
}

pub(super) fn address(host: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host as u8 + 1], PEER_PORT))
}

fn host_of(address: SocketAddr) -> Option<usize> {
    match address {
        SocketAddr::V4(v4) => usize::from(v4.ip().octets()[3]).checked_sub(1),
        SocketAddr::V6(_) => None,
    }
}
