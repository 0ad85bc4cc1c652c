//! What the balancer decides, without a clock, a socket or a thread: time and bytes come in as arguments,
//! and the same inputs lead to the same decisions. The drivers around it move bytes and keep the time.

pub mod api;
pub mod containers;
pub mod discovery;
pub mod events;
pub mod patience;
pub mod pick;
pub mod pool;
pub mod response;

#[cfg(test)]
mod pool_tests;
#[cfg(test)]
mod timeline_tests;

/// Randomness that the caller seeds: jitter needs no more.
#[derive(Clone, Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Jitter {
        Jitter(seed)
    }

    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// `ms`, give or take `percent`.
    pub(crate) fn around(&mut self, ms: u64, percent: u64) -> u64 {
        let spread = ms * percent / 100;
        ms - spread + self.next() % (2 * spread + 1)
    }
}
