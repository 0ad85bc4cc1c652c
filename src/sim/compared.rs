//! What the nodes' own comparisons came to: never that they differ (D9), and after healing that all are the
//! same (Q6).

use super::check::{Violation, violation};
use super::world::{MS, Process};
use crate::base::version::Hlc;
use crate::mesh::compare::Verdict;
use crate::mesh::members::Members;
use crate::node::State;
use std::collections::BTreeMap;

/// In the calm at the end every pair must have been compared within this, in milliseconds.
const RECENT_MS: u64 = 15_000;

pub(super) fn none_diverged(processes: &BTreeMap<usize, Process>) -> Result<(), Box<Violation>> {
    for process in processes.values() {
        let [_, diverged, _] = process.node.mesh.comparisons().counts();
        if diverged > 0 {
            let text = format!("{} found {diverged} times that another differs", process.node.view().name);
            return Err(violation("D9", text));
        }
    }
    Ok(())
}

/// With a dead member in its view that never heard of that view, or was never ready, a node decides nothing.
fn decides(process: &Process) -> bool {
    let decides = |members: &Members| members.is_agreed() && members.floor() != Hlc::ZERO;
    process.node.state() == State::Ready && process.node.mesh.with_members(decides)
}

/// To be asked only when all are ready and of one lineage. Counts the comparisons made, by verdict.
pub(super) fn all_equal(
    processes: &BTreeMap<usize, Process>,
    now_ns: u64,
) -> Result<[u64; Verdict::LABELS.len()], Box<Violation>> {
    let mut counts = [0; Verdict::LABELS.len()];
    for process in processes.values() {
        let mesh = &process.node.mesh;
        for (sum, count) in counts.iter_mut().zip(mesh.comparisons().counts()) {
            *sum += count;
        }
        if !decides(process) {
            continue;
        }
        let others = processes.values().filter(|other| other.serial != process.serial && decides(other));
        for other in others {
            let last = mesh.comparisons().last(other.node.view().me);
            let mono_ns = now_ns - process.boot_ns;
            let recent = last.filter(|(_, at_ns)| at_ns + RECENT_MS * MS > mono_ns);
            if recent.map(|(verdict, _)| verdict) != Some(Verdict::Equal) {
                let (name, theirs) = (&process.node.view().name, &other.node.view().name);
                let text = format!("{name} compared itself with {theirs}: {last:?} at {mono_ns} ns");
                return Err(violation("Q6", text));
            }
        }
    }
    Ok(counts)
}
