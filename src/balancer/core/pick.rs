//! Which backend a new connection goes to.

use std::net::SocketAddr;

/// Backends that one connection tries before it is answered 503.
pub const TRIES_MAX: usize = 16;
/// ... of which so many may have kept it waiting. A refusal comes at once, so it leaves time for another: when
/// most of a group stops in the same moment, three of those are soon met.
pub const SLOW_TRIES_MAX: usize = 3;

/// Where a connection may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Names the backend at this address, in this life of it.
    pub slot: u64,
    pub id: String,
    pub address: SocketAddr,
}

/// The backends that are up; those that are warming, for when none is; those that are down, as the last
/// resort. Nodes of a mesh find each other through the balancer: to withhold the only one, because it waits
/// for others, would keep the mesh from ever starting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    pub tiers: [Vec<Target>; 3],
}

/// How one of several is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    RoundRobin,
    /// Of two, the one with fewer connections.
    LeastOfTwo,
}

impl Routes {
    /// The next target, none of those in `tried`. A tier is left only when all of it was tried. `turn` is
    /// any number that grows; `active` tells the connections of a target, by tier and place in it.
    #[must_use]
    pub fn pick(
        &self,
        selection: Selection,
        turn: u64,
        tried: &[u64],
        active: &dyn Fn(usize, usize) -> usize,
    ) -> Option<(usize, usize)> {
        for (tier, targets) in self.tiers.iter().enumerate() {
            let count = targets.len();
            if count == 0 {
                continue;
            }
            let from = usize::try_from(turn % count as u64).unwrap_or(0);
            let mut open =
                (0..count).map(|step| (from + step) % count).filter(|at| !tried.contains(&targets[*at].slot));
            let Some(first) = open.next() else { continue };
            let second = match selection {
                Selection::RoundRobin => None,
                // The other choice: a stride through the rest that changes from round to round.
                Selection::LeastOfTwo => {
                    let others = (count as u64 - 1).max(1);
                    open.nth(usize::try_from(turn / count as u64 % others).unwrap_or(0))
                }
            };
            let second = second.filter(|second| active(tier, *second) < active(tier, first));
            return Some((tier, second.unwrap_or(first)));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(tiers: [&[u64]; 3]) -> Routes {
        let target =
            |slot: &u64| Target { slot: *slot, id: slot.to_string(), address: ([127, 0, 0, 1], 1).into() };
        Routes { tiers: tiers.map(|slots| slots.iter().map(target).collect()) }
    }

    fn idle(_: usize, _: usize) -> usize {
        0
    }

    #[test]
    fn round_robin_is_even() {
        let routes = routes([&[1, 2, 3], &[4], &[]]);
        let mut seen = [0; 3];
        for turn in 0..300 {
            let (tier, at) = routes.pick(Selection::RoundRobin, turn, &[], &idle).expect("one");
            assert_eq!(tier, 0);
            seen[at] += 1;
        }
        assert_eq!(seen, [100; 3]);
    }

    #[test]
    fn what_failed_is_not_tried_again_and_the_worse_come_last() {
        let routes = routes([&[1, 2], &[3], &[4]]);
        for turn in 0..4 {
            let mut tried = Vec::new();
            while let Some((tier, at)) = routes.pick(Selection::RoundRobin, turn, &tried, &idle) {
                tried.push(routes.tiers[tier][at].slot);
            }
            let (up, rest) = tried.split_at(2);
            assert!(up.contains(&1) && up.contains(&2), "{tried:?}");
            assert_eq!(rest, [3, 4]);
        }
        assert_eq!(Routes::default().pick(Selection::RoundRobin, 0, &[], &idle), None);
    }

    #[test]
    fn the_less_loaded_of_two_is_chosen_and_every_pair_is_met() {
        let routes = routes([&[1, 2, 3, 4], &[], &[]]);
        let mut active = [0usize; 4];
        for turn in 0..4000 {
            let counts = active;
            let (_, at) = routes.pick(Selection::LeastOfTwo, turn, &[], &|_, at| counts[at]).expect("one");
            active[at] += 1;
        }
        let (least, most) = (active.iter().min().unwrap(), active.iter().max().unwrap());
        assert!(most - least <= 4, "{active:?}");
        // One that is full is never the choice between two.
        let full = |_: usize, at: usize| if at == 2 { 1000 } else { 0 };
        let chosen =
            (0..100).filter(|turn| routes.pick(Selection::LeastOfTwo, *turn, &[], &full) == Some((0, 2)));
        assert!(chosen.count() <= 10);
    }
}
