//! Goal: no seed breaks a rule, and every rule of replication that is switched off is noticed. A batch in
//! which a fault never happened is rejected. The seeds are printed; `MESHKV_SEED` replays one.

use super::*;

const SEEDS: u64 = 200;

fn first_seed() -> Option<u64> {
    std::env::var("MESHKV_SEED").ok().and_then(|seed| seed.parse().ok())
}

#[test]
fn no_seed_breaks_a_rule() {
    let seeds = match first_seed() {
        Some(seed) => seed..seed + 1,
        // Always the same: what a change breaks is then the change's doing. New ones are `sim --runs`.
        None => 1..1 + SEEDS,
    };
    println!("seeds {seeds:?}");
    let mut faults = Faults::new();
    for seed in seeds {
        let outcome = run(seed, Mutation::None, false).unwrap_or_else(|violation| panic!("{violation}"));
        for (fault, count) in outcome.faults {
            *faults.entry(fault).or_default() += count;
        }
    }
    for required in REQUIRED_FAULTS.iter().filter(|_| first_seed().is_none()) {
        assert!(faults.contains_key(required), "{required} never happened: {faults:?}");
    }
}

/// Goal: what seeds have found stays mended. As the code changes they come to mean something else; where it could be told as a
/// script it is a named scenario as well.
#[test]
fn seeds_that_found_something_break_no_rule() {
    const FOUND: [u64; 9] =
        [47204568, 48014371, 48202101, 51006707, 53224299, 53227948, 54205310, 56019173, 57030325];
    for seed in FOUND {
        run(seed, Mutation::None, false).unwrap_or_else(|violation| panic!("{violation}"));
    }
}

/// Goal: no script is left out. Method: the folder's files are counted.
#[test]
fn every_script_is_a_named_scenario() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sim/scenarios");
    let scripts = std::fs::read_dir(folder).expect("the folder of scripts").count();
    assert_eq!(scripts, SCENARIOS.len());
}

#[test]
fn the_named_scenarios_hold() {
    for (name, script) in SCENARIOS {
        let outcome = run_script(script, Mutation::None);
        let outcome = outcome.unwrap_or_else(|violation| panic!("{name}: {violation}\n{}", violation.trace));
        println!("{name}: {} ms, {} requests", outcome.virtual_ms, outcome.requests);
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 2, 3] {
        let [a, b] = [(), ()].map(|()| run(seed, Mutation::None, false).map(|outcome| outcome.trace_hash));
        assert_eq!(a.map_err(|v| v.to_string()), b.map_err(|v| v.to_string()));
    }
}

/// What notices a rule's absence.
enum By {
    Seed(u64),
    /// A named scenario; chance hardly ever does.
    Scenario(&'static str),
}

/// Where each rule's absence is noticed. If a change moves that, the search below finds it elsewhere, in a minute or two.
const NOTICED: [(Mutation, By); 16] = [
    (Mutation::FloorWithoutOthers, By::Seed(1)),
    (Mutation::CollectByAge, By::Scenario("removed stays removed")),
    (Mutation::FloorIgnoresViews, By::Seed(3)),
    (Mutation::AcceptGaps, By::Seed(23)),
    (Mutation::LaterArrivalWins, By::Seed(1)),
    (Mutation::NoReconciliation, By::Seed(8)),
    (Mutation::ClosedDespiteGap, By::Seed(49)),
    (Mutation::ReadyWithoutBeingCounted, By::Seed(223)),
    (Mutation::BelowTheFloor, By::Scenario("acknowledged below the floor")),
    (Mutation::LeftBehindStays, By::Scenario("below what was promised")),
    (Mutation::ForgetsWithoutMajority, By::Scenario("two who give each other up")),
    (Mutation::ClaimsForgotten, By::Scenario("decided by one who is down")),
    (Mutation::PullsNeverWait, By::Scenario("pulled below what was promised")),
    (Mutation::DoubtsForgotten, By::Scenario("a floor that was copied")),
    (Mutation::SurplusIsSilent, By::Scenario("more than a pull counts")),
    (Mutation::UnlistedForgotten, By::Scenario("a namesake that one member knew")),
];

#[test]
fn every_rule_that_is_switched_off_is_noticed() {
    for mutation in Mutation::ALL {
        let (_, known) = NOTICED.iter().find(|(known, _)| *known == mutation).expect("one each");
        // What breaks no rule while all are kept, or it would prove nothing.
        let by_seed = |seed: u64| {
            let violation = run(seed, mutation, false).err()?;
            run(seed, Mutation::None, false).is_ok().then_some(violation)
        };
        let by_script = |script: &str| {
            let violation = run_script(script, mutation).err()?;
            run_script(script, Mutation::None).is_ok().then_some(violation)
        };
        let noticed = match known {
            By::Seed(seed) => by_seed(*seed),
            By::Scenario(name) => by_script(scenario(name).expect("there is such a scenario")),
        };
        let noticed = noticed.or_else(|| {
            println!("{mutation:?} is noticed elsewhere now");
            let by_any_script = || SCENARIOS.iter().find_map(|(_, script)| by_script(script));
            by_any_script().or_else(|| (1..1 + SEEDS).find_map(by_seed))
        });
        let Some(violation) = noticed else { panic!("{mutation:?} was not noticed") };
        println!("{mutation:?}: {}, seed {}", violation.rule, violation.seed);
    }
}

const MESH_OF_THREE: &str = "hosts 3\n0 start 0\n0 start 1\n0 start 2\n8 set 0 k v1\n9 set 1 other v2\n";

#[test]
fn what_is_there_at_one_node_only_is_found_by_comparing() {
    for (planted, what) in [("plant 1 new v3", "a key too many"), ("bury 2 k", "a key that was lost")] {
        let script = format!("{MESH_OF_THREE}15 {planted}\n40 get 0 other -> v2\n");
        let violation = run_script(&script, Mutation::None).expect_err(what);
        assert_eq!(violation.rule, "D9", "{what}: {violation}\n{}", violation.trace);
        assert!(violation.trace.contains("holds at least 1 keys otherwise than this node"), "{what}");
    }
}
