//! What an embedding program's observers are told of a turn.

use super::Engine;
use super::plan::Operation;
use crate::http::error::Status;
use crate::node::extension::{Observer, RequestEvent};
use crate::store::Storage;
use std::ops::Range;

/// A request whose answer is still waiting in a connection's buffer, kept for the observers.
#[derive(Clone, Debug)]
pub struct Unended {
    serial: u64,
    path: String,
    /// See `Operation::waits_for`.
    waits_for: u64,
}

impl<S: Storage> Engine<S> {
    /// Whether anybody wants to be told of requests.
    #[must_use]
    pub fn observed(&self) -> bool {
        !self.extensions.observers.is_empty()
    }

    /// Tells the observers that the answers of this connection have left (or never will).
    pub fn ended(&mut self, index: usize) {
        if self.observed() {
            let operations = self.turns[index].operations.clone();
            self.tell(operations, |observer, event, _| observer.request_ended(event));
        }
    }

    /// The requests of this connection whose end is to be told later, with [`Engine::ended_late`].
    #[must_use]
    pub fn unended(&self, index: usize) -> Vec<Unended> {
        let operations = self.turns[index].operations.clone();
        operations
            .filter(|at| self.operations[*at].is_request())
            .map(|at| Unended {
                serial: self.serial_of(at),
                path: String::from_utf8_lossy(self.text(self.operations[at].path)).into_owned(),
                waits_for: self.operations[at].waits_for,
            })
            .collect()
    }

    /// See [`Engine::unended`].
    pub fn ended_late(&self, requests: &[Unended]) {
        for request in requests {
            self.tell_late(request, |observer, event| observer.request_ended(event));
        }
    }

    /// Tells how the write with this number in the log, whose answer waited, came out.
    pub(super) fn completed_late(&self, seq: u64, status: Status, requests: &[Unended]) {
        for request in requests.iter().filter(|request| request.waits_for == seq) {
            self.tell_late(request, |observer, event| observer.request_completed(event, number(status)));
        }
    }

    fn tell_late(&self, request: &Unended, tell: impl Fn(&dyn Observer, RequestEvent<'_>)) {
        let event = RequestEvent { worker: self.worker, serial: request.serial, path: &request.path };
        for observer in &self.extensions.observers {
            tell(&**observer, event);
        }
    }

    /// Tells the outcome of the turn's requests, except of those whose answers wait.
    pub(super) fn completed(&mut self) {
        for at in 0..self.operations.len() {
            if self.operations[at].waits_for == 0 {
                self.tell(at..at + 1, |observer, event, status| observer.request_completed(event, status));
            }
        }
    }

    /// Gives the turn's requests their serials and tells the observers that they have started.
    pub(super) fn started(&mut self) {
        let interim = |(_, operation): &(usize, &Operation)| !operation.is_request();
        self.interim.clear();
        self.interim.extend(self.operations.iter().enumerate().filter(interim).map(|(at, _)| at));
        self.serial += (self.operations.len() - self.interim.len()) as u64;
        self.tell(0..self.operations.len(), |observer, event, _| observer.request_started(event));
    }

    /// The serial of the request at this place in the turn.
    fn serial_of(&self, at: usize) -> u64 {
        let requests = self.operations.len() - self.interim.len();
        let before = at - self.interim.partition_point(|interim| *interim < at);
        self.serial - requests as u64 + before as u64
    }

    fn tell(&self, operations: Range<usize>, tell: impl Fn(&dyn Observer, RequestEvent<'_>, u16)) {
        for at in operations {
            let operation = &self.operations[at];
            if !operation.is_request() {
                continue;
            }
            let path = String::from_utf8_lossy(self.text(operation.path));
            let event = RequestEvent { worker: self.worker, serial: self.serial_of(at), path: &path };
            let status = match operation.status {
                Status::Other => operation.other_status,
                status => number(status),
            };
            for observer in &self.extensions.observers {
                tell(&**observer, event, status);
            }
        }
    }
}

fn number(status: Status) -> u16 {
    status.label().parse().unwrap_or(0)
}
