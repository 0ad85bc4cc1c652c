//! The deterministic simulator: whole clusters of real nodes on virtual time and a virtual network, with
//! faults, and a checker that knows every write. One seed decides everything; the same seed gives the same
//! trace.
//!
//! Nodes are the real ones: engines, stores, logs, links and frames. What is made up here is time, the
//! network, the clients and the failures.

mod check;
mod clients;
mod compared;
mod dump;
mod faults;
mod floors;
mod network;
mod plan;
mod processes;
mod script;
mod world;
mod write;

pub use check::Violation;
pub use plan::Plan;
pub use world::Outcome;

use crate::mesh::Mutation;
use std::collections::BTreeMap;

/// Faults that happened in a run, by name.
pub type Faults = BTreeMap<&'static str, u64>;

/// Faults that a batch of runs must have seen, or it has tested nothing.
pub const REQUIRED_FAULTS: [&str; 23] = [
    "crash",
    "restart",
    "partition",
    "one-way partition",
    "reset",
    "pause",
    "leave",
    "double start",
    "slow link",
    "log overflow",
    "skew",
    "clock jump",
    "exile",
    "below floor",
    "rebirth",
    "forgotten",
    "full pull",
    "partial pull",
    "comparison",
    "pair compared at the end",
    "tiny limits",
    "lull",
    "rest",
];

/// Runs one seed.
///
/// # Errors
/// The first violation, with the seed and the trace that led to it.
pub fn run(seed: u64, mutation: Mutation, trace: bool) -> Result<Outcome, Box<Violation>> {
    world::World::new(Plan::of(seed, mutation), trace).run()
}

/// The named scenarios: what each is called, and its script.
pub const SCENARIOS: [(&str, &str); 61] = [
    ("pulled from one who starts over", include_str!("scenarios/pulled_from_one_who_starts_over.txt")),
    ("no yielding to who holds nothing", include_str!("scenarios/no_yielding_to_who_holds_nothing.txt")),
    ("sleep while nothing happens", include_str!("scenarios/sleep_while_nothing_happens.txt")),
    ("given up by the only one left", include_str!("scenarios/given_up_by_the_only_one_left.txt")),
    ("two who pull from each other", include_str!("scenarios/two_who_pull_from_each_other.txt")),
    ("a pull of nothing new breaks off", include_str!("scenarios/a_pull_of_nothing_new_breaks_off.txt")),
    ("more than a pull counts", include_str!("scenarios/more_than_a_pull_counts.txt")),
    ("a mesh at a dead member's address", include_str!("scenarios/a_mesh_at_a_dead_members_address.txt")),
    ("what it holds already", include_str!("scenarios/what_it_holds_already.txt")),
    ("more writers than have names", include_str!("scenarios/more_writers_than_have_names.txt")),
    ("refused by a stranger", include_str!("scenarios/refused_by_a_stranger.txt")),
    ("met by one of them", include_str!("scenarios/met_by_one_of_them.txt")),
    ("all clocks jump", include_str!("scenarios/all_clocks_jump.txt")),
    ("below what was promised", include_str!("scenarios/below_what_was_promised.txt")),
    ("joined a mesh that yielded", include_str!("scenarios/joined_a_mesh_that_yielded.txt")),
    ("forgotten for its tombstones", include_str!("scenarios/forgotten_for_its_tombstones.txt")),
    ("a fence of one", include_str!("scenarios/a_fence_of_one.txt")),
    ("two who give each other up", include_str!("scenarios/two_who_give_each_other_up.txt")),
    ("another mesh at its address", include_str!("scenarios/another_mesh_at_its_address.txt")),
    ("the oldest clock is wrong", include_str!("scenarios/the_oldest_clock_is_wrong.txt")),
    ("half of them slept", include_str!("scenarios/half_of_them_slept.txt")),
    ("given up by both", include_str!("scenarios/given_up_by_both.txt")),
    ("a namesake that one member knew", include_str!("scenarios/a_namesake_that_one_member_knew.txt")),
    ("a namesake that lives", include_str!("scenarios/a_namesake_that_lives.txt")),
    ("copied once", include_str!("scenarios/copied_once.txt")),
    ("a pull that has to wait", include_str!("scenarios/a_pull_that_has_to_wait.txt")),
    ("a namesake met by one who copied", include_str!("scenarios/a_namesake_met_by_one_who_copied.txt")),
    ("a namesake that left", include_str!("scenarios/a_namesake_that_left.txt")),
    ("a namesake that is forgotten", include_str!("scenarios/a_namesake_that_is_forgotten.txt")),
    ("a namesake's first write", include_str!("scenarios/a_namesakes_first_write.txt")),
    ("removed by one who is cut off", include_str!("scenarios/removed_by_one_who_is_cut_off.txt")),
    ("a namesake that was away", include_str!("scenarios/a_namesake_that_was_away.txt")),
    ("a namesake met after sleep", include_str!("scenarios/a_namesake_met_after_sleep.txt")),
    ("started an hour ahead", include_str!("scenarios/started_an_hour_ahead.txt")),
    ("a clock that goes on", include_str!("scenarios/a_clock_that_goes_on.txt")),
    (
        "given up by each other and one who is dead",
        include_str!("scenarios/given_up_by_each_other_and_one_who_is_dead.txt"),
    ),
    ("its clock was ahead", include_str!("scenarios/its_clock_was_ahead.txt")),
    ("a quorum with one who copies", include_str!("scenarios/a_quorum_with_one_who_copies.txt")),
    ("a member who went elsewhere", include_str!("scenarios/a_member_who_went_elsewhere.txt")),
    ("more lifetimes than a beat names", include_str!("scenarios/more_lifetimes_than_a_beat_names.txt")),
    ("copies that come to nothing", include_str!("scenarios/copies_that_come_to_nothing.txt")),
    ("a clock minutes behind", include_str!("scenarios/a_clock_minutes_behind.txt")),
    ("decided by one who is down", include_str!("scenarios/decided_by_one_who_is_down.txt")),
    ("a floor that was copied", include_str!("scenarios/a_floor_that_was_copied.txt")),
    ("taken while it copied", include_str!("scenarios/taken_while_it_copied.txt")),
    ("taken by one who promised less", include_str!("scenarios/taken_by_one_who_promised_less.txt")),
    ("pulled below what was promised", include_str!("scenarios/pulled_below_what_was_promised.txt")),
    ("a dead namesake is copied", include_str!("scenarios/a_dead_namesake_is_copied.txt")),
    ("a copy of somebody given up", include_str!("scenarios/copy_of_somebody_given_up.txt")),
    ("stamped below the floor", include_str!("scenarios/stamped_below_the_floor.txt")),
    ("cut three and two", include_str!("scenarios/cut_three_and_two.txt")),
    ("removed stays removed", include_str!("scenarios/removed_stays_removed.txt")),
    ("restart under the same name", include_str!("scenarios/restart_under_the_same_name.txt")),
    ("a name said before a change", include_str!("scenarios/a_name_said_before_a_change.txt")),
    ("a lost majority", include_str!("scenarios/a_lost_majority.txt")),
    ("joined beside a namesake", include_str!("scenarios/joined_beside_a_namesake.txt")),
    ("acknowledged below the floor", include_str!("scenarios/acknowledged_below_the_floor.txt")),
    ("found by a mesh it forgets", include_str!("scenarios/found_by_a_mesh_it_forgets.txt")),
    ("cleared while it was copied", include_str!("scenarios/cleared_while_it_was_copied.txt")),
    ("its donor was given up", include_str!("scenarios/its_donor_was_given_up.txt")),
    ("the clock jumps", include_str!("scenarios/the_clock_jumps.txt")),
];

/// The script of the scenario that is called so.
#[must_use]
pub fn scenario(name: &str) -> Option<&'static str> {
    SCENARIOS.iter().find(|(known, _)| *known == name).map(|(_, script)| *script)
}

/// Runs a script; see `src/sim/script.rs` for what may stand in it.
///
/// # Errors
/// What did not hold, with the trace that led to it.
pub fn run_script(text: &str, mutation: Mutation) -> Result<Outcome, Box<Violation>> {
    let (plan, steps) = script::parse(text, mutation).map_err(|line| check::violation("SCRIPT", line))?;
    let mut world = world::World::new(plan, true);
    world.schedule(steps);
    world.run()
}

#[cfg(test)]
mod tests;
