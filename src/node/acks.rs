//! Answers that wait for other nodes (`w`), and requests that wait for a write made elsewhere (`after`).

use crate::base::version::Incarnation;
use crate::config::AckLevel;
use crate::http::answer::{Answers, Framing, JSON};
use crate::http::error::Status;
use crate::limits::ACKS_WAIT_MS;
use crate::mesh::worker::{Acks, Wanted, Worker};
use crate::node::routes::Route;

/// A write's answer that waits: where it stands among its connection's answers, and for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    pub(super) start: usize,
    pub(super) length: usize,
    pub(super) seq: u64,
    pub(super) wanted: Wanted,
    pub(super) needed: u32,
    /// The worker's when it was made; in another one nothing of it is left here.
    pub(super) life: u64,
    pub(super) framing: Framing,
    pub(super) route: Route,
}

/// A connection's answers that may not leave before its writes are held by enough nodes.
#[derive(Clone, Debug)]
pub struct Held {
    pub(super) waits: Vec<Wait>,
    /// When their turn began.
    pub(super) begun_ns: u64,
}

impl Wait {
    /// This node has started over since the write: nothing of it is left here.
    fn is_lost(&self, mesh: &Worker) -> bool {
        self.life != mesh.life()
    }

    /// Whether enough nodes hold the write by now.
    pub(super) fn is_held(&self, mesh: &Worker) -> bool {
        !self.is_lost(mesh) && mesh.acks(self.seq, self.wanted).is_enough()
    }
}

impl Held {
    /// Whether the answers may leave: every write has what it waits for, or the time is up, or the node has
    /// started over meanwhile; then those that have not are answered with an error instead. `settled` hears how
    /// each came out, once.
    pub(super) fn release(
        &mut self,
        mesh: &Worker,
        answers: &Answers,
        now_ns: u64,
        bytes: &mut Vec<u8>,
        mut settled: impl FnMut(&Wait, Status),
    ) -> bool {
        self.waits.retain(|wait| {
            let is_held = wait.is_held(mesh);
            if is_held {
                settled(wait, Status::Ok);
            }
            !is_held
        });
        if self.waits.is_empty() {
            return true;
        }
        if now_ns < self.begun_ns + ACKS_WAIT_MS * 1_000_000
            && !self.waits.iter().any(|wait| wait.is_lost(mesh))
        {
            return false;
        }
        // From behind, so that the places of those before stay true.
        for wait in self.waits.drain(..).rev() {
            settled(&wait, Status::Unavailable);
            let mut error = Vec::new();
            if wait.is_lost(mesh) {
                // Whoever had it by then may keep it or not: nobody here can tell.
                let acks = Acks { have: 0, needed: wait.needed };
                too_few(answers, wait.framing, acks, false, &mut error);
            } else {
                too_few(answers, wait.framing, mesh.acks(wait.seq, wait.wanted), true, &mut error);
            }
            bytes.splice(wait.start..wait.start + wait.length, error);
        }
        true
    }
}

/// The answer to a write that is not held by as many as were asked for; `stored`: but it is here.
pub(super) fn too_few(
    answers: &Answers,
    framing: Framing,
    acks: Acks,
    stored: bool,
    out: &mut Vec<u8>,
) -> Status {
    let Acks { have, needed } = acks;
    let body =
        format!("{{\"error\":\"NOT_ENOUGH_ACKS\",\"acks\":{have},\"needed\":{needed},\"stored\":{stored}}}");
    answers.with_body(out, Status::Unavailable.line(), framing, JSON, "", body.as_bytes());
    Status::Unavailable
}

pub(super) const fn wanted(level: AckLevel) -> Option<Wanted> {
    match level {
        AckLevel::Local | AckLevel::Count(0 | 1) => None,
        AckLevel::Quorum => Some(Wanted::Quorum),
        AckLevel::All => Some(Wanted::All),
        AckLevel::Count(count) => Some(Wanted::Count(count)),
    }
}

/// A write's name, as `X-Mesh-Token` carries it and `after` brings it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub origin: Incarnation,
    pub worker: usize,
    pub seq: u64,
}

impl Token {
    /// The part of the text that is the same for all writes of one worker.
    pub(super) fn prefix(origin: Incarnation, worker: usize) -> Vec<u8> {
        format!("{origin:?}-{worker}-").into_bytes()
    }

    /// `None`: not a token.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Token> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.is_ascii() && text.len() <= 64)?;
        let mut parts = text.split('-');
        let (origin, worker, seq) = (parts.next()?, parts.next()?, parts.next()?);
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if parts.next().is_some() || origin.len() != 32 || !digits(worker) || !digits(seq) {
            return None;
        }
        let origin = origin.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(origin)?;
        Some(Token {
            origin: Incarnation(u128::from_str_radix(origin, 16).ok()?),
            worker: worker.parse().ok()?,
            seq: seq.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_were_and_nothing_else_is_one() {
        let origin = Incarnation(0x0123_4567_89ab_cdef);
        let mut text = Token::prefix(origin, 3);
        text.extend_from_slice(b"42");
        assert_eq!(Token::parse(&text), Some(Token { origin, worker: 3, seq: 42 }));
        let hex = "0".repeat(32);
        for bad in ["", "1-2-3", &format!("{hex}-1"), &format!("{hex}-1-2-3"), &format!("{hex}-+1-2")] {
            assert_eq!(Token::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
