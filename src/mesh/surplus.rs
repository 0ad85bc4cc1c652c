//! What a node holds of an origin beyond what it counts.
//!
//! A pull brings every record above a stamp, and so writes that the donor's vectors do not count for the one who pulls:
//! of origins of which that one did not hold everything up to the stamp, what came in while the donor scanned, and, if the
//! donor died meanwhile, all of it. Records do not say which of their writer's operations they are, and to leave them out
//! would lose what they have dominated at the donor. So whatever a pull brings of an origin that is news and not counted gets a
//! number. Whoever has pulled from somebody holds what that one did, numbers included; where an origin's own stream reaches
//! nobody any more, members pull from whoever names a number that they lack, and agree on what was held of an origin that has
//! gone only when all name the same.
//!
//! Each pull brings what it brings once, so that two that pull from each other come to the same; many come to it because
//! all turn to the first among the members first, and who was first has everything before the next is.
//!
//! A number is void where everything of the origin is held up to the latest stamp among its writes. Streams and marks see
//! to that within moments as long as the origin lives.

use crate::base::random::Random;
use crate::base::version::Hlc;
use crate::limits::SURPLUS_MAX;
use crate::peer::frame::{OriginVector, Surplus};
use std::collections::BTreeMap;

/// One origin's; see the module.
#[derive(Debug, Default)]
pub(super) struct Surpluses {
    parts: BTreeMap<u64, Hlc>,
    /// The latest write that the pull under way has brought; zero: none.
    pending: Hlc,
}

impl Surpluses {
    /// The pull under way brings a write with this stamp. To be said before it can be seen in the store.
    pub(super) fn bring(&mut self, stamp: Hlc) {
        self.pending = self.pending.max(stamp);
    }

    /// The latest write that the pull under way has brought and that may not be counted; zero: none.
    pub(super) fn pending(&self) -> Hlc {
        self.pending
    }

    /// The pull is over. What it brought is counted, or goes by this number from now on.
    pub(super) fn end_pull(&mut self, uncounted: Option<u64>, closed: Hlc) {
        let upto = std::mem::take(&mut self.pending);
        if let Some(id) = uncounted.filter(|_| upto > closed) {
            self.parts.insert(id, upto);
            self.bound(closed);
        }
    }

    /// Whatever another member held is held here as well.
    pub(super) fn merge(&mut self, theirs: &[Surplus], closed: Hlc) {
        for surplus in theirs {
            let upto = self.parts.entry(surplus.id).or_default();
            *upto = surplus.upto.max(*upto);
        }
        self.bound(closed);
    }

    /// Drops what is void. Too many become one, whose number is made of theirs: where the same came together, it is the same.
    fn bound(&mut self, closed: Hlc) {
        self.parts.retain(|_, upto| *upto > closed);
        if self.parts.len() > SURPLUS_MAX {
            let parts = std::mem::take(&mut self.parts);
            let id = parts.keys().fold(1, |id, part| Random::new(id ^ part).bits());
            let upto = parts.into_values().max().unwrap_or_default();
            self.parts.insert(id, upto);
        }
    }

    /// Those that are not void.
    pub(super) fn parts(&self, closed: Hlc) -> Vec<Surplus> {
        let parts = self.parts.iter().filter(|(_, upto)| **upto > closed);
        parts.map(|(id, upto)| Surplus { id: *id, upto: *upto }).collect()
    }
}

/// Whether `theirs` names something that `ours` does not, and that is not void here.
pub(super) fn is_ahead(theirs: &[Surplus], ours: &[Surplus], closed: Hlc) -> bool {
    theirs.iter().any(|part| part.upto > closed && ours.iter().all(|known| known.id != part.id))
}

/// The latest stamp that any of them names.
pub(super) fn latest(vectors: &[OriginVector]) -> Hlc {
    vectors.iter().flat_map(|vector| &vector.surplus).map(|surplus| surplus.upto).max().unwrap_or(Hlc::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(id: u64, upto: u64) -> Surplus {
        Surplus { id, upto: Hlc(upto) }
    }

    #[test]
    fn what_is_counted_or_closed_gets_no_number() {
        let mut surpluses = Surpluses::default();
        surpluses.bring(Hlc(5));
        surpluses.bring(Hlc(4));
        assert_eq!(surpluses.pending(), Hlc(5));
        surpluses.end_pull(None, Hlc(0));
        assert!(surpluses.pending() == Hlc::ZERO && surpluses.parts(Hlc(0)).is_empty());
        surpluses.bring(Hlc(5));
        surpluses.end_pull(Some(7), Hlc(5));
        assert!(surpluses.parts(Hlc(0)).is_empty());
        surpluses.bring(Hlc(5));
        surpluses.end_pull(Some(7), Hlc(4));
        assert_eq!(surpluses.parts(Hlc(4)), [part(7, 5)]);
        assert!(surpluses.parts(Hlc(5)).is_empty(), "void");
    }

    #[test]
    fn two_that_pull_from_each_other_come_to_the_same_however_many_there_are() {
        let mut random = Random::new(9);
        for _ in 0..200 {
            let [mut a, mut b] = [Surpluses::default(), Surpluses::default()];
            for _ in 0..random.below(20) {
                let both = [part(random.below(30), 1 + random.below(9))];
                let to = if random.below(2) == 0 { &mut a } else { &mut b };
                to.merge(&both, Hlc(3));
                assert!(to.parts(Hlc(3)).len() <= SURPLUS_MAX);
            }
            let (from_a, from_b) = (a.parts(Hlc(3)), b.parts(Hlc(3)));
            a.merge(&from_b, Hlc(3));
            b.merge(&from_a, Hlc(3));
            let ids = |all: &Surpluses| all.parts(Hlc(3)).iter().map(|part| part.id).collect::<Vec<_>>();
            assert_eq!(ids(&a), ids(&b));
        }
    }

    #[test]
    fn ahead_is_who_names_what_the_other_lacks() {
        assert!(is_ahead(&[part(1, 5)], &[], Hlc(4)));
        assert!(!is_ahead(&[part(1, 5)], &[], Hlc(5)), "void here");
        assert!(!is_ahead(&[part(1, 5)], &[part(1, 5), part(2, 5)], Hlc(0)));
    }
}
