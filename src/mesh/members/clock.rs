//! Whether this node's clock can be believed: by what the members' clocks say.

use super::{MS, Member, Members};
use crate::limits::{CLOCK_SKEW_MS, DOWN_MS, STAMP_AHEAD_MS};
use crate::mesh::view::Health;

impl Member {
    /// Its clock is so far from ours that one takes nothing of what the other writes.
    pub(super) fn is_far(&self) -> bool {
        self.echo.is_some() && self.clock_offset_ms.unsigned_abs() > STAMP_AHEAD_MS
    }
}

impl Members {
    /// Most of the members that have told their time, this node counted among those that agree with it, have another
    /// time than it by more than [`CLOCK_SKEW_MS`]. A node alone, or one of two, is never wrong.
    pub(in crate::mesh) fn is_skewed(&self) -> bool {
        let (alive, agree) = self.clocks_at(0, false);
        (alive - agree) * 2 > alive + 1
    }

    /// The members' clocks are known, and for at least as many of them as not one takes what the other writes. Whoever
    /// joins with a time of its own would hold up everybody's writes.
    pub(super) fn can_follow(&self) -> bool {
        let all_told = self.members.values().all(|m| m.health == Health::Down || m.echo.is_some());
        all_told && !self.is_far_from_most()
    }

    /// See [`Member::is_far`].
    pub(super) fn is_far_from_most(&self) -> bool {
        let told = || self.members.values().filter(|m| m.echo.is_some() && !m.fenced);
        told().filter(|m| m.is_far()).count() * 2 > told().count()
    }

    /// Our own clock has jumped by so much, which was ignored: most members have the time that it has now, or would have
    /// it if they followed a jump that they ignore as well. That happens to all who share a machine that slept; nobody
    /// else is there to say that it was right. Not if it went back by much: what was stamped before would be ahead of
    /// everybody's clock, and refused by all.
    pub(in crate::mesh) fn confirm_jump(&self, jump_ms: i64) -> bool {
        let all_jumped = jump_ms > -(STAMP_AHEAD_MS.cast_signed() / 2);
        self.clocks_at(jump_ms, all_jumped).1 * 2 > self.members.len()
    }

    /// How many members have told their time of late, and for how many of them it is ours plus `ahead_ms`, or is with the
    /// jump that they ignore. Whether they are heard is another matter: of those whose clock is far ahead of ours we
    /// refuse to hear.
    fn clocks_at(&self, ahead_ms: i64, or_with_jump: bool) -> (usize, usize) {
        let now_ns = self.last_tick_ns;
        let told = |m: &&Member| m.echo.is_some() && now_ns < m.echoed_ns + DOWN_MS * MS && !m.fenced;
        let agrees = |m: &&Member| {
            // Half a round trip is what the measurement leaves open.
            let is_near =
                |offset_ms: i64| offset_ms.abs_diff(ahead_ms) <= CLOCK_SKEW_MS + m.round_trip_ns / MS / 2;
            let jump_ms = m.echo.as_ref().map_or(0, |echo| echo.jump_ms);
            is_near(m.clock_offset_ms) || or_with_jump && is_near(m.clock_offset_ms.saturating_add(jump_ms))
        };
        let told: Vec<&Member> = self.members.values().filter(told).collect();
        (told.len(), told.iter().filter(|member| agrees(member)).count())
    }
}
