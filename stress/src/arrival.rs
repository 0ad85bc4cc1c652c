//! When requests ought to be sent in an open loop: decided before the run, whatever the server does.

use crate::workload::{mix64, unit};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Arrival {
    /// Independent of each other, as the requests of many users are.
    Poisson,
    /// Evenly spaced.
    Constant,
}

/// The send times of one thread, in nanoseconds from the origin of the run.
#[derive(Clone, Debug)]
pub struct Schedule {
    arrival: Arrival,
    gap_ns: f64,
    next_ns: f64,
    state: u64,
    /// Arrivals that were taken.
    pub taken: u64,
}

impl Schedule {
    /// `rate` is that of all threads together; they are shifted in phase so that they do not send at once.
    pub fn new(rate: f64, arrival: Arrival, thread: usize, threads: usize, seed: u64) -> Self {
        let gap_ns = 1e9 * threads as f64 / rate;
        let state = mix64(seed ^ (thread as u64 + 1).wrapping_mul(0x9e6c_63d0_876a_9a35));
        let next_ns = gap_ns * thread as f64 / threads as f64;
        let mut schedule = Self { arrival, gap_ns, next_ns, state, taken: 0 };
        if arrival == Arrival::Poisson {
            schedule.next_ns = schedule.gap();
        }
        schedule
    }

    fn gap(&mut self) -> f64 {
        match self.arrival {
            Arrival::Constant => self.gap_ns,
            Arrival::Poisson => {
                self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                -unit(mix64(self.state)).ln() * self.gap_ns
            }
        }
    }

    pub fn next_ns(&self) -> u64 {
        self.next_ns as u64
    }

    pub fn advance(&mut self) {
        self.next_ns += self.gap();
        self.taken += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(arrival: Arrival, thread: usize, threads: usize, n: usize) -> Vec<f64> {
        let mut schedule = Schedule::new(1000.0, arrival, thread, threads, 7);
        let mut times = Vec::new();
        for _ in 0..n {
            times.push(schedule.next_ns() as f64);
            schedule.advance();
        }
        times
    }

    #[test]
    fn constant_arrivals_of_all_threads_interleave_evenly() {
        let mut all: Vec<f64> = (0..4).flat_map(|thread| times(Arrival::Constant, thread, 4, 100)).collect();
        all.sort_by(f64::total_cmp);
        for pair in all.windows(2) {
            assert!((pair[1] - pair[0] - 1e6).abs() < 2.0, "{pair:?}");
        }
    }

    /// Gaps of a Poisson process: mean 1/rate, standard deviation the same, and threads differ.
    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() {
        let n = 100_000;
        let times = times(Arrival::Poisson, 0, 1, n);
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((mean / 1e6 - 1.0).abs() < 0.02, "{mean}");
        assert!((deviation / mean - 1.0).abs() < 0.02, "{deviation}");
        let short = gaps.iter().filter(|gap| **gap < 1e6).count() as f64 / n as f64;
        assert!((short - (1.0 - (-1.0f64).exp())).abs() < 0.01, "{short}");
        assert_ne!(times[..5], self::times(Arrival::Poisson, 1, 2, 5)[..]);
    }
}
