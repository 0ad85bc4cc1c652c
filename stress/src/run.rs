//! One run: the connections are opened, the threads start together, their counts are put together.
//!
//! Exactly so many requests are begun as were asked for: threads take request numbers from one counter, and
//! a request that fails is counted, never repeated.

use crate::arrival::Arrival;
use crate::intervals::{Second, Seconds};
use crate::stats::{Interval, Stats};
use crate::target::Target;
use crate::worker::Worker;
use crate::workload::Workload;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How closely answers are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Status 200 and the right body.
    Body,
    /// Status 200.
    Status,
    /// Any status below 400.
    None,
}

/// An open loop.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Requests a second of all threads together.
    pub rate: f64,
    pub arrival: Arrival,
}

/// What all threads of a run share.
pub struct Plan {
    pub targets: Vec<Target>,
    pub workload: Workload,
    /// Requests to send; `None`: until the duration is over.
    pub requests: Option<u64>,
    /// Without the warm-up.
    pub duration: Option<Duration>,
    pub warmup: Duration,
    pub pace: Option<Pace>,
    pub connections: usize,
    pub threads: usize,
    pub pipeline: usize,
    pub timeout: Duration,
    pub verify: Verify,
    pub seed: u64,
    /// For the original tool's lines: a message at every thousandth answer.
    pub tell_thousands: bool,
}

/// What threads write while they run.
pub(crate) struct Shared<'p> {
    pub(crate) plan: &'p Plan,
    /// Set before the threads start: all connections are open then.
    pub(crate) origin: Instant,
    /// The next request's number, and in the warm-up.
    next: AtomicU64,
    next_warm: AtomicU64,
    /// Stop sending: somebody pressed Ctrl-C.
    pub(crate) stop: AtomicBool,
    /// Answers so far, right and wrong, one pair a thread.
    pub(crate) shown: Vec<Shown>,
    /// With `tell_thousands`: errors above, successes below, so that one addition reads both as they were.
    thousands: AtomicU64,
}

/// Alone on its cache lines: each is written by one thread after every turn.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Shown {
    pub(crate) ok: AtomicU64,
    pub(crate) failed: AtomicU64,
}

pub(crate) enum Message {
    /// A second is over on a thread.
    Interval(Box<Interval>),
    Thousand(Thousand),
}

/// How far the run was when another thousand was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thousand {
    pub left: u64,
    pub errors: u64,
    pub success: u64,
}

/// What can be shown while a run is going on.
pub enum Progress {
    /// Called about ten times a second.
    Tick {
        ok: u64,
        failed: u64,
        elapsed: Duration,
    },
    Thousand(Thousand),
}

/// A number of the block that a thread has taken from the common counter.
#[derive(Default)]
pub(crate) struct Block {
    next: u64,
    end: u64,
}

impl Shared<'_> {
    /// Takes the number of a request that will be begun; `None`: all have been taken.
    pub(crate) fn take(&self, block: &mut Block, warm: bool) -> Option<u64> {
        if warm {
            return Some(self.next_warm.fetch_add(1, Ordering::Relaxed));
        }
        if block.next == block.end {
            // Large blocks keep the counter's cache line at rest; at the end and in an open loop threads share evenly.
            let most = self.plan.requests.unwrap_or(u64::MAX);
            let size = match self.plan.pace {
                Some(_) => 1,
                None => (most / (self.plan.threads as u64 * 64)).clamp(1, 64),
            };
            block.next = self.next.fetch_add(size, Ordering::Relaxed).min(most);
            block.end = most.min(block.next.saturating_add(size));
        }
        (block.next < block.end).then(|| {
            block.next += 1;
            block.next - 1
        })
    }

    /// Counts an answer for the original tool's lines.
    pub(crate) fn thousandth(&self, failed: bool) -> Option<Thousand> {
        let add = if failed { 1 << 32 } else { 1 };
        let now = self.thousands.fetch_add(add, Ordering::Relaxed) + add;
        let (errors, success) = (now >> 32, now & u64::from(u32::MAX));
        let left = self.plan.requests?.checked_sub(errors + success)?;
        (left.is_multiple_of(1000)).then_some(Thousand { left, errors, success })
    }
}

/// A finished run.
pub struct Outcome {
    pub stats: Stats,
    pub seconds: Vec<Second>,
    /// Somebody pressed Ctrl-C.
    pub interrupted: bool,
}

impl Outcome {
    /// The time that rates are computed over: the duration if one was asked for and lived through.
    pub fn elapsed_ns(&self, plan: &Plan) -> u64 {
        match plan.duration {
            Some(duration) if !self.interrupted && self.stats.gave_up == 0 => duration.as_nanos() as u64,
            _ => self.stats.end_ns.max(1),
        }
    }
}

/// Carries out `plan`. `interrupted` is looked at all the time.
///
/// # Errors
/// A connection could not be opened, or a thread not be started: nothing was sent then.
pub fn run(
    plan: &Plan,
    interrupted: &AtomicBool,
    mut progress: impl FnMut(Progress),
) -> Result<Outcome, String> {
    let streams = connect(plan)?;
    let (sender, receiver) = channel();
    let mut shared = Shared {
        plan,
        origin: Instant::now(),
        next: AtomicU64::new(0),
        next_warm: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        shown: (0..plan.threads).map(|_| Shown::default()).collect(),
        thousands: AtomicU64::new(0),
    };
    let workers = workers(plan, streams, &sender)?;
    drop(sender);
    shared.origin = Instant::now();
    let shared = &shared;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            workers.into_iter().map(|worker| scope.spawn(move || worker.run(shared))).collect();
        let seconds = watch(shared, &receiver, interrupted, &mut progress);
        let mut stats = Stats::default();
        for thread in threads {
            stats.add(&thread.join().map_err(|_| "a thread panicked; this is a bug".to_owned())?);
        }
        Ok(Outcome { stats, seconds, interrupted: interrupted.load(Ordering::Relaxed) })
    })
}

/// All connections are open before the clock starts; one that cannot be opened is an error.
fn connect(plan: &Plan) -> Result<Vec<std::net::TcpStream>, String> {
    (0..plan.connections)
        .map(|number| {
            let target = &plan.targets[number % plan.targets.len()];
            std::net::TcpStream::connect_timeout(&target.addr, plan.timeout)
                .and_then(|stream| {
                    stream.set_nodelay(true)?;
                    stream.set_nonblocking(true)?;
                    Ok(stream)
                })
                .map_err(|error| format!("cannot connect to {}: {error}", target.url))
        })
        .collect()
}

fn workers(
    plan: &Plan,
    streams: Vec<std::net::TcpStream>,
    sender: &Sender<Message>,
) -> Result<Vec<Worker>, String> {
    let mut parts: Vec<Vec<_>> = (0..plan.threads).map(|_| Vec::new()).collect();
    // In turn, so that every thread has connections to every target.
    for (number, stream) in streams.into_iter().enumerate() {
        let thread = number / plan.targets.len() % plan.threads;
        parts[thread].push((number % plan.targets.len(), stream));
    }
    // More threads than rounds of targets leave some without a connection.
    parts.retain(|part| !part.is_empty());
    let threads = parts.len();
    parts
        .into_iter()
        .enumerate()
        .map(|(number, part)| {
            Worker::new(plan, number, threads, part, sender.clone())
                .map_err(|error| format!("no event queue: {error}"))
        })
        .collect()
}

fn watch(
    shared: &Shared<'_>,
    receiver: &Receiver<Message>,
    interrupted: &AtomicBool,
    progress: &mut impl FnMut(Progress),
) -> Vec<Second> {
    let mut seconds = Seconds::default();
    let mut ticked = Instant::now();
    loop {
        match receiver.recv_timeout(Duration::from_millis(20)) {
            Ok(Message::Interval(part)) => seconds.add(*part),
            Ok(Message::Thousand(thousand)) => progress(Progress::Thousand(thousand)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return seconds.finish(),
        }
        if interrupted.load(Ordering::Relaxed) {
            shared.stop.store(true, Ordering::Relaxed);
        }
        if ticked.elapsed() >= Duration::from_millis(100) {
            ticked = Instant::now();
            let sum = |of: fn(&Shown) -> &AtomicU64| {
                shared.shown.iter().map(|shown| of(shown).load(Ordering::Relaxed)).sum()
            };
            let (ok, failed) = (sum(|shown| &shown.ok), sum(|shown| &shown.failed));
            progress(Progress::Tick { ok, failed, elapsed: shared.origin.elapsed() });
        }
    }
}
