//! Who is there: whoever is heard, and hears us. Beats say the one, the answers to ours the other; with only one of the two
//! a member would be waited for that cannot be told anything.

use super::{Event, MS, Member, Members};
use crate::base::version::Incarnation;
use crate::limits::{DOWN_MS, SUSPECT_MS};
use crate::mesh::view::Health;
use crate::peer::frame::Echo;

/// A refusal counts only if nothing was heard for this long: beats are stronger evidence.
const REFUSED_AFTER_MS: u64 = 1_000;
/// Whoever has given us up and is in the minority with that starts over after [`SUSPECT_MS`]; who has not by then will not.
const GIVEN_UP_MS: u64 = 5 * SUSPECT_MS;

impl Member {
    pub(super) fn health_at(&self, now_ns: u64) -> Health {
        let silent_ms = now_ns.saturating_sub(self.heard_ns.unwrap_or(self.learned_ns)) / MS;
        let deaf_ms = now_ns.saturating_sub(self.echoed_ns) / MS;
        match self.heard_ns {
            _ if silent_ms >= DOWN_MS || deaf_ms >= DOWN_MS => Health::Down,
            _ if self.refused && silent_ms >= REFUSED_AFTER_MS => Health::Down,
            None => Health::Unheard,
            _ if silent_ms >= SUSPECT_MS => Health::Suspect,
            _ => Health::Alive,
        }
    }
}

impl Members {
    pub(super) fn judge_health(&mut self, now_ns: u64) {
        let mut notes = Vec::new();
        for member in self.members.values_mut() {
            let health = member.health_at(now_ns);
            if health != member.health {
                if health == Health::Down {
                    member.down_ns = now_ns;
                    // What it said is of the past; it will say it again.
                    member.echo = None;
                    notes.push(format!("mesh   {} is down", member.info.name));
                }
                member.health = health;
                self.dirty = true;
            }
        }
        let note = |text| Event::Note { is_warning: true, text };
        self.events.extend(notes.into_iter().map(note));
    }

    /// A member's answer to our beat.
    pub(in crate::mesh) fn on_echo(&mut self, from: Incarnation, echo: Echo, wall_ms: u64, now_ns: u64) {
        let Some(member) = self.members.get_mut(&from) else { return };
        let round_trip = now_ns.saturating_sub(echo.sent_ns);
        member.round_trip_ns = round_trip;
        member.round_trips.record(round_trip);
        let middle = wall_ms as i64 - (round_trip / MS / 2) as i64;
        member.clock_offset_ms = (echo.wall_ms as i64).saturating_sub(middle);
        if self.farewells.get(&from).is_some_and(|sent| echo.sent_ns >= *sent) {
            self.farewell_heard.insert(from);
        }
        (member.echo, member.echoed_ns) = (Some(echo), now_ns);
        if member.fenced {
            self.contested(from, now_ns);
        }
    }

    /// A member has answered something else than a beat, behind which an echo may wait.
    pub(in crate::mesh) fn on_answer(&mut self, from: Incarnation, now_ns: u64) {
        if let Some(member) = self.members.get_mut(&from) {
            member.echoed_ns = now_ns;
        }
    }

    /// A member that was given up here is there, and takes us for a member.
    pub(in crate::mesh) fn contested(&mut self, fenced: Incarnation, now_ns: u64) {
        if let Some(member) = self.members.get_mut(&fenced) {
            member.echoed_ns = now_ns;
            member.contested_ns.get_or_insert(now_ns);
        }
    }

    /// A dial to this member was refused: nobody listens there.
    pub(in crate::mesh) fn on_refused(&mut self, incarnation: Incarnation) {
        if let Some(member) = self.members.get_mut(&incarnation) {
            member.refused = true;
        }
    }

    /// A member has given us up, perhaps not all of them. If we have given it up as well, the older one stays.
    pub(in crate::mesh) fn on_fenced(&mut self, by: Incarnation, now_ns: u64) {
        let is_younger = self.me.incarnation > by;
        let Some(member) = self.members.get_mut(&by) else { return };
        let since = member.fenced_us.map_or(now_ns, |(since, _)| since);
        member.fenced_us = Some((since, now_ns));
        if member.fenced && is_younger {
            self.contested(by, now_ns);
        }
    }

    /// Whether this lifetime and the members' cannot go on together, though nobody was removed; why, if so. Only after some
    /// time, in which those who have a majority will have removed somebody.
    ///
    /// Half of the members have given us up: the other half may be asleep. Or half of those who are there have, and have for
    /// so long that they would have begun anew if they were the few. Or we have given somebody up who is there and whom half
    /// of the members, or for so long half of those who are there, have not: they go on with that one, of whom nothing may be
    /// taken here any more.
    pub(super) fn cannot_go_on(&self, now_ns: u64) -> Option<&'static str> {
        let before = now_ns.checked_sub(SUSPECT_MS * MS)?;
        let size = self.members.len() + 1;
        let since = |m: &Member| m.fenced_us.filter(|(_, to)| *to > before).map(|(from, _)| from);
        let had_fenced_us = |by_ns: u64| move |m: &&Member| since(m).is_some_and(|from| from <= by_ns);
        if self.members.values().filter(had_fenced_us(before)).count() * 2 >= size {
            return Some("half of the members have given it up");
        }
        let is_there = |m: &&Member| m.health != Health::Down || since(m).is_some();
        let there = self.members.values().filter(is_there).count() + 1;
        let long_before = now_ns.saturating_sub(GIVEN_UP_MS * MS);
        if self.members.values().filter(had_fenced_us(long_before)).count() * 2 >= there {
            return Some("half of the members that are there have given it up");
        }
        let is_contradicted = |m: &Member| {
            let contested = |by_ns: u64| m.contested_ns.is_some_and(|since| since <= by_ns);
            let absent = m.info.incarnation;
            // The dead do not start over.
            let by_few = contested(before) && self.votes_against(absent, |_| true) * 2 < size
                || contested(long_before) && self.votes_against(absent, is_there) * 2 < there;
            m.fenced && m.echoed_ns > before && by_few
        };
        let contradicted = self.members.values().any(is_contradicted);
        contradicted.then_some("it had given up a member whom the others have not")
    }
}
