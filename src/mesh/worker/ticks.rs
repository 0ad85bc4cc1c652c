//! What time brings to a worker: marks, dials, links that are too late; and on the first worker the beats,
//! the pulls and the membership.

use super::outbound::{Outbound, stream};
use super::targets::Target;
use super::{Effect, LinkId, MS, Role, SILENT_MS, Slot, Worker};
use crate::base::version::{Hlc, Incarnation};
use crate::limits::{CONNECT_MS, HANDSHAKE_MS, STAMP_AHEAD_MS};
use crate::mesh::members::{Event, Members, Rules};
use crate::mesh::{Context, Mesh, Mutation, Rebirth};
use crate::peer::frame::{Frame, Phase, Reason};
use crate::peer::link::Link;
use crate::store::Storage;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Worker {
    /// Promises that what comes later has greater stamps.
    pub(super) fn mark<S>(&mut self, context: Context<'_, S>) {
        context.clock.observe(Hlc::from_millis(context.now.wall_ms));
        let closed = context.clock.latest();
        let facts = &self.mesh.workers[self.index];
        facts.closed.store(closed.0, Ordering::Release);
        let seq = self.log.head();
        for slot in self.slots.values_mut() {
            let Role::Out(out) = &mut slot.role else { continue };
            if out.said_lineage {
                // Under writes there is always something new; the mark would never get its turn.
                stream(&self.log, out, &mut slot.link, self.awaited, &self.mesh);
            }
            if out.cursor.is_some_and(|cursor| cursor.taken() == seq) {
                slot.link.send(&Frame::Mark { seq, closed });
            }
        }
    }

    /// Publishes how far its streams are.
    pub(super) fn publish_figures(&self) {
        for slot in self.slots.values() {
            if let Role::Out(Outbound { cursor: Some(cursor), figures, .. }) = &slot.role {
                figures.reached(cursor.taken());
            }
        }
        let (kept, limit) = (self.log.bytes() as u64, self.log.limit() as u64);
        for target in self.targets.values() {
            target.figures.lags(self.log.bytes_behind(target.held()), kept, limit);
        }
    }

    pub(super) fn close_the_late(&mut self, now_ns: u64) {
        for slot in self.slots.values_mut() {
            let Role::Out(out) = &mut slot.role else { continue };
            let target = out.peer.and_then(|peer| self.targets.get(&peer));
            let lacks = |target: &Target| out.cursor.is_some_and(|cursor| cursor.taken() > target.held());
            let is_waiting = target.is_some_and(lacks);
            out.waits_ns = if is_waiting { out.waits_ns.or(Some(now_ns)) } else { None };
        }
        let late = |slot: &Slot| match &slot.role {
            // A lost first packet is sent again only after a second, and then after more.
            Role::Out(_) if !slot.connected => now_ns > slot.opened_ns + CONNECT_MS * MS,
            Role::Out(out) if out.peer.is_none() => now_ns > slot.opened_ns + HANDSHAKE_MS * MS,
            Role::In(inbound) if inbound.is_half_open() => now_ns > slot.opened_ns + HANDSHAKE_MS * MS,
            // A member must be one, and answer what calls for an answer: beats, which the first worker sends all the time,
            // and operations.
            Role::Out(out) => {
                let target = out.peer.and_then(|peer| self.targets.get(&peer));
                let since = if self.index == 0 { Some(slot.opened_ns) } else { out.waits_ns };
                target.is_none()
                    || since.is_some_and(|since| now_ns > since.max(slot.heard_ns) + SILENT_MS * MS)
            }
            Role::In(_) => now_ns > slot.heard_ns + SILENT_MS * MS,
        };
        let late: Vec<LinkId> = self.slots.iter().filter(|(_, s)| late(s)).map(|(id, _)| *id).collect();
        for id in late {
            self.refuse(id, Reason::Silent, "nothing came");
        }
    }

    pub(super) fn dial(&mut self, now_ns: u64) {
        let due: Vec<(Incarnation, SocketAddr)> = self
            .targets
            .iter()
            .filter(|(_, target)| target.link.is_none() && now_ns >= target.retry_ns)
            .map(|(incarnation, target)| (*incarnation, target.address))
            .collect();
        for (incarnation, address) in due {
            let id = self.dial_to(address, Some(incarnation), now_ns);
            if let Some(target) = self.targets.get_mut(&incarnation) {
                target.link = Some(id);
            }
        }
        if self.index != 0 {
            return;
        }
        let unmet = self.mesh.members.lock().unmet_seeds();
        if self.seeds.len() > unmet.len() {
            self.seeds.retain(|address, seed| seed.link.is_some() || unmet.contains(address));
        }
        for address in unmet {
            let seed = self.seeds.entry(address).or_default();
            if seed.link.is_none() && now_ns >= seed.retry_ns {
                let id = self.dial_to(address, None, now_ns);
                self.seeds.entry(address).or_default().link = Some(id);
            }
        }
    }

    fn dial_to(&mut self, address: SocketAddr, target: Option<Incarnation>, now_ns: u64) -> LinkId {
        let link = Link::dial(self.mesh.config.keys.clone());
        let id = self.insert(link, Role::Out(Outbound::new(address, target)), now_ns, false);
        self.effects.push(Effect::Dial { link: id, address });
        id
    }

    /// The membership's ticks, beats, pulls and rebirths: of the first worker only.
    pub(super) fn tick_members<S: Storage>(&mut self, context: Context<'_, S>) {
        let now_ns = context.now.mono_ns;
        if self.mesh.rebirth_under_way() {
            return self.mesh.finish_rebirth(context);
        }
        let mesh = Arc::clone(&self.mesh);
        let own_closed = mesh.own_closed();
        let rules = Rules {
            forget_ms: self.crowd.forget_ms(&mesh, &self.view, context),
            seeds_expected: mesh.config.seeds_expected,
            sees_mesh: mesh.sees_mesh.load(Ordering::Acquire),
            mutation: mesh.config.mutation,
            latest: context.clock.latest().next(),
        };
        let mut members = mesh.members.lock();
        let ahead_ms = context.clock.latest().millis().saturating_sub(context.now.wall_ms);
        if members.phase() == Phase::Joining && ahead_ms > STAMP_AHEAD_MS {
            // The others would refuse its marks until their clocks have come so far.
            let reason = "its clock was ahead, and went back".to_owned();
            return mesh.ask_rebirth(Rebirth::because(reason));
        }
        members.tick(&mesh.progress, own_closed, rules, now_ns);
        mesh.judge_clock(&members);
        if rules.sees_mesh && members.is_locked_out(now_ns) {
            mesh.complain(
                "locked out",
                "mesh   there is a node that is ready, but no link to its peer port comes about (another secret, \
                 another version, a port that is closed): waiting for one",
            );
        }
        if members.beat_now || now_ns >= self.beat_ns {
            members.beat_now = false;
            self.beat_ns = now_ns + members.beat_pause_ns();
            self.send_beats(&mesh, &mut members, now_ns);
        }
        let can_ask = |donor: Incarnation| {
            let link = self.targets.get(&donor).and_then(|target| target.link);
            link.and_then(|link| self.slots.get(&link))
                .is_some_and(|slot| matches!(slot.role, Role::Out(Outbound { cursor: Some(_), .. })))
        };
        let plan =
            members.begin_pull(&mesh.progress, can_ask, rules.mutation == Mutation::NoReconciliation, now_ns);
        let events = std::mem::take(&mut members.events);
        for settled in members.take_settled() {
            context.store.release_writer(settled);
        }
        if std::mem::take(&mut members.dirty) {
            mesh.publish(&members);
        } else {
            mesh.publish_floor(&members);
        }
        drop(members);
        if let Some(plan) = plan {
            self.ask(&plan);
        }
        for event in events {
            match event {
                Event::Note { is_warning, text } => mesh.note(is_warning, text),
                Event::Rebirth { reason } => {
                    mesh.ask_rebirth(Rebirth::because(reason.to_owned()));
                }
            }
        }
    }

    fn send_beats(&mut self, mesh: &Mesh, members: &mut Members, now_ns: u64) {
        let own = mesh.own_vector();
        let beat = Frame::Beat(members.beat(&mesh.progress, own.clone(), false, now_ns));
        // Who leaves says so only to those who hold everything that it has accepted.
        let leaving = mesh.leaving.load(Ordering::Acquire);
        let holders = if leaving { members.holders_of(&mesh.heads()) } else { BTreeSet::new() };
        let farewell =
            (!holders.is_empty()).then(|| Frame::Beat(members.beat(&mesh.progress, own, true, now_ns)));
        let lineage = members.own_lineage();
        for slot in self.slots.values_mut() {
            let Role::Out(out) = &mut slot.role else { continue };
            let Outbound { cursor: Some(_), peer: Some(peer), .. } = *out else { continue };
            // Before the beat: whose floor that names must be known.
            out.say_lineage(&mut slot.link, lineage);
            if slot.link.output().len() < 2 * mesh.config.portions.output_bytes {
                match farewell.as_ref().filter(|_| holders.contains(&peer)) {
                    Some(farewell) => {
                        members.said_farewell(peer, now_ns);
                        slot.link.send(farewell);
                    }
                    None => slot.link.send(&beat),
                }
            }
        }
    }
}
