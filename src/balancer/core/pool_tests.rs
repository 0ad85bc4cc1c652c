//! Goal: each rule of the states, one by one. Method: the pool in virtual time, with lists, events, checks
//! and failures by hand.

use super::pool::*;
use crate::limits::{PASSIVE_WINDOW_MS, SIGNALLED_MS_MAX, VANISHED_MS_MAX};

struct Scene {
    pool: Pool,
    now: u64,
}

fn listed(id: &str, host: u8) -> Listed {
    Listed {
        id: id.to_owned(),
        name: id.to_owned(),
        place: Ok(([10, 0, 0, host], 80).into()),
        condition: Condition::Running,
        health: Health::None,
        started: None,
    }
}

impl Scene {
    fn new(mode: CheckMode, list: Vec<Listed>) -> Scene {
        let mut scene = Scene { pool: Pool::new(mode, 7), now: 1_000 };
        scene.list(list);
        scene
    }

    fn list(&mut self, list: Vec<Listed>) {
        self.now += 1;
        self.pool.sync(self.now, self.now, list);
    }

    fn act(&mut self, id: &str, act: Act) {
        self.now += 1;
        self.pool.act(self.now, id, act);
    }

    fn backend(&self, id: &str) -> &Backend {
        self.pool.backends().find(|backend| backend.id == id).expect("known")
    }

    #[track_caller]
    fn is(&self, id: &str, state: State) {
        let backend = self.backend(id);
        assert_eq!(backend.state, state, "{}", backend.reason);
    }

    /// Waits for the next check and answers it; returns how long that took.
    fn check(&mut self, outcome: Outcome) -> u64 {
        let begun = self.now;
        loop {
            if let Some(check) = self.pool.tick(self.now, &|_| 1).pop() {
                self.pool.checked(self.now, check.slot, outcome);
                return self.now - begun;
            }
            self.now = self.pool.next_due_ms().expect("a check is due some time").max(self.now + 1);
        }
    }

    fn tier(&self) -> Option<usize> {
        self.pool.routes().tiers.iter().position(|tier| !tier.is_empty())
    }
}

fn fail() -> Outcome {
    Outcome::Fail("refused".to_owned())
}

#[test]
fn one_pass_brings_a_new_one_up_and_its_check_comes_at_once() {
    let mut scene = Scene::new(CheckMode::Http, vec![listed("a", 1)]);
    scene.is("a", State::New);
    assert_eq!(scene.tier(), None, "no traffic before it is ready");
    assert_eq!(scene.check(Outcome::Pass), 0);
    scene.is("a", State::Up);
    assert_eq!(scene.tier(), Some(0));
    let pause = scene.check(Outcome::Pass);
    assert!((900..=1100).contains(&pause), "{pause}");
}

#[test]
fn a_warming_one_is_the_second_choice_and_is_checked_often() {
    let mut scene = Scene::new(CheckMode::Http, vec![listed("a", 1)]);
    scene.check(Outcome::Busy);
    scene.is("a", State::Warming);
    assert_eq!(scene.tier(), Some(1));
    let pause = scene.check(Outcome::Pass);
    assert!((180..=220).contains(&pause), "{pause}");
    scene.is("a", State::Up);
    scene.check(Outcome::Busy);
    scene.is("a", State::Warming);
}

#[test]
fn three_failed_checks_take_it_down_and_two_passes_bring_it_back() {
    let mut scene = Scene::new(CheckMode::Http, vec![listed("a", 1)]);
    scene.check(Outcome::Pass);
    scene.check(fail());
    let pause = scene.check(fail());
    assert!(pause <= 220, "a suspect is checked often: {pause}");
    scene.is("a", State::Up);
    scene.check(Outcome::Pass);
    scene.check(fail());
    scene.check(fail());
    scene.is("a", State::Up);
    scene.check(fail());
    scene.is("a", State::Down);
    assert_eq!(scene.tier(), Some(2), "the last resort");
    scene.check(Outcome::Pass);
    scene.is("a", State::Down);
    let pause = scene.check(Outcome::Pass);
    assert!(pause <= 220, "{pause}");
    scene.is("a", State::Up);
}

#[test]
fn one_that_is_slow_to_start_serves_as_soon_as_it_listens() {
    let mut scene = Scene::new(CheckMode::Http, vec![listed("a", 1)]);
    for _ in 0..20 {
        scene.check(fail());
    }
    scene.is("a", State::Down);
    let pause = scene.check(Outcome::Pass);
    assert!(pause <= 220, "{pause}");
    scene.is("a", State::Up);
}

#[test]
fn three_failed_connections_within_the_window_take_it_down() {
    let mut scene = Scene::new(CheckMode::Http, vec![listed("a", 1)]);
    scene.check(Outcome::Pass);
    let slot = scene.backend("a").slot();
    for pause in [0, PASSIVE_WINDOW_MS / 2, PASSIVE_WINDOW_MS / 2 + 1] {
        scene.now += pause;
        scene.pool.connection_failed(scene.now, slot, "refused");
        scene.is("a", State::Up);
    }
    assert!(scene.check(Outcome::Pass) <= 1, "a failure is looked into at once");
    scene.pool.connection_failed(scene.now, slot, "refused");
    scene.is("a", State::Down);
    // Of an older life: no matter.
    scene.list(vec![listed("a", 2)]);
    scene.check(Outcome::Pass);
    for _ in 0..5 {
        scene.pool.connection_failed(scene.now, slot, "refused");
    }
    scene.is("a", State::Up);
}

#[test]
fn a_stop_signal_drains_at_once_until_the_list_proves_a_restart() {
    let mut scene = Scene::new(CheckMode::Http, vec![listed("a", 1)]);
    scene.check(Outcome::Pass);
    scene.act("a", Act::StopSignal { time_ns: 50_000_000_000 });
    scene.is("a", State::Draining);
    assert_eq!(scene.tier(), None);
    // The engine lists it as running while it stops.
    let older = Listed { started: Some(10), ..listed("a", 1) };
    scene.list(vec![older.clone()]);
    scene.is("a", State::Draining);
    let younger = Listed { started: Some(51), ..older.clone() };
    scene.list(vec![younger]);
    scene.is("a", State::New);
    // One that ignores its signal is looked at afresh in the end.
    scene.act("a", Act::StopSignal { time_ns: 60_000_000_000 });
    scene.now += SIGNALLED_MS_MAX;
    scene.list(vec![older]);
    scene.is("a", State::New);
}

#[test]
fn what_died_or_vanished_gets_nothing_new_and_goes_when_its_connections_have() {
    let mut scene = Scene::new(CheckMode::Http, vec![listed("a", 1), listed("b", 2), listed("c", 3)]);
    for _ in 0..3 {
        scene.check(Outcome::Pass);
    }
    scene.act("a", Act::Die);
    scene.now += 1;
    scene.list(vec![listed("c", 3)]);
    scene.is("a", State::Draining);
    scene.is("b", State::Draining);
    assert_eq!(scene.pool.routes().tiers[0].len(), 1);
    scene.pool.tick(scene.now, &|id| usize::from(id == "b"));
    let known = |scene: &Scene| scene.pool.backends().map(|b| b.id.clone()).collect::<Vec<_>>();
    assert_eq!(known(&scene), ["b", "c"]);
    scene.now += VANISHED_MS_MAX;
    scene.pool.tick(scene.now, &|_| 1);
    assert_eq!(known(&scene), ["c"], "a connection that never ends does not keep a name for ever");
}

#[test]
fn a_list_that_was_asked_for_before_an_event_does_not_undo_it() {
    let mut scene = Scene::new(CheckMode::Http, vec![listed("a", 1), listed("b", 2)]);
    scene.check(Outcome::Pass);
    scene.check(Outcome::Pass);
    let asked = scene.now;
    scene.act("a", Act::Die);
    scene.act("b", Act::Pause);
    scene.pool.sync(scene.now + 1, asked, vec![listed("a", 1), listed("b", 2)]);
    scene.is("a", State::Draining);
    scene.is("b", State::Paused);
    scene.now += 1;
    scene.list(vec![listed("a", 1), listed("b", 2)]);
    scene.is("a", State::New);
    scene.is("b", State::New);
}

#[test]
fn a_list_that_is_older_than_a_death_does_not_bring_the_dead_back() {
    let mut scene = Scene::new(CheckMode::Http, vec![listed("a", 1)]);
    scene.check(Outcome::Pass);
    let asked = scene.now;
    scene.act("a", Act::Die);
    scene.now += 1;
    scene.pool.tick(scene.now, &|_| 0);
    scene.pool.sync(scene.now, asked, vec![listed("a", 1)]);
    scene.is("a", State::Draining);
    scene.list(vec![]);
    scene.pool.tick(scene.now, &|_| 0);
    assert_eq!(scene.pool.backends().count(), 0);
}

#[test]
fn a_new_address_is_a_new_life() {
    let mut scene = Scene::new(CheckMode::Http, vec![listed("a", 1)]);
    let check = scene.pool.tick(scene.now, &|_| 0).pop().expect("due");
    scene.list(vec![listed("a", 9)]);
    // The answer of the old address says nothing of the new one.
    scene.pool.checked(scene.now, check.slot, Outcome::Pass);
    scene.is("a", State::New);
    scene.check(Outcome::Pass);
    assert_eq!(scene.pool.routes().tiers[0][0].address, ([10, 0, 0, 9], 80).into());
}

#[test]
fn without_a_way_it_is_unreachable_with_the_reason_until_there_is_one() {
    let lost = Listed { place: Err("no network".to_owned()), ..listed("a", 1) };
    let mut scene = Scene::new(CheckMode::Http, vec![lost.clone()]);
    scene.is("a", State::Unreachable);
    assert_eq!(scene.backend("a").reason, "no network");
    let revision = scene.pool.revision();
    scene.list(vec![lost.clone()]);
    assert_eq!(scene.pool.revision(), revision, "nothing has changed");
    scene.list(vec![listed("a", 1)]);
    scene.check(Outcome::Pass);
    scene.is("a", State::Up);
    scene.list(vec![lost]);
    scene.is("a", State::Unreachable);
    assert_eq!(scene.tier(), None);
}

#[test]
fn the_engines_health_rules_where_it_is_asked_to() {
    let with = |health| vec![Listed { health, ..listed("a", 1) }];
    let mut scene = Scene::new(CheckMode::Docker, with(Health::Starting));
    scene.is("a", State::Warming);
    for (health, state) in
        [(Health::Healthy, State::Up), (Health::Unhealthy, State::Down), (Health::None, State::Up)]
    {
        scene.list(with(health));
        scene.is("a", state);
    }
    let slot = scene.backend("a").slot();
    for _ in 0..3 {
        scene.pool.connection_failed(scene.now, slot, "refused");
    }
    scene.list(with(Health::Healthy));
    scene.is("a", State::Down);
    scene.now += PASSIVE_WINDOW_MS;
    scene.list(with(Health::Healthy));
    scene.is("a", State::Up);
    assert!(scene.pool.tick(scene.now, &|_| 0).is_empty(), "nobody checks");
}

#[test]
fn without_checks_everything_is_up_and_failures_pause_it() {
    let mut scene = Scene::new(CheckMode::Off, vec![listed("a", 1)]);
    scene.is("a", State::Up);
    let slot = scene.backend("a").slot();
    for _ in 0..3 {
        scene.pool.connection_failed(scene.now, slot, "refused");
    }
    scene.is("a", State::Down);
    while let Some(due) = scene.pool.next_due_ms() {
        scene.now = due;
        scene.pool.tick(due, &|_| 0);
    }
    scene.is("a", State::Up);
}

#[test]
fn events_in_a_wrong_order_do_not_revive_what_is_gone() {
    let mut scene = Scene::new(CheckMode::Http, vec![listed("a", 1)]);
    scene.act("a", Act::Die);
    scene.act("a", Act::Pause);
    scene.act("a", Act::StopSignal { time_ns: 1 });
    scene.act("a", Act::Start);
    scene.is("a", State::Draining);
    scene.act("nobody", Act::Die);
    assert_eq!(scene.pool.backends().count(), 1);
}
