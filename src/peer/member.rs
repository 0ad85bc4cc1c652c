//! What nodes say about themselves: where they are, and how far they have come.

use super::read::{Defect, Reader, put_text};
use crate::base::version::Incarnation;
use crate::limits::PEER_WORKERS_MAX;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a member says about itself; others pass it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    pub incarnation: Incarnation,
    pub name: String,
    /// Where peers dial it.
    pub address: SocketAddr,
    pub http_port: u16,
    pub workers: u16,
}

/// What a member is at, as its beats say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Holds nothing, or not all.
    #[default]
    Joining = 0,
    /// Holds what the others hold; wants to be waited for before it serves.
    Prepared = 1,
    /// Serves.
    Ready = 2,
    /// Has gone: its lifetime is over, and everything it accepted was handed over.
    Left = 3,
}

impl Phase {
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Phase::Joining => "joining",
            Phase::Prepared => "prepared",
            Phase::Ready => "ready",
            Phase::Left => "left",
        }
    }
}

pub(super) fn member(r: &mut Reader<'_>) -> Result<MemberInfo, Defect> {
    let incarnation = Incarnation(r.u128()?);
    let ip = match r.u8()? {
        4 => IpAddr::V4(Ipv4Addr::from_bits(r.u32()?)),
        6 => IpAddr::V6(Ipv6Addr::from_bits(r.u128()?)),
        _ => return Err(Defect::Value("address")),
    };
    let address = SocketAddr::new(ip, r.u16()?);
    let (http_port, workers) = (r.u16()?, r.u16()?);
    let name = r.text("name")?.to_owned();
    if incarnation.0 == 0 {
        return Err(Defect::Value("incarnation"));
    }
    if workers == 0 || usize::from(workers) > PEER_WORKERS_MAX {
        return Err(Defect::Value("workers"));
    }
    Ok(MemberInfo { incarnation, name, address, http_port, workers })
}

pub(super) fn put_member(member: &MemberInfo, out: &mut Vec<u8>) {
    out.extend_from_slice(&member.incarnation.0.to_le_bytes());
    match member.address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.to_bits().to_le_bytes());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.to_bits().to_le_bytes());
        }
    }
    for number in [member.address.port(), member.http_port, member.workers] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    put_text(&member.name, out);
}
