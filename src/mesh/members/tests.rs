//! Goal: rules of the membership that a whole mesh shows only by luck. Method: one node's, told by hand.

use super::*;
use crate::limits::DOWN_MS;
use crate::mesh::Mutation;
use crate::peer::frame::{Beat, Echo, Held, Openness, PullBegin};

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

fn vector(origin: Incarnation, applied: u64, closed: u64) -> OriginVector {
    let workers = vec![Held { applied, closed: Hlc(closed), ranges: Vec::new() }];
    OriginVector { origin, openness: Openness::Open, workers, surplus: Vec::new() }
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

#[test]
fn who_took_what_a_member_has_decided_without_starts_over_and_nobody_else() {
    const WRITER: Incarnation = Incarnation(3);
    // This node has taken two writes, at 20 and 30. Of the other: its floor, and how many of the two it holds, all up to which
    // stamp.
    let cases = [
        (10, None, false, "it has decided nothing of them"),
        (20, None, true, "it has decided without the first, and never heard of their writer"),
        (25, Some((0, 0)), true, "without the first"),
        (25, Some((1, 24)), true, "it held not everything up to its floor"),
        (25, Some((1, 25)), false, "it only lags behind"),
        (40, Some((1, 25)), true, "without the second"),
        (40, Some((2, 40)), false, "it has both"),
        (40, Some((2, 25)), false, "it has both, and waits for a mark"),
    ];
    for (floor, theirs, starts_over, why) in cases {
        let progress = Progress::default();
        let mut members = with_other(&progress);
        members.loaded = true;
        members.add(&info(WRITER), &progress, false, 0).expect("nothing against it");
        let origin = progress.ensure(WRITER, 1);
        origin.stream(0).expect("alive").insert(0, 2);
        origin.doubt(Hlc(30));
        origin.doubt(Hlc(20));
        let vectors = theirs.map(|(applied, closed)| vector(WRITER, applied, closed)).into_iter().collect();
        members.on_beat(OTHER, Beat { floor: Hlc(floor), vectors, ..beat() }, &progress, 1);
        assert_eq!(members.has_taken_too_late(&progress, RULES), starts_over, "{why}");
        members.floor = Hlc(30);
        members.trust_what_is_decided(&progress);
        assert!(!members.has_taken_too_late(&progress, RULES), "decided here as well");
    }
}

#[test]
fn what_came_while_it_copied_is_judged_by_what_its_donor_held() {
    const WRITER: Incarnation = Incarnation(3);
    // Taken: 20 to 30. Of the donor: its floor and its word, and up to where it held everything of the writer. Is the copy of
    // use, and what of that stays in doubt?
    let cases = [
        ((10, 15), 0, true, None, "later than anything that the donor has said"),
        ((10, 25), 0, true, Some((20, 25)), "up to its word"),
        ((10, 25), 25, true, None, "which it gave with them"),
        ((20, 25), 20, true, Some((20, 25)), "it had what it has decided"),
        ((20, 25), 19, false, Some((20, 25)), "it has decided without the first"),
        ((40, 50), 30, true, None, "it had them all"),
        ((40, 50), 29, false, Some((20, 30)), "it has decided without the last"),
    ];
    for ((floor, stable), closed, is_sound, left, why) in cases {
        let progress = Progress::default();
        let members = Members::new(info(ONE), 0, Random::new(1));
        let origin = progress.ensure(WRITER, 1);
        origin.doubt(Hlc(20));
        origin.doubt(Hlc(30));
        let vectors = vec![vector(WRITER, 0, closed)];
        let clear = (Hlc::ZERO, Incarnation(0));
        let begin = PullBegin { id: 1, lineage: 1, floor: Hlc(floor), stable: Hlc(stable), clear, vectors };
        assert_eq!(members.judge_what_came_meanwhile(&begin, &progress, Mutation::None), is_sound, "{why}");
        assert_eq!(origin.doubted(), left.map(|(first, last)| (Hlc(first), Hlc(last))), "{why}");
    }
}
