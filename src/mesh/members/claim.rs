//! What others may have made of this node's word.
//!
//! A node says how far it is `stable`; others advance their floor by that, and it hears of their floor later. Whoever
//! it meets in between, and who was in nobody's view (the only one who knew both sides has gone), may bring writes
//! below that floor: they are ignored there and must not be taken here.
//!
//! So while the view holds somebody new, such writes wait: those at or below the greatest `stable` that this node ever
//! said, of a writer whose writes up to there it did not have. What the members of that `stable` report under the
//! present view is the last that they could make of it without the newcomer; then the floor is known. One that is down
//! is waited for as well, until it is back or removed: it may have gone further before, and what is taken meanwhile
//! could be copied on. Nobody else waits for that.
//!
//! A pull from somebody whose word those floors needed as well brings what is safe: either its own word did not reach that
//! far when it took the write, so that no floor did, or it has waited for the same. Who was met only after a promise that is
//! still in doubt is not such a one.
//!
//! What cannot be known here, and so is not held back, is judged later: see `doubt.rs`.
//!
//! Writes of somebody whom a member has let in are never below anybody's floor: that member has said nothing since
//! under a view without the newcomer, whose clock has seen everything that the member's had.

use super::{Members, Rules};
use crate::base::version::{Hlc, Incarnation};
use crate::mesh::Mutation;
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Claim {
    /// With whose writes a `stable` was made, and the greatest of those.
    partners: BTreeMap<Incarnation, Hlc>,
    /// Whose own word was needed for everything that may have been made of ours since nothing was in doubt; after a copy its
    /// donor, whose word ours is.
    bound: BTreeSet<Incarnation>,
    /// In doubt up to here; zero: nothing.
    open: Hlc,
}

impl Members {
    /// What comes up to here, of a writer whose writes up to there were not had, has to wait.
    #[must_use]
    pub(in crate::mesh) fn open_claim(&self) -> Hlc {
        self.claim.open
    }

    /// What this member has taken does not lie below what others may have made of our word.
    #[must_use]
    pub(in crate::mesh) fn is_bound_as_we_are(&self, member: Incarnation) -> bool {
        self.claim.bound.contains(&member)
    }

    /// Everything up to here is held of all present members.
    pub(super) fn promise(&mut self, stable: Hlc) {
        if stable == Hlc::ZERO {
            return;
        }
        self.greatest_stable = self.greatest_stable.max(stable);
        let members = &self.members;
        let Claim { partners, bound, open } = &mut self.claim;
        partners.retain(|partner, _| members.contains_key(partner));
        for member in members.keys() {
            let upto = partners.entry(*member).or_default();
            *upto = stable.max(*upto);
        }
        if *open == Hlc::ZERO {
            *bound = members.keys().copied().collect();
        } else {
            bound.retain(|member| members.contains_key(member));
        }
    }

    /// What was copied from this member came with its word.
    pub(super) fn inherit_promise(&mut self, donor: Incarnation, stable: Hlc) {
        self.promise(stable);
        self.claim.bound = [donor].into();
        self.open_the_claim();
    }

    /// Somebody new is in the view, or a copy has come.
    pub(super) fn open_the_claim(&mut self) {
        self.claim.open = self.greatest_stable;
    }

    /// Finds out how far the partners have gone.
    pub(super) fn settle_claim(&mut self, rules: Rules) {
        let upto = self.greatest_stable;
        let hash = self.view_hash();
        let mut is_known = true;
        for (partner, shared) in &self.claim.partners {
            let Some(partner) = self.members.get(partner) else { continue };
            let report = partner.report.as_ref();
            let floor = report.map_or(Hlc::ZERO, |report| report.floor);
            if rules.mutation != Mutation::ClaimsForgotten {
                self.floor = self.floor.max(floor.min(*shared));
                is_known &= report.is_some_and(|report| report.view_hash == hash);
            }
        }
        if is_known && self.claim.open > Hlc::ZERO {
            self.pull_at_once();
        }
        self.claim.open = if is_known { Hlc::ZERO } else { upto };
    }
}
