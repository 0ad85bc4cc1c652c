//! What the machine tells: CPU time, descriptor limits, what kind of machine it is, the date.

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeVal;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a thread has used of a core so far, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadCpu {
    /// To the nanosecond.
    all: u64,
    /// The parts move in ticks of milliseconds, so they tell the share of each and nothing else.
    user: u64,
    system: u64,
}

impl ThreadCpu {
    /// Of the thread that calls this.
    pub fn now() -> Self {
        let nanoseconds = |time: TimeVal| time.tv_sec() as u64 * 1_000_000_000 + time.tv_usec() as u64 * 1000;
        let (user, system) = getrusage(UsageWho::RUSAGE_THREAD)
            .map_or((0, 0), |usage| (nanoseconds(usage.user_time()), nanoseconds(usage.system_time())));
        let all = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
            .map_or(user + system, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64);
        Self { all, user, system }
    }

    /// What was used since, as user and system time. What is too short for a tick counts as user time.
    pub fn since(self, before: Self) -> (u64, u64) {
        let all = self.all.saturating_sub(before.all);
        let (user, system) =
            (self.user.saturating_sub(before.user), self.system.saturating_sub(before.system));
        let system = u128::from(all) * u128::from(system) / u128::from((user + system).max(1));
        (all - system as u64, system as u64)
    }
}

/// Raises the limit as far as it goes; what it is then.
pub fn raise_descriptor_limit() -> u64 {
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    pub kernel: String,
    pub cpus: u64,
    pub cpu_model: String,
    pub nofile: u64,
    /// The one-minute load average when the run began.
    pub load_before: f64,
}

impl Host {
    pub fn look(nofile: u64) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu_model = read("/proc/cpuinfo").lines().find_map(|line| {
            line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned())
        });
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            cpu_model: cpu_model.unwrap_or_else(|| "unknown".to_owned()),
            nofile,
            load_before: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or(0.0),
        }
    }
}

pub fn now_rfc3339() -> String {
    rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Seconds since 1970 as a date in UTC (days to a civil date by counting eras of 400 years).
fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), date);
        }
    }

    #[test]
    fn a_short_piece_of_work_costs_what_it_took_at_most() {
        use std::time::{Duration, Instant};
        for _ in 0..20 {
            let (begun, before) = (Instant::now(), ThreadCpu::now());
            while begun.elapsed() < Duration::from_micros(300) {}
            let (user, system) = ThreadCpu::now().since(before);
            let wall = begun.elapsed();
            let used = Duration::from_nanos(user + system);
            assert!(!used.is_zero() && used <= wall + Duration::from_micros(50), "{used:?} of {wall:?}");
        }
    }

    #[test]
    fn the_sum_is_the_exact_one_and_ticks_share_it_out() {
        let before = ThreadCpu { all: 1_000, user: 0, system: 0 };
        for (user, system, parts) in
            [(0, 0, (900, 0)), (4_000_000, 0, (900, 0)), (4_000_000, 8_000_000, (300, 600))]
        {
            assert_eq!(ThreadCpu { all: 1_900, user, system }.since(before), parts);
        }
    }
}
