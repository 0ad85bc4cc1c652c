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

/// A wall clock that does not follow jumps: as long as the machine's goes with the monotonic one it is
/// believed, and when it suddenly does not, time goes on as before until somebody says that it was right.
#[derive(Clone, Copy, Debug)]
pub struct SteadyWall {
    /// The last reading that was believed.
    anchor: Now,
    /// What the machine's clock is ahead of the one that is followed, in milliseconds; 0 if it is believed.
    ignored_ms: i64,
}

impl SteadyWall {
    /// A difference between the clocks of more than this is a jump, in milliseconds.
    pub const JUMP_MS: u64 = 500;

    /// The first reading is believed; there is nothing to hold against it.
    #[must_use]
    pub const fn new(first: Now) -> SteadyWall {
        SteadyWall { anchor: first, ignored_ms: 0 }
    }

    /// What time it is, given what the machine's clocks say.
    #[inline]
    pub fn read(&mut self, raw: Now) -> Now {
        let passed_ms = raw.mono_ns.saturating_sub(self.anchor.mono_ns) / 1_000_000;
        let expected = self.anchor.wall_ms.saturating_add(passed_ms);
        if raw.wall_ms.abs_diff(expected) <= SteadyWall::JUMP_MS {
            (self.anchor, self.ignored_ms) = (raw, 0);
            return raw;
        }
        self.ignored_ms = raw.wall_ms.wrapping_sub(expected).cast_signed();
        Now { wall_ms: expected, mono_ns: raw.mono_ns }
    }

    /// The jump that is being ignored, in milliseconds; 0 for none.
    #[must_use]
    pub const fn ignored_ms(&self) -> i64 {
        self.ignored_ms
    }

    /// The machine's clock was right: it is followed again.
    pub fn follow(&mut self, raw: Now) {
        *self = SteadyWall::new(raw);
    }
}

/// A node's hybrid logical clock, shared by its workers. Each stamp is greater than all before it, but for
/// [`HybridClock::restart_if_ahead`].
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

    /// For a new lifetime: begins anew if it is ahead of the wall clock by more than this, in milliseconds, since that was
    /// wrong once. What follows may be stamped before what has been.
    pub fn restart_if_ahead(&self, wall_ms: u64, by_ms: u64) {
        if self.latest().millis() > wall_ms.saturating_add(by_ms) {
            self.last.store(0, Ordering::Relaxed);
        }
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
    fn a_jump_is_ignored_until_it_is_taken_back_or_followed() {
        let now = |wall_ms, mono_ms: u64| Now { wall_ms, mono_ns: mono_ms * 1_000_000 };
        let mut wall = SteadyWall::new(now(10_000, 0));
        // A clock that is a little slow, over a long time, is no jump.
        assert_eq!(wall.read(now(10_900, 1_000)), now(10_900, 1_000));
        assert_eq!(wall.read(now(3_610_900, 1_000)), now(10_900, 1_000));
        assert_eq!(wall.ignored_ms(), 3_600_000);
        assert_eq!(wall.read(now(3_611_000, 1_100)), now(11_000, 1_100));
        assert_eq!(wall.read(now(11_200, 1_300)), now(11_200, 1_300));
        assert_eq!(wall.ignored_ms(), 0);
        assert_eq!(wall.read(now(1_200, 1_400)).wall_ms, 11_300);
        assert_eq!(wall.ignored_ms(), -10_100);
        wall.follow(now(1_200, 1_400));
        assert_eq!(wall.read(now(1_300, 1_500)), now(1_300, 1_500));
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
