//! The members that a worker streams its log to.

use super::{Context, LinkId, MS, Worker};
use crate::base::version::Incarnation;
use crate::limits::{REDIAL_MS, REDIAL_MS_MAX};
use crate::mesh::figures::Stream;
use crate::mesh::view::Health;
use crate::peer::frame::Reason;
use crate::store::Storage;
use std::net::SocketAddr;
use std::sync::Arc;

/// A seed is dialed so often before it is left alone for longer and longer, and so often that doubles.
const SEED_TRIES: u32 = 8;
const SEED_DOUBLINGS_MAX: u32 = 4;

/// An address that was told, behind which nobody is known.
#[derive(Debug, Default)]
pub(super) struct Seed {
    pub(super) link: Option<LinkId>,
    pub(super) retry_ns: u64,
    failures: u32,
}

impl Seed {
    /// Nobody was met there: at first it is tried often, since it may just be starting, then for ever at a slow pace.
    pub(super) fn failed(&mut self, now_ns: u64, jitter_ms: u64) {
        let doublings = self.failures.saturating_sub(SEED_TRIES).min(SEED_DOUBLINGS_MAX);
        self.failures = self.failures.saturating_add(1);
        self.link = None;
        self.retry_ns = now_ns + (((REDIAL_MS_MAX / 4) << doublings) + jitter_ms) * MS;
    }
}

/// A member to stream to.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) link: Option<LinkId>,
    pub(super) retry_ns: u64,
    pub(super) backoff_ms: u64,
    /// What it has of this worker's log.
    pub(super) acked: u64,
    /// Beyond a restart: (base, upto).
    pub(super) segment: (u64, u64),
    pub(super) counted: bool,
    pub(super) health: Health,
    pub(super) figures: Arc<Stream>,
}

impl Target {
    /// The last operation that need not be sent any more: held, or before a restart.
    pub(super) fn held(&self) -> u64 {
        self.acked.max(self.segment.1).max(self.figures.base())
    }

    pub(super) fn holds(&self, seq: u64) -> bool {
        seq <= self.acked || (self.segment.0 < seq && seq <= self.segment.1)
    }
}

impl Worker {
    /// Links to members that are no more are closed, new members become targets.
    pub(super) fn follow_view<S: Storage>(&mut self, context: Context<'_, S>) {
        let view = Arc::clone(&self.view);
        let mut hanging = Vec::new();
        for peer in &view.peers {
            let target = self.targets.entry(peer.incarnation).or_insert_with(|| Target {
                address: peer.address,
                link: None,
                retry_ns: 0,
                backoff_ms: REDIAL_MS,
                acked: 0,
                segment: (0, 0),
                counted: false,
                health: peer.health,
                figures: self.mesh.figures.open(peer.incarnation, self.index),
            });
            target.address = peer.address;
            target.counted = peer.counted;
            if peer.health == Health::Alive && target.health != Health::Alive {
                // It is back: no reason to wait any longer, least of all for a dial from before.
                let hangs = |link: &LinkId| self.slots.get(link).is_some_and(|slot| !slot.connected);
                if let Some(link) = target.link.take_if(|link| hangs(link)) {
                    hanging.push(link);
                }
                (target.retry_ns, target.backoff_ms) = (0, REDIAL_MS);
            }
            if peer.health == Health::Down
                && target.health != Health::Down
                && let Some(link) = target.link.take()
            {
                target.retry_ns = context.now.mono_ns + REDIAL_MS * MS;
                self.forget_link(link);
            }
            if let Some(target) = self.targets.get_mut(&peer.incarnation) {
                target.health = peer.health;
            }
        }
        for link in hanging {
            self.forget_link(link);
        }
        let gone: Vec<Incarnation> = self
            .targets
            .keys()
            .filter(|target| !view.peers.iter().any(|peer| peer.incarnation == **target))
            .copied()
            .collect();
        if self.index == 0 {
            self.mesh.comparisons.retain(|peer| view.peers.iter().any(|known| known.incarnation == peer));
        }
        for incarnation in gone {
            self.mesh.figures.close(incarnation, self.index);
            if let Some(link) = self.targets.remove(&incarnation).and_then(|target| target.link) {
                self.refuse(link, Reason::Removed, "removed");
            }
        }
        self.acked = true;
    }
}
