//! With whom this node can compare what it holds.

use super::Members;
use crate::base::version::{Hlc, Incarnation};
use crate::mesh::progress::Progress;
use crate::peer::frame::Phase;

impl Members {
    /// Whether what both hold at or below `floor` must be the same. Not if one of them has just been met and
    /// may have to start over: it is not known to hold everything up to there.
    pub(in crate::mesh) fn is_comparable(
        &self,
        peer: Incarnation,
        view_hash: u64,
        floor: Hlc,
        progress: &Progress,
    ) -> bool {
        let Some(member) = self.members.get(&peer).filter(|member| member.is_serving()) else { return false };
        let theirs = member.report.as_ref().map_or(Hlc::ZERO, |report| report.floor);
        let closed = progress.get(peer).map_or(Hlc::ZERO, |origin| origin.closed());
        self.phase == Phase::Ready
            && self.view_hash() == view_hash
            && self.is_agreed()
            && closed >= floor
            && floor.max(theirs) <= self.greatest_stable
    }

    /// Members with which a comparison up to the floor makes sense now.
    pub(in crate::mesh) fn comparable(&self, progress: &Progress) -> Vec<Incarnation> {
        let hash = self.view_hash();
        let all = self.members.keys().copied();
        all.filter(|peer| self.is_comparable(*peer, hash, self.floor, progress)).collect()
    }
}
