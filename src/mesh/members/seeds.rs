//! Addresses that may be members': those that discovery has found, and those of whom this node has yielded to.

use super::Members;
use std::net::SocketAddr;

/// Addresses that are tried.
const SEEDS_MAX: usize = 256;

impl Members {
    pub(in crate::mesh) fn discovered(&mut self, addresses: &[SocketAddr]) {
        for address in addresses {
            if !self.seeds.contains(address) {
                // The oldest give way: what discovery still names it will name again.
                if self.seeds.len() >= SEEDS_MAX {
                    self.seeds.remove(0);
                }
                self.seeds.push(*address);
            }
        }
    }

    /// As [`Members::discovered`], but there is always room for what that names.
    pub(in crate::mesh) fn hinted(&mut self, addresses: &[SocketAddr]) {
        let room = (SEEDS_MAX / 4).saturating_sub(self.seeds.len());
        self.discovered(&addresses[..addresses.len().min(room)]);
    }

    pub(crate) fn seeds(&self) -> Vec<SocketAddr> {
        self.seeds.clone()
    }

    /// Seeds that are neither known members nor ourselves.
    pub(in crate::mesh) fn unmet_seeds(&self) -> Vec<SocketAddr> {
        let known = |address: &&SocketAddr| {
            self.selves.contains(address) || self.members.values().any(|m| m.info.address == **address)
        };
        self.seeds.iter().filter(|address| !known(address)).copied().collect()
    }

    pub(in crate::mesh) fn found_self(&mut self, address: SocketAddr) {
        if self.selves.len() < SEEDS_MAX {
            self.selves.insert(address);
        }
    }

    /// Whoever was there has left. Who comes next under that address will say so itself.
    pub(super) fn forget_seed(&mut self, address: SocketAddr) {
        self.seeds.retain(|seed| *seed != address);
    }
}
