//! The backends and their states.
//!
//! ```text
//! NEW ──503──▶ WARMING ──pass──▶ UP ──3 failed checks, or 3 failed connections in 10 s──▶ DOWN
//!  └──────────pass──────────────▶ ▲ ◀──────────────2 passes───────────────────────────────┘
//! any ──stop signal, or vanished──▶ DRAINING ──▶ GONE        any ──▶ PAUSED, UNREACHABLE ──▶ NEW
//! ```
//!
//! Lists say what there is; events act at once on what is known and are never the last word: a later list
//! corrects what a lost, repeated or late event left wrong. A list that was asked for before an event must
//! not undo it, so each backend remembers when it was last acted upon.

use super::Jitter;
use super::pick::{Routes, Target};
use crate::limits::{
    CHECK_PERIOD_MS, CHECK_PERIOD_UNSETTLED_MS, FAILURES_TO_DOWN, PASSES_TO_UP, PASSIVE_WINDOW_MS,
    SIGNALLED_MS_MAX, STARTING_MS_MAX, VANISHED_MS_MAX,
};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

/// How health is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckMode {
    /// GET /healthcheck: 200 to 399 passes, 503 is warming.
    Http,
    /// A connection that opens passes.
    Tcp,
    /// What the engine says of the container's own health check.
    Docker,
    /// Everything is healthy until connections to it fail.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not checked yet.
    New,
    /// Answers that it is not ready.
    Warming,
    Up,
    Down,
    /// About to stop, or vanished: what is connected goes on, nothing new comes.
    Draining,
    Paused,
    /// There is no way to it; the reason says why.
    Unreachable,
}

impl State {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::New => "new",
            State::Warming => "warming",
            State::Up => "up",
            State::Down => "down",
            State::Draining => "draining",
            State::Paused => "paused",
            State::Unreachable => "unreachable",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Running,
    Paused,
}

/// The engine's own view of a container's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It has no health check.
    None,
    Starting,
    Healthy,
    Unhealthy,
}

/// One backend as a list has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub id: String,
    pub name: String,
    /// Where it is, or why there is no way to it.
    pub place: Result<SocketAddr, String>,
    pub condition: Condition,
    pub health: Health,
    /// When it was started, in seconds by the engine's clock, give or take one.
    pub started: Option<u64>,
}

/// What an event does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It got a stop signal, in nanoseconds by the engine's clock.
    StopSignal {
        time_ns: u64,
    },
    Die,
    Pause,
    Start,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Pass,
    /// It answers that it is not ready.
    Busy,
    Fail(String),
}

/// A check that is due. The slot names the backend at this address: answers for an older one do not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub slot: u64,
    pub address: SocketAddr,
}

/// One backend as others may see it.
#[derive(Debug)]
pub struct Backend {
    pub id: String,
    pub name: String,
    pub state: State,
    /// Why it is in this state.
    pub reason: String,
    /// Since when, in milliseconds.
    pub since_ms: u64,
    pub address: Option<SocketAddr>,
    /// The last check: when, and what it found.
    pub last_check: Option<(u64, String)>,
    slot: u64,
    /// When this life of it began, and whether it has been up in it.
    born_ms: u64,
    was_up: bool,
    passes: usize,
    fails: usize,
    /// Times of the last failed connections, oldest first.
    passive: Vec<u64>,
    check_next_ms: u64,
    checking: bool,
    /// When an event last acted on it.
    acted_ms: Option<u64>,
    /// The time of its stop signal, by the engine's clock; draining for that reason.
    signalled_ns: Option<u64>,
    vanished: bool,
    /// A list has confirmed it. Until then the name is kept: a list that is older than the news would bring
    /// the backend back as a new one.
    unlisted: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    mode: CheckMode,
    backends: BTreeMap<String, Backend>,
    next_slot: u64,
    jitter: Jitter,
    /// Changes whenever the routes may have changed.
    revision: u64,
    /// What is not listed does not run: its connections have nobody at the other end.
    vanishing_is_death: bool,
    /// Slots of what died, oldest first.
    dead: VecDeque<u64>,
}

/// Dead slots that are remembered: long enough for their connections to be found.
const DEAD_MAX: usize = 1024;

impl Pool {
    #[must_use]
    pub fn new(mode: CheckMode, seed: u64) -> Pool {
        Pool {
            mode,
            backends: BTreeMap::new(),
            next_slot: 1,
            jitter: Jitter::new(seed),
            revision: 0,
            vanishing_is_death: false,
            dead: VecDeque::new(),
        }
    }

    /// The lists are those of an engine: what they do not name is dead, not merely taken out of service.
    pub fn vanishing_is_death(&mut self) {
        self.vanishing_is_death = true;
    }

    /// Slots whose backends are dead, in order: connections to them must not be left hanging.
    #[must_use]
    pub fn dead(&self) -> Vec<u64> {
        let mut dead: Vec<u64> = self.dead.iter().copied().collect();
        dead.sort_unstable();
        dead
    }

    fn died(dead: &mut VecDeque<u64>, slot: u64) {
        dead.push_back(slot);
        if dead.len() > DEAD_MAX {
            dead.pop_front();
        }
    }

    /// All backends, ordered by id.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.backends.values()
    }

    /// Changes whenever [`Pool::routes`] may have changed.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Where new connections may go, best first.
    #[must_use]
    pub fn routes(&self) -> Routes {
        let of = |state: State| -> Vec<Target> {
            let some = self.backends.values().filter(|backend| backend.state == state);
            some.filter_map(|b| Some(Target { slot: b.slot, id: b.id.clone(), address: b.address? }))
                .collect()
        };
        Routes { tiers: [of(State::Up), of(State::Warming), of(State::Down)] }
    }

    /// Takes in a list that was asked for at `asked_ms`.
    pub fn sync(&mut self, now_ms: u64, asked_ms: u64, list: Vec<Listed>) {
        let older = |b: &Backend| b.acted_ms.is_some_and(|acted| acted >= asked_ms);
        for backend in self.backends.values_mut() {
            if older(backend) || list.iter().any(|listed| listed.id == backend.id) {
                continue;
            }
            backend.unlisted = true;
            if !backend.vanished {
                backend.vanished = true;
                let reason = "it is no longer listed";
                if self.vanishing_is_death {
                    Self::died(&mut self.dead, backend.slot);
                }
                Self::become_state(&mut self.revision, backend, now_ms, State::Draining, reason);
            }
        }
        for listed in list {
            match self.backends.get_mut(&listed.id) {
                Some(backend) if older(backend) => {}
                Some(_) => self.refresh(now_ms, &listed),
                None => self.insert(now_ms, &listed),
            }
        }
    }

    fn insert(&mut self, now_ms: u64, listed: &Listed) {
        let backend = Backend {
            id: listed.id.clone(),
            name: listed.name.clone(),
            state: State::Unreachable,
            reason: String::new(),
            since_ms: now_ms,
            address: None,
            last_check: None,
            slot: 0,
            born_ms: now_ms,
            was_up: false,
            passes: 0,
            fails: 0,
            passive: Vec::new(),
            check_next_ms: now_ms,
            checking: false,
            acted_ms: None,
            signalled_ns: None,
            vanished: false,
            unlisted: false,
        };
        self.backends.insert(listed.id.clone(), backend);
        self.begin(now_ms, listed);
    }

    /// What a list says of a backend that is known.
    fn refresh(&mut self, now_ms: u64, listed: &Listed) {
        let mode = self.mode;
        let Some(backend) = self.backends.get_mut(&listed.id) else { return };
        backend.name.clone_from(&listed.name);
        let restarted = backend.signalled_ns.is_some_and(|signalled| {
            // The start is known to a second; within that second in doubt it counts as later.
            listed.started.is_some_and(|started| (started + 1).saturating_mul(1_000_000_000) >= signalled)
                || now_ms.saturating_sub(backend.since_ms) >= SIGNALLED_MS_MAX
        });
        let afresh = match backend.state {
            State::Draining => backend.vanished || backend.signalled_ns.is_none() || restarted,
            State::Paused => listed.condition == Condition::Running,
            State::Unreachable => true,
            _ => false,
        };
        if afresh || listed.place.as_ref().ok() != backend.address.as_ref() {
            return self.begin(now_ms, listed);
        }
        if listed.condition == Condition::Paused && backend.state != State::Paused {
            return Self::become_state(&mut self.revision, backend, now_ms, State::Paused, "it is paused");
        }
        if mode == CheckMode::Docker && backend.state != State::Draining {
            let quarantined = backend.passive.len() >= FAILURES_TO_DOWN
                && backend
                    .passive
                    .last()
                    .is_some_and(|last| now_ms.saturating_sub(*last) < PASSIVE_WINDOW_MS);
            if !quarantined {
                Self::follow_engine(&mut self.revision, backend, now_ms, listed.health);
            }
        }
    }

    /// A backend that is new, or that nothing older is to be believed of.
    fn begin(&mut self, now_ms: u64, listed: &Listed) {
        let slot = self.next_slot;
        self.next_slot += 1;
        let Some(backend) = self.backends.get_mut(&listed.id) else { return };
        let unchanged =
            backend.state == State::Unreachable && listed.place.as_ref().err() == Some(&backend.reason);
        let address = listed.place.as_ref().ok();
        if self.vanishing_is_death && backend.address.is_some() && backend.address.as_ref() != address {
            Self::died(&mut self.dead, backend.slot);
        }
        backend.slot = slot;
        backend.born_ms = now_ms;
        backend.was_up = false;
        backend.address = listed.place.as_ref().ok().copied();
        backend.passes = 0;
        backend.fails = 0;
        backend.passive.clear();
        backend.checking = false;
        backend.check_next_ms = now_ms;
        backend.signalled_ns = None;
        backend.vanished = false;
        backend.unlisted = false;
        let (state, reason) = match (&listed.place, listed.condition) {
            (Err(_), _) if unchanged => return,
            (Err(reason), _) => (State::Unreachable, reason.as_str()),
            (Ok(_), Condition::Paused) => (State::Paused, "it is paused"),
            (Ok(_), Condition::Running) => (State::New, "not checked yet"),
        };
        Self::become_state(&mut self.revision, backend, now_ms, state, reason);
        if state == State::New {
            match self.mode {
                CheckMode::Off => {
                    Self::become_state(&mut self.revision, backend, now_ms, State::Up, "checks are off");
                }
                CheckMode::Docker => Self::follow_engine(&mut self.revision, backend, now_ms, listed.health),
                CheckMode::Http | CheckMode::Tcp => {}
            }
        }
    }

    fn follow_engine(revision: &mut u64, backend: &mut Backend, now_ms: u64, health: Health) {
        if matches!(backend.state, State::Paused | State::Unreachable | State::Draining) {
            return;
        }
        let (state, reason) = match health {
            Health::None => (State::Up, "it has no health check of its own"),
            Health::Healthy => (State::Up, "the engine says healthy"),
            Health::Starting => (State::Warming, "the engine says starting"),
            Health::Unhealthy => (State::Down, "the engine says unhealthy"),
        };
        if backend.state != state {
            Self::become_state(revision, backend, now_ms, state, reason);
        }
    }

    /// An event. What it is about may be unknown: then the list that it causes tells.
    pub fn act(&mut self, now_ms: u64, id: &str, act: Act) {
        let Some(backend) = self.backends.get_mut(id) else { return };
        backend.acted_ms = Some(now_ms);
        let (state, reason) = match act {
            Act::StopSignal { time_ns } => {
                if backend.signalled_ns.is_none() && !backend.vanished {
                    backend.signalled_ns = Some(time_ns);
                }
                (State::Draining, "it got a stop signal")
            }
            Act::Die => {
                if !backend.vanished {
                    Self::died(&mut self.dead, backend.slot);
                }
                backend.vanished = true;
                (State::Draining, "it died")
            }
            Act::Pause => (State::Paused, "it is paused"),
            Act::Start => {
                // The list that follows has its address.
                backend.signalled_ns = None;
                return;
            }
        };
        // A pause says nothing about what is stopping or gone.
        if backend.state == State::Draining && (state == State::Paused || !backend.vanished) {
            return;
        }
        if backend.state != state || backend.reason != reason {
            Self::become_state(&mut self.revision, backend, now_ms, state, reason);
        }
    }

    /// What a check found; unknown slots are those of backends that changed meanwhile.
    pub fn checked(&mut self, now_ms: u64, slot: u64, outcome: Outcome) {
        let Some(backend) = self.backends.values_mut().find(|backend| backend.slot == slot) else { return };
        backend.checking = false;
        if !matches!(backend.state, State::New | State::Warming | State::Up | State::Down) {
            return;
        }
        let text = match &outcome {
            Outcome::Pass => "passed",
            Outcome::Busy => "answers 503",
            Outcome::Fail(reason) => reason,
        };
        backend.last_check = Some((now_ms, text.to_owned()));
        let revision = &mut self.revision;
        match outcome {
            Outcome::Pass => {
                backend.fails = 0;
                backend.passes += 1;
                // One that has never been up is no suspect: it has only just started to listen.
                let suspect = backend.state == State::Down && backend.was_up;
                let enough = if suspect { PASSES_TO_UP } else { 1 };
                if backend.state != State::Up && backend.passes >= enough {
                    backend.passive.clear();
                    Self::become_state(revision, backend, now_ms, State::Up, "its check passed");
                }
            }
            Outcome::Busy => {
                backend.fails = 0;
                backend.passes = 0;
                if backend.state != State::Warming {
                    Self::become_state(revision, backend, now_ms, State::Warming, "answers 503: not ready");
                }
            }
            Outcome::Fail(reason) => {
                backend.passes = 0;
                backend.fails += 1;
                if backend.state != State::Down && backend.fails >= FAILURES_TO_DOWN {
                    Self::become_state(revision, backend, now_ms, State::Down, &reason);
                } else if backend.state == State::Down {
                    backend.reason = reason;
                }
            }
        }
        let period = if backend.is_unsettled(now_ms) { CHECK_PERIOD_UNSETTLED_MS } else { CHECK_PERIOD_MS };
        backend.check_next_ms = now_ms + self.jitter.around(period, 10);
    }

    /// A check that could not be made, for a reason that is not the backend's: it says nothing, and is made
    /// again in its turn.
    pub fn not_checked(&mut self, now_ms: u64, slot: u64, reason: &str) {
        let Some(backend) = self.backends.values_mut().find(|backend| backend.slot == slot) else { return };
        backend.checking = false;
        backend.last_check = Some((now_ms, format!("not made: {reason}")));
        backend.check_next_ms = now_ms + self.jitter.around(CHECK_PERIOD_UNSETTLED_MS, 10);
    }

    /// A connection to it failed before the first byte of an answer.
    pub fn connection_failed(&mut self, now_ms: u64, slot: u64, reason: &str) {
        let Some(backend) = self.backends.values_mut().find(|backend| backend.slot == slot) else { return };
        backend.passive.retain(|at| now_ms.saturating_sub(*at) < PASSIVE_WINDOW_MS);
        backend.passive.push(now_ms);
        if backend.passive.len() > FAILURES_TO_DOWN {
            backend.passive.remove(0);
        }
        if matches!(backend.state, State::Up | State::Warming | State::New) {
            // Look at once instead of in a second.
            backend.check_next_ms = now_ms;
            if backend.passive.len() >= FAILURES_TO_DOWN {
                backend.passes = 0;
                Self::become_state(&mut self.revision, backend, now_ms, State::Down, reason);
            }
        }
    }

    /// The checks that are due; each must be answered by [`Pool::checked`]. `active`: the connections that
    /// a backend, named by its id, still has.
    pub fn tick(&mut self, now_ms: u64, active: &dyn Fn(&str) -> usize) -> Vec<Check> {
        let before = self.backends.len();
        self.backends.retain(|id, backend| {
            let is_over = now_ms.saturating_sub(backend.since_ms) >= VANISHED_MS_MAX || active(id) == 0;
            !(backend.unlisted && is_over)
        });
        self.revision += u64::from(self.backends.len() != before);
        let mut checks = Vec::new();
        for backend in self.backends.values_mut() {
            let checkable = matches!(backend.state, State::New | State::Warming | State::Up | State::Down);
            let Some(address) = backend.address.filter(|_| checkable && backend.check_next_ms <= now_ms)
            else {
                continue;
            };
            match self.mode {
                CheckMode::Http | CheckMode::Tcp if !backend.checking => {
                    backend.checking = true;
                    checks.push(Check { slot: backend.slot, address });
                }
                // Nobody asks: after the window it may prove itself.
                CheckMode::Off if backend.state == State::Down => {
                    let last = backend.passive.last().copied().unwrap_or(backend.since_ms);
                    if now_ms >= last + PASSIVE_WINDOW_MS {
                        backend.passive.clear();
                        Self::become_state(&mut self.revision, backend, now_ms, State::Up, "checks are off");
                    } else {
                        backend.check_next_ms = last + PASSIVE_WINDOW_MS;
                    }
                }
                _ => {}
            }
        }
        checks
    }

    /// When [`Pool::tick`] has something to do, unless something happens before.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        let due = |b: &Backend| match b.state {
            State::New | State::Warming | State::Up | State::Down if !b.checking => match self.mode {
                CheckMode::Http | CheckMode::Tcp => Some(b.check_next_ms),
                CheckMode::Off if b.state == State::Down => Some(b.check_next_ms),
                CheckMode::Off | CheckMode::Docker => None,
            },
            _ => None,
        };
        self.backends.values().filter_map(due).min()
    }

    fn become_state(revision: &mut u64, backend: &mut Backend, now_ms: u64, state: State, reason: &str) {
        *revision += 1;
        backend.state = state;
        backend.was_up |= state == State::Up;
        reason.clone_into(&mut backend.reason);
        backend.since_ms = now_ms;
        backend.passes = 0;
        backend.fails = 0;
    }
}

impl Backend {
    /// Its next check should come soon.
    fn is_unsettled(&self, now_ms: u64) -> bool {
        match self.state {
            State::New | State::Warming => true,
            State::Up => self.fails > 0 || !self.passive.is_empty() && self.passes == 0,
            // Some take their time to start; as soon as they listen they should serve.
            State::Down if !self.was_up => now_ms.saturating_sub(self.born_ms) < STARTING_MS_MAX,
            State::Down => self.passes > 0,
            _ => false,
        }
    }

    #[must_use]
    pub fn slot(&self) -> u64 {
        self.slot
    }
}
