//! A driver's clock: the machine's, as far as it can be believed.

use super::Mesh;
use crate::base::clock::{Now, SteadyWall};

/// What a driver of workers tells the time by. Each thread has its own.
#[derive(Clone, Copy, Debug)]
pub struct DriverClock {
    wall: SteadyWall,
    /// Jumps that the mesh has let us follow.
    followed: u64,
}

impl DriverClock {
    /// Begins with the machine's time.
    #[must_use]
    pub const fn new(first: Now) -> DriverClock {
        DriverClock { wall: SteadyWall::new(first), followed: 0 }
    }

    /// What time it is, given what the machine's clocks say. A jump of the wall clock is reported to the mesh
    /// and not followed before that says so.
    #[inline]
    pub fn read(&mut self, raw: Now, mesh: &Mesh) -> Now {
        let followed = mesh.jumps_followed();
        if followed != self.followed {
            self.followed = followed;
            self.wall.follow(raw);
        }
        let before_ms = self.wall.ignored_ms();
        let now = self.wall.read(raw);
        if self.wall.ignored_ms() != before_ms {
            mesh.clock_jumped(self.wall.ignored_ms());
        }
        now
    }
}
