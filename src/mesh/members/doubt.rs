//! What was taken although others may have decided without it.
//!
//! `claim.rs` holds back what may lie below a floor that others have made of this node's word. Two floors it cannot know of:
//! one that somebody has copied from a member that is gone since, before this node heard of either; and, as long as this
//! node copies itself, that of its donor, while it takes what others write. So the stamps of what is taken of somebody at or
//! below this node's word are kept; it said that when it had everything of everybody whom it knew, so that these are a
//! stranger's. If a member turns up whose floor is beyond them, and who lacks them, this node starts over (scenarios "a floor
//! that was copied", "taken while it copied"). They are past doubt when a floor of the present view is: then everybody holds
//! them.

use super::{Members, Rules};
use crate::base::version::Hlc;
use crate::mesh::Mutation;
use crate::mesh::progress::{Origin, Progress};
use crate::peer::frame::{OriginVector, PullBegin};

impl Members {
    /// What is stamped at or below this is taken in doubt, if it is news; of members' own streams while this node copies: all.
    #[must_use]
    pub(in crate::mesh) fn doubted_upto(&self) -> Hlc {
        if self.loaded { self.greatest_stable } else { Hlc(u64::MAX) }
    }

    /// A member has decided without something that was taken here.
    pub(super) fn has_taken_too_late(&self, progress: &Progress, rules: Rules) -> bool {
        let is_decided = |origin: &Origin, (first, last): (Hlc, Hlc)| {
            let others = self.members.iter().filter(|(inc, _)| **inc != origin.incarnation);
            let mut reports = others.filter_map(|(_, member)| member.report.as_ref());
            reports.any(|report| {
                // Below its floor and beyond what it holds completely; who lags only has decided nothing of that.
                let lacks = |theirs: &OriginVector| {
                    theirs.closed() < last.min(report.floor) && origin.vector().is_ahead(theirs)
                };
                let is_told = !report.settled.contains(&origin.incarnation)
                    && !report.is_cut_before(origin.incarnation);
                let theirs = report.vectors.get(&origin.incarnation);
                report.floor >= first && is_told && theirs.is_none_or(lacks)
            })
        };
        // Of somebody unlisted others may not have heard yet.
        let is_ours = |origin: &Origin| {
            let incarnation = origin.incarnation;
            let is_open = self.removed.contains(&incarnation) && !origin.is_settled();
            self.members.contains_key(&incarnation) || is_open
        };
        self.loaded
            && !is_forgotten(rules.mutation)
            && progress.all().iter().any(|origin| {
                is_ours(origin) && origin.doubted().is_some_and(|doubt| is_decided(origin, doubt))
            })
    }

    /// The present view has agreed on a floor.
    pub(super) fn trust_what_is_decided(&self, progress: &Progress) {
        for origin in progress.all() {
            origin.judge(|doubt| Some(doubt).filter(|(_, last)| *last > self.floor));
        }
    }

    /// A copy is complete. What others wrote meanwhile was taken as it came: doubted is what its donor did not hold when it
    /// gave its word. False if that is below its floor.
    pub(super) fn judge_what_came_meanwhile(
        &self,
        begin: &PullBegin,
        progress: &Progress,
        mutation: Mutation,
    ) -> bool {
        let mut is_fine = true;
        for origin in progress.all() {
            let donors = begin.vectors.iter().find(|vector| vector.origin == origin.incarnation);
            let closed = donors.map_or(Hlc::ZERO, OriginVector::closed);
            origin.judge(|(first, last)| {
                let last = last.min(begin.stable);
                is_fine &= first > begin.floor || closed >= last.min(begin.floor);
                Some((first, last)).filter(|_| first <= last && closed < last)
            });
        }
        is_fine || mutation == Mutation::DoubtsForgotten
    }
}

/// Whether this rule is switched off: also where another is for which it would make up.
fn is_forgotten(mutation: Mutation) -> bool {
    use Mutation::{ClaimsForgotten, DoubtsForgotten, PullsNeverWait};
    matches!(mutation, ClaimsForgotten | DoubtsForgotten | PullsNeverWait)
}
