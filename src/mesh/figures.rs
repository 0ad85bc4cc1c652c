//! What each worker publishes of its streams, for `/status` and `/metrics`: cells that one worker writes and
//! anybody reads. The lock is taken when members come and go and when somebody asks, never to send.

use crate::base::version::Incarnation;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One worker's stream to one member.
#[derive(Debug, Default)]
pub(super) struct Stream {
    sent_total: AtomicU64,
    sent: AtomicU64,
    /// The stream began anew behind this operation: what lies before is not its business.
    base: AtomicU64,
    pending_bytes: AtomicU64,
    room_bytes: AtomicU64,
}

impl Stream {
    /// So many operations were handed to the link. Only its worker calls this, and what follows.
    pub(super) fn count(&self, operations: u32) {
        let before = self.sent_total.load(Ordering::Relaxed);
        self.sent_total.store(before + u64::from(operations), Ordering::Relaxed);
    }

    pub(super) fn restarted(&self, base: u64) {
        self.base.store(base, Ordering::Relaxed);
    }

    pub(super) fn base(&self) -> u64 {
        self.base.load(Ordering::Relaxed)
    }

    /// Where it stands.
    pub(super) fn reached(&self, sent: u64) {
        self.sent.store(sent, Ordering::Relaxed);
    }

    /// `behind`: bytes of the log behind what the member holds, if they are all there; it keeps `kept` of `limit`.
    pub(super) fn lags(&self, behind: Option<u64>, kept: u64, limit: u64) {
        self.pending_bytes.store(behind.unwrap_or(kept), Ordering::Relaxed);
        let room = behind.map_or(0, |behind| limit.saturating_sub(behind));
        self.room_bytes.store(room, Ordering::Relaxed);
    }
}

/// What all workers together say of their streams to one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamSum {
    /// Operations that were sent, repeated ones counted again.
    pub sent_total: u64,
    /// The operations up to which it was sent everything, summed over the workers' numbers.
    pub sent: u64,
    /// Bytes of the logs that it has not acknowledged; at most a block (64 KiB) a worker too many.
    pub pending_bytes: u64,
    /// How much the log that is nearest to it may still grow before what it lacks falls off; 0: it has.
    pub room_bytes: u64,
}

/// All streams of a node.
#[derive(Debug, Default)]
pub(super) struct Figures(Mutex<BTreeMap<(Incarnation, usize), Arc<Stream>>>);

impl Figures {
    pub(super) fn open(&self, peer: Incarnation, worker: usize) -> Arc<Stream> {
        Arc::clone(self.0.lock().entry((peer, worker)).or_default())
    }

    pub(super) fn close(&self, peer: Incarnation, worker: usize) {
        self.0.lock().remove(&(peer, worker));
    }

    pub(super) fn sum(&self, peer: Incarnation) -> StreamSum {
        let streams = self.0.lock();
        let mut sum = StreamSum::default();
        let mut room = None;
        for (_, stream) in streams.range((peer, 0)..=(peer, usize::MAX)) {
            sum.sent_total += stream.sent_total.load(Ordering::Relaxed);
            sum.sent += stream.sent.load(Ordering::Relaxed);
            sum.pending_bytes += stream.pending_bytes.load(Ordering::Relaxed);
            let here = stream.room_bytes.load(Ordering::Relaxed);
            room = Some(room.map_or(here, |least: u64| least.min(here)));
        }
        sum.room_bytes = room.unwrap_or(0);
        sum
    }
}

/// Upper bounds of the buckets of round trips, in nanoseconds, with the `le` label in seconds.
pub const ROUND_TRIP_BOUNDS: [(u64, &str); 14] = [
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (250_000_000, "0.25"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1"),
    (5_000_000_000, "5"),
];

/// How long a member's answers took so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoundTrips {
    /// One count a bucket, not cumulative; the last one is beyond all bounds.
    pub buckets: [u64; ROUND_TRIP_BOUNDS.len() + 1],
    pub sum_ns: u64,
}

impl RoundTrips {
    pub(super) fn record(&mut self, round_trip_ns: u64) {
        let bucket = ROUND_TRIP_BOUNDS.iter().position(|(bound, _)| round_trip_ns <= *bound);
        self.buckets[bucket.unwrap_or(ROUND_TRIP_BOUNDS.len())] += 1;
        self.sum_ns = self.sum_ns.saturating_add(round_trip_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_summed_and_the_least_room_counts() {
        let figures = Figures::default();
        let (peer, other) = (Incarnation(7), Incarnation(8));
        for (worker, behind) in [(0, Some(100)), (1, Some(0)), (2, None)] {
            let stream = figures.open(peer, worker);
            stream.count(3);
            stream.count(2);
            stream.reached(10);
            stream.lags(behind, 400, 1000);
        }
        figures.open(other, 0).count(1);
        let all = StreamSum { sent_total: 15, sent: 30, pending_bytes: 500, room_bytes: 0 };
        assert_eq!(figures.sum(peer), all, "the third has lost what the peer needs");
        figures.close(peer, 2);
        let two = StreamSum { sent_total: 10, sent: 20, pending_bytes: 100, room_bytes: 900 };
        assert_eq!(figures.sum(peer), two);
        assert_eq!(figures.sum(Incarnation(9)), StreamSum::default());
        assert_eq!(figures.open(peer, 1).sent.load(Ordering::Relaxed), 10, "opened once");
    }

    #[test]
    fn a_round_trip_counts_in_its_bucket() {
        let mut trips = RoundTrips::default();
        for ns in [100_000, 100_001, 6_000_000_000] {
            trips.record(ns);
        }
        assert_eq!((trips.buckets[0], trips.buckets[1], trips.buckets[14]), (1, 1, 1));
        assert_eq!(trips.sum_ns, 6_000_200_001);
    }
}
