//! What the mesh has to tell the operator: lines for the node's log.

use super::Mesh;
use crate::peer::link::LinkError;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

const NOTES_MAX: usize = 256;

/// A line for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub is_warning: bool,
    /// It comes again for as long as its cause is there; to be said once in a while for each of these.
    pub cause: Option<String>,
    pub text: String,
}

impl Mesh {
    /// There are lines that nobody has taken yet.
    #[must_use]
    pub fn has_notes(&self) -> bool {
        !self.notes.lock().is_empty()
    }

    /// Lines for the operator that have come up since the last call.
    pub fn take_notes(&self) -> Vec<Note> {
        std::mem::take(&mut *self.notes.lock())
    }

    pub(super) fn note(&self, is_warning: bool, text: impl Into<String>) {
        self.push_note(Note { is_warning, cause: None, text: text.into() });
    }

    /// A warning that comes again for as long as its cause is there.
    pub(super) fn complain(&self, cause: impl Into<String>, text: impl Into<String>) {
        self.push_note(Note { is_warning: true, cause: Some(cause.into()), text: text.into() });
    }

    /// A link was not taken for where it came from. One cause for all of them: strangers have many addresses.
    pub fn turned_away(&self, remote: SocketAddr) {
        let error = LinkError::Address;
        self.counters.link_errors[error.index()].fetch_add(1, Ordering::Relaxed);
        self.complain("turned away", format!("peer   {remote} turned away: {error}"));
    }

    fn push_note(&self, note: Note) {
        let mut notes = self.notes.lock();
        if notes.len() < NOTES_MAX {
            notes.push(note);
        }
    }
}
