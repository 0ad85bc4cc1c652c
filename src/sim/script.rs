//! Named scenarios: what happened once, written down so that it can be read and runs again.
//!
//! A script is lines of `SECONDS VERB ARGUMENTS`, or `FROM..TO/STEP VERB ARGUMENTS`, where `%` counts from 0; `#` begins a comment. Hosts are numbers. `hosts N`,
//! `forget SECONDS`, `cap TOMBSTONES`, `log BYTES`, `scan RECORDS` (in one step), `latency MS [MS]` (of each connection, one way; from, to) and `rests 1` (the simulator lets workers sleep) come first. Verbs:
//!
//! - `start H [as HOST] [skew MS] [knows H...]` (under another host's name; told of these addresses only), `crash H`, `leave H`, `pause H SECONDS`, `jump H MS`: processes and their clocks;
//! - `cut A B | C D`, `oneway A | B` (what A says does not reach B), `heal`: the network;
//! - `set H KEY VALUE [W]`, `rm H KEY [W]`, `clear H [W]`: answered 200 unless ` -> STATUS` says otherwise;
//! - `plant H KEY VALUE`, `bury H KEY`: what no node would do, to its store alone, as if it had been long ago;
//! - `get H KEY -> VALUE`, or `-> missing`, or `-> 503`; `tombstones H -> COUNT`; `waiting H -> COUNT`, answers that
//!   wait for other nodes; `quiet H -> COUNT`, workers that sleep until the next mark or beat; `pulls H -> COMPLETE ABANDONED`
//!   since the process was started.
//!
//! Values are used once. The rules of the checker hold throughout, and at the end of the script, after it has
//! had time to heal, those for the end.

use super::check::{Violation, violation};
use super::clients::Ask;
use super::plan::Plan;
use super::world::{Event, MS, World};
use crate::mesh::{Mutation, Portions};
use crate::store::Storage;
use std::sync::atomic::Ordering;

/// One line.
#[derive(Clone, Debug)]
pub(super) struct Step {
    at_ms: u64,
    text: String,
}

/// The plan of a script, quiet but for what it says, and its steps.
///
/// # Errors
/// The line that is none.
pub(super) fn parse(script: &str, mutation: Mutation) -> Result<(Plan, Vec<Step>), String> {
    let mut plan = Plan {
        hosts: 0,
        exile: None,
        workers: 2,
        log_bytes: 64 * 1024,
        portions: Portions { rests: false, ..Portions::default() },
        forget_ms: 3_600_000,
        tombstones_max: crate::limits::TOMBSTONES_MAX,
        skew_ms: 0,
        latency_ms: 0,
        is_long: false,
        ..Plan::of(1, mutation)
    };
    let mut steps = Vec::new();
    for line in script.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        let Some((first, rest)) = line.split_once(' ') else {
            if line.is_empty() {
                continue;
            }
            return Err(line.to_owned());
        };
        let rest = rest.trim();
        let number = || rest.parse::<f64>().map_err(|_| line.to_owned());
        match first {
            "hosts" => plan.hosts = number()? as usize,
            "forget" => plan.forget_ms = (number()? * 1e3) as u64,
            // When a step meets which tick is what many scripts are about; the others may say that workers sleep.
            "rests" => plan.portions.rests = number()? > 0.0,
            "cap" => plan.tombstones_max = number()? as u64,
            "log" => plan.log_bytes = number()? as usize,
            "latency" => {
                let (least, most) = rest.split_once(' ').unwrap_or((rest, rest));
                plan.latency_least_ms = least.parse().map_err(|_| line.to_owned())?;
                plan.latency_ms = most.parse().map_err(|_| line.to_owned())?;
            }
            "scan" => plan.portions.scan_records = number()? as usize,
            at => {
                let (from, to, every) = times(at).ok_or_else(|| line.to_owned())?;
                let at_ms = (from..=to).step_by(every);
                let numbered = at_ms.enumerate();
                steps.extend(
                    numbered.map(|(n, at_ms)| Step { at_ms, text: rest.replace('%', &n.to_string()) }),
                );
            }
        }
    }
    plan.chaos_ms = steps.iter().map(|step| step.at_ms).max().unwrap_or(0);
    plan.calm_ms = 25_000;
    Ok((plan, steps))
}

/// `SECONDS`, or `FROM..TO/STEP`: the first and the last millisecond, and how many lie between two.
fn times(text: &str) -> Option<(u64, u64, usize)> {
    let ms = |text: &str| text.parse().ok().map(|seconds: f64| (seconds * 1e3).round() as u64);
    let Some((from, rest)) = text.split_once("..") else { return Some((ms(text)?, ms(text)?, 1)) };
    let (to, every) = rest.split_once('/')?;
    Some((ms(from)?, ms(to)?, (ms(every)? as usize).max(1)))
}

impl World {
    /// Queues the steps, each at its time, in the order of the script.
    pub(super) fn schedule(&mut self, steps: Vec<Step>) {
        for (number, step) in steps.iter().enumerate() {
            self.later(step.at_ms * MS, Event::Scripted(number));
        }
        self.later(250 * MS, Event::Check);
        self.script = steps;
    }

    pub(super) fn scripted(&mut self, number: usize) -> Result<(), Box<Violation>> {
        let text = self.script[number].text.clone();
        self.say(format_args!("script  {text}"));
        let wrong = |what: &str| violation("SCRIPT", format!("{text}: {what}"));
        let (action, expected) = match text.split_once("->") {
            Some((action, expected)) => (action.trim(), Some(expected.trim())),
            None => (text.as_str(), None),
        };
        let words: Vec<&str> = action.split_whitespace().collect();
        let numbers =
            |words: &[&str]| words.iter().filter_map(|word| word.parse().ok()).collect::<Vec<usize>>();
        let host: usize = words.get(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        let serial =
            self.processes.values().find(|process| process.host == host).map(|process| process.serial);
        let third: f64 = words.get(2).and_then(|word| word.parse().ok()).unwrap_or(0.0);
        match words[0] {
            "start" => {
                let skew = words.iter().position(|word| *word == "skew");
                self.plan.start_skew_ms = skew.and_then(|at| words.get(at + 1)?.parse().ok()).unwrap_or(0);
                let knows = words.iter().position(|word| *word == "knows");
                self.plan.start_knows = knows.map(|at| numbers(&words[at + 1..]));
                let name = words
                    .iter()
                    .position(|word| *word == "as")
                    .and_then(|at| words.get(at + 1)?.parse().ok());
                self.start(host, name.unwrap_or(host));
                return Ok(());
            }
            "cut" | "oneway" => {
                self.checker.disturbed();
                let mut sides = words[1..].split(|word| *word == "|").map(numbers);
                let (from, to) = (sides.next().unwrap_or_default(), sides.next().unwrap_or_default());
                for (a, b) in from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b))) {
                    self.cuts.cut(a, b);
                    if words[0] == "cut" {
                        self.cuts.cut(b, a);
                    }
                }
                return Ok(());
            }
            "heal" => {
                self.cuts.heal();
                return Ok(());
            }
            _ => {}
        }
        let Some(serial) = serial else { return Err(wrong("nobody is there")) };
        match words[0] {
            "crash" => self.kill(serial),
            "leave" => self.leave(serial),
            "pause" => {
                self.checker.disturbed();
                let until = self.now_ns + (third * 1e3) as u64 * MS;
                self.processes.entry(serial).and_modify(|process| process.paused_until = until);
            }
            "plant" | "bury" => self.plant(serial, words.get(2).unwrap_or(&""), words.get(3).copied()),
            "tombstones" => {
                let usage = self.processes[&serial].node.store.usage(self.wall_ms(0));
                if Some(usage.tombstones.to_string().as_str()) != expected {
                    return Err(wrong(&usage.tombstones.to_string()));
                }
            }
            "quiet" => {
                let engines = &self.processes[&serial].engines;
                let quiet = engines.iter().filter(|engine| engine.mesh.is_quiet()).count();
                if Some(quiet.to_string().as_str()) != expected {
                    return Err(wrong(&quiet.to_string()));
                }
            }
            "pulls" => {
                let counters = &self.processes[&serial].node.mesh.counters;
                let counts = [&counters.pulls_complete, &counters.pulls_abandoned];
                let [complete, abandoned] = counts.map(|count| count.load(Ordering::Relaxed));
                let pulls = format!("{complete} {abandoned}");
                if Some(pulls.as_str()) != expected {
                    return Err(wrong(&pulls));
                }
            }
            "waiting" => {
                let waiting = self.processes[&serial].waiting.len();
                if Some(waiting.to_string().as_str()) != expected {
                    return Err(wrong(&waiting.to_string()));
                }
            }
            "jump" => {
                self.processes.entry(serial).and_modify(|process| process.jump_ms = third as i64);
            }
            verb @ ("set" | "rm" | "clear" | "get") => {
                let key = words.get(2).filter(|_| verb != "clear").map(|key| (*key).to_owned());
                let value = words.get(3).filter(|_| verb == "set").map(|value| (*value).to_owned());
                let level_at = match verb {
                    "set" => 4,
                    "rm" => 3,
                    _ => 2,
                };
                let level = words.get(level_at).filter(|_| verb != "get").copied().unwrap_or_default();
                let parts = [("k", key.as_deref()), ("v", value.as_deref()), ("w", Some(level))];
                let parts = parts
                    .into_iter()
                    .filter_map(|(name, part)| Some((name, part.filter(|p| !p.is_empty())?)));
                let query: Vec<String> = parts.map(|(name, part)| format!("{name}={part}")).collect();
                let target = format!("/{verb}?{}", query.join("&"));
                let ask = Ask { target, key, value, level: level.to_owned(), is_read: verb == "get" };
                let (status, answer) = self.ask(serial, 0, ask)?;
                let answer = String::from_utf8_lossy(&answer);
                let body = answer.rsplit("\r\n\r\n").next().unwrap_or_default().trim_matches('"').to_owned();
                let holds = match expected {
                    None => status == 200,
                    Some("missing") => status == 404,
                    Some(expected) => expected == status.to_string() || (status == 200 && expected == body),
                };
                if !holds {
                    return Err(wrong(&format!("{status} {body}")));
                }
            }
            _ => return Err(wrong("no such verb")),
        }
        Ok(())
    }
}
