//! What a seed decides before anything happens.

use super::faults;
use crate::base::random::Random;
use crate::limits::TOMBSTONES_MAX;
use crate::mesh::{Mutation, Portions};

/// A wall clock is wrong by at most this, in milliseconds.
pub(super) const SKEW_MAX_MS: u64 = 2_000;

/// The sizes, the limits and the pace of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub mutation: Mutation,
    pub hosts: usize,
    pub workers: usize,
    pub keys: u64,
    pub chaos_ms: u64,
    pub calm_ms: u64,
    pub log_bytes: usize,
    pub portions: Portions,
    pub forget_ms: u64,
    pub tombstones_max: u64,
    /// Milliseconds between two client requests, on average.
    pub request_ms: u64,
    /// Now and then no client asks for anything for seconds.
    pub lulls: bool,
    /// Milliseconds between two faults, on average.
    pub fault_ms: u64,
    /// Wall clocks are wrong by up to this, in milliseconds.
    pub skew_ms: u64,
    /// And by this, whoever starts now.
    pub start_skew_ms: i64,
    /// The hosts that whoever starts now is told of, if not any.
    pub start_knows: Option<Vec<usize>>,
    /// Connections are slower than others by up to this, in milliseconds.
    pub latency_ms: u64,
    /// And by at least this.
    pub latency_least_ms: u64,
    /// Runs on until tombstones must have been collected.
    pub is_long: bool,
    /// A host that nobody reaches from then on until the faults are over, long enough for tombstones to age.
    pub exile: Option<(usize, u64)>,
}

impl Plan {
    /// Whether somebody who is away may be forgotten within a run.
    pub(super) fn may_forget(&self) -> bool {
        self.forget_ms < 3_600_000 || self.tombstones_max < TOMBSTONES_MAX
    }

    #[must_use]
    pub fn of(seed: u64, mutation: Mutation) -> Plan {
        let mut random = Random::new(seed ^ 0x706c_616e);
        // Of their own, so that they go with everything else.
        let mut paces = Random::new(seed ^ 0x7061_6365);
        let (lulls, rests) = (paces.chance(1, 2), paces.chance(2, 3));
        let is_long = random.chance(1, 8);
        let hosts = random.between(2, 5) as usize;
        let exile = (is_long && random.chance(1, 2))
            .then(|| (random.below(hosts as u64) as usize, random.between(4_000, 8_000)));
        Plan {
            seed,
            mutation,
            hosts,
            exile,
            workers: random.between(1, 3) as usize,
            keys: random.between(2, 12),
            chaos_ms: random.between(4_000, 25_000) + if is_long { 70_000 } else { 0 },
            calm_ms: if is_long { 80_000 } else { 25_000 },
            log_bytes: *random.one(&[256, 1024, 64 * 1024]),
            portions: Portions { rests, ..faults::portions(seed) },
            forget_ms: if exile.is_some() { 3_600_000 } else { *random.one(&[2_000, 10_000, 3_600_000]) },
            tombstones_max: if seed.is_multiple_of(4) { 2 } else { TOMBSTONES_MAX },
            request_ms: random.between(5, 60),
            lulls,
            fault_ms: random.between(300, 3_000),
            skew_ms: *random.one(&[0, 0, 0, 200, 200, 200, SKEW_MAX_MS]),
            start_skew_ms: 0,
            start_knows: None,
            latency_ms: *random.one(&[0, 0, 0, 150]),
            latency_least_ms: 0,
            is_long,
        }
    }
}
