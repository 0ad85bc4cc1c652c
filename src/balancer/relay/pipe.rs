//! Moving bytes from socket to socket inside the kernel: splice(2) through a pipe. Pipes are pooled, since
//! making one costs more than a small transfer, and bounded, since each takes two descriptors.

use crate::limits::{RELAY_PIPE_BYTES, RELAY_PIPES_MAX};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::io;

#[derive(Debug)]
pub(super) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    /// Bytes in it.
    held: usize,
    capacity: usize,
}

impl Pipe {
    fn new() -> io::Result<Pipe> {
        let (out, into) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // A user's pipes may be large only up to a sum; the default of 64 KiB does as well.
        let capacity = fcntl_setpipe_size(&into, RELAY_PIPE_BYTES).unwrap_or(64 * 1024);
        Ok(Pipe { out, into, held: 0, capacity })
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Takes what the socket has; 0: it ended. `WouldBlock`: nothing there, or no room, which looks the same.
    pub(super) fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        let room = self.capacity.saturating_sub(self.held);
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = Self::moved(from, &self.into, room)?;
        self.held += taken;
        Ok(taken)
    }

    /// Gives what it holds to the socket, as much as that takes.
    pub(super) fn drain(&mut self, into: impl AsFd) -> io::Result<usize> {
        let given = Self::moved(&self.out, into, self.held)?;
        self.held -= given;
        Ok(given)
    }

    fn moved(from: impl AsFd, into: impl AsFd, bytes: usize) -> io::Result<usize> {
        loop {
            match splice(&from, None, &into, None, bytes, SpliceFlags::MOVE | SpliceFlags::NONBLOCK) {
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }
}

/// The pipes that one worker keeps.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    idle: Vec<Pipe>,
    lent: usize,
}

impl Pipes {
    /// `None`: all are in use, or there are no descriptors left; copying serves as well.
    pub(super) fn take(&mut self) -> Option<Pipe> {
        if self.lent >= RELAY_PIPES_MAX {
            return None;
        }
        let pipe = self.idle.pop().map_or_else(|| Pipe::new().ok(), Some)?;
        self.lent += 1;
        Some(pipe)
    }

    /// One that still holds bytes of a connection must not reach another.
    pub(super) fn give_back(&mut self, pipe: Pipe) {
        self.lent -= 1;
        if pipe.held == 0 {
            self.idle.push(pipe);
        }
    }

    /// Descriptors that an idle relay does not need.
    pub(super) fn trim(&mut self, keep: usize) {
        self.idle.truncate(keep);
    }
}
