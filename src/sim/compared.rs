//! What the nodes' own comparisons came to: never that they differ (D9), and after healing that all are the
//! same (Q6).

use super::Faults;
use super::check::{Violation, violation};
use super::world::{MS, Process};
use crate::base::version::{Hlc, Incarnation};
use crate::mesh::compare::Verdict;
use crate::mesh::members::Members;
use crate::node::State;
use std::collections::BTreeMap;

/// Of nodes that have decided for so long on one view, in milliseconds, every pair must have been compared within it.
const RECENT_MS: u64 = 15_000;

/// Since when nodes decide, and on which view. One that is forgotten shortly before the end leaves no time.
#[derive(Debug, Default)]
pub(super) struct Deciding(BTreeMap<Incarnation, (u64, u64)>);

impl Deciding {
    /// To be called often. No node has found that another differs.
    pub(super) fn note(
        &mut self,
        processes: &BTreeMap<usize, Process>,
        now_ns: u64,
    ) -> Result<(), Box<Violation>> {
        let now: BTreeMap<Incarnation, u64> = processes
            .values()
            .filter(|process| decides(process))
            .map(|process| (process.node.view().me, process.node.mesh.with_members(Members::view_hash)))
            .collect();
        self.0.retain(|lifetime, (view, _)| now.get(lifetime) == Some(view));
        for (lifetime, view) in now {
            self.0.entry(lifetime).or_insert((view, now_ns));
        }
        none_diverged(processes)
    }

    fn for_long(&self, process: &Process, now_ns: u64) -> bool {
        let since = self.0.get(&process.node.view().me).map(|(_, since)| *since);
        decides(process) && since.is_some_and(|since| since + RECENT_MS * MS <= now_ns)
    }

    /// To be asked only when all are ready and of one lineage: every two were found to be the same. Counts that, and
    /// the comparisons made.
    pub(super) fn all_equal(
        &self,
        processes: &BTreeMap<usize, Process>,
        now_ns: u64,
        counts: &mut Faults,
    ) -> Result<(), Box<Violation>> {
        let mut count = |name, number| *counts.entry(name).or_default() += number;
        for process in processes.values() {
            let mesh = &process.node.mesh;
            let [equal, _, unknown] = mesh.comparisons().counts();
            count("comparison", equal);
            count("comparison that came to nothing", unknown);
            if !self.for_long(process, now_ns) {
                continue;
            }
            let others = processes.values().filter(|other| other.serial != process.serial);
            for other in others.filter(|other| self.for_long(other, now_ns)) {
                let last = mesh.comparisons().last(other.node.view().me);
                let mono_ns = now_ns - process.boot_ns;
                let recent = last.filter(|(_, at_ns)| at_ns + RECENT_MS * MS > mono_ns);
                if recent.map(|(verdict, _)| verdict) != Some(Verdict::Equal) {
                    let (name, theirs) = (&process.node.view().name, &other.node.view().name);
                    let text = format!("{name} compared itself with {theirs}: {last:?} at {mono_ns} ns");
                    return Err(violation("Q6", text));
                }
                count("pair compared at the end", 1);
            }
        }
        Ok(())
    }
}

fn none_diverged(processes: &BTreeMap<usize, Process>) -> Result<(), Box<Violation>> {
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
