//! The tombstone floor, the peace with those who have gone, and the forgetting of those who stay away.
//!
//! `stable` is what this node holds completely, from every member of its view; it is published only while
//! nothing of a former member is missing anywhere. The floor is the least of all members' `stable`, and
//! advances only while all of them report the same view. A view change freezes it by itself.

use super::{Event, MS, Member, Members, Rules};
use crate::base::version::{Hlc, Incarnation};
use crate::limits::{REMOVED_GOSSIP_MAX, VECTORS_MAX};
use crate::mesh::Mutation;
use crate::mesh::progress::Progress;
use crate::mesh::view::Health;
use crate::peer::frame::{Openness, OriginVector, Phase};
use std::collections::BTreeSet;

/// Why a node starts over, and why another takes nothing more of it.
pub(in crate::mesh) const SETTLED_WITHOUT: &str =
    "it holds writes of a former member that the others have settled without";
/// Settled origins that one member is reminded of at a time.
const ASKED_MAX: usize = 16;

impl Members {
    /// A floor is never beyond what any member of the view has said to hold completely. One that is beyond
    /// anything that this node, or the one that it was copied from, ever said was made without it: what was
    /// removed below it may be here still, and its tombstone collected.
    pub(super) fn is_left_behind(&self, rules: Rules) -> bool {
        let highest = self.reports().map(|report| report.floor).max().unwrap_or(Hlc::ZERO);
        let stays = rules.mutation == Mutation::LeftBehindStays;
        self.loaded && !stays && highest > self.greatest_stable
    }

    /// Sees to it that of former members everybody holds the same, and then forgets how much that was.
    ///
    /// In two steps: an origin is *settled* when every member has reported the same of it under the present
    /// view; it is forgotten when everybody says that it is settled. Who is past the first step knows that
    /// a report which does not name it any more comes from somebody who is past the second.
    ///
    /// Who came later and asks about an origin that was settled before is told how much that was. It settles
    /// it as well once it holds the same: less is pulled, as always. More means that its copy is that of the
    /// one who has gone, or of somebody whom the others did not know when they settled; what it alone holds
    /// may lie below their floor by now, so it starts over.
    ///
    /// Who has no copy yet knows nothing of those who went before: it settles nothing, and is not asked.
    pub(super) fn reconcile(&mut self, progress: &Progress, rules: Rules) {
        let hash = self.view_hash();
        let mut asked_settled = BTreeSet::new();
        for report in self.reports() {
            let open = report.vectors.keys().filter(|origin| !report.settled.contains(origin));
            let asked = open.filter(|origin| self.settled.contains_key(origin));
            asked_settled.extend(asked.take(ASKED_MAX));
        }
        self.asked_settled = asked_settled;
        for origin in progress.all() {
            let gone = origin.incarnation;
            if !self.loaded || self.members.contains_key(&gone) || !self.removed.contains(&gone) {
                continue;
            }
            origin.end();
            let ours = origin.vector();
            let mut reports = self.members.values().map(|member| member.report.as_ref());
            if !origin.is_settled() {
                let same = reports.all(|report| {
                    report.is_some_and(|report| {
                        let theirs = report.vectors.get(&gone);
                        report.view_hash == hash && theirs.is_some_and(|theirs| theirs.is_same(&ours))
                    })
                });
                let told = self.reports().filter(|report| report.settled.contains(&gone));
                let told: Vec<&OriginVector> = told.filter_map(|report| report.vectors.get(&gone)).collect();
                if told.iter().any(|theirs| ours.is_ahead(theirs)) {
                    self.events.push(Event::Rebirth { reason: SETTLED_WITHOUT });
                    return;
                }
                let told_same = told.iter().any(|theirs| theirs.is_same(&ours));
                if same || told_same || rules.mutation == Mutation::NoReconciliation {
                    origin.settle();
                    self.settled.insert(gone, OriginVector { openness: Openness::Settled, ..ours });
                    self.beat_now = true;
                }
                continue;
            }
            let all_know = reports.all(|report| {
                report.is_some_and(|report| {
                    let silent = !report.vectors.contains_key(&gone) && !report.is_cut_before(gone);
                    silent || report.settled.contains(&gone)
                })
            });
            if all_know || rules.mutation == Mutation::NoReconciliation {
                progress.forget(gone);
                // Everything it wrote was seen before this.
                self.retired.push((gone, rules.latest));
            }
        }
    }

    /// What is held of the members and, oldest first and no more than a frame has room for, of those who
    /// have gone, or whom nobody lists.
    pub(in crate::mesh) fn vectors(&self, progress: &Progress) -> Vec<OriginVector> {
        let mut gone = 0;
        let mut vectors = progress.vectors();
        vectors.retain(|vector| {
            if self.members.contains_key(&vector.origin) {
                return true;
            }
            let is_told = self.removed.contains(&vector.origin)
                || (self.is_unlisted(vector.origin) && !vector.is_empty());
            gone += usize::from(is_told);
            is_told && gone <= REMOVED_GOSSIP_MAX - 2
        });
        // What was settled is told on until a floor has passed it, for those who are met before that and were no part of it.
        let retired = self.retired.iter().map(|(origin, _)| origin);
        let retired = retired.filter(|origin| !self.asked_settled.contains(origin));
        // First those that somebody waits for.
        let settled = self.asked_settled.iter().chain(retired);
        let settled = settled.filter(|origin| progress.get(**origin).is_none());
        // The sender's own comes to it.
        let room = (VECTORS_MAX - 1).saturating_sub(vectors.len());
        vectors.extend(settled.filter_map(|origin| self.settled.get(origin).cloned()).take(room));
        vectors
    }

    /// The lifetimes to name as over: those that somebody's report still names, or that are open here and somebody's does
    /// not, the oldest first, and then the latest. Whoever was away while more ended than a beat can name learns of them
    /// by and by.
    pub(super) fn removed_to_tell(&self, progress: &Progress) -> Vec<Incarnation> {
        let named = self.reports().flat_map(|report| {
            report.vectors.keys().filter(|origin| !report.settled.contains(origin)).copied()
        });
        let open = progress.all().into_iter().filter(|origin| !origin.is_settled()).map(|o| o.incarnation);
        let open = open.filter(|origin| self.reports().any(|report| !report.vectors.contains_key(origin)));
        let told: BTreeSet<_> = named.chain(open).filter(|origin| self.removed.contains(origin)).collect();
        let mut told: Vec<_> = told.into_iter().take(REMOVED_GOSSIP_MAX / 2).collect();
        let latest = self.removed_order.iter().rev().filter(|origin| !told.contains(origin));
        let latest: Vec<_> = latest.take(REMOVED_GOSSIP_MAX - told.len()).copied().collect();
        told.extend(latest);
        told
    }

    /// Something of a former member may still be missing somewhere.
    fn is_unreconciled(&self, progress: &Progress) -> bool {
        let gone = |incarnation| self.removed.contains(&incarnation);
        progress.all().iter().any(|origin| gone(origin.incarnation) && !origin.is_settled())
            || self.holds_unlisted(progress)
    }

    pub(super) fn advance_floor(&mut self, progress: &Progress, own_closed: Hlc, rules: Rules) {
        self.stable = Hlc::ZERO;
        if self.phase != Phase::Ready || self.is_unreconciled(progress) {
            return;
        }
        // Marks may come before the first beat; that one's floor is to be held against what was stable without them.
        if self.members.values().any(|member| member.report.is_none() && member.health != Health::Down) {
            return;
        }
        let closed = |inc: &Incarnation| progress.get(*inc).map_or(Hlc::ZERO, |origin| origin.closed());
        let stable = self.members.keys().map(closed).min().unwrap_or(own_closed).min(own_closed);
        self.stable = stable;
        self.promise(stable);
        let agreed = self.is_agreed();
        if agreed {
            self.agreed = self.members.keys().copied().chain([self.me.incarnation]).collect();
        }
        if rules.mutation == Mutation::FloorWithoutOthers {
            self.floor = self.floor.max(stable);
        }
        let ignores_views = rules.mutation == Mutation::FloorIgnoresViews;
        if !agreed && !ignores_views {
            return;
        }
        let reported = self.members.values().map(|m| m.report.as_ref().map_or(Hlc::ZERO, |r| r.stable));
        let least = match ignores_views {
            false => reported.min().unwrap_or(stable),
            true => reported.filter(|stable| *stable > Hlc::ZERO).min().unwrap_or(stable),
        };
        self.floor = self.floor.max(least.min(stable));
        if agreed {
            self.trust_what_is_decided(progress);
        }
    }

    /// Whether this member, or we, will take nothing from that one any more: has fenced it, or does not know it, as one of
    /// another mesh is not known. Who is new and has not heard of it yet is not part of a view that was agreed on.
    fn has_fenced(&self, voter: Incarnation, absent: Incarnation) -> bool {
        if voter == self.me.incarnation {
            return self.members.get(&absent).is_some_and(|member| member.fenced);
        }
        let report = self.members.get(&voter).and_then(|member| member.report.as_ref());
        report.is_some_and(|r| r.fences.contains(&absent) || !r.members.contains(&absent))
    }

    /// How many of the members that have a `vote`, and we, have fenced this one, as far as is known.
    pub(super) fn votes_against(&self, absent: Incarnation, vote: impl Fn(&&Member) -> bool) -> usize {
        let others = self.members.values().filter(vote).map(|member| member.info.incarnation);
        let all = others.chain([self.me.incarnation]);
        all.filter(|voter| *voter != absent && self.has_fenced(*voter, absent)).count()
    }

    /// Fences members that stay away too long, and removes those that a majority has fenced.
    pub(super) fn fence_the_absent(&mut self, progress: &Progress, rules: Rules, now_ns: u64) {
        for member in self.members.values_mut() {
            let away_ms = now_ns.saturating_sub(member.down_ns) / MS;
            if member.health == Health::Down && !member.fenced && away_ms >= rules.forget_ms {
                member.fenced = true;
                self.beat_now = true;
                self.dirty = true;
                // Irrevocable here: even if it comes back, nothing is taken from this lifetime any more.
                progress.ensure(member.info.incarnation, usize::from(member.info.workers)).end();
            }
        }
        let fenced: Vec<Incarnation> =
            self.members.values().filter(|m| m.fenced).map(|m| m.info.incarnation).collect();
        for absent in fenced {
            let current: BTreeSet<_> = self.members.keys().copied().chain([self.me.incarnation]).collect();
            let has_fenced = |voter: &Incarnation| self.has_fenced(*voter, absent);
            // Jointly: of the members as now seen and of those who last agreed on their view.
            let agreed = if self.agreed.is_empty() { &current } else { &self.agreed };
            let alone = rules.mutation == Mutation::ForgetsWithoutMajority;
            if alone || is_majority(&current, has_fenced) && is_majority(agreed, has_fenced) {
                self.forgotten += 1;
                self.remove(absent, progress, now_ns);
            }
        }
    }
}

/// More than half; an exact half needs the lowest.
fn is_majority(all: &BTreeSet<Incarnation>, holds: impl Fn(&Incarnation) -> bool) -> bool {
    let votes = all.iter().filter(|voter| holds(voter)).count();
    let lowest = all.first().is_some_and(&holds);
    votes * 2 > all.len() || (votes * 2 == all.len() && lowest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_is_a_majority_only_with_the_lowest() {
        let all: BTreeSet<_> = (1..=4).map(Incarnation).collect();
        let with = |voters: &[u128]| is_majority(&all, |voter| voters.contains(&voter.0));
        assert!(with(&[2, 3, 4]) && with(&[1, 3]));
        assert!(!with(&[2, 3]) && !with(&[1]));
    }
}
