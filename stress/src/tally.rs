//! What a thread makes of the answers that have come: right or wrong, how long they took, which second they are in.

use crate::connection::{Connection, Flight};
use crate::response::Parsed;
use crate::run::{Message, Shared, Verify};
use crate::stats::{Failure, Interval, Stats};
use crate::workload::Op;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

const SECOND_NS: u64 = 1_000_000_000;

/// What is counted; apart from the connections, so that both can be borrowed.
pub(crate) struct Counts<'s> {
    pub(crate) shared: &'s Shared<'s>,
    pub(crate) stats: Stats,
    interval: Interval,
    interval_end_ns: u64,
    scratch: Vec<u8>,
    ok: u64,
    sender: Sender<Message>,
    pub(crate) warm_ns: u64,
    pub(crate) end_ns: u64,
}

impl<'s> Counts<'s> {
    pub(crate) fn new(shared: &'s Shared<'s>, sender: Sender<Message>) -> Self {
        let plan = shared.plan;
        let warm_ns = plan.warmup.as_nanos() as u64;
        Self {
            shared,
            stats: Stats::default(),
            interval: Interval::new(0),
            interval_end_ns: warm_ns + SECOND_NS,
            scratch: Vec::with_capacity(1024),
            ok: 0,
            sender,
            warm_ns,
            end_ns: plan.duration.map_or(u64::MAX, |duration| warm_ns + duration.as_nanos() as u64),
        }
    }

    /// Takes the answers that have come: how many bytes they were, and whether the connection stays open.
    pub(crate) fn answers(
        &mut self,
        connection: &mut Connection,
        input: &[u8],
        eof: bool,
        now: u64,
    ) -> (usize, bool) {
        let mut used_all = 0;
        while let Some(flight) = connection.flights.front() {
            match connection.parser.parse(&input[used_all..], eof) {
                Parsed::Partial => break,
                Parsed::Bad => return (used_all, false),
                Parsed::Done { status, close, used, start, end, chunked } => {
                    let body = match chunked {
                        true => &connection.parser.body,
                        false => &input[used_all + start..used_all + end],
                    };
                    match self.judge(flight.op, flight.key, status, body) {
                        Some(failure) => self.failed(flight, failure, now),
                        None => self.succeeded(flight, now),
                    }
                    connection.flights.pop_front();
                    used_all += used;
                    if close {
                        return (used_all, false);
                    }
                }
            }
        }
        (used_all, true)
    }

    fn judge(&mut self, op: Op, key: u64, status: u16, body: &[u8]) -> Option<Failure> {
        let plan = self.shared.plan;
        let right = match plan.verify {
            Verify::None => status < 400,
            Verify::Status | Verify::Body => status == 200,
        };
        if !right {
            return Some(Failure::Http(status));
        }
        let right =
            plan.verify != Verify::Body || plan.workload.body_is_right(&mut self.scratch, op, key, body);
        (!right).then_some(Failure::Verify)
    }

    fn succeeded(&mut self, flight: &Flight, now: u64) {
        if !flight.counted {
            return;
        }
        let service_ns = (now - flight.sent_ns).max(1);
        self.stats.service[flight.op as usize].saturating_record(service_ns);
        self.turn_second(now);
        if self.shared.plan.pace.is_some() {
            let response_ns = (now - flight.intended_ns).max(1);
            self.stats.response[flight.op as usize].saturating_record(response_ns);
            self.interval.latency.saturating_record(response_ns);
        } else {
            self.interval.latency.saturating_record(service_ns);
        }
        self.ok += 1;
        self.stats.ok_in_window += u64::from(now < self.end_ns);
        self.stats.end_ns = now - self.warm_ns;
        if self.shared.plan.tell_thousands {
            self.tell_thousand(false);
        }
    }

    pub(crate) fn failed(&mut self, flight: &Flight, why: Failure, now: u64) {
        if !flight.counted {
            return;
        }
        self.turn_second(now);
        self.interval.failed += 1;
        self.stats.fail(why, now.saturating_sub(flight.intended_ns));
        self.stats.end_ns = now - self.warm_ns;
        if self.shared.plan.tell_thousands {
            self.tell_thousand(true);
        }
    }

    fn tell_thousand(&self, failed: bool) {
        if let Some(thousand) = self.shared.thousandth(failed) {
            // Nobody listens any more only when the run is being torn down.
            let _ = self.sender.send(Message::Thousand(thousand));
        }
    }

    fn turn_second(&mut self, now: u64) {
        if now >= self.interval_end_ns {
            let index = (now - self.warm_ns) / SECOND_NS;
            self.interval_end_ns = self.warm_ns + (index + 1) * SECOND_NS;
            self.hand_in(index);
        }
    }

    /// The second is over: its part goes to be merged, and `next` begins.
    pub(crate) fn hand_in(&mut self, next: u64) {
        let part = std::mem::replace(&mut self.interval, Interval::new(next));
        if part.failed > 0 || !part.latency.is_empty() {
            let _ = self.sender.send(Message::Interval(Box::new(part)));
        }
    }

    pub(crate) fn show(&self, thread: usize) {
        let shown = &self.shared.shown[thread];
        shown.failed.store(self.stats.failed, Ordering::Relaxed);
        shown.ok.store(self.ok, Ordering::Relaxed);
    }
}
