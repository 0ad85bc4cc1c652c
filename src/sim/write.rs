//! A write, as the checker knows it.

use super::check::me;
use super::dump::{NEVER, Stamp};
use super::world::Process;
use crate::base::version::Incarnation;
use crate::node::State;
use std::collections::BTreeSet;

/// A write that a node accepted.
#[derive(Clone, Debug)]
pub(super) struct Write {
    /// `None`: a clear.
    pub(super) key: Option<String>,
    /// `None`: a removal.
    pub(super) value: Option<String>,
    pub(super) is_acked: bool,
    pub(super) level: String,
    pub(super) stamp: Stamp,
    pub(super) expires_at_ms: u64,
    /// Of the view when it was accepted.
    pub(super) size: usize,
    /// Lifetimes that are known to have held it.
    pub(super) holders: BTreeSet<Incarnation>,
    /// Processes that served and held it.
    pub(super) held_by: BTreeSet<usize>,
    /// Of the mesh that it was written to.
    pub(super) lineage: u128,
}

impl Default for Write {
    fn default() -> Write {
        Write {
            key: None,
            value: None,
            is_acked: false,
            level: String::new(),
            stamp: NEVER,
            expires_at_ms: 0,
            size: 0,
            holders: BTreeSet::new(),
            held_by: BTreeSet::new(),
            lineage: 0,
        }
    }
}

impl Write {
    /// This process holds it.
    pub(super) fn held_by_now(&mut self, process: &Process) {
        self.holders.insert(me(process));
        if process.node.state() == State::Ready {
            self.held_by.insert(process.serial);
        }
    }
}
