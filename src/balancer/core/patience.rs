//! How long the balancer bears with a connection on which nothing happens, and how many may wait. The relay
//! brings the times; what follows from them is decided here.

use crate::limits::{CONNECT_TOTAL_MS, LINGER_MS, RELAY_HALF_CLOSED_MS, RELAY_IDLE_MS, WAIT_MS, WAITING_MAX};

/// During the drain a connection whose last answer is this old gets no other request, probably.
const DRAIN_QUIET_MS: u64 = 1_000;
/// A connection to a dead backend on which bytes moved this recently may yet get the rest of its answer.
const DEAD_QUIET_MS: u64 = 1_000;

/// The bounds; their defaults are those of [`crate::limits`]. All times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// A connection on which nothing moves is closed after this.
    pub idle_ms: u64,
    /// ... and reset after this once one side has ended.
    pub half_closed_ms: u64,
    /// A client that was answered 503 may take this long to close.
    pub linger_ms: u64,
    /// A client waits this long while there is no backend for it.
    pub wait_ms: u64,
    /// Clients of one worker that wait so; more are answered 503 at once.
    pub waiting_max: usize,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            idle_ms: RELAY_IDLE_MS,
            half_closed_ms: RELAY_HALF_CLOSED_MS,
            linger_ms: LINGER_MS,
            wait_ms: WAIT_MS,
            waiting_max: WAITING_MAX,
        }
    }
}

/// How a connection to a backend stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Milliseconds since bytes moved.
    pub quiet_ms: u64,
    /// One side has ended and the other knows.
    pub is_half_closed: bool,
    /// Its backend is known to be dead or elsewhere.
    pub is_dead: bool,
    /// The last bytes went to the client and all of them left.
    pub is_answered: bool,
    /// The balancer is stopping.
    pub is_draining: bool,
}

/// How a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// What was sent is complete.
    Close,
    /// Somebody may be left with a part.
    Reset,
}

impl Patience {
    /// Whether a connection has to end, and how.
    #[must_use]
    pub fn with_relayed(&self, standing: Standing) -> Option<End> {
        let Standing { quiet_ms, is_half_closed, is_dead, is_answered, is_draining } = standing;
        let dead = is_dead && quiet_ms >= DEAD_QUIET_MS;
        let stuck = is_half_closed && quiet_ms >= self.half_closed_ms;
        let idle = quiet_ms >= self.idle_ms;
        let served = is_draining && is_answered && quiet_ms >= DRAIN_QUIET_MS;
        if dead || stuck { Some(End::Reset) } else { (idle || served).then_some(End::Close) }
    }

    /// Whether a client that was answered 503 that long ago is dropped.
    #[must_use]
    pub fn with_refused(&self, quiet_ms: u64) -> bool {
        quiet_ms >= self.linger_ms
    }

    /// Until when a client that came at `begun_ms` waits for a backend, from `now_ms` on; `None`: too many
    /// wait already. One that has waited before does not begin anew.
    #[must_use]
    pub fn waits_until(&self, now_ms: u64, begun_ms: u64, waiting: usize) -> Option<u64> {
        let total_ms = CONNECT_TOTAL_MS.max(self.wait_ms);
        (waiting < self.waiting_max).then(|| (now_ms.max(begun_ms) + self.wait_ms).min(begun_ms + total_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When a connection that stands so from its last byte on is ended, looked at each second for two hours.
    fn ended(mut standing: Standing) -> Option<(u64, End)> {
        let patience = Patience::default();
        (0..=7_200).find_map(|second| {
            standing.quiet_ms = second * 1_000;
            patience.with_relayed(standing).map(|end| (second, end))
        })
    }

    #[test]
    fn an_idle_connection_ends_after_an_hour_and_a_half_closed_one_after_a_minute() {
        let idle = Standing::default();
        assert_eq!(ended(idle), Some((3_600, End::Close)));
        assert_eq!(ended(Standing { is_answered: true, ..idle }), Some((3_600, End::Close)));
        assert_eq!(ended(Standing { is_half_closed: true, ..idle }), Some((60, End::Reset)));
        let patience = Patience::default();
        let quiet =
            |quiet_ms, is_half_closed| patience.with_relayed(Standing { quiet_ms, is_half_closed, ..idle });
        assert_eq!(quiet(3_599_999, false), None);
        assert_eq!(quiet(59_999, true), None);
    }

    #[test]
    fn bytes_that_move_in_time_keep_a_connection_for_ever() {
        let patience = Patience::default();
        // A week; each side of the connection speaks just before its time is over.
        for (period_ms, is_half_closed) in [(3_599_999, false), (59_999, true)] {
            let mut moved_ms = 0;
            for now_ms in (0..604_800_000).step_by(1_000) {
                if now_ms >= moved_ms + period_ms {
                    moved_ms += period_ms;
                }
                let quiet_ms = now_ms - moved_ms;
                let standing = Standing { quiet_ms, is_half_closed, ..Standing::default() };
                assert_eq!(patience.with_relayed(standing), None, "{now_ms}");
            }
        }
    }

    #[test]
    fn on_a_dead_backend_or_in_a_drain_a_second_is_enough() {
        let base = Standing::default();
        assert_eq!(ended(Standing { is_dead: true, ..base }), Some((1, End::Reset)));
        assert_eq!(ended(Standing { is_draining: true, is_answered: true, ..base }), Some((1, End::Close)));
        // Its answer has not come yet: the drain itself ends it.
        assert_eq!(ended(Standing { is_draining: true, ..base }), Some((3_600, End::Close)));
        assert_eq!(
            ended(Standing { is_draining: true, is_answered: true, is_dead: true, ..base }),
            Some((1, End::Reset))
        );
    }

    #[test]
    fn the_queue_is_bounded_and_waiting_again_does_not_begin_anew() {
        let patience = Patience::default();
        assert_eq!(patience.waits_until(5_000, 5_000, 0), Some(6_000));
        assert_eq!(patience.waits_until(5_400, 5_000, WAITING_MAX - 1), Some(6_400));
        assert_eq!(patience.waits_until(6_900, 5_000, 0), Some(7_000), "two seconds in all");
        assert_eq!(patience.waits_until(5_000, 5_000, WAITING_MAX), None);
        assert!(patience.with_refused(LINGER_MS) && !patience.with_refused(LINGER_MS - 1));
    }
}
