//! When requests of an open loop are due.

use super::drive::Random;
use mio::{Interest, Poll, Token};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Says that something is due. A poll's own timeout is too coarse: whole milliseconds.
pub(crate) const TIMER: Token = Token(usize::MAX);

/// When requests are due in an open loop, and who could send them.
pub(crate) struct Arrivals {
    mean_ns: f64,
    /// When the next one is due, since the run began.
    next_ns: u64,
    /// Due, and not sent yet.
    pub(crate) due: VecDeque<u64>,
    pub(crate) free: Vec<usize>,
    timer: OwnedFd,
    armed_ns: u64,
}

impl Arrivals {
    pub(crate) fn new(rate: f64, connections: usize, poll: &Poll) -> io::Result<Arrivals> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        poll.registry().register(&mut mio::unix::SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        let (due, free) = (VecDeque::new(), (0..connections).rev().collect());
        Ok(Arrivals { mean_ns: 1e9 / rate, next_ns: 0, due, free, timer, armed_ns: 0 })
    }

    /// Takes up what has become due, and sets the timer for what has not.
    pub(crate) fn advance(&mut self, random: &mut Random, now_ns: u64) -> io::Result<()> {
        while self.next_ns <= now_ns {
            self.due.push_back(self.next_ns);
            let uniform = (random.next() >> 11) as f64 / (1u64 << 53) as f64;
            self.next_ns += (-(1.0 - uniform).ln() * self.mean_ns) as u64;
        }
        if self.armed_ns != self.next_ns {
            self.armed_ns = self.next_ns;
            // Less than a millisecond after `now_ns` was read: late by that at the most.
            let wait_ns = (self.next_ns - now_ns).max(1) as i64;
            let it_value = Timespec { tv_sec: wait_ns / 1_000_000_000, tv_nsec: wait_ns % 1_000_000_000 };
            let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
            let flags = TimerfdTimerFlags::empty();
            rustix::time::timerfd_settime(&self.timer, flags, &Itimerspec { it_interval, it_value })?;
        }
        Ok(())
    }
}
