//! Which pull is due. A pull brings every record of one member with a stamp above some limit, and with it
//! the member's vectors as they were before its scan began.
//!
//! One lemma carries joining, repair after a lost log, and the peace after a member has gone: if we hold
//! everything of an origin up to stamp T, and a member sends us everything it holds above T, then we hold
//! of that origin whatever the member held when its scan began. What it holds no more was dominated, and
//! what dominates it has a greater stamp. What comes beyond that is kept account of in `mesh/surplus.rs`.

use super::{Event, MS, Member, Members};
use crate::base::random::Random;
use crate::base::version::{Hlc, Incarnation};
use crate::mesh::Mutation;
use crate::mesh::progress::Progress;
use crate::mesh::view::Health;
use crate::peer::frame::{OriginVector, PullBegin};
use std::collections::BTreeSet;

/// A failed pull is not repeated before this, in milliseconds.
const RETRY_MS: u64 = 300;
/// The longest pause before another pull after several that broke off when they had begun, in milliseconds: what they broke
/// off for may last for as long as a member is down.
const PULL_PAUSE_MS_MAX: u64 = 4_800;
/// The longest pause before another copy after several that came to nothing, in milliseconds.
const COPY_PAUSE_MS_MAX: u64 = 60_000;

/// The pause before the next try, twice as long with each of the failed ones.
fn pause_ms(failed: u32, most_ms: u64) -> u64 {
    (RETRY_MS << failed.min(16)).min(most_ms)
}

/// A pull to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullPlan {
    pub donor: Incarnation,
    pub above: Hlc,
    /// Origins of which everything up to `above` is held already; `None`: all, for nothing is left out.
    covered: Option<BTreeSet<Incarnation>>,
}

impl PullPlan {
    /// Of everything, for a node that holds nothing yet.
    pub(in crate::mesh) fn is_copy(&self) -> bool {
        self.covered.is_none()
    }
}

/// The pull under way, and when there may be another.
#[derive(Clone, Debug, Default)]
pub(in crate::mesh) struct State {
    current: Option<PullPlan>,
    /// So many of this lifetime.
    begun: u64,
    /// The number for what the current one brings beyond what is counted.
    surplus: u64,
    not_before_ns: u64,
    /// So many in a row have broken off after they had begun.
    broken_off: u32,
    failed_copies: u32,
}

impl Members {
    /// The pull that is due, which then counts as begun.
    pub(in crate::mesh) fn begin_pull(
        &mut self,
        progress: &Progress,
        can_ask: impl Fn(Incarnation) -> bool,
        no_reconciliation: bool,
        now_ns: u64,
    ) -> Option<PullPlan> {
        if self.pull.current.is_some() || now_ns < self.pull.not_before_ns {
            return None;
        }
        let plan = if self.loaded {
            self.missing(progress, &can_ask, no_reconciliation)?
        } else {
            let donors: Vec<Incarnation> =
                self.members.values().filter(|m| m.is_serving()).map(|m| m.info.incarnation).collect();
            let donors: Vec<Incarnation> = donors.into_iter().filter(|donor| can_ask(*donor)).collect();
            if donors.is_empty() {
                return None;
            }
            let donor = *self.random.one(&donors);
            PullPlan { donor, above: Hlc::ZERO, covered: None }
        };
        self.pull.current = Some(plan.clone());
        self.pull.begun += 1;
        let me = self.me.incarnation.0;
        // No other pull of anybody has the same number.
        self.pull.surplus =
            Random::new(me as u64 ^ Random::new((me >> 64) as u64 ^ self.pull.begun).bits()).bits();
        Some(plan)
    }

    /// What somebody holds and we lack, and cannot get from its origin's own stream.
    fn missing(
        &self,
        progress: &Progress,
        can_ask: &impl Fn(Incarnation) -> bool,
        no_reconciliation: bool,
    ) -> Option<PullPlan> {
        let origins = progress.all();
        let above = |wanted: &BTreeSet<Incarnation>| {
            let wanted = origins.iter().filter(|origin| wanted.contains(&origin.incarnation));
            wanted.map(|origin| origin.closed()).min().unwrap_or(Hlc::ZERO)
        };
        let plan = |donor: Incarnation, wanted: BTreeSet<Incarnation>| {
            let above = above(&wanted);
            let covered = origins.iter().filter(|origin| origin.closed() >= above);
            PullPlan { donor, above, covered: Some(covered.map(|origin| origin.incarnation).collect()) }
        };
        for member in self.members.values().filter(|member| member.is_serving()) {
            let donor = member.info.incarnation;
            if can_ask(donor) && progress.get(donor).is_some_and(|origin| origin.has_gap()) {
                return Some(plan(donor, [donor].into()));
            }
        }
        if no_reconciliation {
            return None;
        }
        // Those whose own stream does not reach us. Who is no member has gone, or a living node has its name here.
        let cut_off = origins.iter().filter(|origin| {
            let member = self.members.get(&origin.incarnation);
            let is_cut_off = member.is_none_or(|member| member.health != Health::Alive || member.fenced);
            is_cut_off && !origin.is_settled()
        });
        let cut_off: Vec<OriginVector> = cut_off.map(|origin| origin.vector()).collect();
        // The same order everywhere: see `mesh/surplus.rs`. But what others bring may have to wait for somebody who is down.
        let mut donors: Vec<&Member> = self.members.values().filter(|member| member.is_serving()).collect();
        if self.open_claim() > Hlc::ZERO {
            donors.sort_by_key(|member| !self.is_bound_as_we_are(member.info.incarnation));
        }
        for member in donors {
            let donor = member.info.incarnation;
            let Some(report) = member.report.as_ref().filter(|_| can_ask(donor)) else { continue };
            let is_behind = |ours: &&OriginVector| {
                report.vectors.get(&ours.origin).is_some_and(|theirs| theirs.is_ahead(ours))
            };
            let wanted: BTreeSet<_> = cut_off.iter().filter(is_behind).map(|ours| ours.origin).collect();
            if !wanted.is_empty() {
                return Some(plan(donor, wanted));
            }
        }
        None
    }

    /// Nothing is known to be missing, and everybody who may know more has been heard.
    pub(super) fn has_what_they_have(&self, progress: &Progress) -> bool {
        self.pull.current.is_none()
            && self.members.values().all(|member| member.health != Health::Unheard)
            && self.missing(progress, &|_| true, false).is_none()
            && !self.hears_of_strangers(progress)
    }

    /// Somebody who serves has let in a lifetime that is none here, because another that lives has its name. One of them will
    /// take another name or be removed, within seconds; until then nobody says what is missing here.
    fn hears_of_strangers(&self, progress: &Progress) -> bool {
        self.members.values().filter(|member| member.is_serving()).any(|member| {
            member.report.as_ref().is_some_and(|report| {
                report.vectors.keys().any(|origin| {
                    let may_write = report.members.contains(origin) && self.is_unlisted(*origin);
                    *origin != self.me.incarnation
                        && (may_write || progress.get(*origin).is_none())
                        && !self.settled.contains_key(origin)
                        && !report.settled.contains(origin)
                })
            })
        })
    }

    /// The donor's records are all here: what it held is held. False if they are of no use after all. `grown`: of whom it
    /// may have sent more than it said to hold when it began. `latest`: all that came is stamped before this.
    pub(in crate::mesh) fn finish_pull(
        &mut self,
        begin: &PullBegin,
        grown: &[Incarnation],
        progress: &Progress,
        latest: Hlc,
        mutation: Mutation,
    ) -> bool {
        // Not if it has changed sides, or we have.
        let is_ours = self.lineage == 0 || self.lineage == begin.lineage;
        // Nor if it has decided without what came from others meanwhile.
        let is_sound = self.loaded || self.judge_what_came_meanwhile(begin, progress, mutation);
        let current = self.pull.current.take_if(|plan| plan.covered.is_some() || (is_ours && is_sound));
        let Some(plan) = current else { return false };
        let is_covered =
            |vector: &&OriginVector| plan.covered.as_ref().is_none_or(|all| all.contains(&vector.origin));
        let me = self.me.incarnation;
        for vector in begin.vectors.iter().filter(is_covered).filter(|vector| vector.origin != me) {
            if vector.is_settled() && progress.get(vector.origin).is_none() {
                // Everybody holds the same of it, the donor included, and so do we now. No floor may have passed it yet.
                if self.settled.insert(vector.origin, vector.clone()).is_none() {
                    self.retired.push((vector.origin, latest));
                }
                continue;
            }
            progress.merge(vector);
            if self.removed.contains(&vector.origin) {
                progress.ensure(vector.origin, vector.workers.len()).end();
            }
        }
        progress.end_pull(self.pull.surplus, |origin| {
            let named = begin.vectors.iter().find(|vector| vector.origin == origin.incarnation);
            // What the donor itself writes the scan may show before it is counted.
            let is_whole = origin.incarnation != plan.donor && !grown.contains(&origin.incarnation);
            is_whole && named.is_some_and(|theirs| !theirs.is_ahead(&origin.vector()))
        });
        self.pull.broken_off = 0;
        if plan.covered.is_none() {
            self.loaded = true;
            self.pull.failed_copies = 0;
            self.adopt_lineage(begin.lineage);
            self.floor = self.floor.max(begin.floor);
            self.inherit_promise(plan.donor, begin.stable);
        }
        self.beat_now = true;
        true
    }

    /// The pull came to nothing; there will be another. Not for a copy of which a part has come: whose that was may
    /// have been given up by the others long ago, and nobody can tell its records from theirs any more.
    pub(in crate::mesh) fn fail_pull(&mut self, has_begun: bool, progress: &Progress, now_ns: u64) {
        if self.pull.current.take().is_none() {
            return;
        }
        progress.end_pull(self.pull.surplus, |_| false);
        self.pull.broken_off += u32::from(has_begun);
        let pause_ms = pause_ms(self.pull.broken_off.saturating_sub(1), PULL_PAUSE_MS_MAX);
        self.pull.not_before_ns = now_ns + pause_ms * MS;
        if has_begun && !self.loaded {
            self.pull.failed_copies += 1;
            self.events.push(Event::Rebirth { reason: "the copy that it was making has come to nothing" });
        }
    }

    /// What a pull may have broken off for is over.
    pub(super) fn pull_at_once(&mut self) {
        self.pull.broken_off = 0;
        self.pull.not_before_ns = 0;
    }

    /// Copies that came to nothing, this lifetime's and those before.
    pub(in crate::mesh) fn failed_copies(&self) -> u32 {
        self.pull.failed_copies
    }

    /// A new lifetime after so many: from the second on it waits longer and longer, since the cause may be one that lasts,
    /// such as too little memory, and a copy costs its donor as well.
    pub(in crate::mesh) fn pause_copies(&mut self, failed: u32, now_ns: u64) {
        self.pull.failed_copies = failed;
        if failed > 1 {
            self.pull.not_before_ns = now_ns + pause_ms(failed, COPY_PAUSE_MS_MAX) * MS;
        }
    }

    pub(in crate::mesh) fn pull_state(&self) -> &State {
        &self.pull
    }
}
