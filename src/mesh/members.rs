//! Who is in the mesh, as this node knows it: joining, failure detection, lineages, the tombstone floor,
//! which pull is due, who is forgotten. Cold state behind one lock, touched by beats and ticks.
//!
//! Members are lifetimes. The view is a set that only grows, minus a set that only grows; a lifetime that
//! was removed never comes back. A view is named by a hash of what it holds.

mod beat;
mod claim;
mod clock;
mod compare;
mod doubt;
mod floor;
mod health;
mod member;
mod names;
mod phase;
mod pull;
mod seeds;
#[cfg(test)]
mod tests;
mod unlisted;

use super::figures::RoundTrips;
use super::progress::Progress;
use super::view::{Health, Peer, View};
use crate::base::random::Random;
use crate::base::version::{Hlc, Incarnation};
use crate::limits::{MEMBERS_MAX, REMOVED_GOSSIP_MAX};
use crate::peer::frame::{MemberInfo, OriginVector, Phase, Reason};
pub(in crate::mesh) use floor::SETTLED_WITHOUT;
pub use member::{Event, Meeting, Member, Report, Rules};
pub use pull::PullPlan;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

pub(super) const MS: u64 = 1_000_000;
/// Own ticks that are later than this (a paused process) do not count against the members.
const LATE_TICK_MS: u64 = 1_000;

/// See the module.
#[derive(Debug)]
pub struct Members {
    me: MemberInfo,
    lineage: u128,
    phase: Phase,
    born_ns: u64,
    prepared_ns: u64,
    last_tick_ns: u64,
    changed_ns: u64,
    members: BTreeMap<Incarnation, Member>,
    removed: BTreeSet<Incarnation>,
    removed_order: VecDeque<Incarnation>,
    /// Since when nobody of the mesh that it wants to join is there.
    orphaned_ns: Option<u64>,
    /// Of the removed, those of whom everybody holds the same, as we have seen, and how much that is.
    settled: BTreeMap<Incarnation, OriginVector>,
    /// Nodes of another mesh, met by this node or a member, which others may still take for members.
    strangers: BTreeSet<Incarnation>,
    /// Writers whom no member lists.
    unlisted: unlisted::Unlisted,
    /// Of the settled, those that somebody still waits for.
    asked_settled: BTreeSet<Incarnation>,
    seeds: Vec<SocketAddr>,
    /// Addresses behind which we found ourselves.
    selves: BTreeSet<SocketAddr>,
    /// Began anew because of others: they are to be waited for.
    is_reborn: bool,
    /// Holds all that it needs to serve: began by itself, or the first pull is complete.
    loaded: bool,
    stable: Hlc,
    /// The greatest `stable` so far, that of the copy's donor included.
    greatest_stable: Hlc,
    floor: Hlc,
    claim: claim::Claim,
    agreed: BTreeSet<Incarnation>,
    pull: pull::State,
    /// To whom the farewell was sent, and when, and who has heard it.
    farewells: BTreeMap<Incarnation, u64>,
    farewell_heard: BTreeSet<Incarnation>,
    forgotten: u64,
    /// Former members of whom everybody holds the same, and a time after their last write.
    retired: Vec<(Incarnation, Hlc)>,
    name_refused_ns: Option<u64>,
    pub(super) events: Vec<Event>,
    /// The others should hear of a change at once.
    pub(super) beat_now: bool,
    /// Something in the view has changed.
    pub(super) dirty: bool,
    random: Random,
}

impl Members {
    pub(super) fn new(me: MemberInfo, now_ns: u64, random: Random) -> Members {
        Members {
            me,
            lineage: 0,
            phase: Phase::Joining,
            born_ns: now_ns,
            prepared_ns: u64::MAX,
            last_tick_ns: now_ns,
            changed_ns: now_ns,
            members: BTreeMap::new(),
            removed: BTreeSet::new(),
            removed_order: VecDeque::new(),
            orphaned_ns: None,
            settled: BTreeMap::new(),
            strangers: BTreeSet::new(),
            unlisted: unlisted::Unlisted::new(),
            asked_settled: BTreeSet::new(),
            seeds: Vec::new(),
            selves: BTreeSet::new(),
            is_reborn: false,
            loaded: false,
            stable: Hlc::ZERO,
            greatest_stable: Hlc::ZERO,
            floor: Hlc::ZERO,
            claim: claim::Claim::default(),
            agreed: BTreeSet::new(),
            pull: pull::State::default(),
            farewells: BTreeMap::new(),
            farewell_heard: BTreeSet::new(),
            forgotten: 0,
            retired: Vec::new(),
            name_refused_ns: None,
            events: Vec::new(),
            beat_now: true,
            dirty: true,
            random,
        }
    }

    #[must_use]
    pub fn me(&self) -> &MemberInfo {
        &self.me
    }

    #[must_use]
    pub fn lineage(&self) -> u128 {
        self.lineage
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Holds all that it needs to serve, be it nothing.
    #[must_use]
    pub(super) fn is_loaded(&self) -> bool {
        self.loaded
    }

    #[must_use]
    pub fn floor(&self) -> Hlc {
        self.floor
    }

    /// Members that were given up by a majority.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    #[must_use]
    pub(crate) fn greatest_stable(&self) -> Hlc {
        self.greatest_stable
    }

    #[must_use]
    pub fn stable(&self) -> Hlc {
        self.stable
    }

    /// What others are told: of a mesh that we have no copy of yet, nothing.
    pub(super) fn own_lineage(&self) -> u128 {
        if self.loaded { self.lineage } else { 0 }
    }

    /// The other members.
    pub fn others(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// What the other members have last said, of those who were heard.
    fn reports(&self) -> impl Iterator<Item = &Report> {
        self.members.values().filter_map(|member| member.report.as_ref())
    }

    /// Whether a write of somebody who has gone is held by all. Of those who went before this node came, what they all hold
    /// came with the copy, and what had been lost is not known any more.
    pub(super) fn settled_holds(&self, gone: Incarnation, worker: usize, seq: u64) -> Option<bool> {
        match self.settled.get(&gone) {
            Some(vector) => Some(vector.workers.get(worker).is_some_and(|held| held.contains(seq))),
            None => self.removed.contains(&gone).then_some(true),
        }
    }

    /// All have agreed on what they hold of this former member.
    pub(super) fn has_settled(&self, gone: Incarnation) -> bool {
        self.settled.contains_key(&gone)
    }

    #[must_use]
    pub fn is_removed(&self, incarnation: Incarnation) -> bool {
        self.removed.contains(&incarnation)
    }

    /// Begins anew because of others.
    pub(super) fn expect_others(&mut self) {
        self.is_reborn = true;
    }

    pub(super) fn fork_random(&mut self) -> Random {
        Random::new(self.random.bits())
    }

    /// Why nothing is taken from this lifetime any more, if so.
    pub(super) fn refusal_of(&self, incarnation: Incarnation) -> Option<(Reason, &'static str)> {
        if self.removed.contains(&incarnation) {
            return Some((Reason::Removed, "removed"));
        }
        let is_fenced = self.members.get(&incarnation).is_some_and(|member| member.fenced);
        is_fenced.then_some((Reason::Fenced, "it was away for too long; the others have not decided yet"))
    }

    /// Has a copy of its mesh, or knows somebody who has.
    pub(super) fn has_mesh(&self) -> bool {
        self.loaded || self.members.values().any(Member::holds_copy)
    }

    /// A member was met, and said its lineage.
    pub(super) fn has_said(&mut self, incarnation: Incarnation, lineage: u128) {
        let is_ours = lineage != 0 && lineage == self.lineage;
        if let Some(member) = self.members.get_mut(&incarnation) {
            member.is_met = true;
            member.has_copy |= is_ours;
        }
    }

    /// How our lineage and theirs go together.
    pub(super) fn meet(
        &self,
        lineage: u128,
        their: Incarnation,
        they_empty: bool,
        we_empty: bool,
    ) -> Meeting {
        if lineage == 0 || self.lineage == 0 || lineage == self.lineage {
            return Meeting::Fine;
        }
        match (we_empty, they_empty) {
            // Nobody shall start over for one that holds nothing and waits for a mesh that may have gone.
            (false, true) if !self.has_mesh() => Meeting::Conflict,
            (true, false) => Meeting::WeYield,
            (false, true) => Meeting::TheyYield,
            (true, true) if self.me.incarnation > their => Meeting::WeYield,
            (true, true) => Meeting::TheyYield,
            (false, false) => Meeting::Conflict,
        }
    }

    /// A member told us its lineage while we have none: from now on only that one will do.
    pub(super) fn adopt_lineage(&mut self, lineage: u128) {
        if self.lineage == 0 && lineage != 0 {
            self.lineage = lineage;
            self.dirty = true;
        }
    }

    /// A node of another mesh was met, by this node or by a member of its own. It may have been taken for a member by
    /// hearsay, or before it had found its mesh, and would be waited for. A lifetime's lineage never changes.
    pub(super) fn met_stranger(&mut self, incarnation: Incarnation, progress: &Progress) {
        if self.strangers.insert(incarnation) && self.strangers.len() > MEMBERS_MAX {
            self.strangers.pop_first();
        }
        self.disown(incarnation, progress);
        if !self.removed.contains(&incarnation) {
            progress.forget(incarnation);
        }
    }

    /// A member turned out to belong to another mesh: it was none.
    pub(super) fn disown(&mut self, incarnation: Incarnation, progress: &Progress) {
        if self.members.remove(&incarnation).is_some() {
            progress.forget(incarnation);
            self.dirty = true;
        }
    }

    /// Takes note of a member.
    ///
    /// # Errors
    /// The reason why it is none.
    pub(super) fn add(
        &mut self,
        info: &MemberInfo,
        progress: &Progress,
        is_gossip: bool,
        now_ns: u64,
    ) -> Result<(), (Reason, &'static str)> {
        let incarnation = info.incarnation;
        if incarnation == self.me.incarnation {
            return Err((Reason::Yourself, "this is the node itself"));
        }
        if let Some(refusal) = self.refusal_of(incarnation) {
            return Err(refusal);
        }
        if self.strangers.contains(&incarnation) {
            return Err((Reason::Lineage, "of another mesh"));
        }
        if let Some(known) = self.members.get_mut(&incarnation) {
            if !is_gossip && known.info.address != info.address && !info.address.ip().is_unspecified() {
                known.info.address = info.address;
                self.dirty = true;
            }
            if !is_gossip || names::is_later_name(&info.name, &known.info.name) {
                self.on_name(incarnation, info.name.clone());
            }
            return Ok(());
        }
        if info.name == self.me.name {
            if is_gossip || incarnation > self.me.incarnation {
                return Err((Reason::Name, "it is this node's name"));
            }
            // Two that live: the younger takes another name.
            self.rename();
        }
        let namesake = self.members.values().find(|m| m.info.name == info.name);
        if let Some(namesake) = namesake {
            // A container that was restarted: its old memory is gone. But only if it is.
            let is_down = namesake.health == Health::Down;
            let has_address = namesake.info.address == info.address && !info.address.ip().is_unspecified();
            let older = namesake.info.incarnation;
            // Heard of only: two that know one lifetime of that name each, both down, have to end with one.
            let takes_over = if is_gossip { is_down && incarnation > older } else { is_down || has_address };
            if !takes_over {
                return Err((Reason::Name, "the name is in use"));
            }
            self.remove(older, progress, now_ns);
        }
        if self.members.len() + 1 >= MEMBERS_MAX {
            return Err((Reason::Full, "the mesh has its most members"));
        }
        progress.ensure(incarnation, usize::from(info.workers));
        self.members.insert(
            incarnation,
            Member {
                info: info.clone(),
                learned_ns: now_ns,
                heard_ns: None,
                refused: false,
                health: Health::Unheard,
                down_ns: 0,
                report: None,
                echo: None,
                echoed_ns: now_ns,
                contested_ns: None,
                fenced_us: None,
                round_trip_ns: 0,
                round_trips: RoundTrips::default(),
                clock_offset_ms: 0,
                fenced: false,
                is_met: false,
                has_copy: false,
            },
        );
        self.open_the_claim();
        self.changed_ns = now_ns;
        self.beat_now = true;
        self.dirty = true;
        Ok(())
    }

    fn remember_removed(&mut self, incarnation: Incarnation) {
        if self.removed.insert(incarnation) {
            self.removed_order.push_back(incarnation);
            // Passed on no longer, but remembered for as long as memory may reasonably be spent on it.
            if self.removed_order.len() > 16 * REMOVED_GOSSIP_MAX
                && let Some(oldest) = self.removed_order.pop_front()
            {
                self.removed.remove(&oldest);
                self.settled.remove(&oldest);
            }
        }
    }

    /// A lifetime is over.
    pub(super) fn remove(&mut self, incarnation: Incarnation, progress: &Progress, now_ns: u64) {
        if incarnation == self.me.incarnation {
            self.events.push(Event::Rebirth { reason: "the others have removed this node" });
            return;
        }
        if self.removed.contains(&incarnation) {
            return;
        }
        self.remember_removed(incarnation);
        if let Some(member) = self.members.remove(&incarnation) {
            let text = format!("mesh   {} has gone ({:?})", member.info.name, incarnation);
            self.events.push(Event::Note { is_warning: false, text });
            self.changed_ns = now_ns;
            self.beat_now = true;
            self.dirty = true;
            // From here on its vector only grows by pulls, until everybody has the same.
            progress.ensure(incarnation, usize::from(member.info.workers)).end();
        }
    }

    /// Former members whose every write is at or below the floor.
    pub(super) fn take_settled(&mut self) -> Vec<Incarnation> {
        let floor = self.floor;
        let (settled, rest) = self.retired.drain(..).partition::<Vec<_>, _>(|(_, after)| *after <= floor);
        self.retired = rest;
        settled.into_iter().map(|(incarnation, _)| incarnation).collect()
    }

    /// What time brings.
    pub(super) fn tick(&mut self, progress: &Progress, own_closed: Hlc, rules: Rules, now_ns: u64) {
        let late = now_ns.saturating_sub(self.last_tick_ns);
        self.last_tick_ns = now_ns;
        if late > LATE_TICK_MS * MS {
            // It was this node that was away. What came in before this tick was heard just now, not later than that.
            for member in self.members.values_mut() {
                member.learned_ns = (member.learned_ns + late).min(now_ns);
                member.heard_ns = member.heard_ns.map(|heard| (heard + late).min(now_ns));
                member.echoed_ns = (member.echoed_ns + late).min(now_ns);
            }
        }
        self.judge_health(now_ns);
        self.fence_the_absent(progress, rules, now_ns);
        if self.is_left_behind(rules) {
            self.stable = Hlc::ZERO;
            return self.events.push(Event::Rebirth { reason: "the others have gone on without it" });
        }
        if self.has_taken_too_late(progress, rules) {
            let reason = "the others have decided without writes that it has taken";
            return self.events.push(Event::Rebirth { reason });
        }
        if let Some(reason) = self.cannot_go_on(now_ns) {
            return self.events.push(Event::Rebirth { reason });
        }
        // Time asleep is not counted: what came meanwhile may still be read.
        let awake_ns = if late > LATE_TICK_MS * MS { 0 } else { late };
        self.remove_unlisted(progress, rules, awake_ns, now_ns);
        self.reconcile(progress, rules);
        self.advance_floor(progress, own_closed, rules);
        self.settle_claim(rules);
        self.advance_phase(progress, rules, now_ns);
    }

    /// Members that have reported to hold everything up to these heads of ours.
    pub(super) fn holders_of(&self, heads: &[u64]) -> BTreeSet<Incarnation> {
        let me = self.me.incarnation;
        let holds = |member: &&Member| {
            let vector = member.report.as_ref().and_then(|report| report.vectors.get(&me));
            let held =
                |worker: usize| vector.and_then(|v| v.workers.get(worker)).map_or(0, |held| held.applied);
            heads.iter().enumerate().all(|(worker, head)| held(worker) >= *head)
        };
        self.members.values().filter(holds).map(|member| member.info.incarnation).collect()
    }

    /// The farewell goes to this member.
    pub(super) fn said_farewell(&mut self, to: Incarnation, now_ns: u64) {
        self.farewells.entry(to).or_insert(now_ns);
    }

    /// Everybody who is there has heard the farewell.
    pub(super) fn farewell_heard(&self) -> bool {
        let mut there = self.members.values().filter(|member| member.health == Health::Alive);
        there.all(|member| self.farewell_heard.contains(&member.info.incarnation))
    }

    /// The name of the view: the same on two nodes exactly if they see the same members.
    #[must_use]
    pub fn view_hash(&self) -> u64 {
        let mut incarnations: Vec<u128> = self.members.keys().map(|i| i.0).collect();
        incarnations.push(self.me.incarnation.0);
        incarnations.sort_unstable();
        incarnations.iter().fold(1, |hash, i| {
            let hash = Random::new(hash ^ *i as u64).bits();
            Random::new(hash ^ (*i >> 64) as u64).bits()
        })
    }

    /// All members that are up report this view.
    #[must_use]
    pub fn is_agreed(&self) -> bool {
        let hash = self.view_hash();
        self.members.values().all(|m| m.report.as_ref().is_some_and(|report| report.view_hash == hash))
    }

    pub(super) fn view(&self, version: u64) -> View {
        let peer = |member: &Member| Peer {
            incarnation: member.info.incarnation,
            name: member.info.name.clone(),
            address: member.info.address,
            http_port: member.info.http_port,
            workers: member.info.workers,
            health: member.health,
            phase: member.phase(),
            counted: member.is_counted(),
        };
        View {
            version,
            me: self.me.incarnation,
            name: self.me.name.clone(),
            phase: self.phase,
            size: self.members.len() + 1,
            peers: self.members.values().map(peer).collect(),
        }
    }
}
