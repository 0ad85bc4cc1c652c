//! Writers whom no view lists.
//!
//! Two lifetimes of one name cannot be in one view. While both live, one member may have let in the one, and everybody else
//! the other, until one takes another name. If the one dies in that time, whoever has pulled from that member holds writes
//! of a lifetime that is neither a member nor removed. What is held of such a one is told, and pulled, like that of
//! anybody whose own stream does not come. Once no member of the view lists it, and it has not been met for as long as a
//! member is silent before it is down, it counts as removed, as a restart removes whoever is down and has its name. Until
//! then nothing is stable (scenario "a namesake that one member knew").

use super::{MS, Members};
use crate::base::version::Incarnation;
use crate::limits::DOWN_MS;
use crate::mesh::Mutation;
use crate::mesh::progress::Progress;
use std::collections::BTreeMap;

/// Since when no member lists them.
pub(super) type Unlisted = BTreeMap<Incarnation, u64>;

impl Members {
    /// No member, nor removed, nor known to be of another mesh.
    pub(super) fn is_unlisted(&self, writer: Incarnation) -> bool {
        writer != self.me.incarnation
            && !self.members.contains_key(&writer)
            && !self.removed.contains(&writer)
            && !self.strangers.contains(&writer)
    }

    /// Something is held of somebody who may be over or not.
    pub(super) fn holds_unlisted(&self, progress: &Progress) -> bool {
        let mut origins = progress.all().into_iter().filter(|origin| self.is_unlisted(origin.incarnation));
        origins.any(|origin| !origin.vector().is_empty())
    }

    /// Removes those whom no member has listed for [`DOWN_MS`]; of whom nothing is held is not remembered.
    pub(super) fn remove_unlisted(&mut self, progress: &Progress, mutation: Mutation, now_ns: u64) {
        if !self.loaded || mutation == Mutation::UnlistedForgotten {
            return;
        }
        let may_list = |writer: &Incarnation| {
            let mut members = self.members.values();
            members.any(|m| m.report.as_ref().is_none_or(|report| report.members.contains(writer)))
        };
        let mut unlisted = progress.all();
        unlisted.retain(|origin| self.is_unlisted(origin.incarnation) && !may_list(&origin.incarnation));
        let mut since = std::mem::take(&mut self.unlisted);
        since.retain(|writer, _| unlisted.iter().any(|origin| origin.incarnation == *writer));
        for origin in unlisted {
            let writer = origin.incarnation;
            if now_ns < since.entry(writer).or_insert(now_ns).saturating_add(DOWN_MS * MS) {
                continue;
            }
            since.remove(&writer);
            if origin.vector().is_empty() {
                progress.forget(writer);
            } else {
                self.remove(writer, progress, now_ns);
            }
        }
        self.unlisted = since;
    }
}
