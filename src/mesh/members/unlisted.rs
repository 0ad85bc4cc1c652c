//! Writers whom no view lists.
//!
//! Two lifetimes of one name cannot be in one view. While both live, one member may have let in the one, and everybody else
//! the other, until one takes another name. If the one dies in that time, whoever has pulled from that member holds writes
//! of a lifetime that is neither a member nor removed. What is held of such a one is told, and pulled, like that of
//! anybody whose own stream does not come. Until it is decided what becomes of it nothing is stable.
//!
//! It may live, and would start over if it were removed. So that takes all members: for [`UNLISTED_MS`] each of them is
//! heard and reports the same view, and it has not said HELLO here. By then it would be a member under another name, had
//! it been there most of that time. Nothing is lost by the wait: a tombstone is kept for as long anyway.

use super::{Event, MS, Member, Members, Rules};
use crate::base::version::Incarnation;
use crate::limits::UNLISTED_MS;
use crate::mesh::Mutation;
use crate::mesh::progress::Progress;
use crate::mesh::view::Health;
use std::collections::BTreeMap;

/// For how long no member has listed them while all were heard, in nanoseconds.
pub(super) type Unlisted = BTreeMap<Incarnation, u64>;

impl Members {
    /// No member, nor removed or settled, nor known to be of another mesh.
    pub(super) fn is_unlisted(&self, writer: Incarnation) -> bool {
        writer != self.me.incarnation
            && !self.members.contains_key(&writer)
            && !self.removed.contains(&writer)
            && !self.settled.contains_key(&writer)
            && !self.strangers.contains(&writer)
    }

    /// Something is held of somebody who may be over or not.
    pub(crate) fn holds_unlisted(&self, progress: &Progress) -> bool {
        let mut origins = progress.all().into_iter().filter(|origin| self.is_unlisted(origin.incarnation));
        origins.any(|origin| !origin.vector().is_empty())
    }

    /// It says that it is there, whatever it was answered.
    pub(in crate::mesh) fn unlisted_lives(&mut self, writer: Incarnation) {
        self.unlisted.remove(&writer);
    }

    /// Removes those whom no member has listed for [`UNLISTED_MS`]; of whom nothing is held is not remembered. `awake_ns`:
    /// since the last time.
    pub(super) fn remove_unlisted(&mut self, progress: &Progress, rules: Rules, awake_ns: u64, now_ns: u64) {
        // Then no member lists anybody whom we do not.
        let can_tell = |member: &Member| member.health != Health::Down && !member.fenced;
        if !self.loaded || !self.is_agreed() || !self.members.values().all(can_tell) {
            return self.unlisted.clear();
        }
        let mut unlisted = progress.all();
        unlisted.retain(|origin| self.is_unlisted(origin.incarnation));
        self.unlisted.retain(|writer, _| unlisted.iter().any(|origin| origin.incarnation == *writer));
        let all_heard = self.members.values().all(|member| member.health == Health::Alive);
        let counted_ns = if all_heard { awake_ns } else { 0 };
        for origin in unlisted {
            let writer = origin.incarnation;
            let waited_ns = self.unlisted.entry(writer).or_default();
            *waited_ns += counted_ns;
            if *waited_ns < UNLISTED_MS * MS || rules.mutation == Mutation::UnlistedForgotten {
                continue;
            }
            self.unlisted.remove(&writer);
            if origin.vector().is_empty() {
                progress.forget(writer);
                continue;
            }
            let text = format!("mesh   {writer:?} has gone, whom no member knows");
            self.events.push(Event::Note { is_warning: false, text });
            self.beat_now = true;
            self.remove(writer, progress, now_ns);
        }
    }
}
