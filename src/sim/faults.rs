//! What goes wrong, and how it ends.

use super::world::{Event, MS, World};
use crate::base::random::Random;
use crate::mesh::Portions;

impl World {
    pub(super) fn make_fault(&mut self) {
        self.checker.disturbed();
        let exiled = |host: usize| self.is_exiled && self.plan.exile.is_some_and(|(exile, _)| exile == host);
        // The exile is left alone: it is to come back with what it had.
        let alive: Vec<usize> =
            self.processes.values().filter(|p| !exiled(p.host)).map(|p| p.serial).collect();
        let hosts = self.plan.hosts as u64;
        let choice = self.random.below(100);
        match choice {
            0..14 if alive.len() > 1 => {
                let victim = *self.random.one(&alive);
                let host = self.processes[&victim].host;
                self.fault("crash");
                self.say(format_args!("crash   process {victim}"));
                self.kill(victim);
                if self.random.chance(3, 4) {
                    self.fault("restart");
                    let after = self.random.between(1, 4_000) * MS;
                    self.later(after, Event::Start { host, name: host });
                }
            }
            14..20 if alive.len() > 1 => {
                let leaver = *self.random.one(&alive);
                let host = self.processes[&leaver].host;
                self.fault("leave");
                self.say(format_args!("leave   process {leaver}"));
                self.leave(leaver);
                let after = self.random.between(1, 9_000) * MS;
                self.later(after, Event::Start { host, name: host });
            }
            20..40 => {
                self.whole_but_exile();
                let one_way = self.random.chance(1, 3);
                self.fault(if one_way { "one-way partition" } else { "partition" });
                let side: Vec<bool> = (0..=hosts).map(|_| self.random.chance(1, 2)).collect();
                for a in 0..self.plan.hosts {
                    for b in 0..self.plan.hosts {
                        if side[a] && !side[b] {
                            self.cuts.cut(a, b);
                            if !one_way {
                                self.cuts.cut(b, a);
                            }
                        }
                    }
                }
                self.say(format_args!("cut     {side:?} one way {one_way}"));
            }
            40..55 => {
                self.whole_but_exile();
                self.say(format_args!("join    the network is whole"));
            }
            55..68 => {
                let conns: Vec<usize> = self.conns.keys().copied().collect();
                if !conns.is_empty() {
                    self.fault("reset");
                    let conn = *self.random.one(&conns);
                    self.reset(conn);
                }
            }
            68..80 if !alive.is_empty() => {
                let victim = *self.random.one(&alive);
                let ms = *self.random.one(&[200, 1_500, 4_000, 12_000]);
                self.fault("pause");
                self.say(format_args!("pause   process {victim} for {ms} ms"));
                let until = self.now_ns + ms * MS;
                if let Some(process) = self.processes.get_mut(&victim) {
                    process.paused_until = until;
                }
            }
            80..90 => {
                let conns: Vec<usize> = self.conns.keys().copied().collect();
                if !conns.is_empty() {
                    self.fault("slow link");
                    let id = *self.random.one(&conns);
                    let slow_ms = self.random.between(20, 800);
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.slow_ms = slow_ms;
                    }
                }
            }
            90..93 if !alive.is_empty() => {
                // By about an hour, for a while; somebody is there who knows better. No two by the same, or they would believe
                // each other.
                let victim = *self.random.one(&alive);
                let hour_ms = *self.random.one(&[-3_600_000, 3_600_000]) + victim as i64 * 10_007;
                let Some(process) = self.processes.get_mut(&victim) else { return };
                let is_alone = process.node.mesh.with_members(|members| members.others().next().is_none());
                let jump_ms = if process.jump_ms == 0 && !is_alone { hour_ms } else { 0 };
                process.jump_ms = jump_ms;
                if jump_ms != 0 {
                    self.fault("clock jump");
                    self.say(format_args!("jump    the clock of process {victim} by {jump_ms} ms"));
                }
            }
            93..96 => {
                // The same name twice: on the spare host, under the name of another.
                let name = self.random.below(hosts) as usize;
                self.fault("double start");
                self.start(self.plan.hosts, name);
            }
            _ => {
                let host = self.random.below(hosts) as usize;
                self.later(1, Event::Start { host, name: host });
            }
        }
    }

    /// SIGTERM.
    pub(super) fn leave(&mut self, serial: usize) {
        if let Some(process) = self.processes.get_mut(&serial) {
            process.node.become_leaving();
            process.engines.iter_mut().for_each(|engine| engine.become_leaving());
            process.node.mesh.leave();
            process.leaving_since.get_or_insert(self.now_ns);
        }
    }

    /// Nobody reaches the exile's host from now on.
    pub(super) fn exile(&mut self) {
        self.fault("exile");
        self.is_exiled = true;
        self.whole_but_exile();
        let exile = self.plan.exile;
        self.say(format_args!("exile   {exile:?}"));
    }

    /// Takes all cuts back but those around the exile.
    fn whole_but_exile(&mut self) {
        self.cuts.heal();
        let Some((exile, _)) = self.plan.exile.filter(|_| self.is_exiled) else { return };
        for other in 0..=self.plan.hosts {
            self.cuts.cut(exile, other);
            self.cuts.cut(other, exile);
        }
    }

    /// The faults are over: everything runs, everybody hears everybody.
    pub(super) fn heal(&mut self) {
        self.chaos = false;
        self.is_exiled = false;
        self.cuts.heal();
        self.say(format_args!("heal"));
        let now_ns = self.now_ns;
        for process in self.processes.values_mut() {
            process.paused_until = process.paused_until.min(now_ns);
            process.jump_ms = 0;
        }
        for conn in self.conns.values_mut() {
            conn.slow_ms = 0;
        }
        // The one that was started under another's name goes; two with one name never settle.
        let spare = self.plan.hosts;
        let double: Vec<usize> =
            self.processes.values().filter(|p| p.host == spare).map(|p| p.serial).collect();
        for serial in double {
            self.kill(serial);
        }
        for host in 0..self.plan.hosts.min(2) {
            self.later(1, Event::Start { host, name: host });
        }
        for process in self.processes.values() {
            use std::sync::atomic::Ordering::Relaxed;
            let counters = &process.node.mesh.counters;
            for (name, count) in [
                ("log overflow", counters.restarts.load(Relaxed)),
                ("full pull", counters.pulls_full.load(Relaxed)),
                ("partial pull", counters.pulls_partial.load(Relaxed)),
                ("below floor", counters.below_floor.load(Relaxed)),
                ("rebirth", counters.rebirths.load(Relaxed)),
                ("forgotten", process.node.mesh.with_members(|members| members.forgotten())),
            ] {
                if count > 0 {
                    *self.faults.entry(name).or_default() += count;
                }
            }
        }
        self.checker.healed(&self.processes);
    }
}

/// One seed in four does everything in the smallest portions. From a generator of its own: what a seed was before
/// it could be that stays what it is.
pub(super) fn portions(seed: u64) -> Portions {
    let mut random = Random::new(seed ^ 0x7469_6e79);
    if !random.chance(1, 4) {
        return Portions::default();
    }
    Portions {
        output_bytes: *random.one(&[1, 64, 512]),
        frame_bytes: *random.one(&[1, 100]),
        scan_records: random.between(1, 3) as usize,
        ranges: random.between(1, 3) as usize,
        rests: true,
    }
}
