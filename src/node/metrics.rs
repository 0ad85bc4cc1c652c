//! Counters. Each worker counts for itself in cells that only it writes; a scrape adds them up.
//!
//! Budget: a plain load and store per count, no locked instruction; latencies are counted once a turn
//! and route, not once a request.

use super::routes::Route;
use crate::http::error::Status;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with one writer. Readers may be a moment behind, never see a torn value.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Only the owning worker may call this.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Only the owning worker may call this.
    #[inline]
    pub fn sub(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(amount), Ordering::Relaxed);
    }

    /// Only the owning worker may call this.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the latency buckets, in nanoseconds, with the `le` label in seconds.
pub const DURATION_BOUNDS: [(u64, &str); 16] = [
    (2_500, "0.0000025"),
    (5_000, "0.000005"),
    (10_000, "0.00001"),
    (25_000, "0.000025"),
    (50_000, "0.00005"),
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (1_000_000_000, "1"),
    (10_000_000_000, "10"),
];

/// Durations of one route: from the moment its turn had read it to the moment its answer was ready.
#[derive(Debug, Default)]
pub struct DurationCells {
    /// One count a bucket, not cumulative; the last one is beyond all bounds.
    pub buckets: [Cell; DURATION_BOUNDS.len() + 1],
    pub sum_ns: Cell,
}

/// One worker's counters.
#[derive(Debug, Default)]
pub struct WorkerMetrics {
    pub commands: [[Cell; Status::COUNT]; Route::COUNT],
    pub durations: [DurationCells; Route::COUNT],
    pub connections: Cell,
    pub connections_total: Cell,
    pub connections_rejected_total: Cell,
    pub read_bytes_total: Cell,
    pub written_bytes_total: Cell,
    /// What its replication log keeps.
    pub log_bytes: Cell,
}

impl WorkerMetrics {
    /// Counts `requests` of a route that were all served in one turn of this length.
    pub fn record_duration(&self, route: Route, requests: u64, duration_ns: u64) {
        let cells = &self.durations[route as usize];
        let bucket = DURATION_BOUNDS.iter().position(|(bound, _)| duration_ns <= *bound);
        cells.buckets[bucket.unwrap_or(DURATION_BOUNDS.len())].add(requests);
        cells.sum_ns.add(duration_ns.saturating_mul(requests));
    }
}

/// What the system says about this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessFacts {
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub open_descriptors: u64,
    pub max_descriptors: u64,
    /// Seconds since the UNIX epoch.
    pub start_seconds: f64,
    pub threads: u64,
}
