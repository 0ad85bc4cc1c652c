//! From joining to serving: a node begins by itself or copies from another, says that it is prepared, and
//! serves as soon as everybody waits for it.

use super::{Event, MS, Member, Members, Rules};
use crate::limits::{BOOTSTRAP_MS, BOOTSTRAP_SETTLED_MS, SUSPECT_MS};
use crate::mesh::Mutation;
use crate::mesh::progress::Progress;
use crate::mesh::view::Health;
use crate::peer::frame::Phase;

impl Members {
    pub(super) fn advance_phase(&mut self, progress: &Progress, rules: Rules, now_ns: u64) {
        let orphaned_ms = now_ns.saturating_sub(self.orphaned_ns.unwrap_or(now_ns)) / MS;
        if !self.loaded && self.lineage != 0 && !self.members.values().any(Member::may_hold_copy) {
            self.orphaned_ns.get_or_insert(now_ns);
            if orphaned_ms > SUSPECT_MS {
                // Whose lineage that was has gone before we had a copy; what we hold is a part of nothing.
                self.events.push(Event::Rebirth { reason: "its mesh has gone before it had a copy" });
            }
        } else {
            self.orphaned_ns = None;
        }
        if self.phase == Phase::Joining
            && !self.loaded
            && !rules.sees_mesh
            && self.may_bootstrap(rules.seeds_expected || self.is_reborn, now_ns)
        {
            self.bootstrap();
        }
        // Whom there is nobody to hold up may begin whatever its clock says.
        let may_follow = self.can_follow() || !self.members.values().any(Member::is_counted);
        if self.phase == Phase::Joining && self.loaded && self.has_what_they_have(progress) && may_follow {
            self.phase = Phase::Prepared;
            self.prepared_ns = now_ns;
            self.beat_now = true;
            self.dirty = true;
        }
        let counted =
            rules.mutation == Mutation::ReadyWithoutBeingCounted || self.is_counted_by_all(progress);
        if self.phase == Phase::Prepared && counted {
            self.phase = Phase::Ready;
            self.beat_now = true;
            self.dirty = true;
            let text = match self.members.len() {
                0 => "mesh   ready, alone".to_owned(),
                others => format!("mesh   ready, {} members", others + 1),
            };
            self.events.push(Event::Note { is_warning: false, text });
        }
    }

    /// Has looked for the mesh for long enough to begin another, and has no link to anybody.
    pub(in crate::mesh) fn is_locked_out(&self, now_ns: u64) -> bool {
        !self.loaded && self.members.is_empty() && now_ns.saturating_sub(self.born_ns) / MS >= BOOTSTRAP_MS
    }

    fn bootstrap(&mut self) {
        self.loaded = true;
        // A new one in any case: what it may have heard of before, it has no copy of.
        let bits = u128::from(self.random.bits()) << 64 | u128::from(self.random.bits());
        self.lineage = bits.max(1);
        self.dirty = true;
    }

    /// A node that was told of nobody serves from the start; others may join it.
    pub(in crate::mesh) fn begin_alone(&mut self) {
        self.bootstrap();
        self.phase = Phase::Ready;
    }

    /// Nobody is there who holds anything, and it is on us to begin.
    fn may_bootstrap(&self, seeds_expected: bool, now_ns: u64) -> bool {
        // Whoever has another time than most would begin a mesh that they cannot join.
        if self.lineage != 0 || self.is_far_from_most() {
            return false;
        }
        if self.members.is_empty() && !seeds_expected && self.seeds.is_empty() {
            return true;
        }
        if self.members.values().any(|m| m.health != Health::Down && m.phase() >= Phase::Prepared) {
            return false;
        }
        let heard = self.members.values().filter(|m| m.health == Health::Alive);
        let may_begin = |member: &&Member| member.info.incarnation < self.me.incarnation && !member.is_far();
        if heard.clone().any(|member| may_begin(&member)) {
            return false;
        }
        let waited_ms = now_ns.saturating_sub(self.born_ns) / MS;
        let settled_ms = now_ns.saturating_sub(self.changed_ns) / MS;
        let all_heard = self.members.values().all(|m| matches!(m.health, Health::Alive | Health::Down));
        waited_ms >= BOOTSTRAP_MS || (heard.count() > 0 && all_heard && settled_ms >= BOOTSTRAP_SETTLED_MS)
    }

    /// Everybody waits for us, and we hold what they had when they began to.
    fn is_counted_by_all(&self, progress: &Progress) -> bool {
        self.members.values().filter(|member| member.health != Health::Down).all(|member| {
            let Some(echo) = &member.echo else { return false };
            if !echo.counts_you || echo.sent_ns < self.prepared_ns {
                return false;
            }
            let Some(origin) = progress.get(member.info.incarnation) else { return false };
            origin.vector().workers.iter().zip(&echo.heads).all(|(held, head)| held.applied >= *head)
        })
    }
}
