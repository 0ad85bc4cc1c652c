//! The virtual network: connections that deliver bytes in order, late, in pieces, or not at all.

use std::collections::VecDeque;

/// One end of a connection: a process (by its serial), its worker, and the link there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) process: usize,
    pub(super) worker: usize,
    pub(super) link: u64,
}

/// What one end has sent and the other has not received yet.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    /// (earliest arrival, bytes); an empty piece is the end.
    pub(super) pieces: VecDeque<(u64, Vec<u8>)>,
    pub(super) last_arrival: u64,
}

#[derive(Debug)]
pub(super) struct Conn {
    /// The dialer, then the acceptor.
    pub(super) ends: [End; 2],
    /// From the dialer to the acceptor, and back.
    pub(super) pipes: [Pipe; 2],
    pub(super) hosts: [usize; 2],
    /// Each end has been told that it is over.
    pub(super) over: [bool; 2],
    /// Milliseconds that everything on it takes longer.
    pub(super) slow_ms: u64,
    /// Nothing got through since then.
    pub(super) blocked_since: Option<u64>,
}

/// Which host hears which: `blocked[from][to]`.
#[derive(Debug)]
pub(super) struct Cuts {
    blocked: Vec<Vec<bool>>,
}

impl Cuts {
    pub(super) fn none(hosts: usize) -> Cuts {
        Cuts { blocked: vec![vec![false; hosts]; hosts] }
    }

    pub(super) fn heal(&mut self) {
        for row in &mut self.blocked {
            row.fill(false);
        }
    }

    pub(super) fn cut(&mut self, from: usize, to: usize) {
        if from != to {
            self.blocked[from][to] = true;
        }
    }

    pub(super) fn blocks(&self, from: usize, to: usize) -> bool {
        self.blocked[from][to]
    }

    pub(super) fn any(&self) -> bool {
        self.blocked.iter().flatten().any(|blocked| *blocked)
    }
}
