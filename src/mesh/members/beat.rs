//! What members tell each other with every beat, and what is made of it.

use super::member::Report;
use super::{MS, Members};
use crate::base::version::Incarnation;
use crate::limits::BEAT_MS;
use crate::mesh::progress::Progress;
use crate::mesh::view::Health;
use crate::peer::frame::{Beat, OriginVector, Phase};

impl Members {
    /// The next beat is due so long after the last one, in nanoseconds.
    pub(in crate::mesh) fn beat_pause_ns(&mut self) -> u64 {
        (BEAT_MS - BEAT_MS / 10 + self.random.below(BEAT_MS / 5)) * MS
    }

    /// The beat to send now; `leaving`: the last one.
    pub(in crate::mesh) fn beat(
        &mut self,
        progress: &Progress,
        own: OriginVector,
        leaving: bool,
        now_ns: u64,
    ) -> Beat {
        let mut vectors = self.vectors(progress);
        vectors.push(own);
        let removed = self.removed_to_tell(progress);
        Beat {
            sent_ns: now_ns,
            phase: if leaving { Phase::Left } else { self.phase },
            view_hash: self.view_hash(),
            stable: self.stable,
            floor: self.floor,
            members: std::iter::once((self.me.clone(), false))
                .chain(self.members.values().map(|m| (m.info.clone(), m.fenced)))
                .collect(),
            removed,
            strangers: self.strangers_to_tell(),
            vectors,
        }
    }

    /// Those whom somebody takes for a member who has not met them since they have found their mesh, and who perhaps never
    /// will: they may be dead.
    fn strangers_to_tell(&self) -> Vec<Incarnation> {
        let is_named =
            |stranger: &&Incarnation| self.reports().any(|report| report.vectors.contains_key(stranger));
        self.strangers.iter().filter(is_named).copied().collect()
    }

    /// A member's beat.
    pub(in crate::mesh) fn on_beat(
        &mut self,
        from: Incarnation,
        beat: Beat,
        progress: &Progress,
        now_ns: u64,
    ) {
        let Some(member) = self.members.get_mut(&from) else { return };
        member.heard_ns = Some(now_ns);
        member.refused = false;
        let health = member.health_at(now_ns);
        let address = member.info.address;
        // Before any removal, the sender's own included: whom a former member has let in stays, or nobody but
        // they would know of them. What cannot be added is of no concern to the beat's sender.
        for (info, _) in beat.members.iter().filter(|(info, _)| info.incarnation != from) {
            let _ = self.add(info, progress, true, now_ns);
        }
        if beat.phase == Phase::Left {
            self.forget_seed(address);
            return self.remove(from, progress, now_ns);
        }
        let Some(member) = self.members.get_mut(&from) else { return };
        let before = (member.phase(), member.health);
        let fences = beat.members.iter().filter(|(_, fenced)| *fenced).map(|(m, _)| m.incarnation).collect();
        let report = Report {
            phase: beat.phase,
            view_hash: beat.view_hash,
            stable: beat.stable,
            floor: beat.floor,
            members: beat.members.iter().map(|(info, _)| info.incarnation).collect(),
            fences,
            settled: beat.vectors.iter().filter(|v| v.is_settled()).map(|v| v.origin).collect(),
            vectors: beat.vectors.into_iter().map(|v| (v.origin, v)).collect(),
        };
        // That somebody is down is for the tick to find: it takes note of when.
        if health != Health::Down {
            member.health = health;
        }
        self.dirty |= before != (beat.phase, member.health);
        for incarnation in beat.removed {
            self.remove(incarnation, progress, now_ns);
        }
        for incarnation in beat.strangers {
            self.met_stranger(incarnation, progress);
        }
        // Of those who were gone before we came: until everybody holds the same, we are part of everybody. And of whom they have
        // settled without us, no floor being past it, we need what they hold; a copy brings that by itself.
        let is_open = |origin: &Incarnation| {
            self.removed.contains(origin)
                && !self.settled.contains_key(origin)
                && (self.loaded || !report.settled.contains(origin))
        };
        for (origin, vector) in report.vectors.iter().filter(|(origin, _)| is_open(origin)) {
            progress.ensure(*origin, vector.workers.len()).end();
        }
        for (info, _) in beat.members {
            if info.incarnation == from {
                self.on_name(from, info.name);
                continue;
            }
            // Once more: its name may be free now.
            let _ = self.add(&info, progress, true, now_ns);
        }
        for (origin, vector) in &report.vectors {
            // Of whom it has let in anything may come with a pull.
            let may_come = report.members.contains(origin) || !vector.is_empty();
            if may_come && self.is_unlisted(*origin) {
                progress.ensure(*origin, vector.workers.len());
            }
        }
        if let Some(member) = self.members.get_mut(&from) {
            member.report = Some(report);
        }
    }
}
