//! What follows a write that the store has taken: the log for the peers, and the answer, which may have to
//! wait for them.

use super::Engine;
use super::plan::{Operation, Span};
use crate::base::clock::Now;
use crate::http::error::Status;
use crate::limits::ACKS_WAIT_MS;
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
        let text = |span: Span| -> &[u8] {
            let from: &[u8] = if span.decoded { scratch } else { input };
            &from[span.start as usize..(span.start + span.length) as usize]
        };
        let expires_at_ms = if operation.ttl_ms == 0 { 0 } else { self.now.wall_ms + operation.ttl_ms };
        let logged = match kind {
            Kind::Set => Logged {
                kind,
                hlc: version.hlc,
                expires_at_ms,
                marks: operation.marks.0,
                key: text(operation.key),
                value: text(operation.value),
            },
            Kind::Rm => Logged {
                kind,
                hlc: version.hlc,
                expires_at_ms: 0,
                marks: 0,
                key: text(operation.key),
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
        let deadline_ns = self.now.mono_ns + ACKS_WAIT_MS * 1_000_000;
        let held = turn.held.get_or_insert_with(|| Box::new(Held { waits: Vec::new(), deadline_ns }));
        held.waits.push(Wait {
            start: start - turn.output.start,
            length: end - start,
            seq: operation.waits_for,
            wanted,
            needed: self.mesh.acks(operation.waits_for, wanted).needed,
            life: self.mesh.life(),
            framing: operation.framing,
        });
    }

    /// Whether held answers may leave now; `bytes` are the connection's answers from their beginning.
    pub fn release(&self, held: &mut Held, now: Now, bytes: &mut Vec<u8>) -> bool {
        held.release(&self.mesh, &self.node.answers, now.mono_ns, bytes)
    }
}
