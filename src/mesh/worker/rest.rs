//! How long a worker may sleep. Idle cores are dear to wake, so a worker of a mesh in which nothing happens ticks only when
//! its next mark or beat is due, and marks less often. Whatever came or was logged since the last tick, and whatever is
//! under way, has it tick as often as ever: nothing waits for longer than [`REST_MS`] but marks.

use super::outbound::Outbound;
use super::{MS, Role, Worker};
use crate::limits::{MARK_MS, MARK_QUIET_MS};
use crate::mesh::view::Health;
use crate::peer::frame::Frame;
use std::sync::atomic::Ordering;

/// Between two ticks while something is under way, at most, in milliseconds.
const BUSY_MS: u64 = 20;
/// The same while nothing is: what other workers have published is taken up within this.
const REST_MS: u64 = 100;
/// Ticks are at least this far apart, in milliseconds: a driver may not look sooner.
const APART_MS: u64 = 10;
/// Nothing must have happened for so long, in milliseconds.
const QUIET_MS: u64 = 1_000;

/// See the module. Times are of the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Rest {
    ticked_ns: u64,
    /// When something happened last that the worker itself has seen.
    stirred_ns: u64,
    /// The end of the log and the version of the view at the last tick.
    head: u64,
    view: u64,
    is_quiet: bool,
    /// The next tick is due; 0: after the usual pause.
    until_ns: u64,
}

impl Rest {
    /// Something has come that the next tick may have to act on.
    pub(super) fn disturb(&mut self) {
        self.until_ns = 0;
    }

    /// Something has come of the kind that is followed by more.
    pub(super) fn stir(&mut self, now_ns: u64) {
        self.until_ns = 0;
        self.stirred_ns = now_ns;
    }

    /// A frame has come. A mark only moves the floor, which takes its time anyway, and who rests is ready, so that an echo
    /// decides nothing; beats and comparisons come all the time.
    pub(super) fn hear(&mut self, frame: &Frame<'_>, now_ns: u64) {
        match frame {
            Frame::Mark { .. } | Frame::Echo(_) => {}
            Frame::Beat(_) | Frame::DigestAsk(_) | Frame::Digest(_) => self.disturb(),
            _ => self.stir(now_ns),
        }
    }

    /// After so many milliseconds the next mark is due.
    pub(super) fn mark_ms(&self) -> u64 {
        if self.is_quiet { MARK_QUIET_MS } else { MARK_MS }
    }
}

impl Worker {
    /// When [`Worker::tick`] is due, by the monotonic clock. To be asked anew after whatever else was called.
    #[must_use]
    pub fn due_ns(&self) -> u64 {
        let rest = &self.rest;
        if rest.until_ns != 0 && rest.head == self.log.head() {
            return rest.until_ns;
        }
        let is_alone = !self.logging && self.is_ready();
        rest.ticked_ns + if is_alone { REST_MS } else { BUSY_MS } * MS
    }

    /// Nothing was under way at the last tick.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.rest.is_quiet
    }

    /// A tick begins: whether nothing has happened for a while, and nothing is under way.
    pub(super) fn look_for_quiet(&mut self, now_ns: u64) {
        let seen = (self.log.head(), self.view_version);
        if seen != (self.rest.head, self.rest.view) {
            self.rest.stir(now_ns);
        }
        (self.rest.head, self.rest.view) = seen;
        (self.rest.ticked_ns, self.rest.until_ns) = (now_ns, 0);
        self.rest.is_quiet = now_ns >= self.rest.stirred_ns + QUIET_MS * MS && self.is_settled();
    }

    /// And ends: until when the worker may sleep.
    pub(super) fn lie_down(&mut self, now_ns: u64) {
        // What this tick has begun counts.
        if self.rest.is_quiet && self.is_settled() {
            let mark_ns = self.mark_ns + self.rest.mark_ms() * MS;
            let next_ns = if self.index == 0 { mark_ns.min(self.beat_ns) } else { mark_ns };
            self.rest.until_ns = next_ns.clamp(now_ns + APART_MS * MS, now_ns + REST_MS * MS);
        }
    }

    /// All serve, are heard and linked, and neither copy nor comparison is under way.
    fn is_settled(&self) -> bool {
        let is_linked = |slot: &super::Slot| match &slot.role {
            Role::Out(Outbound { cursor, said_lineage, .. }) => cursor.is_some() && *said_lineage,
            Role::In(inbound) => !inbound.is_half_open() && inbound.is_at_rest(),
        };
        self.mesh.config.portions.rests
            && self.logging
            && self.is_ready()
            && self.view_version == self.mesh.view_version.load(Ordering::Acquire)
            && !self.mesh.leaving.load(Ordering::Acquire)
            && self.pulling.is_none()
            && self.comparing.is_none()
            && self.seeds.values().all(|seed| seed.link.is_none())
            && self.targets.values().all(|t| t.link.is_some() && t.counted && t.health == Health::Alive)
            && self.slots.values().all(is_linked)
    }
}
