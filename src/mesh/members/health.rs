//! Who is there: whoever is heard, and hears us. Beats say the one, the answers to ours the other; with only one of the two
//! a member would be waited for that cannot be told anything.

use super::{Event, MS, Member, Members};
use crate::base::version::Incarnation;
use crate::limits::{DOWN_MS, SUSPECT_MS};
use crate::mesh::view::Health;
use crate::peer::frame::Echo;

/// A refusal counts only if nothing was heard for this long: beats are stronger evidence.
const REFUSED_AFTER_MS: u64 = 1_000;

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
        if let Some(member) = self.members.get_mut(&from) {
            (member.echo, member.echoed_ns) = (Some(echo), now_ns);
            if member.fenced {
                member.contested_ns.get_or_insert(now_ns);
            }
        }
    }

    /// A dial to this member was refused: nobody listens there.
    pub(in crate::mesh) fn on_refused(&mut self, incarnation: Incarnation) {
        if let Some(member) = self.members.get_mut(&incarnation) {
            member.refused = true;
        }
    }

    /// A member has given us up, not all of them. If we have given it up as well, the older one stays.
    pub(in crate::mesh) fn on_fenced(&mut self, by: Incarnation, now_ns: u64) {
        let is_younger = self.me.incarnation > by;
        if let Some(member) = self.members.get_mut(&by).filter(|member| member.fenced && is_younger) {
            member.echoed_ns = now_ns;
            member.contested_ns.get_or_insert(now_ns);
        }
    }

    /// This node alone has given somebody up who is there and hears it: the others go on with that one, and nothing may be
    /// taken from it here any more. Long enough for the others to have agreed, if they will.
    pub(super) fn is_contradicted(&self, now_ns: u64) -> bool {
        self.members.values().any(|member| {
            let for_long = member.contested_ns.is_some_and(|since| now_ns >= since + SUSPECT_MS * MS);
            member.fenced && for_long && now_ns < member.echoed_ns + SUSPECT_MS * MS
        })
    }
}
