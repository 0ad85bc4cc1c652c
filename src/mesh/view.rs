//! The membership snapshot: who is in the mesh, as last published. Immutable; workers and routes read
//! whichever was current when they looked.

use crate::base::version::Incarnation;
use crate::peer::frame::Phase;
use std::net::SocketAddr;

/// What a member looks like from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Never heard so far.
    Unheard,
    Alive,
    /// Not heard for a while, or its port refused us.
    Suspect,
    /// Not heard for long: it is not waited for. It may come back; nothing is forgotten.
    Down,
}

impl Health {
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Health::Unheard => "unheard",
            Health::Alive => "alive",
            Health::Suspect => "suspect",
            Health::Down => "down",
        }
    }
}

/// One member other than this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub incarnation: Incarnation,
    pub name: String,
    /// Its peer port.
    pub address: SocketAddr,
    pub http_port: u16,
    pub workers: u16,
    pub health: Health,
    pub phase: Phase,
    /// `w=all` waits for it.
    pub counted: bool,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub version: u64,
    pub me: Incarnation,
    pub name: String,
    pub phase: Phase,
    /// Members, this node included, down ones as well.
    pub size: usize,
    pub peers: Vec<Peer>,
}
