//! Goal: whatever happens to the events (lost, repeated, late, in any order, a stream that ends), what is
//! routable equals what the engine lists within 5 s. Method: an engine and its containers in virtual time,
//! random histories by seed, discovery and pool driven as the driver does it.

use super::Jitter;
use super::discovery::{Ask, Discovery};
use super::pool::*;
use crate::limits::LIST_PERIOD_MS;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The longest that the engine of these tests takes for an answer, and a backend for a check.
const ANSWER_MS: u64 = 300;
const CHECK_MS: u64 = 50;
/// The longest that an event is on its way.
const EVENT_LATE_MS: u64 = 3_000;

#[derive(Clone)]
struct Container {
    address: SocketAddr,
    running: bool,
    paused: bool,
    started_ms: u64,
    /// Dies at this time, after its stop signal.
    stops_ms: Option<u64>,
}

enum Arrival {
    Event { id: String, act: Option<Act> },
    List { asked: u64, list: Option<Vec<Listed>> },
    Check { slot: u64, address: SocketAddr },
    Version,
    StreamOpen,
    StreamEnd,
}

struct World {
    random: Jitter,
    now: u64,
    containers: BTreeMap<String, Container>,
    next_address: u16,
    arrivals: BTreeMap<(u64, u64), Arrival>,
    serial: u64,
    discovery: Discovery,
    pool: Pool,
    /// Faults of the engine are over.
    calm: bool,
    dropped: usize,
    late: usize,
    restarts: usize,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            random: Jitter::new(seed),
            now: 100_000,
            containers: BTreeMap::new(),
            next_address: 1,
            arrivals: BTreeMap::new(),
            serial: 0,
            discovery: Discovery::new(100_000, seed),
            pool: Pool::new(CheckMode::Http, seed),
            calm: false,
            dropped: 0,
            late: 0,
            restarts: 0,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.next() % bound
    }

    fn arrive(&mut self, after: u64, arrival: Arrival) {
        self.serial += 1;
        self.arrivals.insert((self.now + after, self.serial), arrival);
    }

    fn address(&mut self) -> SocketAddr {
        self.next_address += 1;
        ([10, 0, (self.next_address >> 8) as u8, self.next_address as u8], 80).into()
    }

    /// An event happens; it may reach the balancer, once or twice, now or later.
    fn emit(&mut self, id: &str, act: Option<Act>) {
        if !self.discovery.has_stream() || self.below(10) < 3 {
            self.dropped += 1;
            return;
        }
        for _ in 0..1 + self.below(8) / 7 {
            let late = if self.below(3) == 0 { self.below(EVENT_LATE_MS) } else { self.below(5) };
            self.late += usize::from(late > 100);
            self.arrive(late, Arrival::Event { id: id.to_owned(), act });
        }
    }

    fn something_happens(&mut self) {
        let id = format!("c{}", self.below(5));
        let kind = self.below(7);
        let fresh = self.address();
        let now = self.now;
        let time_ns = now * 1_000_000;
        let container = self.containers.entry(id.clone()).or_insert(Container {
            address: fresh,
            running: false,
            paused: false,
            started_ms: now,
            stops_ms: None,
        });
        match kind {
            0 | 1 if !container.running => {
                if kind == 1 {
                    container.address = fresh;
                }
                container.running = true;
                container.paused = false;
                container.started_ms = now;
                self.emit(&id, Some(Act::Start));
            }
            2 if container.running && container.stops_ms.is_none() => {
                let at = now + self.below(3000);
                self.containers.get_mut(&id).expect("there").stops_ms = Some(at);
                self.emit(&id, Some(Act::StopSignal { time_ns }));
            }
            3 if container.running => {
                container.running = false;
                container.stops_ms = None;
                self.emit(&id, Some(Act::StopSignal { time_ns }));
                self.emit(&id, Some(Act::Die));
                if self.below(2) == 0 {
                    self.restarts += 1;
                    let container = self.containers.get_mut(&id).expect("there");
                    container.running = true;
                    container.started_ms = now;
                    self.emit(&id, Some(Act::Start));
                }
            }
            4 if container.running && !container.paused => {
                container.paused = true;
                self.emit(&id, Some(Act::Pause));
            }
            5 if container.paused => {
                container.paused = false;
                self.emit(&id, Some(Act::Start));
            }
            6 if self.discovery.has_stream() && self.below(4) == 0 => self.arrive(0, Arrival::StreamEnd),
            _ => {}
        }
    }

    fn list(&self) -> Vec<Listed> {
        let running = self.containers.iter().filter(|(_, container)| container.running);
        let listed = running.map(|(id, container)| Listed {
            id: id.clone(),
            name: id.clone(),
            place: Ok(container.address),
            condition: if container.paused { Condition::Paused } else { Condition::Running },
            health: Health::None,
            // As the list shows it: the time of the list and the age, each cut to whole seconds.
            started: Some(self.now / 1000 - (self.now - container.started_ms) / 1000),
        });
        listed.collect()
    }

    fn step(&mut self) {
        let due: Vec<String> = self
            .containers
            .iter()
            .filter(|(_, container)| container.stops_ms.is_some_and(|at| at <= self.now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            let container = self.containers.get_mut(&id).expect("there");
            container.running = false;
            container.stops_ms = None;
            self.emit(&id, Some(Act::Die));
        }
        while let Some(entry) = self.arrivals.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let arrival = entry.remove();
            self.receive(arrival);
        }
        for ask in self.discovery.due(self.now) {
            let after = 1 + self.below(ANSWER_MS);
            let fails = !self.calm && self.below(8) == 0;
            match ask {
                Ask::Version => self.arrive(after, Arrival::Version),
                Ask::Events if fails => self.arrive(after, Arrival::StreamEnd),
                Ask::Events => self.arrive(after, Arrival::StreamOpen),
                Ask::List => {
                    // What it says is as old as its question.
                    let list = if fails { None } else { Some(self.list()) };
                    self.arrive(after, Arrival::List { asked: self.now, list });
                }
            }
        }
        for check in self.pool.tick(self.now, &|_| 0) {
            let after = 1 + self.below(CHECK_MS);
            self.arrive(after, Arrival::Check { slot: check.slot, address: check.address });
        }
        self.now += 1;
    }

    fn receive(&mut self, arrival: Arrival) {
        let now = self.now;
        match arrival {
            Arrival::Event { id, act } => {
                if let Some(act) = act {
                    self.pool.act(now, &id, act);
                }
                self.discovery.event(now);
            }
            Arrival::List { asked, list: Some(list) } => {
                self.discovery.listed(now);
                self.pool.sync(now, asked, list);
            }
            Arrival::List { list: None, .. } => self.discovery.list_failed(now),
            Arrival::Check { slot, address } => {
                let mut there = self.containers.values().filter(|c| c.running && !c.paused);
                let outcome = match there.any(|container| container.address == address) {
                    true => Outcome::Pass,
                    false => Outcome::Fail("refused".to_owned()),
                };
                self.pool.checked(now, slot, outcome);
            }
            Arrival::Version => self.discovery.version_agreed(now),
            Arrival::StreamOpen => self.discovery.stream_opened(now),
            Arrival::StreamEnd => self.discovery.stream_closed(now),
        }
    }

    fn routable(&self) -> Vec<(String, SocketAddr)> {
        let routes = self.pool.routes();
        let mut all: Vec<_> =
            routes.tiers.into_iter().flatten().map(|target| (target.id, target.address)).collect();
        all.sort();
        all
    }

    fn running(&self) -> Vec<(String, SocketAddr)> {
        let usable = self.containers.iter().filter(|(_, c)| c.running && !c.paused);
        usable.map(|(id, container)| (id.clone(), container.address)).collect()
    }
}

#[test]
fn after_any_loss_the_routable_set_equals_the_list_within_five_seconds() {
    let seed = std::env::var("MESHKV_SEED").ok().map(|text| text.parse().expect("a number"));
    let (mut dropped, mut late, mut restarts) = (0, 0, 0);
    for run in 0..300 {
        let seed = seed.unwrap_or(run);
        let mut world = World::new(seed);
        for _ in 0..20_000 {
            if world.below(150) == 0 {
                world.something_happens();
            }
            world.step();
        }
        // Nothing happens any more, beside what is on its way.
        world.calm = true;
        for _ in 0..EVENT_LATE_MS {
            world.step();
        }
        // A list, its answer, and a check of what it brought.
        for _ in 0..LIST_PERIOD_MS + 2 * ANSWER_MS + 2 * CHECK_MS {
            world.step();
        }
        assert_eq!(world.routable(), world.running(), "replay with MESHKV_SEED={seed}");
        dropped += world.dropped;
        late += world.late;
        restarts += world.restarts;
    }
    // A run in which nothing was lost, late or restarted would have shown nothing.
    assert!(dropped > 1000 && late > 1000 && restarts > 300, "{dropped} {late} {restarts}");
}

#[test]
fn the_same_seed_makes_the_same_history() {
    let trace = |seed| {
        let mut world = World::new(seed);
        for _ in 0..5_000 {
            if world.below(150) == 0 {
                world.something_happens();
            }
            world.step();
        }
        (world.pool.revision(), world.serial, world.routable())
    };
    assert_eq!(trace(3), trace(3));
    assert_ne!(trace(3), trace(4));
}
