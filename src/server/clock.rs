//! Reads the machine's clocks; the only place that does.

use crate::base::clock::Now;
use crate::mesh::Mesh;
use crate::mesh::time::DriverClock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The machine's clocks. Each thread has its own copy, which remembers what it has believed so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct MachineClock {
    start: Instant,
    /// For tests: the wall clock is wrong by so many milliseconds from so long after the start on.
    wrong: (i64, Duration),
    believed: DriverClock,
}

impl MachineClock {
    /// `MESHKV_TEST_CLOCK` is `MS` or `MS@SECONDS`: a wrong wall clock, from the start or from then on.
    pub(super) fn new() -> MachineClock {
        let text = std::env::var("MESHKV_TEST_CLOCK").unwrap_or_default();
        let (ms, seconds) = text.split_once('@').unwrap_or((&text, "0"));
        let wrong = (ms.parse().unwrap_or(0), Duration::from_secs(seconds.parse().unwrap_or(0)));
        let mut clock =
            MachineClock { start: Instant::now(), wrong, believed: DriverClock::new(Now::default()) };
        clock.believed = DriverClock::new(clock.raw());
        clock
    }

    /// What the machine says.
    pub(super) fn raw(&self) -> Now {
        // A wall clock before 1970 counts as 1970: stamps then come from the hybrid clock's counter.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mono_ns = self.mono_ns();
        let wrong_ms = if u128::from(mono_ns) >= self.wrong.1.as_nanos() { self.wrong.0 } else { 0 };
        Now { wall_ms: (wall.as_millis() as u64).saturating_add_signed(wrong_ms), mono_ns }
    }

    /// What time it is, as far as the machine is believed.
    pub(super) fn now(&mut self, mesh: &Mesh) -> Now {
        self.believed.read(self.raw(), mesh)
    }

    pub(super) fn mono_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}
