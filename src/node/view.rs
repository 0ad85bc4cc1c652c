//! The membership snapshot: who is in the mesh, as one owner last published it. Immutable; workers and
//! routes read whichever was current when they looked.

use crate::base::version::Incarnation;

/// One member, as `/ping` and `/status` show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub incarnation: Incarnation,
    pub is_down: bool,
}

/// An immutable snapshot of the membership. The first member is this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub members: Vec<Member>,
}

impl View {
    /// The view of a node that knows of no other.
    #[must_use]
    pub fn alone(name: &str, incarnation: Incarnation) -> View {
        View { members: vec![Member { name: name.to_owned(), incarnation, is_down: false }] }
    }
}
