//! What follows a write that the store has taken: the log for the peers, and the answer, which may have to
//! wait for them.

use super::plan::Operation;
use super::{Engine, Unended};
use crate::base::clock::Now;
use crate::http::error::Status;
use crate::node::acks::{self, Held, Token, Wait};
use crate::peer::operation::{Kind, Operation as Logged};
use crate::store::{Applied, Storage};

impl<S: Storage> Engine<S> {
    /// The answer to a write that the store has taken. If there are peers it is logged for them, and the
    /// answer may have to wait.
    #[inline]
    pub(super) fn written(
        &mut self,
        operation: &mut Operation,
        kind: Kind,
        applied: Applied,
        out: &mut Vec<u8>,
    ) -> Status {
        let wanted = acks::wanted(operation.acks);
        if !self.mesh.is_logging() {
            if let Some(wanted) = wanted {
                let acks = self.mesh.acks(0, wanted);
                if !acks.is_enough() {
                    return acks::too_few(&self.node.answers, operation.framing, acks, true, out);
                }
            }
            self.node.answers.success(operation.framing, out);
            return Status::Ok;
        }
        let Applied::Stored { version, .. } = applied else {
            // A local write always wins.
            self.node.answers.success(operation.framing, out);
            return Status::Ok;
        };
        let Engine { input, scratch, mesh, node, .. } = self;
        let expires_at_ms = if operation.ttl_ms == 0 { 0 } else { self.now.wall_ms + operation.ttl_ms };
        let logged = match kind {
            Kind::Set => Logged {
                kind,
                hlc: version.hlc,
                expires_at_ms,
                marks: operation.marks.0,
                key: operation.key.of(input, scratch),
                value: operation.value.of(input, scratch),
            },
            Kind::Rm => Logged {
                kind,
                hlc: version.hlc,
                expires_at_ms: 0,
                marks: 0,
                key: operation.key.of(input, scratch),
                value: &[],
            },
            Kind::Clear => {
                Logged { kind, hlc: version.hlc, expires_at_ms: 0, marks: 0, key: &[], value: &[] }
            }
        };
        let seq = mesh.append(&logged);
        if let Some(wanted) = wanted {
            let acks = mesh.acks(seq, wanted);
            if acks.needed > mesh.view().size as u32 {
                // There are not that many: waiting would not help.
                return acks::too_few(&node.answers, operation.framing, acks, true, out);
            }
            if !acks.is_enough() {
                mesh.await_acks(seq);
                operation.waits_for = seq;
            }
        }
        let me = mesh.view().me;
        if self.token.0 != me {
            self.token = (me, Token::prefix(me, self.worker));
        }
        self.node.answers.success_named(operation.framing, &self.token.1, seq, out);
        Status::Ok
    }

    /// The answer at `start..end` of the output must wait, and with it all of its connection's.
    pub(super) fn hold(&mut self, operation: &Operation, start: usize, end: usize) {
        let Some(wanted) = acks::wanted(operation.acks) else { return };
        let turn = &mut self.turns[usize::from(operation.connection)];
        let begun_ns = self.now.mono_ns;
        let held = turn.held.get_or_insert_with(|| Box::new(Held { waits: Vec::new(), begun_ns }));
        held.waits.push(Wait {
            start: start - turn.output.start,
            length: end - start,
            seq: operation.waits_for,
            wanted,
            needed: self.mesh.acks(operation.waits_for, wanted).needed,
            life: self.mesh.life(),
            framing: operation.framing,
            route: operation.route,
        });
    }

    /// Whether held answers may leave now; `bytes` are the connection's answers from their beginning, `unended`
    /// their requests.
    pub fn release(&self, held: &mut Held, unended: &[Unended], now: Now, bytes: &mut Vec<u8>) -> bool {
        let begun_ns = held.begun_ns;
        held.release(&self.mesh, &self.node.answers, now.mono_ns, bytes, |wait, status| {
            self.settled(wait, status, now.mono_ns.saturating_sub(begun_ns), unended);
        })
    }

    /// The client of these requests has gone: those whose answers are held count as if their time were up now.
    pub fn abandon(&self, held: Option<&Held>, unended: &[Unended], now: Now) {
        if let Some(held) = held {
            let duration_ns = now.mono_ns.saturating_sub(held.begun_ns);
            for wait in &held.waits {
                let status = if wait.is_held(&self.mesh) { Status::Ok } else { Status::Unavailable };
                self.settled(wait, status, duration_ns, unended);
            }
        }
        self.ended_late(unended);
    }

    /// The outcome of a write that waited is known.
    fn settled(&self, wait: &Wait, status: Status, duration_ns: u64, unended: &[Unended]) {
        self.metrics.commands[wait.route as usize][status as usize].add(1);
        self.metrics.record_duration(wait.route, 1, duration_ns);
        self.completed_late(wait.seq, status, unended);
    }
}
