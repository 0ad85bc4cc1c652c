//! The checker: it knows every write that any node accepted, and says what may be read where, and when.
//!
//! The names of the rules are those of `ARCHITECTURE.md`: D1–D10 hold at every moment, Q1–Q5 after the
//! faults are over and the mesh has had time to heal.

use super::dump::{Dump, NEVER, Stamp, is_older};
use super::floors::nothing_missing_below_floors;
use super::plan::SKEW_MAX_MS;
use super::world::Process;
use super::write::Write;
use crate::base::version::{Hlc, Incarnation};
use crate::limits::{RANGES_MAX, SURPLUS_MAX};
use crate::mesh::view::{Health, Peer};
use crate::node::State;
use crate::peer::frame::OriginVector;
use crate::store::Storage;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A rule that did not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: &'static str,
    pub text: String,
    pub seed: u64,
    pub trace: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}: {}", self.seed, self.rule, self.text)
    }
}

impl std::error::Error for Violation {}

pub(super) fn violation(rule: &'static str, text: String) -> Box<Violation> {
    Box::new(Violation { rule, text, seed: 0, trace: String::new() })
}

/// What was there when a process started.
#[derive(Debug, Default)]
struct Joined {
    /// By lineage and key: the greatest stamp that was held, when that record expires, and who held it.
    held: BTreeMap<(u128, String), (Stamp, u64, Incarnation)>,
    /// Those who held it, ready and alive to one another.
    by: Vec<Incarnation>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Checker {
    writes: Vec<Write>,
    /// Whose value it is: values are never used twice.
    keys: BTreeMap<String, String>,
    served: BTreeMap<(Incarnation, String), Stamp>,
    stamped: BTreeMap<Incarnation, Hlc>,
    floors: BTreeMap<Incarnation, Hlc>,
    /// Whom which lifetime has removed.
    removed: BTreeSet<(Incarnation, Incarnation)>,
    /// What ready nodes held when a process started, until it is ready or something got in the way.
    joins: BTreeMap<usize, Joined>,
    healed: BTreeMap<Incarnation, Dump>,
    /// Processes that may rightly have been told to start over, with what they held.
    pub(super) excused: BTreeSet<usize>,
}

/// Whether nobody may have seen it expire. What has is its own tombstone, which may be collected.
fn lasts(expires_at_ms: u64, now_ms: u64) -> bool {
    expires_at_ms == 0 || expires_at_ms > now_ms + 2 * SKEW_MAX_MS
}

pub(super) fn me(process: &Process) -> Incarnation {
    process.node.view().me
}

pub(super) fn lineage(process: &Process) -> u128 {
    process.node.mesh.with_members(crate::mesh::members::Members::lineage)
}

impl Checker {
    pub(super) fn acked(&self) -> u64 {
        self.writes.iter().filter(|write| write.is_acked).count() as u64
    }

    pub(super) fn started(&mut self, process: &Process, others: &BTreeMap<usize, Process>, is_cut: bool) {
        let mut joined = Joined::default();
        let ready = || others.values().filter(|other| other.node.state() == State::Ready);
        // Members that some other does not see as alive count as unreachable.
        let seen_by_all = |other: &&Process| {
            ready().all(|by| {
                let mut peers = by.node.view().peers.clone().into_iter();
                me(by) == me(other) || peers.any(|p| p.incarnation == me(other) && p.health == Health::Alive)
            })
        };
        for other in ready().filter(seen_by_all) {
            let lineage = lineage(other);
            joined.by.push(me(other));
            // A tombstone may be collected meanwhile.
            let records = Dump::of(&other.node).records.into_iter();
            for (key, record) in records.filter(|(_, record)| record.value.is_some()) {
                let known = joined.held.entry((lineage, key)).or_insert((NEVER, 0, me(other)));
                *known = (*known).max((record.stamp, record.expires_at_ms, me(other)));
            }
        }
        if !is_cut {
            self.joins.insert(process.serial, joined);
        }
    }

    /// Something got in the way of those who join: who goes, sleeps or is cut off may have what they lack.
    pub(super) fn disturbed(&mut self) {
        self.joins.clear();
    }

    /// A process has left within its time: everything it accepted must be with all who were there.
    pub(super) fn left_in_peace(
        &mut self,
        process: &Process,
        processes: &BTreeMap<usize, Process>,
        now_ms: u64,
    ) -> Result<(), Box<Violation>> {
        let view = process.node.view();
        let there = |other: &&Process| {
            let lifetime = me(other);
            view.peers.iter().any(|peer| peer.incarnation == lifetime && peer.health == Health::Alive)
        };
        for other in processes.values().filter(there) {
            let dump = Dump::of(&other.node);
            for number in 0..self.writes.len() {
                let write = &self.writes[number];
                let (Some(key), true) = (write.key.clone(), write.stamp.1 == view.me) else { continue };
                let holds = dump.stamp(Some(&key)) >= write.stamp;
                let lasting = write.value.is_some() && lasts(write.expires_at_ms, now_ms);
                if lasting && !holds && !self.removed_later(&key, write.stamp) {
                    let text = format!("{write:?} was not handed over to {}", other.node.view().name);
                    return Err(violation("LEAVE", text));
                }
                if holds {
                    self.writes[number].held_by_now(other);
                }
            }
        }
        Ok(())
    }

    /// A write was accepted. Returns its number.
    pub(super) fn wrote(
        &mut self,
        process: &Process,
        mut write: Write,
        clock_before: Hlc,
        now_ms: u64,
    ) -> Result<usize, Box<Violation>> {
        let dump = Dump::of(&process.node);
        let lifetime = me(process);
        write.stamp = dump.stamp(write.key.as_deref());
        write.expires_at_ms =
            write.key.as_ref().and_then(|key| dump.records.get(key)).map_or(0, |held| held.expires_at_ms);
        let expired = write.expires_at_ms != 0 && write.expires_at_ms <= now_ms;
        if write.stamp.1 != lifetime && !expired {
            let text = format!("{write:?} was accepted by {lifetime:?}, which does not hold it");
            return Err(violation("D1", text));
        }
        let last = self.stamped.entry(lifetime).or_default();
        if write.stamp.0 <= *last || write.stamp.0 <= clock_before {
            let text = format!("{:?} after {last:?} and {clock_before:?} by {lifetime:?}", write.stamp);
            return Err(violation("D4", text));
        }
        *last = write.stamp.0;
        if let (Some(key), Some(value)) = (&write.key, &write.value) {
            self.keys.insert(value.clone(), key.clone());
        }
        if let Some(key) = &write.key {
            self.served.insert((lifetime, key.clone()), write.stamp);
        }
        write.held_by_now(process);
        write.lineage = lineage(process);
        write.size = process.node.view().size;
        self.writes.push(write);
        Ok(self.writes.len() - 1)
    }

    /// A write was answered with success.
    pub(super) fn acked_now(
        &mut self,
        number: usize,
        processes: &BTreeMap<usize, Process>,
        (at, worker): (usize, usize),
    ) -> Result<(), Box<Violation>> {
        let write = &mut self.writes[number];
        write.is_acked = true;
        let Some(process) = processes.get(&at) else { return Ok(()) };
        // The view that the worker decided by.
        let view = process.engines[worker].mesh.view();
        if view.me != write.stamp.1 {
            // It has begun a new lifetime since, and holds nothing of this one.
            let is_wrong = !matches!(write.level.as_str(), "local" | "1");
            let text = || format!("{write:?} was acknowledged by another lifetime");
            return if is_wrong { Err(violation("D10", text())) } else { Ok(()) };
        }
        let mut holders = 0;
        // Who has been removed since may have held it, too.
        let mut unknown = write.size.saturating_sub(view.size);
        for peer in &view.peers {
            let alive = processes.values().find(|p| me(p) == peer.incarnation);
            let Some(alive) = alive else {
                // It may have had it.
                unknown += 1;
                continue;
            };
            if Dump::of(&alive.node).stamp(write.key.as_deref()) >= write.stamp {
                holders += 1;
                write.held_by_now(alive);
            } else if peer.counted && (write.level.is_empty() || write.level == "all") {
                let text = format!("{write:?} was acknowledged at all, but {} lacks it", peer.name);
                return Err(violation("D10", text));
            }
        }
        let needed = match write.level.as_str() {
            "quorum" => view.size / 2 + 1,
            "" | "all" | "local" => 1,
            number => number.parse().expect("a level"),
        };
        if 1 + holders + unknown < needed {
            let text = format!("{write:?} has {} holders of {needed}, {view:?}", 1 + holders);
            return Err(violation("D10", text));
        }
        Ok(())
    }

    pub(super) fn read(
        &mut self,
        process: &Process,
        key: &str,
        status: u16,
        answer: &[u8],
    ) -> Result<(), Box<Violation>> {
        if status != 200 {
            return Ok(());
        }
        let answer = String::from_utf8_lossy(answer);
        let value = answer.rsplit("\r\n\r\n").next().unwrap_or_default().trim_matches('"').to_owned();
        if self.keys.get(&value).map(String::as_str) != Some(key) {
            return Err(violation("D1", format!("{value} was read for {key}, but never written for it")));
        }
        let lifetime = me(process);
        let stamp = Dump::of(&process.node).stamp(Some(key));
        let served = self.served.entry((lifetime, key.to_owned())).or_insert(NEVER);
        if is_older(stamp, *served) {
            let text = format!("{key} at {lifetime:?} went back from {served:?} to {stamp:?}");
            return Err(violation("D2", text));
        }
        *served = stamp;
        Ok(())
    }

    pub(super) fn during(
        &mut self,
        processes: &BTreeMap<usize, Process>,
        is_cut: bool,
        now_ms: u64,
    ) -> Result<(), Box<Violation>> {
        let heads: BTreeMap<Incarnation, Vec<u64>> = processes
            .values()
            .filter(|p| p.node.mesh.is_ready())
            .map(|p| (me(p), p.node.mesh.heads()))
            .collect();
        if is_cut {
            self.joins.clear();
        }
        for process in processes.values() {
            let mesh = &process.node.mesh;
            for vector in mesh.progress().vectors() {
                let Some(heads) = heads.get(&vector.origin) else { continue };
                if vector.workers.iter().zip(heads).any(|(held, head)| {
                    held.applied > *head || held.ranges.last().is_some_and(|(_, upto)| upto > head)
                }) {
                    let text =
                        format!("{:?} of {:?} applied, heads {heads:?}", vector.workers, vector.origin);
                    return Err(violation("D3", text));
                }
                let ranges = vector.workers.iter().map(|held| held.ranges.len()).max().unwrap_or(0);
                let surplus = vector.surplus.len();
                if ranges > RANGES_MAX || surplus > SURPLUS_MAX {
                    let text = format!("{ranges} ranges and {surplus} surpluses of {:?}", vector.origin);
                    return Err(violation("D8", text));
                }
            }
            let (lifetime, floor) = mesh.with_members(|members| (members.me().incarnation, members.floor()));
            let known = self.floors.entry(lifetime).or_default();
            if floor < *known {
                return Err(violation(
                    "D5",
                    format!("the floor of {lifetime:?} fell from {known:?} to {floor:?}"),
                ));
            }
            *known = floor;
            let view = process.node.view();
            let mut names: Vec<&str> = view.peers.iter().map(|peer| peer.name.as_str()).collect();
            names.push(&view.name);
            names.sort_unstable();
            if names.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(violation("D6", format!("{names:?} in one view")));
            }
            let lifetimes = self.floors.keys().copied();
            let over: Vec<Incarnation> =
                mesh.with_members(|members| lifetimes.filter(|other| members.is_removed(*other)).collect());
            self.removed.extend(over.into_iter().map(|other| (lifetime, other)));
            let back = |peer: &Incarnation| self.removed.contains(&(lifetime, *peer));
            if let Some(back) = view.peers.iter().map(|peer| peer.incarnation).find(back) {
                let text = format!("{back:?} was removed by {lifetime:?} and is in its view again");
                return Err(violation("D6", text));
            }
            if process.log_bytes_exceeded() {
                return Err(violation("D8", format!("the log of {lifetime:?} is over its bound")));
            }
            self.may_be_ready(process, processes, now_ms)?;
        }
        nothing_missing_below_floors(processes)
    }

    /// A joiner's turn is over: if it is ready now, it must hold everything.
    pub(super) fn may_be_ready(
        &mut self,
        process: &Process,
        processes: &BTreeMap<usize, Process>,
        now_ms: u64,
    ) -> Result<(), Box<Violation>> {
        if process.node.state() == State::Ready
            && let Some(joined) = self.joins.remove(&process.serial)
        {
            self.has_all(process, processes, &joined, now_ms)?;
        }
        Ok(())
    }

    /// D7: a node that has become ready holds what ready nodes held when it started.
    fn has_all(
        &self,
        process: &Process,
        processes: &BTreeMap<usize, Process>,
        joined: &Joined,
        now_ms: u64,
    ) -> Result<(), Box<Violation>> {
        let dump = Dump::of(&process.node);
        let own = lineage(process);
        let lasting = |expires_at_ms: u64| lasts(expires_at_ms, now_ms);
        // Whose lifetime was found to be over since has started over, and drops what it alone held.
        let lives = |holder: &Incarnation| processes.values().any(|process| me(process) == *holder);
        // They were another part of the mesh if this one has given up somebody of them who lives and has not heard of it (seed
        // 57030325: that part was ready, and nobody of this one was yet).
        let is_given_up = |other: &Incarnation| {
            lives(other) && process.node.mesh.with_members(|members| members.is_removed(*other))
        };
        let is_other_part = joined.by.iter().any(is_given_up);
        let held = joined.held.iter().filter(|((lineage, _), (_, expires, holder))| {
            !is_other_part && *lineage == own && lasting(*expires) && lives(holder)
        });
        for ((_, key), (stamp, _, _)) in held {
            let removed = |write: &Write| {
                write.value.is_none() && write.stamp >= *stamp && write.key.as_ref().is_none_or(|k| k == key)
            };
            if is_older(dump.stamp(Some(key)), *stamp) && !self.writes.iter().any(removed) {
                let text = format!("process {} is ready without {key} at {stamp:?}", process.serial);
                return Err(violation("D7", text));
            }
        }
        // Nor may a read here miss what was acknowledged by all while it was joining.
        let view = process.node.view();
        let known = |write: &&Write| {
            let by = processes.values().find(|by| me(by) == write.stamp.1);
            by.is_some_and(|by| lineage(by) == own)
                && view.peers.iter().any(|p| p.incarnation == write.stamp.1)
        };
        let at_all = |write: &&Write| write.is_acked && matches!(write.level.as_str(), "" | "all");
        for write in self.writes.iter().filter(at_all).filter(known) {
            let Some(key) = &write.key else { continue };
            let lasting = write.value.is_some() && lasting(write.expires_at_ms);
            if lasting && dump.stamp(Some(key)) < write.stamp && !self.removed_later(key, write.stamp) {
                let text = format!("process {} is ready without {write:?}", process.serial);
                return Err(violation("D7", text));
            }
        }
        Ok(())
    }

    pub(super) fn healed(&mut self, processes: &BTreeMap<usize, Process>) {
        for process in processes.values().filter(|process| process.node.state() == State::Ready) {
            self.healed.insert(me(process), Dump::of(&process.node));
        }
    }

    /// Whether all are of one mesh. Nodes that began apart and have data of their own are for the operator; each of these
    /// meshes is sound by itself.
    pub(super) fn at_the_end(
        &self,
        processes: &BTreeMap<usize, Process>,
        now_ms: u64,
        is_long: bool,
    ) -> Result<bool, Box<Violation>> {
        let alive: BTreeMap<Incarnation, u128> = processes.values().map(|p| (me(p), lineage(p))).collect();
        let lineages: BTreeSet<u128> = alive.values().copied().collect();
        for (process, ours) in processes.values().map(|process| (process, lineage(process))) {
            let view = process.node.view();
            let is_stranger =
                |peer: &&Peer| alive.get(&peer.incarnation).is_some_and(|theirs| *theirs != ours);
            if let Some(stranger) = view.peers.iter().find(is_stranger) {
                let text = format!("{} has {}, who is of another mesh", view.name, stranger.name);
                return Err(violation("Q1", text));
            }
        }
        for ours in &lineages {
            let mesh: Vec<&Process> =
                processes.values().filter(|process| lineage(process) == *ours).collect();
            self.one_mesh_at_the_end(&mesh, *ours, now_ms, is_long)?;
        }
        Ok(lineages.len() == 1)
    }

    fn one_mesh_at_the_end(
        &self,
        processes: &[&Process],
        ours: u128,
        now_ms: u64,
        is_long: bool,
    ) -> Result<(), Box<Violation>> {
        let alive: BTreeSet<Incarnation> = processes.iter().copied().map(me).collect();
        let mut hashes = BTreeSet::new();
        for process in processes {
            let view = process.node.view();
            if process.node.state() != State::Ready {
                let text = format!("{} is {:?} after healing", view.name, view.phase);
                return Err(violation("Q1", text));
            }
            hashes.insert(process.node.mesh.with_members(crate::mesh::members::Members::view_hash));
            for peer in &view.peers {
                if alive.contains(&peer.incarnation) && peer.health != Health::Alive {
                    let text = format!("{} sees {} as {:?}", view.name, peer.name, peer.health);
                    return Err(violation("Q1", text));
                }
            }
            for other in &alive {
                if *other != view.me && !view.peers.iter().any(|peer| peer.incarnation == *other) {
                    return Err(violation("Q1", format!("{} does not know {other:?}", view.name)));
                }
            }
        }
        if hashes.len() > 1 {
            return Err(violation("Q1", format!("{} different views", hashes.len())));
        }
        let dumps: Vec<(Incarnation, Dump)> =
            processes.iter().map(|process| (me(process), Dump::of(&process.node))).collect();
        let Some((first_of, first)) = dumps.first() else { return Ok(()) };
        for (other_of, other) in &dumps {
            // Below the floor a writer's index may have been given to another since.
            let same = |dump: &Dump| -> Vec<(String, String, Hlc)> {
                let visible = dump.visible(now_ms).into_iter();
                visible.map(|(key, (value, stamp))| (key.clone(), value.clone(), stamp.0)).collect()
            };
            let (a, b) = (same(first), same(other));
            let (ours, theirs) = (first.clear, other.clear);
            if a != b || ours.0 != theirs.0 {
                let text = format!(
                    "{first_of:?} holds {a:?} and cleared {ours:?}, {other_of:?} holds {b:?} and cleared {theirs:?}"
                );
                return Err(violation("Q2", text));
            }
        }
        for (lifetime, dump) in self.healed.iter().filter(|(lifetime, _)| alive.contains(lifetime)) {
            for (key, held) in &dump.records {
                let lasting =
                    held.value.is_some() && (held.expires_at_ms == 0 || held.expires_at_ms > now_ms);
                if lasting
                    && is_older(first.stamp(Some(key)), held.stamp)
                    && !self.removed_later(key, held.stamp)
                {
                    let text = format!("{key} at {:?}, which {lifetime:?} held, is lost", held.stamp);
                    return Err(violation("Q3", text));
                }
            }
        }
        let visible = first.visible(now_ms);
        for (lifetime, dump) in self.healed.iter().filter(|(lifetime, _)| alive.contains(lifetime)) {
            let removed = |key: &String| dump.records.get(key).filter(|held| held.value.is_none());
            let back = visible
                .iter()
                .find(|(key, now)| removed(key).is_some_and(|held| is_older(now.1, held.stamp)));
            if let Some((key, (value, stamp))) = back {
                let text =
                    format!("{key} = {value} at {stamp:?} is back, which {lifetime:?} knew to be removed");
                return Err(violation("Q3", text));
            }
        }
        let running =
            || processes.iter().map(|process| process.serial).filter(|serial| !self.excused.contains(serial));
        // A lone node, which only those know who have gone since, may be left behind, with what it answered for.
        let by_most = |write: &Write| write.held_by.len() * 2 > write.size && write.lineage == ours;
        let is_kept = |write: &Write| by_most(write) && running().any(|s| write.held_by.contains(&s));
        for write in self.writes.iter().filter(|write| !write.holders.is_disjoint(&alive) || is_kept(write)) {
            let lasting = write.expires_at_ms == 0 || write.expires_at_ms > now_ms;
            if let (Some(key), Some(_), true) = (&write.key, &write.value, lasting)
                && first.stamp(Some(key)) < write.stamp
                && !self.removed_later(key, write.stamp)
            {
                return Err(violation("Q4", format!("{write:?} is lost")));
            }
            if write.value.is_none() {
                let undone = visible.iter().find(|(key, (_, stamp))| {
                    *stamp < write.stamp && write.key.as_ref().is_none_or(|removed| removed == **key)
                });
                if let Some((key, (value, stamp))) = undone {
                    let text = format!("{key} = {value} at {stamp:?} is back after {write:?}");
                    return Err(violation("Q3", text));
                }
            }
        }
        // Cursors are at the head: nobody lacks what anybody has accepted.
        for (origin, by) in processes.iter().flat_map(|by| processes.iter().map(move |origin| (origin, by))) {
            let (heads, lifetime) = (origin.node.mesh.heads(), me(origin));
            let held = by.node.mesh.progress().get(lifetime).map(|origin| origin.vector().workers);
            let behind = held.iter().flatten().zip(&heads).any(|(held, head)| held.applied < *head);
            if lifetime != me(by) && (held.is_none() || behind) {
                let text = format!("{} holds {held:?} of {lifetime:?}, heads {heads:?}", by.node.view().name);
                return Err(violation("Q5", text));
            }
        }
        // And of those who are gone all hold the same, counted or not.
        let vectors: BTreeMap<Incarnation, Vec<OriginVector>> =
            processes.iter().map(|process| (me(process), process.node.mesh.progress().vectors())).collect();
        let all = vectors.values().flatten().filter(|vector| !alive.contains(&vector.origin));
        for vector in all {
            let of_it = |other: &&OriginVector| other.origin == vector.origin;
            if let Some(other) = vectors.values().flatten().filter(of_it).find(|other| !other.is_same(vector))
            {
                return Err(violation("Q5", format!("of one who is gone {vector:?} and {other:?} are held")));
            }
        }
        let all_here = processes
            .iter()
            .all(|process| process.node.view().peers.iter().all(|peer| alive.contains(&peer.incarnation)));
        if is_long && all_here {
            for process in processes {
                let tombstones = process.node.store.usage(now_ms).tombstones;
                if tombstones > 0 {
                    let name = &process.node.view().name;
                    let floor = process.node.mesh.with_members(crate::mesh::members::Members::floor);
                    let text = process.node.mesh.with_members(|members| {
                        let reports: Vec<String> = members
                            .others()
                            .map(|member| {
                                let told = member.report.as_ref().map(|r| (r.stable, r.view_hash));
                                format!("{}: stable and view {told:?}", member.info.name)
                            })
                            .collect();
                        let stable = members.stable();
                        format!("{tombstones} tombstones left with {name}, floor {floor:?}, stable {stable:?}, {reports:?}")
                    });
                    return Err(violation("Q5", text));
                }
            }
        }
        Ok(())
    }

    /// A later write removed it, or has expired since.
    fn removed_later(&self, key: &str, stamp: Stamp) -> bool {
        self.writes.iter().any(|write| {
            (write.value.is_none() || write.expires_at_ms != 0)
                && write.stamp > stamp
                && write.key.as_ref().is_none_or(|removed| removed == key)
        })
    }
}
