//! What one thread counts, and how threads are put together: histograms are added, percentiles never averaged.

use crate::workload::OPS;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// The longest time kept apart: 10 minutes; longer ones are counted there (the timeout is far below).
const LATENCY_MAX_NS: u64 = 600_000_000_000;

pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1000, LATENCY_MAX_NS, 3).expect("bounds are constants")
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    Connect,
    Timeout,
    Reset,
    Verify,
    Http(u16),
}

#[derive(Clone, Debug, Default)]
pub struct Errors {
    pub connect: u64,
    pub timeout: u64,
    pub reset: u64,
    pub verify: u64,
    pub http: BTreeMap<u16, u64>,
}

/// One second of the run.
#[derive(Clone)]
pub struct Interval {
    pub index: u64,
    pub failed: u64,
    pub response: Histogram<u64>,
}

#[derive(Clone)]
pub struct Stats {
    pub sent: u64,
    pub failed: u64,
    /// Requests in flight when the drain ended.
    pub unfinished: u64,
    /// Open loop: arrivals that came due but never met a free connection.
    pub late: u64,
    pub errors: Errors,
    /// By operation, from the intended send; closed loop: the same as `service`.
    pub response: [Histogram<u64>; OPS.len()],
    pub service: [Histogram<u64>; OPS.len()],
    pub failures: Histogram<u64>,
    /// Open loop: sends at most `TIMELY_NS` late while a connection was free.
    pub timely: u64,
    pub backlog_max: u64,
    pub reconnects: u64,
    pub cpu_user_ns: u64,
    pub cpu_sys_ns: u64,
    /// The busiest thread's CPU time over wall time.
    pub thread_util_max: f64,
    /// When the last counted answer came, from the start.
    pub end_ns: u64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            sent: 0,
            failed: 0,
            unfinished: 0,
            late: 0,
            errors: Errors::default(),
            response: std::array::from_fn(|_| histogram()),
            service: std::array::from_fn(|_| histogram()),
            failures: histogram(),
            timely: 0,
            backlog_max: 0,
            reconnects: 0,
            cpu_user_ns: 0,
            cpu_sys_ns: 0,
            thread_util_max: 0.0,
            end_ns: 0,
        }
    }
}

impl Stats {
    pub fn fail(&mut self, why: Failure, latency_ns: u64) {
        self.failed += 1;
        match why {
            Failure::Connect => self.errors.connect += 1,
            Failure::Timeout => self.errors.timeout += 1,
            Failure::Reset => self.errors.reset += 1,
            Failure::Verify => self.errors.verify += 1,
            Failure::Http(status) => *self.errors.http.entry(status).or_default() += 1,
        }
        self.failures.saturating_record(latency_ns.max(1));
    }

    pub fn ok(&self) -> u64 {
        self.service.iter().map(Histogram::len).sum()
    }

    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.failed += other.failed;
        self.unfinished += other.unfinished;
        self.late += other.late;
        self.errors.connect += other.errors.connect;
        self.errors.timeout += other.errors.timeout;
        self.errors.reset += other.errors.reset;
        self.errors.verify += other.errors.verify;
        for (status, n) in &other.errors.http {
            *self.errors.http.entry(*status).or_default() += n;
        }
        for (mine, theirs) in self.response.iter_mut().zip(&other.response) {
            mine.add(theirs).expect("same bounds");
        }
        for (mine, theirs) in self.service.iter_mut().zip(&other.service) {
            mine.add(theirs).expect("same bounds");
        }
        self.failures.add(&other.failures).expect("same bounds");
        self.timely += other.timely;
        self.backlog_max += other.backlog_max;
        self.reconnects += other.reconnects;
        self.cpu_user_ns += other.cpu_user_ns;
        self.cpu_sys_ns += other.cpu_sys_ns;
        self.thread_util_max = self.thread_util_max.max(other.thread_util_max);
        self.end_ns = self.end_ns.max(other.end_ns);
    }
}

pub fn all(of: &[Histogram<u64>]) -> Histogram<u64> {
    let mut sum = histogram();
    for one in of {
        sum.add(one).expect("same bounds");
    }
    sum
}
