//! Whether this node's clock can be believed: by what the members' clocks say.

use super::{MS, Member, Members};
use crate::limits::CLOCK_SKEW_MS;
use crate::mesh::view::Health;

impl Members {
    /// Most of the members that are alive, this node counted among those that agree with it, have another
    /// time than it by more than [`CLOCK_SKEW_MS`]. A node alone, or one of two, is never wrong.
    pub(in crate::mesh) fn is_skewed(&self) -> bool {
        let (alive, agree) = self.clocks_at(0);
        (alive - agree) * 2 > alive + 1
    }

    /// Our own clock has jumped by so much, which was ignored: most members have the time that it has now.
    pub(in crate::mesh) fn confirm_jump(&self, jump_ms: i64) -> bool {
        self.clocks_at(jump_ms).1 * 2 > self.members.len()
    }

    /// How many members are alive and have told their time, and for how many of them it is ours plus `ahead_ms`.
    fn clocks_at(&self, ahead_ms: i64) -> (usize, usize) {
        let told = |m: &&Member| m.health == Health::Alive && m.echo.is_some() && !m.fenced;
        let agrees = |m: &&Member| {
            // Half a round trip is what the measurement leaves open.
            m.clock_offset_ms.abs_diff(ahead_ms) <= CLOCK_SKEW_MS + m.round_trip_ns / MS / 2
        };
        let told: Vec<&Member> = self.members.values().filter(told).collect();
        (told.len(), told.iter().filter(|member| agrees(member)).count())
    }
}
