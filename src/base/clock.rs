//! Time as the rest of the code sees it: passed in, never read. Only drivers read the machine's clocks.

use super::version::Hlc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The two clocks of one moment, read once a turn by a driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the UNIX epoch: what stamps and expiry are made of. May jump.
    pub wall_ms: u64,
    /// Nanoseconds since an arbitrary start: what durations and timeouts are made of. Never goes back.
    pub mono_ns: u64,
}

/// A node's hybrid logical clock, shared by its workers. Each stamp is greater than all before it.
#[derive(Debug, Default)]
pub struct HybridClock {
    last: AtomicU64,
}

impl HybridClock {
    #[must_use]
    pub const fn new() -> HybridClock {
        HybridClock { last: AtomicU64::new(0) }
    }

    /// A stamp for a local write: greater than every stamp given or observed so far, greater than
    /// `above` (the version that the write replaces), and not behind the wall clock.
    #[inline]
    pub fn stamp(&self, wall_ms: u64, above: Hlc) -> Hlc {
        let least = Hlc::from_millis(wall_ms).0.max(above.0 + 1);
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            let next = least.max(last + 1);
            // Relaxed is enough: uniqueness and order come from the read-modify-write itself, and the
            // records are published by the stripe lock under which the stamp is taken.
            match self.last.compare_exchange_weak(last, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Hlc(next),
                Err(seen) => last = seen,
            }
        }
    }

    /// Makes every later stamp greater than `seen`.
    #[inline]
    pub fn observe(&self, seen: Hlc) {
        self.last.fetch_max(seen.0, Ordering::Relaxed);
    }

    /// The greatest stamp given or observed so far.
    #[must_use]
    pub fn latest(&self) -> Hlc {
        Hlc(self.last.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_grow_when_the_wall_clock_stands_still_or_goes_back() {
        let clock = HybridClock::new();
        let first = clock.stamp(1_000, Hlc::ZERO);
        let second = clock.stamp(1_000, Hlc::ZERO);
        let third = clock.stamp(10, Hlc::ZERO);
        assert!(first < second && second < third, "{first:?} {second:?} {third:?}");
        assert_eq!(first.millis(), 1_000);
    }

    #[test]
    fn a_stamp_is_greater_than_what_it_replaces_and_than_what_was_observed() {
        let clock = HybridClock::new();
        let replaced = Hlc::from_millis(5_000);
        assert!(clock.stamp(1_000, replaced) > replaced);
        let remote = Hlc::from_millis(9_000);
        clock.observe(remote);
        assert!(clock.stamp(1_000, Hlc::ZERO) > remote);
    }
}
