//! What the workers, the keeper and the balancer's owner share.

use super::core::pick::Routes;
use crossbeam::utils::CachePadded;
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Why a connection to a backend came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Refused,
    TimedOut,
    /// Reset before the first byte of an answer.
    Reset,
    /// No way there, for example.
    Other,
}

impl Failure {
    pub(super) const ALL: [Failure; 4] =
        [Failure::Refused, Failure::TimedOut, Failure::Reset, Failure::Other];

    #[must_use]
    pub(super) fn name(self) -> &'static str {
        match self {
            Failure::Refused => "refused",
            Failure::TimedOut => "timeout",
            Failure::Reset => "reset",
            Failure::Other => "other",
        }
    }

    pub(super) fn sentence(self) -> &'static str {
        match self {
            Failure::Refused => "connections are refused",
            Failure::TimedOut => "connections time out",
            Failure::Reset => "connections are reset",
            Failure::Other => "connections fail",
        }
    }
}

/// What happened to one backend.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) active: CachePadded<AtomicUsize>,
    pub(super) total: AtomicU64,
    /// Bytes to it, and from it.
    pub(super) sent_bytes: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    failures: [AtomicU64; 4],
}

impl Counters {
    pub(super) fn failed(&self, failure: Failure) {
        self.failures[failure as usize].fetch_add(1, Ordering::Relaxed);
    }

    #[must_use]
    pub(super) fn failures(&self, failure: Failure) -> u64 {
        self.failures[failure as usize].load(Ordering::Relaxed)
    }

    pub(super) fn count_bytes(&self, sent: u64, received: u64) {
        if sent > 0 {
            self.sent_bytes.fetch_add(sent, Ordering::Relaxed);
        }
        if received > 0 {
            self.received_bytes.fetch_add(received, Ordering::Relaxed);
        }
    }
}

/// What happened to all clients.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Clients connected.
    pub(super) active: CachePadded<AtomicUsize>,
    pub(super) accepted: AtomicU64,
    /// Answered 503.
    pub(super) unavailable: AtomicU64,
    /// Waiting for a backend.
    pub(super) waiting: AtomicUsize,
    /// Attempts that were made after the first one of a connection.
    pub(super) retries: AtomicU64,
    /// Bytes that went through pipes.
    pub(super) spliced_bytes: AtomicU64,
    /// Turned away since there was no descriptor left.
    pub(super) out_of_descriptors: AtomicU64,
}

/// The routes with the counters of each target.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) routes: Routes,
    pub(super) counters: [Vec<Arc<Counters>>; 3],
    /// Slots of backends that are dead: their connections must not hang. Sorted.
    pub(super) dead: Vec<u64>,
}

/// A connection that failed, for the keeper.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) slot: u64,
    pub(super) failure: Failure,
}

/// More than these that nobody has looked at say nothing new.
const REPORTS_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Shared {
    table: Mutex<Arc<Table>>,
    /// Changes with the table, so that looking for a change takes no lock.
    revision: AtomicU64,
    stopping: AtomicBool,
    /// What made the balancer stop without being asked to.
    failure: Mutex<Option<String>>,
    reports: Mutex<Vec<Report>>,
    pub(super) reload: AtomicBool,
    wakers: Mutex<Vec<mio::Waker>>,
    keeper: Mutex<Option<Arc<mio::Waker>>>,
    pub(super) max_connections: usize,
    pub(super) totals: Totals,
    /// Given up for a moment when there are no descriptors left, to turn a client away. One for all workers: two that
    /// were free at once could become a client and its backend, and nobody else would be told.
    pub(super) reserve: Mutex<Option<File>>,
    /// What the balancer's owner names, and whether it has changed.
    pub(super) given: Mutex<Vec<super::Member>>,
    pub(super) look: AtomicBool,
    /// The backends as they were published last.
    pub(super) members: Mutex<Vec<super::MemberState>>,
    /// Workers that have not ended.
    pub(super) workers_left: AtomicUsize,
}

impl Shared {
    pub(super) fn new(max_connections: usize, workers: usize, given: Vec<super::Member>) -> Shared {
        Shared {
            table: Mutex::new(Arc::default()),
            revision: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            failure: Mutex::new(None),
            reports: Mutex::new(Vec::new()),
            reload: AtomicBool::new(false),
            wakers: Mutex::new(Vec::new()),
            keeper: Mutex::new(None),
            max_connections,
            totals: Totals::default(),
            reserve: Mutex::new(reserve()),
            given: Mutex::new(given),
            look: AtomicBool::new(false),
            members: Mutex::new(Vec::new()),
            workers_left: AtomicUsize::new(workers),
        }
    }

    pub(super) fn publish(&self, table: Table) {
        *self.table.lock() = Arc::new(table);
        self.revision.fetch_add(1, Ordering::Release);
        self.wake_workers();
    }

    /// The table, if it is not the one of `seen`.
    pub(super) fn changed_table(&self, seen: &mut u64) -> Option<Arc<Table>> {
        let revision = self.revision.load(Ordering::Acquire);
        if revision == *seen {
            return None;
        }
        *seen = revision;
        Some(Arc::clone(&self.table.lock()))
    }

    pub(super) fn report(&self, slot: u64, failure: Failure) {
        let mut reports = self.reports.lock();
        if reports.len() < REPORTS_MAX {
            reports.push(Report { slot, failure });
        }
        if reports.len() == 1 {
            self.wake_keeper();
        }
    }

    pub(super) fn take_reports(&self) -> Vec<Report> {
        std::mem::take(&mut *self.reports.lock())
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake_workers();
        self.wake_keeper();
    }

    pub(super) fn fail(&self, reason: String) {
        self.failure.lock().get_or_insert(reason);
        self.stop();
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    pub(super) fn add_worker(&self, waker: mio::Waker) {
        self.wakers.lock().push(waker);
    }

    pub(super) fn set_keeper(&self, waker: Arc<mio::Waker>) {
        *self.keeper.lock() = Some(waker);
    }

    fn wake_workers(&self) {
        for waker in &*self.wakers.lock() {
            // One that cannot be woken looks by itself within a second.
            let _ = waker.wake();
        }
    }

    pub(super) fn wake_keeper(&self) {
        if let Some(waker) = &*self.keeper.lock() {
            let _ = waker.wake();
        }
    }
}

/// A descriptor and nothing else.
pub(super) fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

/// No descriptors or no memory: nobody else's fault.
pub(super) fn is_ours(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let known = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| known.iter().any(|errno| errno.raw_os_error() == code))
}
