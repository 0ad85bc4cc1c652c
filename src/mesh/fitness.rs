//! Whether this node is fit to serve: its clock agrees with most members', and what they accept fits here.

use super::Mesh;
use super::members::Members;
use std::sync::atomic::Ordering;

/// So long after the last write that did not fit, in milliseconds, a node is taken to lack memory still.
const UNFIT_MS: u64 = 15_000;

impl Mesh {
    /// Most members' clocks differ from this node's: it takes no writes, for its stamps would be wrong.
    #[inline]
    #[must_use]
    pub fn is_skewed(&self) -> bool {
        self.is_skewed.load(Ordering::Acquire)
    }

    pub(super) fn judge_clock(&self, members: &Members) {
        let skewed = members.is_skewed();
        if self.is_skewed.swap(skewed, Ordering::AcqRel) != skewed {
            let text = match skewed {
                true => {
                    "clock  more than 500 ms from most members' clocks: no writes are taken until it agrees"
                }
                false => "clock  agrees with the members' again: writes are taken",
            };
            self.note(skewed, text);
        }
        let jump_ms = self.jump_ms.load(Ordering::Acquire);
        // Who has never met anybody has nobody to ask; who has will be asked by the next that comes.
        let is_free = !self.logging.load(Ordering::Acquire);
        if jump_ms != 0 && (is_free || members.confirm_jump(jump_ms)) {
            self.jump_ms.store(0, Ordering::Release);
            self.jumps_followed.fetch_add(1, Ordering::AcqRel);
            self.note(true, format!("clock  jumped by {jump_ms} ms, which is followed now"));
        }
    }

    /// Cannot take what other nodes have accepted, for want of memory: it holds less than they do, and serves what they
    /// have removed since. They try again every few seconds.
    #[must_use]
    pub fn lacks_memory(&self, now_ns: u64) -> bool {
        let unfit_ns = self.unfit_ns.load(Ordering::Acquire);
        unfit_ns != 0 && now_ns < unfit_ns + UNFIT_MS * 1_000_000
    }
}
