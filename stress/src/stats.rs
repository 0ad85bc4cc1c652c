//! What one thread counts, and how threads are put together: histograms are added, percentiles never averaged.

use crate::workload::OPS;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// The longest time kept apart: 10 minutes; longer ones are counted there (the timeout is far below).
const LATENCY_MAX_NS: u64 = 600_000_000_000;

/// Nanoseconds with three digits, so that a bucket is at most 0.1 % wide.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("bounds are constants")
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

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    pub connect: u64,
    pub timeout: u64,
    pub reset: u64,
    pub verify: u64,
    pub http: BTreeMap<u16, u64>,
}

/// What ended in one second of the run, on one thread.
#[derive(Clone)]
pub struct Interval {
    /// Seconds since the warm-up.
    pub index: u64,
    pub failed: u64,
    /// The clock that counts: from the intended send in an open loop, from the real one in a closed loop.
    pub latency: Histogram<u64>,
}

impl Interval {
    pub fn new(index: u64) -> Self {
        Self { index, failed: 0, latency: histogram() }
    }
}

#[derive(Clone)]
pub struct Stats {
    /// Requests that were begun: `ok + failed + unfinished`.
    pub sent: u64,
    pub failed: u64,
    /// In flight at the end and not answered in the drain.
    pub unfinished: u64,
    /// Open loop: arrivals that came due and were never sent.
    pub late: u64,
    /// Those of them that a free connection could have taken: the client's own fault.
    pub late_client: u64,
    pub errors: Errors,
    /// By operation, from the intended send; empty in a closed loop.
    pub response: [Histogram<u64>; OPS.len()],
    /// By operation, from the real send.
    pub service: [Histogram<u64>; OPS.len()],
    pub failures: Histogram<u64>,
    /// Verified answers that came before the deadline; without one, all of them.
    pub ok_in_window: u64,
    /// Open loop: sends at most `TIMELY_NS` late, counted from when a connection was free.
    pub timely: u64,
    /// Open loop: the most arrivals that waited for a connection on one thread.
    pub backlog_max: u64,
    pub reconnects: u64,
    /// Threads that found no server for as long as the timeout and sent no more.
    pub gave_up: u64,
    pub cpu_user_ns: u64,
    pub cpu_sys_ns: u64,
    /// The busiest thread's CPU time over wall time.
    pub thread_util_max: f64,
    /// The same of threads that ran for long enough to be judged by it.
    pub judged_util_max: f64,
    /// When the last counted answer came, from the end of the warm-up.
    pub end_ns: u64,
}

/// A thread that ran for less is not judged by what it used of a core: the beginning of a run, when all connections
/// send at once and code is called for the first time, keeps any client busy.
pub const JUDGED_NS: u64 = 100_000_000;

impl Default for Stats {
    fn default() -> Self {
        Self {
            sent: 0,
            failed: 0,
            unfinished: 0,
            late: 0,
            late_client: 0,
            errors: Errors::default(),
            response: std::array::from_fn(|_| histogram()),
            service: std::array::from_fn(|_| histogram()),
            failures: histogram(),
            ok_in_window: 0,
            timely: 0,
            backlog_max: 0,
            reconnects: 0,
            gave_up: 0,
            cpu_user_ns: 0,
            cpu_sys_ns: 0,
            thread_util_max: 0.0,
            judged_util_max: 0.0,
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

    /// What a thread used of a core, user and system, and how long it ran.
    pub fn thread_used(&mut self, (user_ns, sys_ns): (u64, u64), wall_ns: u64) {
        (self.cpu_user_ns, self.cpu_sys_ns) = (user_ns, sys_ns);
        // Two clocks: they may differ by what lies between their readings.
        self.thread_util_max = ((user_ns + sys_ns) as f64 / wall_ns.max(1) as f64).min(1.0);
        if wall_ns >= JUDGED_NS {
            self.judged_util_max = self.thread_util_max;
        }
    }

    pub fn ok(&self) -> u64 {
        self.service.iter().map(Histogram::len).sum()
    }

    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.failed += other.failed;
        self.unfinished += other.unfinished;
        self.late += other.late;
        self.late_client += other.late_client;
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
        self.ok_in_window += other.ok_in_window;
        self.timely += other.timely;
        self.backlog_max = self.backlog_max.max(other.backlog_max);
        self.reconnects += other.reconnects;
        self.gave_up += other.gave_up;
        self.cpu_user_ns += other.cpu_user_ns;
        self.cpu_sys_ns += other.cpu_sys_ns;
        self.thread_util_max = self.thread_util_max.max(other.thread_util_max);
        self.judged_util_max = self.judged_util_max.max(other.judged_util_max);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Threads together are what one thread would have counted, and maxima are not sums.
    #[test]
    fn adding_loses_nothing() {
        let (mut left, mut right, mut both) = (Stats::default(), Stats::default(), Stats::default());
        for n in 1..=1000u64 {
            let part = if n % 3 == 0 { &mut left } else { &mut right };
            for stats in [part, &mut both] {
                stats.sent += 1;
                stats.service[(n % 4) as usize].record(n * n * 1000).unwrap();
                if n % 7 == 0 {
                    stats.fail(Failure::Http(500 + (n % 2) as u16), n);
                }
            }
        }
        (left.backlog_max, right.backlog_max) = (7, 5);
        (left.thread_util_max, right.thread_util_max) = (0.2, 0.5);
        left.add(&right);
        assert_eq!(left.service, both.service);
        assert_eq!(left.failures, both.failures);
        assert_eq!(left.errors, both.errors);
        assert_eq!((left.sent, left.failed, left.ok()), (both.sent, both.failed, both.ok()));
        assert_eq!((left.backlog_max, left.thread_util_max), (7, 0.5));
    }
}
