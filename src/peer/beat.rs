//! The beat, its answer, and the vectors by which members say what they hold.

use super::member::{MemberInfo, Phase, member, put_member};
use super::read::{Defect, Reader};
use crate::base::version::{Hlc, Incarnation};
use crate::limits::{
    MEMBERS_MAX, PEER_WORKERS_MAX, RANGES_MAX, REMOVED_GOSSIP_MAX, SURPLUS_MAX, VECTORS_MAX,
};

/// Which of one worker's operations are held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Everything up to here, without a gap.
    pub applied: u64,
    /// Everything that is stamped up to this.
    pub closed: Hlc,
    /// Beyond a gap, ascending: behind the first up to the second.
    pub ranges: Vec<(u64, u64)>,
}

/// Some writes of an origin that are held though nobody knows which of its operations they are: a pull brought them
/// beyond what it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surplus {
    /// Whoever names the same holds the same.
    pub id: u64,
    /// None of them is stamped later.
    pub upto: Hlc,
}

/// How far what is said of an origin is final.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Openness {
    #[default]
    Open,
    /// Its lifetime is over, and the sender has seen that every member holds the same of it.
    Settled,
    /// A pull is under way that has brought writes of it; what they count for is not known yet.
    Pulling,
}

/// What is held of one origin: which of its operations, by worker, and what is not counted among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginVector {
    pub origin: Incarnation,
    pub openness: Openness,
    pub workers: Vec<Held>,
    /// With ascending numbers.
    pub surplus: Vec<Surplus>,
}

/// A member's regular word, from the dialer's first worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The sender's monotonic clock; comes back in ECHO.
    pub sent_ns: u64,
    pub phase: Phase,
    /// Of the sender's view: see `mesh::members`.
    pub view_hash: u64,
    /// Everything up to this is held by the sender, from every member of its view; zero: not known now.
    pub stable: Hlc,
    pub floor: Hlc,
    /// The sender's view, the sender included, with whether it has been fenced by the sender.
    pub members: Vec<(MemberInfo, bool)>,
    /// Lifetimes that are over.
    pub removed: Vec<Incarnation>,
    /// Lifetimes of another mesh than the sender's that some member may still take for a member.
    pub strangers: Vec<Incarnation>,
    pub vectors: Vec<OriginVector>,
}

/// The acceptor's answer to BEAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echo {
    pub sent_ns: u64,
    /// The acceptor's wall clock.
    pub wall_ms: u64,
    /// The jump of its machine's clock that it does not follow; 0 for none.
    pub jump_ms: i64,
    /// All workers of the acceptor wait for the dialer's acknowledgements.
    pub counts_you: bool,
    /// The acceptor's own heads, by worker, taken after it began to count the dialer.
    pub heads: Vec<u64>,
}

pub(super) fn vectors(r: &mut Reader<'_>) -> Result<Vec<OriginVector>, Defect> {
    let count = r.count(VECTORS_MAX, "vectors")?;
    let mut vectors = Vec::new();
    for _ in 0..count {
        let origin = Incarnation(r.u128()?);
        let openness = match r.u8()? {
            0 => Openness::Open,
            1 => Openness::Settled,
            2 => Openness::Pulling,
            _ => return Err(Defect::Value("openness")),
        };
        let workers = r.count(PEER_WORKERS_MAX, "workers")?;
        let workers = (0..workers).map(|_| held(r)).collect::<Result<_, _>>()?;
        vectors.push(OriginVector { origin, openness, workers, surplus: surplus(r)? });
    }
    Ok(vectors)
}

fn held(r: &mut Reader<'_>) -> Result<Held, Defect> {
    let (applied, closed) = (r.sequence()?, Hlc(r.u64()?));
    let count = r.count(RANGES_MAX, "ranges")?;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for _ in 0..count {
        let (base, upto) = (r.sequence()?, r.sequence()?);
        let before = ranges.last().map_or(applied, |(_, upto)| *upto);
        if base <= before || upto <= base {
            return Err(Defect::Value("ranges"));
        }
        ranges.push((base, upto));
    }
    Ok(Held { applied, closed, ranges })
}

fn surplus(r: &mut Reader<'_>) -> Result<Vec<Surplus>, Defect> {
    let count = r.count(SURPLUS_MAX, "surplus")?;
    let mut all: Vec<Surplus> = Vec::new();
    for _ in 0..count {
        let surplus = Surplus { id: r.u64()?, upto: Hlc(r.u64()?) };
        if all.last().is_some_and(|last| last.id >= surplus.id) {
            return Err(Defect::Value("surplus"));
        }
        all.push(surplus);
    }
    Ok(all)
}

pub(super) fn put_vectors(vectors: &[OriginVector], out: &mut Vec<u8>) {
    out.extend_from_slice(&(vectors.len() as u16).to_le_bytes());
    for vector in vectors {
        out.extend_from_slice(&vector.origin.0.to_le_bytes());
        out.push(vector.openness as u8);
        out.extend_from_slice(&(vector.workers.len() as u16).to_le_bytes());
        for held in &vector.workers {
            out.extend_from_slice(&held.applied.to_le_bytes());
            out.extend_from_slice(&held.closed.0.to_le_bytes());
            out.extend_from_slice(&(held.ranges.len() as u16).to_le_bytes());
            for (base, upto) in &held.ranges {
                out.extend_from_slice(&base.to_le_bytes());
                out.extend_from_slice(&upto.to_le_bytes());
            }
        }
        out.extend_from_slice(&(vector.surplus.len() as u16).to_le_bytes());
        for surplus in &vector.surplus {
            out.extend_from_slice(&surplus.id.to_le_bytes());
            out.extend_from_slice(&surplus.upto.0.to_le_bytes());
        }
    }
}

pub(super) fn beat(r: &mut Reader<'_>) -> Result<Beat, Defect> {
    let sent_ns = r.u64()?;
    let phase = match r.u8()? {
        0 => Phase::Joining,
        1 => Phase::Prepared,
        2 => Phase::Ready,
        3 => Phase::Left,
        _ => return Err(Defect::Value("phase")),
    };
    let (view_hash, stable, floor) = (r.u64()?, Hlc(r.u64()?), Hlc(r.u64()?));
    let count = r.count(MEMBERS_MAX, "members")?;
    let members = (0..count).map(|_| Ok((member(r)?, r.flag()?))).collect::<Result<Vec<_>, Defect>>()?;
    let removed = lifetimes(r, REMOVED_GOSSIP_MAX, "removed")?;
    let strangers = lifetimes(r, MEMBERS_MAX, "strangers")?;
    let vectors = vectors(r)?;
    Ok(Beat { sent_ns, phase, view_hash, stable, floor, members, removed, strangers, vectors })
}

pub(super) fn lifetimes(
    r: &mut Reader<'_>,
    most: usize,
    field: &'static str,
) -> Result<Vec<Incarnation>, Defect> {
    let count = r.count(most, field)?;
    (0..count).map(|_| r.u128().map(Incarnation)).collect()
}

pub(super) fn put_lifetimes(lifetimes: &[Incarnation], out: &mut Vec<u8>) {
    out.extend_from_slice(&(lifetimes.len() as u16).to_le_bytes());
    for lifetime in lifetimes {
        out.extend_from_slice(&lifetime.0.to_le_bytes());
    }
}

pub(super) fn put_beat(beat: &Beat, out: &mut Vec<u8>) {
    out.extend_from_slice(&beat.sent_ns.to_le_bytes());
    out.push(beat.phase as u8);
    for number in [beat.view_hash, beat.stable.0, beat.floor.0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&(beat.members.len() as u16).to_le_bytes());
    for (member, fenced) in &beat.members {
        put_member(member, out);
        out.push(u8::from(*fenced));
    }
    put_lifetimes(&beat.removed, out);
    put_lifetimes(&beat.strangers, out);
    put_vectors(&beat.vectors, out);
}
