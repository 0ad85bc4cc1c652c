//! What is known of one member, and what passes between the membership and its workers.

use crate::base::version::{Hlc, Incarnation};
use crate::limits::REMOVED_GOSSIP_MAX;
use crate::mesh::Mutation;
use crate::mesh::figures::RoundTrips;
use crate::mesh::view::Health;
use crate::peer::frame::{Echo, MemberInfo, OriginVector, Phase};
use std::collections::{BTreeMap, BTreeSet};

/// What a member's last beat said.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub phase: Phase,
    pub view_hash: u64,
    pub stable: Hlc,
    pub floor: Hlc,
    pub vectors: BTreeMap<Incarnation, OriginVector>,
    pub members: BTreeSet<Incarnation>,
    pub fences: BTreeSet<Incarnation>,
    /// Of those in `vectors`, the ones that are over and of which everybody was seen to hold the same.
    pub settled: BTreeSet<Incarnation>,
}

impl Report {
    /// The list of those who have gone was too long to hold this one.
    pub(super) fn is_cut_before(&self, gone: Incarnation) -> bool {
        let named = self.vectors.keys().filter(|origin| !self.members.contains(origin));
        // The answers about those who are settled come after the list.
        let last = named.clone().rev().find(|origin| !self.settled.contains(origin));
        named.count() >= REMOVED_GOSSIP_MAX - 2 && last.is_none_or(|last| *last < gone)
    }
}

/// One member other than this node.
#[derive(Clone, Debug)]
pub struct Member {
    pub info: MemberInfo,
    pub(super) learned_ns: u64,
    pub(super) heard_ns: Option<u64>,
    pub(super) refused: bool,
    pub health: Health,
    pub(super) down_ns: u64,
    pub report: Option<Report>,
    pub(super) echo: Option<Echo>,
    pub(super) echoed_ns: u64,
    /// Since when it is known to be there though it is fenced.
    pub(super) contested_ns: Option<u64>,
    /// When it said first and last that it has given us up.
    pub(super) fenced_us: Option<(u64, u64)>,
    pub round_trip_ns: u64,
    pub round_trips: RoundTrips,
    /// Its wall clock minus ours, in milliseconds.
    pub clock_offset_ms: i64,
    pub(super) fenced: bool,
    /// It was met, not only heard of.
    pub(super) is_met: bool,
    /// It has said our lineage, which it does only with a copy.
    pub(super) has_copy: bool,
}

impl Member {
    /// Has a copy of our mesh.
    pub(super) fn holds_copy(&self) -> bool {
        self.health != Health::Down && (self.has_copy || self.phase() >= Phase::Prepared)
    }

    /// Has one, or may have one for all that is known: it was only heard of.
    pub(super) fn may_hold_copy(&self) -> bool {
        let is_hearsay = self.health != Health::Down && self.report.is_none() && !self.is_met;
        is_hearsay || self.holds_copy()
    }

    pub(super) fn phase(&self) -> Phase {
        self.report.as_ref().map_or(Phase::Joining, |report| report.phase)
    }

    pub(super) fn is_counted(&self) -> bool {
        self.health != Health::Down && self.phase() >= Phase::Prepared && !self.fenced
    }

    pub(super) fn is_serving(&self) -> bool {
        self.health == Health::Alive && self.phase() == Phase::Ready && !self.fenced
    }
}

/// How two lineages meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meeting {
    Fine,
    /// We start over, empty, and join them.
    WeYield,
    TheyYield,
    /// Both hold data of their own, or we wait for a mesh of which nobody is there: each goes its own way.
    Conflict,
}

/// Something that the workers have to act upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This lifetime is over for the others: begin a new one.
    Rebirth {
        reason: &'static str,
    },
    Note {
        is_warning: bool,
        text: String,
    },
}

/// The configuration that ticks need.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub forget_ms: u64,
    pub seeds_expected: bool,
    /// Discovery has found a node that is ready.
    pub sees_mesh: bool,
    /// The rule that is switched off.
    pub mutation: Mutation,
    /// Greater than every stamp seen so far.
    pub latest: Hlc,
}
