//! What clients ask of the simulated nodes, over real requests, and what becomes of the answers.

use super::check::Violation;
use super::world::{MS, NoAddress, Process, Waiting, World};
use super::write::Write;
use crate::http::session::Session;
use crate::node::State;

/// Clients go on as before for so long after a host was cut off.
const EXILE_BUSY_MS: u64 = 5_000;

/// A request, and what the checker has to know of it.
pub(super) struct Ask {
    /// Path and query.
    pub(super) target: String,
    /// `None`: a clear.
    pub(super) key: Option<String>,
    /// What is set.
    pub(super) value: Option<String>,
    /// The `w` that was asked for; empty: the default.
    pub(super) level: String,
    pub(super) is_read: bool,
}

impl World {
    pub(super) fn request(&mut self) -> Result<(), Box<Violation>> {
        let alive: Vec<usize> =
            self.processes.values().filter(|p| p.paused_until <= self.now_ns).map(|p| p.serial).collect();
        if alive.is_empty() {
            return Ok(());
        }
        self.requests += 1;
        let serial = *self.random.one(&alive);
        let worker = self.random.below(self.plan.workers as u64) as usize;
        // While somebody is away for long, what was removed meanwhile must have the time to be forgotten.
        let quiet = self
            .plan
            .exile
            .is_some_and(|(_, from_ms)| self.is_exiled && self.now_ns > (from_ms + EXILE_BUSY_MS) * MS);
        let keys = if quiet { 1 } else { self.plan.keys };
        let key = format!("k{}", self.random.below(keys));
        let level = *self.random.one(&["", "&w=local", "&w=quorum", "&w=all", "&w=2"]);
        self.value += 1;
        let value = format!("v{}", self.value);
        let choice = match self.random.below(100) {
            65..67 if quiet => 67,
            choice => choice,
        };
        let ttl = self.random.chance(1, 10).then(|| self.random.between(100, 5_000));
        let target = match choice {
            0..45 => {
                let ttl = ttl.map_or(String::new(), |ms| format!("&ttl={}.{:03}", ms / 1000, ms % 1000));
                format!("/set?k={key}&v={value}{ttl}{level}")
            }
            45..65 => format!("/rm?k={key}{level}"),
            65..67 => format!("/clear?{}", level.trim_start_matches('&')),
            _ => format!("/get?k={key}"),
        };
        let ask = Ask {
            target,
            key: (!(65..67).contains(&choice)).then_some(key),
            value: (choice < 45).then_some(value),
            level: level.trim_start_matches("&w=").to_owned(),
            is_read: choice >= 67,
        };
        self.ask(serial, worker, ask).map(|_| ())
    }

    /// Sends a request to a worker. Returns the status, which a held write's answer may still change, and the
    /// answer.
    pub(super) fn ask(
        &mut self,
        serial: usize,
        worker: usize,
        ask: Ask,
    ) -> Result<(u16, Vec<u8>), Box<Violation>> {
        let Ask { target, key, value, level, is_read } = ask;
        let gone = (0, Vec::new());
        let Some(process) = self.processes.get(&serial) else { return Ok(gone) };
        let now = self.now_of(process);
        let Some(process) = self.processes.get_mut(&serial) else { return Ok(gone) };
        let closed_before = process.node.clock.latest();
        let engine = &mut process.engines[worker];
        let text = format!("GET {target} HTTP/1.1\r\nHost: s\r\n\r\n");
        engine.begin(now);
        engine.slot(&[])[..text.len()].copy_from_slice(text.as_bytes());
        engine.ingest(&mut Session::new(), text.len(), &NoAddress, true);
        engine.execute();
        let bytes = engine.answers_of(0).to_vec();
        let held = engine.turn(0).held.take();
        let status = status_of(&bytes);
        let state = process.node.state();
        let line = format!(
            "{target} at process {serial} worker {worker}: {status}{}",
            if held.is_some() { ", waits" } else { "" }
        );
        let answer = (status, bytes.clone());
        if is_read {
            if status == 200 {
                self.reads += 1;
            }
            self.checker.read(process, key.as_deref().unwrap_or_default(), status, &bytes)?;
        } else if state == State::Ready && (status == 200 || held.is_some() || is_stored(&bytes)) {
            let write = self.checker.wrote(
                process,
                Write { key, value, level, ..Write::default() },
                closed_before,
                now.wall_ms,
            )?;
            match held {
                Some(held) => process.waiting.push(Waiting { worker, held: *held, bytes, write }),
                None if status == 200 => self.checker.acked_now(write, &self.processes, (serial, worker))?,
                None => {}
            }
        }
        self.say(format_args!("client  {line}"));
        self.turn(serial, worker, false)?;
        Ok(answer)
    }

    /// Lets answers go whose writes are held, or whose time is up.
    pub(super) fn release(&mut self, serial: usize, worker: usize) -> Result<(), Box<Violation>> {
        let Some(process) = self.processes.get(&serial) else { return Ok(()) };
        if process.waiting.is_empty() {
            return Ok(());
        }
        let now = self.now_of(process);
        let Some(process) = self.processes.get_mut(&serial) else { return Ok(()) };
        let mut done = Vec::new();
        let Process { waiting, engines, .. } = process;
        waiting.retain_mut(|waiting| {
            if waiting.worker != worker {
                return true;
            }
            let released = engines[worker].release(&mut waiting.held, &[], now, &mut waiting.bytes);
            if released {
                done.push((waiting.write, status_of(&waiting.bytes)));
            }
            !released
        });
        for (write, status) in done {
            self.say(format_args!("answer  write {write}: {status}"));
            if status == 200 {
                self.checker.acked_now(write, &self.processes, (serial, worker))?;
            }
        }
        Ok(())
    }
}

fn status_of(bytes: &[u8]) -> u16 {
    bytes
        .get(9..12)
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|d| d.parse().ok())
        .unwrap_or(0)
}

/// A refused answer of a write that is stored nevertheless.
fn is_stored(bytes: &[u8]) -> bool {
    bytes.windows(13).any(|part| part == b"\"stored\":true")
}
