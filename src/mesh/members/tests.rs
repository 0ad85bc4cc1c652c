//! Goal: rules of the membership that a whole mesh shows only by luck. Method: one node's, told by hand.

use super::*;
use crate::limits::DOWN_MS;
use crate::mesh::Mutation;
use crate::peer::frame::Echo;

const ONE: Incarnation = Incarnation(1);
const OTHER: Incarnation = Incarnation(2);

const RULES: Rules = Rules {
    forget_ms: 3_600_000,
    seeds_expected: true,
    sees_mesh: false,
    mutation: Mutation::None,
    latest: Hlc::ZERO,
};

fn info(incarnation: Incarnation) -> MemberInfo {
    MemberInfo {
        incarnation,
        name: format!("n{}", incarnation.0),
        address: SocketAddr::from(([10, 0, 0, incarnation.0 as u8], 7373)),
        http_port: 8080,
        workers: 1,
    }
}

fn beat() -> Beat {
    Beat {
        sent_ns: 0,
        phase: Phase::Ready,
        view_hash: 0,
        stable: Hlc::ZERO,
        floor: Hlc::ZERO,
        members: vec![(info(OTHER), false)],
        removed: Vec::new(),
        strangers: Vec::new(),
        vectors: Vec::new(),
    }
}

fn with_other(progress: &Progress) -> Members {
    let mut members = Members::new(info(ONE), 0, Random::new(1));
    members.add(&info(OTHER), progress, false, 0).expect("nothing against it");
    members
}

#[test]
fn what_came_in_while_it_slept_was_not_heard_in_the_future() {
    let progress = Progress::default();
    let mut members = with_other(&progress);
    members.on_beat(OTHER, beat(), &progress, 1);
    members.tick(&progress, Hlc::ZERO, RULES, 2);
    // Asleep for long; when it wakes, a beat is there before its first tick.
    let woke = 60_000 * MS;
    members.on_beat(OTHER, beat(), &progress, woke);
    members.tick(&progress, Hlc::ZERO, RULES, woke + MS);
    for after_ms in (0..DOWN_MS).step_by(500) {
        members.tick(&progress, Hlc::ZERO, RULES, woke + after_ms * MS);
        assert_ne!(members.members[&OTHER].health, Health::Down, "{after_ms} ms after the last beat");
    }
    members.tick(&progress, Hlc::ZERO, RULES, woke + (DOWN_MS + 1) * MS);
    assert_eq!(members.members[&OTHER].health, Health::Down);
}

#[test]
fn who_does_not_hear_is_down_from_the_tick_that_finds_it_so() {
    let progress = Progress::default();
    let mut members = with_other(&progress);
    let echo = |sent_ns| Echo { sent_ns, wall_ms: 0, jump_ms: 0, counts_you: true, heads: vec![0] };
    // For longer than it takes to be forgotten all is well, and then its answers stay away.
    let begun_ms = RULES.forget_ms * 2;
    for at_ms in (0..begun_ms + DOWN_MS + 200).step_by(500) {
        members.on_beat(OTHER, beat(), &progress, at_ms * MS);
        if at_ms <= begun_ms {
            members.on_echo(OTHER, echo(at_ms * MS), 0, at_ms * MS);
        }
        members.tick(&progress, Hlc::ZERO, RULES, (at_ms + 10) * MS);
        let member = &members.members[&OTHER];
        assert_eq!(member.health == Health::Down, at_ms >= begun_ms + DOWN_MS, "{at_ms} ms");
        assert!(!member.fenced, "{at_ms} ms");
    }
}

#[test]
fn who_has_no_copy_settles_nothing() {
    for loaded in [false, true] {
        let progress = Progress::default();
        let mut members = with_other(&progress);
        members.remove(OTHER, &progress, 1);
        members.loaded = loaded;
        members.reconcile(&progress, RULES);
        // There is nobody who could hold anything else; but without a copy, nothing is not what was written.
        let settled = progress.get(OTHER).expect("it was a member").is_settled();
        assert_eq!(settled, loaded);
    }
}
