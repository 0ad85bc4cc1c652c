//! Removals are remembered until every member holds them. One that is away keeps all of them, so that those who have
//! reached their cap make the time shorter for which it is waited for.

use super::{Context, MS};
use crate::limits::FORGET_CROWDED_MS;
use crate::mesh::Mesh;
use crate::mesh::view::{Health, View};
use crate::store::Storage;

/// Counting goes through all stripes, so it is done so often, in milliseconds, and only while somebody is away.
const LOOK_MS: u64 = 1_000;

/// Whether the tombstones have reached their cap, as last seen.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    looked_ns: u64,
    is_crowded: bool,
}

impl Crowd {
    /// After how long a member that is down is fenced, in milliseconds.
    pub(super) fn forget_ms<S: Storage>(&mut self, mesh: &Mesh, view: &View, context: Context<'_, S>) -> u64 {
        let now_ns = context.now.mono_ns;
        if now_ns >= self.looked_ns + LOOK_MS * MS {
            self.looked_ns = now_ns;
            let is_waited_for = view.peers.iter().any(|peer| peer.health == Health::Down);
            let tombstones =
                if is_waited_for { context.store.usage(context.now.wall_ms).tombstones } else { 0 };
            self.is_crowded = tombstones > mesh.config.tombstones_max;
            if self.is_crowded {
                mesh.complain(
                    "tombstones",
                    format!(
                        "mesh   {tombstones} removals are remembered for members that are down: those that are away for {} s \
                         are forgotten, and begin empty if they come back",
                        FORGET_CROWDED_MS / 1000
                    ),
                );
            }
        }
        if self.is_crowded { mesh.config.forget_ms.min(FORGET_CROWDED_MS) } else { mesh.config.forget_ms }
    }
}
