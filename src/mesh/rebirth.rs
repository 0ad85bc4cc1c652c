//! Starting over: a node whose lifetime is over for the others begins a new one, empty. The workers take part one after
//! the other, each when its turn comes; until all of them have, the node serves nothing.

use super::members::Members;
use super::{Context, Mesh, is_empty};
use crate::base::version::Incarnation;
use crate::limits::STAMP_AHEAD_MS;
use crate::store::Storage;
use std::sync::atomic::Ordering;

/// A rebirth under way: every worker drops what it has, then the node begins again, empty.
#[derive(Clone, Debug)]
pub(super) struct Rebirth {
    pub(super) reason: String,
    /// Give up if data has come meanwhile: only an empty node may give way.
    pub(super) only_if_empty: bool,
    /// The lineage that it gives way to; 0: whichever is found first.
    pub(super) towards: u128,
}

impl Rebirth {
    /// This lifetime cannot go on, whatever it holds.
    pub(super) fn because(reason: String) -> Rebirth {
        Rebirth { reason, only_if_empty: false, towards: 0 }
    }
}

impl Mesh {
    /// Asks for a rebirth; the workers carry it out.
    pub(super) fn ask_rebirth(&self, rebirth: Rebirth) {
        if self.leaving.load(Ordering::Acquire) {
            // The others have passed the farewell on. A new lifetime would be met by them, only to be missed.
            self.is_over.store(true, Ordering::Release);
            return;
        }
        let mut slot = self.rebirth.lock();
        if slot.is_none() {
            self.drops.store(!rebirth.only_if_empty, Ordering::Release);
            *slot = Some(rebirth);
            self.is_reborn.store(true, Ordering::Release);
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// As if the others had removed this lifetime.
    #[cfg(test)]
    pub(crate) fn start_over(&self) {
        self.ask_rebirth(Rebirth::because("a test".to_owned()));
    }

    pub(super) fn rebirth_under_way(&self) -> bool {
        self.is_reborn.load(Ordering::Acquire)
    }

    /// The rebirth, once every worker refuses data and, in a second round if it depends on there being none,
    /// has dropped its links and its log. Dropped before, numbers of operations would be used twice by one
    /// lifetime if it goes on after all.
    pub(super) fn finish_rebirth<S: Storage>(&self, context: Context<'_, S>) {
        // The lock first: nobody may ask for another one between the look at the workers and what follows.
        let slot = self.rebirth.lock();
        let epoch = self.epoch.load(Ordering::Acquire);
        if !self.workers.iter().all(|worker| worker.epoch_seen.load(Ordering::Acquire) == epoch) {
            return;
        }
        let Some(rebirth) = slot.clone() else {
            // Carried out, or not. Until every worker has taken up what came of it, an old view may say that it serves.
            if self.view_seen() >= self.view().version {
                self.is_reborn.store(false, Ordering::Release);
            }
            return;
        };
        drop(slot);
        let mut members = self.members.lock();
        let usage = context.store.usage(context.now.wall_ms);
        let records = usage.live_records + usage.tombstones;
        if rebirth.only_if_empty {
            if is_empty(context.store, context.now.wall_ms) {
                *self.rebirth.lock() = Some(Rebirth { only_if_empty: false, ..rebirth });
                self.drops.store(true, Ordering::Release);
                self.epoch.fetch_add(1, Ordering::AcqRel);
                return;
            }
            *self.rebirth.lock() = None;
            self.note(true, "another mesh was found, but both hold data: they stay apart");
            self.publish(&members);
            return;
        }
        *self.rebirth.lock() = None;
        let mut random = members.fork_random();
        let bits = u128::from(random.bits()) << 64 | u128::from(random.bits());
        let mut me = self.config.me.clone();
        // Greater than the old one, or the others would take it for a predecessor.
        let boot_ms = context.now.wall_ms.max((members.me().incarnation.0 >> 80) as u64 + 1);
        me.incarnation = Incarnation::new(boot_ms, bits);
        me.name.clone_from(&members.me().name);
        context.store.reset();
        if context.store.become_writer(me.incarnation).is_none() {
            self.note(true, "the table of writers is full");
        }
        let (seeds, failed) = (members.seeds(), members.failed_copies());
        *members = Members::new(me, context.now.mono_ns, random);
        members.pause_copies(failed, context.now.mono_ns);
        members.expect_others();
        members.adopt_lineage(rebirth.towards);
        members.discovered(&seeds);
        self.progress.reset();
        // What was stamped before goes on to bind it, or a client's later write would lose against its earlier one; but
        // not if others would refuse what is stamped so.
        context.clock.restart_if_ahead(context.now.wall_ms, STAMP_AHEAD_MS);
        for worker in &self.workers {
            worker.head.store(0, Ordering::Release);
            worker.closed.store(0, Ordering::Release);
        }
        self.counters.rebirths.fetch_add(1, Ordering::Relaxed);
        let reason = &rebirth.reason;
        self.note(true, format!("starting over as an empty node: {reason}; {records} records were dropped"));
        self.publish(&members);
    }
}
