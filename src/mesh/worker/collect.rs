//! When what is new in the log is sent. Each sending costs a system call a peer, and each peer a wakeup and
//! another call, however little there is. So while its driver is busy a worker collects for a moment what
//! nobody waits for. Clients do not notice: their answers have left by then.

use super::Worker;
use crate::limits::COLLECT_US;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Collector {
    is_busy: bool,
    /// The end of the log when it was last sent, and since when there has been more.
    sent: u64,
    since_ns: Option<u64>,
}

impl Collector {
    /// Whether the log, which ends at `head`, is better sent later, together with more. Otherwise it is taken
    /// to be sent now.
    pub(super) fn waits(&mut self, head: u64, awaited: u64, now_ns: u64) -> bool {
        if self.is_busy && head > self.sent && awaited <= self.sent {
            let since_ns = *self.since_ns.get_or_insert(now_ns);
            if now_ns < since_ns + COLLECT_US * 1_000 {
                return true;
            }
        }
        (self.sent, self.since_ns) = (head, None);
        false
    }
}

impl Worker {
    /// Whether the driver has other things to do at once. If so, [`Worker::pump`] may say that there is more
    /// to do and leave it for the next call, which must come right after those other things.
    pub fn set_busy(&mut self, is_busy: bool) {
        self.collector.is_busy = is_busy;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_only_while_busy_and_for_nobody_and_not_for_long() {
        let us = 1_000;
        let mut collector = Collector::default();
        assert!(!collector.waits(1, 0, 0), "idle");
        collector.is_busy = true;
        assert!(!collector.waits(1, 0, 0), "nothing new");
        assert!(collector.waits(2, 0, 10 * us));
        assert!(collector.waits(9, 0, (10 + COLLECT_US - 1) * us));
        assert!(!collector.waits(10, 0, (10 + COLLECT_US) * us), "counted from the first");
        assert!(collector.waits(11, 0, 900 * us));
        assert!(!collector.waits(12, 12, 901 * us), "somebody waits");
        assert!(collector.waits(13, 12, 902 * us), "and does so no longer");
        collector.is_busy = false;
        assert!(!collector.waits(13, 12, 903 * us));
    }
}
