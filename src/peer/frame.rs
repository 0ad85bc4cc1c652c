//! The frames of the peer protocol, to and from bytes; `proto-spec/peer.md` has the layouts.
//!
//! Numbers are little-endian. A frame is `length: u32` (of what follows), `type: u8`, and its fields.

pub use super::beat::{Beat, Echo, Held, Openness, OriginVector, Surplus};
use super::beat::{beat, lifetimes, put_beat, put_lifetimes, put_vectors, vectors};
pub use super::digest::{Digest, DigestAsk, GroupSum};
pub use super::member::{MemberInfo, Phase};
use super::member::{member, put_member};
use super::operation::{Operations, Records};
use super::read::{Defect, Reader, put_text};
use crate::base::version::{Hlc, Incarnation};
use crate::limits::{FRAME_BYTES_MAX, PEER_WORKERS_MAX, VECTORS_MAX};

/// Types from here on may be skipped by who does not know them.
const SKIPPABLE: u8 = 128;

/// Why a link is refused or ended: what the other side is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Bytes that are no frame, or a frame out of turn.
    Protocol = 1,
    /// Another mesh: both hold data under different lineages.
    Lineage = 2,
    /// The dialer's mesh gives way to ours: it starts over, empty, and joins.
    Yield = 3,
    /// This lifetime was removed from the mesh: start over under a new one.
    Removed = 4,
    /// The one that was dialed is the dialer itself.
    Yourself = 5,
    /// A stamp too far in the future.
    Clock = 6,
    /// Operations beyond the next one that is expected: resume.
    Gap = 7,
    /// The records do not fit into this node's memory.
    Memory = 8,
    /// Too many members or links.
    Full = 9,
    /// Going away, or starting over.
    Leaving = 10,
    /// A newer link of the same worker has taken over.
    Replaced = 11,
    /// Nothing came for too long.
    Silent = 12,
    /// A live node has this name already.
    Name = 13,
    /// Writes that may lie below what others have decided: to be sent again when all agree who is a member.
    Unsettled = 14,
    /// Given up by this node, not yet by most: it was away for too long.
    Fenced = 15,
}

impl Reason {
    pub const ALL: [Reason; 15] = {
        use Reason::*;
        [
            Protocol, Lineage, Yield, Removed, Yourself, Clock, Gap, Memory, Full, Leaving, Replaced, Silent,
            Name, Unsettled, Fenced,
        ]
    };

    /// A fault that no other line tells the operator of.
    #[must_use]
    pub const fn is_trouble(self) -> bool {
        matches!(self, Reason::Protocol | Reason::Clock | Reason::Gap | Reason::Memory | Reason::Full)
    }

    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Reason::Protocol => "protocol",
            Reason::Lineage => "lineage",
            Reason::Yield => "yield",
            Reason::Removed => "removed",
            Reason::Yourself => "yourself",
            Reason::Clock => "clock",
            Reason::Gap => "gap",
            Reason::Memory => "memory",
            Reason::Full => "full",
            Reason::Leaving => "leaving",
            Reason::Replaced => "replaced",
            Reason::Silent => "silent",
            Reason::Name => "name",
            Reason::Unsettled => "unsettled",
            Reason::Fenced => "fenced",
        }
    }
}

/// First frame of the dialer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The address in here is what the dialer was told to advertise; unspecified: as seen.
    pub member: MemberInfo,
    /// 0: none yet.
    pub lineage: u128,
    /// Holds no data at all.
    pub empty: bool,
    /// The dialer's worker whose writes this link carries.
    pub worker: u16,
}

/// The acceptor's answer to HELLO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub member: MemberInfo,
    pub lineage: u128,
    pub empty: bool,
    /// The last operation of the dialer's worker that is applied here without a gap.
    pub applied: u64,
    /// Still loading: only what is new is wanted, the rest comes by a pull.
    pub joining: bool,
}

/// What a pull will bring: taken before its scan begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullBegin {
    pub id: u32,
    pub lineage: u128,
    pub floor: Hlc,
    /// The greatest `stable` that the acceptor has ever had: nobody's floor was beyond it.
    pub stable: Hlc,
    pub clear: (Hlc, Incarnation),
    pub vectors: Vec<OriginVector>,
}

/// A pull has brought everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullEnd {
    pub id: u32,
    /// Origins of whom it may have brought more than PULL_BEGIN names.
    pub grown: Vec<Incarnation>,
}

/// Any frame. Hot ones borrow.
#[derive(Clone, Debug)]
pub enum Frame<'b> {
    Hello(Hello),
    Welcome(Welcome),
    Refuse {
        reason: Reason,
        detail: &'b str,
    },
    /// `count` operations of the dialer's worker, numbered from `first`.
    Ops {
        first: u64,
        count: u32,
        ack_now: bool,
        bytes: &'b [u8],
    },
    /// The numbering goes on behind `base`; what lies before must be pulled.
    Restart {
        base: u64,
    },
    /// Everything up to `seq` has been sent, and what comes later has greater stamps than `closed`.
    Mark {
        seq: u64,
        closed: Hlc,
    },
    /// Applied without a gap up to `applied`; behind a restart also `base` (exclusive) to `upto`.
    Ack {
        applied: u64,
        base: u64,
        upto: u64,
    },
    Beat(Beat),
    Echo(Echo),
    /// Send every record with a stamp greater than `above`.
    Pull {
        id: u32,
        above: Hlc,
    },
    PullBegin(PullBegin),
    Records {
        id: u32,
        writers: &'b [u8],
        bytes: &'b [u8],
    },
    PullEnd(PullEnd),
    /// The dialer has found its mesh since its HELLO.
    Lineage(u128),
    /// What do you hold?
    DigestAsk(DigestAsk),
    Digest(Digest),
    /// Of a type that may be skipped.
    Unknown(u8),
}

impl<'b> Frame<'b> {
    /// The operations of an `Ops` frame.
    #[must_use]
    pub const fn operations(bytes: &'b [u8], count: u32) -> Operations<'b> {
        Operations::new(bytes, count)
    }

    /// The records of a `Records` frame.
    #[must_use]
    pub const fn records(writers: &'b [u8], bytes: &'b [u8]) -> Records<'b> {
        Records::new(writers, bytes)
    }

    /// Takes the first frame of `input`: it and its length in bytes; `None` while it is incomplete.
    ///
    /// # Errors
    /// [`Defect`]: the peer's fault. Nothing behind it can be understood.
    pub fn decode(input: &'b [u8]) -> Result<Option<(Frame<'b>, usize)>, Defect> {
        let Some((head, rest)) = input.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head);
        if length == 0 || length as usize > FRAME_BYTES_MAX {
            return Err(Defect::Length(length));
        }
        let Some(body) = rest.get(..length as usize) else { return Ok(None) };
        Ok(Some((Frame::body(body)?, 4 + length as usize)))
    }

    fn body(body: &'b [u8]) -> Result<Frame<'b>, Defect> {
        let mut r = Reader(body);
        let frame = match r.u8()? {
            1 => Frame::Hello(Hello {
                member: member(&mut r)?,
                lineage: r.u128()?,
                empty: r.flag()?,
                worker: r.u16()?,
            }),
            2 => Frame::Welcome(Welcome {
                member: member(&mut r)?,
                lineage: r.u128()?,
                empty: r.flag()?,
                applied: r.sequence()?,
                joining: r.flag()?,
            }),
            3 => {
                let number = r.u8()?;
                let reason = Reason::ALL.into_iter().find(|reason| *reason as u8 == number);
                Frame::Refuse { reason: reason.ok_or(Defect::Value("reason"))?, detail: r.text("detail")? }
            }
            4 => {
                let (first, count, ack_now) = (r.sequence()?, r.u32()?, r.flag()?);
                // An operation has 13 bytes at least.
                if first == 0 || count == 0 || count as usize > FRAME_BYTES_MAX / 13 {
                    return Err(Defect::Value("first or count"));
                }
                let bytes = r.bytes(r.0.len())?;
                Frame::Ops { first, count, ack_now, bytes }
            }
            5 => Frame::Restart { base: r.sequence()? },
            6 => Frame::Mark { seq: r.sequence()?, closed: Hlc(r.u64()?) },
            7 => Frame::Ack { applied: r.sequence()?, base: r.sequence()?, upto: r.sequence()? },
            8 => Frame::Beat(beat(&mut r)?),
            9 => {
                let (sent_ns, wall_ms, jump_ms) = (r.u64()?, r.u64()?, r.u64()?.cast_signed());
                let counts_you = r.flag()?;
                let count = r.count(PEER_WORKERS_MAX, "workers")?;
                let heads = (0..count).map(|_| r.sequence()).collect::<Result<_, _>>()?;
                Frame::Echo(Echo { sent_ns, wall_ms, jump_ms, counts_you, heads })
            }
            10 => Frame::Pull { id: r.u32()?, above: Hlc(r.u64()?) },
            11 => Frame::PullBegin(PullBegin {
                id: r.u32()?,
                lineage: r.u128()?,
                floor: Hlc(r.u64()?),
                stable: Hlc(r.u64()?),
                clear: (Hlc(r.u64()?), Incarnation(r.u128()?)),
                vectors: vectors(&mut r)?,
            }),
            12 => {
                let (id, writers) = (r.u32()?, usize::from(r.u8()?));
                let writers = r.bytes(writers * 16)?;
                Frame::Records { id, writers, bytes: r.bytes(r.0.len())? }
            }
            13 => Frame::PullEnd(PullEnd { id: r.u32()?, grown: lifetimes(&mut r, VECTORS_MAX, "grown")? }),
            14 => Frame::Lineage(r.u128()?),
            129 => Frame::DigestAsk(DigestAsk::decode(&mut r)?),
            130 => Frame::Digest(Digest::decode(&mut r)?),
            unknown if unknown >= SKIPPABLE => return Ok(Frame::Unknown(unknown)),
            unknown => return Err(Defect::Type(unknown)),
        };
        r.end()?;
        Ok(frame)
    }

    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 5]);
        let put64 = |out: &mut Vec<u8>, n: u64| out.extend_from_slice(&n.to_le_bytes());
        let number = match self {
            Frame::Hello(hello) => {
                put_member(&hello.member, out);
                out.extend_from_slice(&hello.lineage.to_le_bytes());
                out.push(u8::from(hello.empty));
                out.extend_from_slice(&hello.worker.to_le_bytes());
                1
            }
            Frame::Welcome(welcome) => {
                put_member(&welcome.member, out);
                out.extend_from_slice(&welcome.lineage.to_le_bytes());
                out.push(u8::from(welcome.empty));
                put64(out, welcome.applied);
                out.push(u8::from(welcome.joining));
                2
            }
            Frame::Refuse { reason, detail } => {
                out.push(*reason as u8);
                put_text(detail, out);
                3
            }
            Frame::Ops { first, count, ack_now, bytes } => {
                put64(out, *first);
                out.extend_from_slice(&count.to_le_bytes());
                out.push(u8::from(*ack_now));
                out.extend_from_slice(bytes);
                4
            }
            Frame::Restart { base } => {
                put64(out, *base);
                5
            }
            Frame::Mark { seq, closed } => {
                put64(out, *seq);
                put64(out, closed.0);
                6
            }
            Frame::Ack { applied, base, upto } => {
                for n in [*applied, *base, *upto] {
                    put64(out, n);
                }
                7
            }
            Frame::Beat(beat) => {
                put_beat(beat, out);
                8
            }
            Frame::Echo(echo) => {
                put64(out, echo.sent_ns);
                put64(out, echo.wall_ms);
                put64(out, echo.jump_ms.cast_unsigned());
                out.push(u8::from(echo.counts_you));
                out.extend_from_slice(&(echo.heads.len() as u16).to_le_bytes());
                for head in &echo.heads {
                    put64(out, *head);
                }
                9
            }
            Frame::Pull { id, above } => {
                out.extend_from_slice(&id.to_le_bytes());
                put64(out, above.0);
                10
            }
            Frame::PullBegin(begin) => {
                out.extend_from_slice(&begin.id.to_le_bytes());
                out.extend_from_slice(&begin.lineage.to_le_bytes());
                put64(out, begin.floor.0);
                put64(out, begin.stable.0);
                put64(out, begin.clear.0.0);
                out.extend_from_slice(&begin.clear.1.0.to_le_bytes());
                put_vectors(&begin.vectors, out);
                11
            }
            Frame::Records { id, writers, bytes } => {
                out.extend_from_slice(&id.to_le_bytes());
                out.push((writers.len() / 16) as u8);
                out.extend_from_slice(writers);
                out.extend_from_slice(bytes);
                12
            }
            Frame::PullEnd(end) => {
                out.extend_from_slice(&end.id.to_le_bytes());
                put_lifetimes(&end.grown, out);
                13
            }
            Frame::Lineage(lineage) => {
                out.extend_from_slice(&lineage.to_le_bytes());
                14
            }
            Frame::DigestAsk(ask) => {
                ask.encode(out);
                129
            }
            Frame::Digest(digest) => {
                digest.encode(out);
                130
            }
            Frame::Unknown(number) => *number,
        };
        let length = (out.len() - start - 4) as u32;
        debug_assert!(length as usize <= FRAME_BYTES_MAX);
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        out[start + 4] = number;
    }
}
