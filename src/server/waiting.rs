//! Connections that wait for other nodes: with their answers, or with their next request.

use super::connection::Phase;
use super::worker::{TICK_MS, Worker, ticks};
use crate::limits::{AFTER_WAIT_MS, OUTPUT_STALL_MS};
use crate::store::Storage;

impl<S: Storage> Worker<S> {
    /// Lets go of answers whose writes other nodes hold by now, or whose time is up.
    pub(super) fn release_held(&mut self) {
        if self.holding.is_empty() {
            return;
        }
        // Without news there is nothing to look for but deadlines, and those may be a tick late.
        let news = self.engine.mesh.take_acked();
        let ticked = self.now.mono_ns / 1_000_000 / TICK_MS > u64::from(self.tick);
        if !news && !ticked {
            return;
        }
        let holding = std::mem::take(&mut self.holding);
        for key in holding {
            let Some(connection) = self.connections.get_mut(key) else { continue };
            let Some(backlog) = &mut connection.backlog else { continue };
            let Some(held) = &mut backlog.held else { continue };
            let before = backlog.bytes.len();
            let released = self.engine.release(held, &backlog.unended, self.now, &mut backlog.bytes);
            self.waiting_bytes = self.waiting_bytes + backlog.bytes.len() - before;
            if released {
                backlog.held = None;
                connection.phase = Phase::Sending;
                connection.deadline = self.tick + ticks(OUTPUT_STALL_MS);
                self.flush(key);
            } else {
                self.holding.push(key);
            }
        }
    }

    /// A connection's next request waits for a write made elsewhere, or does so no longer.
    #[inline]
    pub(super) fn park(&mut self, key: usize, parked: bool) {
        let known = self.parked.iter().position(|(other, _)| *other == key);
        match (known, parked) {
            (None, true) => self.parked.push((key, self.now.mono_ns + AFTER_WAIT_MS * 1_000_000)),
            (Some(place), false) => {
                self.parked.swap_remove(place);
            }
            _ => {}
        }
    }

    pub(super) fn is_parked(&self, key: usize) -> bool {
        self.parked.iter().any(|(parked, _)| *parked == key)
    }

    /// One that has waited long enough for a write made elsewhere gets its answer.
    pub(super) fn is_patient(&self, key: usize) -> bool {
        self.parked.iter().all(|(parked, until)| *parked != key || self.now.mono_ns < *until)
    }

    pub(super) fn retry_parked(&mut self) {
        for place in 0..self.parked.len() {
            let key = self.parked[place].0;
            if self.connections.get_mut(key).is_some() {
                self.enqueue(key);
            }
        }
    }
}
