//! The engine's event stream: JSON objects, one behind the other, with whatever white space between them.
//! Chunks and lines mean nothing: a value may come in any number of pieces.

use crate::limits::ENGINE_EVENT_BYTES_MAX;
use serde_json::Value;

/// What [`EventStream::feed`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Event(Event),
    /// A value that was too long or no event: what it said is unknown, so the list must be read.
    Unknown,
}

/// One event, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The container's id; empty for other things.
    pub container: String,
    pub action: Action,
    /// In nanoseconds since 1970, by the engine's clock; 0 if it does not say.
    pub time_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A signal that ends a container in good order, or at once.
    StopSignal,
    Die,
    Pause,
    /// It runs again, or another network reaches it: only a list tells what that means.
    Start,
    /// Anything else that may change the list.
    Changed,
    /// Nothing that a list would show: health checks run commands in containers, and each is an event.
    Irrelevant,
}

/// There is something else than an object on the stream; it cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJson;

/// Cuts the stream into values. The bound on a value's length does not depend on the pieces it comes in.
#[derive(Clone, Debug, Default)]
pub struct EventStream {
    value: Vec<u8>,
    /// Open braces and brackets; 0: between values.
    depth: u64,
    in_string: bool,
    escaped: bool,
    /// The value is too long: it is read to its end and dropped.
    skipping: bool,
}

impl EventStream {
    #[must_use]
    pub fn new() -> EventStream {
        EventStream::default()
    }

    /// Takes the next bytes; hands out the values that they complete.
    ///
    /// # Errors
    /// [`NotJson`]: the stream must be opened anew.
    pub fn feed(&mut self, bytes: &[u8], mut found: impl FnMut(Found)) -> Result<(), NotJson> {
        for &byte in bytes {
            if self.depth == 0 {
                match byte {
                    b'{' => {}
                    b' ' | b'\t' | b'\r' | b'\n' => continue,
                    _ => return Err(NotJson),
                }
            }
            if self.value.len() >= ENGINE_EVENT_BYTES_MAX {
                self.skipping = true;
                self.value = Vec::new();
            }
            if !self.skipping {
                self.value.push(byte);
            }
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        let skipped = std::mem::take(&mut self.skipping);
                        let event = if skipped { None } else { Event::parse(&self.value) };
                        self.value.clear();
                        found(event.map_or(Found::Unknown, Found::Event));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Event {
    fn parse(bytes: &[u8]) -> Option<Event> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        // The engine's older names of the same fields.
        let text = |name: &str, old: &str| value[name].as_str().or_else(|| value[old].as_str());
        let kind = value["Type"].as_str().unwrap_or("container");
        let action = text("Action", "status")?;
        let actor = &value["Actor"];
        let id = actor["ID"].as_str().or_else(|| value["id"].as_str()).unwrap_or("");
        let action = match (kind, action) {
            ("container", "kill") => {
                if is_stop_signal(actor["Attributes"]["signal"].as_str().unwrap_or("15")) {
                    Action::StopSignal
                } else {
                    Action::Irrelevant
                }
            }
            ("container", "die") => Action::Die,
            ("container", "pause") => Action::Pause,
            ("container", "start" | "unpause" | "restart") => Action::Start,
            ("container", "stop" | "destroy" | "rename" | "update" | "oom") => Action::Changed,
            ("container", action) if action.starts_with("health_status") => Action::Changed,
            ("network", "connect" | "disconnect") => Action::Changed,
            _ => Action::Irrelevant,
        };
        let container = if kind == "container" { id.to_owned() } else { String::new() };
        let seconds = value["time"].as_u64().map(|seconds| seconds.saturating_mul(1_000_000_000));
        let time_ns = value["timeNano"].as_u64().or(seconds).unwrap_or(0);
        Some(Event { container, action, time_ns })
    }
}

/// Those that images use to be stopped: INT, QUIT, KILL, TERM and systemd's RTMIN+3. A HUP or a USR1 is
/// news for the program, not its end.
fn is_stop_signal(signal: &str) -> bool {
    let name = signal.strip_prefix("SIG").unwrap_or(signal);
    matches!(name, "2" | "3" | "9" | "15" | "37" | "INT" | "QUIT" | "KILL" | "TERM" | "RTMIN+3")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = r#"{"Type":"container","Action":"kill","Actor":{"ID":"a","Attributes":{"signal":"15","x":"}\"{\\"}},"time":5,"timeNano":5000000001}
        {"Type":"container","Action":"die","Actor":{"ID":"a"},"time":6}{"status":"start","id":"b","time":7}
        {"Type":"container","Action":"exec_create: sh","Actor":{"ID":"a"}}  {"Type":"network","Action":"connect","Actor":{"ID":"n"}}{"x":[1,{}]}"#;

    fn all(pieces: &[&[u8]]) -> Vec<Found> {
        let mut stream = EventStream::new();
        let mut found = Vec::new();
        for piece in pieces {
            stream.feed(piece, |one| found.push(one)).expect("objects");
        }
        found
    }

    #[test]
    fn events_are_found_at_every_split() {
        let event = |container: &str, action, time_ns| {
            Found::Event(Event { container: container.to_owned(), action, time_ns })
        };
        let expected = [
            event("a", Action::StopSignal, 5_000_000_001),
            event("a", Action::Die, 6_000_000_000),
            event("b", Action::Start, 7_000_000_000),
            event("a", Action::Irrelevant, 0),
            event("", Action::Changed, 0),
            Found::Unknown,
        ];
        for split in 0..STREAM.len() {
            let (left, right) = STREAM.as_bytes().split_at(split);
            assert_eq!(all(&[left, right]), expected, "{split}");
        }
        assert_eq!(all(&STREAM.as_bytes().chunks(1).collect::<Vec<_>>()), expected);
    }

    #[test]
    fn a_value_that_is_too_long_is_skipped_wherever_it_is_cut() {
        let sized = |bytes: usize| {
            let frame = r#"{"Type":"container","Action":"die","Actor":{"ID":""}}"#;
            let id = "x".repeat(bytes - frame.len());
            frame.replace(r#""ID":"""#, &format!(r#""ID":"{id}""#))
        };
        let just = sized(ENGINE_EVENT_BYTES_MAX);
        let over = sized(ENGINE_EVENT_BYTES_MAX + 1);
        let end = r#"{"Type":"container","Action":"pause","Actor":{"ID":"p"}}"#;
        let text = format!("{over}{just}{end}");
        for piece in [1, 7, 4096, text.len()] {
            let found = all(&text.as_bytes().chunks(piece).collect::<Vec<_>>());
            let kinds: Vec<bool> = found.iter().map(|one| *one == Found::Unknown).collect();
            assert_eq!(kinds, [true, false, false], "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_no_object_ends_the_stream() {
        for bad in ["x", "[1]", "1", "{} null", "}"] {
            let ended = EventStream::new().feed(bad.as_bytes(), |_| {});
            assert_eq!(ended, Err(NotJson), "{bad}");
        }
    }

    #[test]
    fn only_signals_that_stop_count_as_a_stop() {
        for (signal, stops) in
            [("15", true), ("SIGKILL", true), ("9", true), ("1", false), ("SIGUSR1", false)]
        {
            assert_eq!(is_stop_signal(signal), stops, "{signal}");
        }
    }
}
