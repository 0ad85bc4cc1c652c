//! What the floors of two members say about their records.

use super::check::{Violation, lineage, violation};
use super::dump::{Dump, is_older};
use super::world::Process;
use crate::base::version::Hlc;
use crate::peer::frame::Phase;
use std::collections::BTreeMap;

/// How far it has decided, and the greatest stamp that it has told others to hold completely.
fn decided(process: &Process) -> (Hlc, Hlc) {
    process.node.mesh.with_members(|members| (members.floor(), members.greatest_stable()))
}

/// D5, seen from the records: what is visible here below the floor is visible with every ready member.
pub(super) fn nothing_missing_below_floors(
    processes: &BTreeMap<usize, Process>,
) -> Result<(), Box<Violation>> {
    let ready: Vec<(&Process, Dump)> = processes
        .values()
        .filter(|process| process.node.view().phase == Phase::Ready)
        .map(|process| (process, Dump::of(&process.node)))
        .collect();
    for (process, dump) in &ready {
        let view = process.node.view();
        let (floor, word) = decided(process);
        for (other, others) in &ready {
            let theirs = other.node.view();
            let mutual = view.peers.iter().any(|peer| peer.incarnation == theirs.me)
                && theirs.peers.iter().any(|peer| peer.incarnation == view.me);
            // Whoever has just been met was not part of it, and will notice as soon as it is told, which marks do not tell: one
            // of two whose floor is beyond the other's word makes that one start over (seed 48014371).
            let has = |of| move |by: &Process| by.node.mesh.progress().get(of).map(|o| o.closed());
            let heard = has(theirs.me)(process).min(has(view.me)(other)) >= Some(floor);
            let (their_floor, their_word) = decided(other);
            let together = floor <= their_word && their_floor <= word;
            if !mutual || !heard || !together || lineage(process) != lineage(other) {
                continue;
            }
            for (key, held) in dump.records.iter().filter(|(_, held)| held.stamp.0 <= floor) {
                let lasting = held.value.is_some() && held.expires_at_ms == 0;
                if lasting && is_older(others.stamp(Some(key)), held.stamp) {
                    let text = format!(
                        "{key} at {:?} is below the floor {floor:?} of {} and missing with {}",
                        held.stamp, view.name, theirs.name
                    );
                    return Err(violation("D5", text));
                }
            }
        }
    }
    Ok(())
}
