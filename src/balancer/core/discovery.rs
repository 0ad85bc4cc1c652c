//! When the engine is asked for what. Events are lossy, so they only ever say that the list should be read
//! again; what is routable follows from lists, which are read now and then whatever the events say.

use super::Jitter;
use crate::limits::{
    ENGINE_RETRY_MS_MAX, ENGINE_RETRY_MS_MIN, LIST_APART_MS, LIST_PERIOD_BLIND_MS, LIST_PERIOD_MS,
    LIST_QUIET_MS,
};

/// What the driver is to ask the engine for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Version,
    Events,
    List,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    /// To be opened at this time.
    Closed {
        next_ms: u64,
    },
    Opening,
    Open,
}

/// See the module. Times are milliseconds of a clock that never goes back.
#[derive(Debug)]
pub struct Discovery {
    /// The version is agreed on.
    negotiated: bool,
    version_asked: bool,
    version_next_ms: u64,
    stream: Stream,
    /// The stream was opened, or given up for now, once: the first list comes behind it.
    stream_tried: bool,
    list_asked: bool,
    list_begun_ms: u64,
    /// The next list of the period.
    list_next_ms: u64,
    /// The last event that no list has been begun for.
    dirty_ms: Option<u64>,
    /// The next pauses after a failure: of the version and the stream, and of the list. One that works says
    /// nothing of the other.
    stream_retry_ms: u64,
    list_retry_ms: u64,
    jitter: Jitter,
}

impl Discovery {
    #[must_use]
    pub fn new(now_ms: u64, seed: u64) -> Discovery {
        Discovery {
            negotiated: false,
            version_asked: false,
            version_next_ms: now_ms,
            stream: Stream::Closed { next_ms: now_ms },
            stream_tried: false,
            list_asked: false,
            list_begun_ms: 0,
            list_next_ms: now_ms,
            dirty_ms: None,
            stream_retry_ms: ENGINE_RETRY_MS_MIN,
            list_retry_ms: ENGINE_RETRY_MS_MIN,
            jitter: Jitter::new(seed),
        }
    }

    /// What is due. Each answer, or its failure, must be reported.
    pub fn due(&mut self, now_ms: u64) -> Vec<Ask> {
        let mut asks = Vec::new();
        if !self.negotiated {
            if !self.version_asked && now_ms >= self.version_next_ms {
                self.version_asked = true;
                asks.push(Ask::Version);
            }
            return asks;
        }
        if matches!(self.stream, Stream::Closed { next_ms } if now_ms >= next_ms) {
            self.stream = Stream::Opening;
            asks.push(Ask::Events);
        }
        if !self.list_asked && self.list_due_ms().is_some_and(|due| now_ms >= due) {
            self.list_asked = true;
            self.list_begun_ms = now_ms;
            self.dirty_ms = None;
            asks.push(Ask::List);
        }
        asks
    }

    /// When something is due next, unless an answer comes before; `None`: only an answer can go on.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        if !self.negotiated {
            return (!self.version_asked).then_some(self.version_next_ms);
        }
        let stream = match self.stream {
            Stream::Closed { next_ms } => Some(next_ms),
            Stream::Opening | Stream::Open => None,
        };
        let list = if self.list_asked { None } else { self.list_due_ms() };
        stream.into_iter().chain(list).min()
    }

    fn list_due_ms(&self) -> Option<u64> {
        // What happens between a list and the stream's opening would be missed.
        if !self.stream_tried {
            return None;
        }
        let asked_for =
            self.dirty_ms.map(|last| (last + LIST_QUIET_MS).max(self.list_begun_ms + LIST_APART_MS));
        Some(asked_for.unwrap_or(u64::MAX).min(self.list_next_ms))
    }

    #[must_use]
    pub fn has_stream(&self) -> bool {
        self.stream == Stream::Open
    }

    pub fn version_agreed(&mut self, now_ms: u64) {
        self.version_asked = false;
        self.negotiated = true;
        if !matches!(self.stream, Stream::Open) {
            self.stream = Stream::Closed { next_ms: now_ms };
        }
        self.list_next_ms = now_ms;
    }

    pub fn version_failed(&mut self, now_ms: u64) {
        self.version_asked = false;
        self.version_next_ms = now_ms + Self::pause(&mut self.stream_retry_ms, &mut self.jitter);
    }

    /// The engine refuses the version (it was replaced by another, perhaps): agree again.
    pub fn version_refused(&mut self, now_ms: u64) {
        if self.negotiated {
            self.negotiated = false;
            self.version_asked = false;
            self.version_next_ms = now_ms + Self::pause(&mut self.stream_retry_ms, &mut self.jitter);
        }
    }

    pub fn stream_opened(&mut self, now_ms: u64) {
        self.stream = Stream::Open;
        self.stream_tried = true;
        self.stream_retry_ms = ENGINE_RETRY_MS_MIN;
        // What happened while there was none.
        self.list_next_ms = now_ms;
    }

    /// It could not be opened, or ended.
    pub fn stream_closed(&mut self, now_ms: u64) {
        self.stream_tried = true;
        self.stream =
            Stream::Closed { next_ms: now_ms + Self::pause(&mut self.stream_retry_ms, &mut self.jitter) };
        self.list_next_ms = self.list_next_ms.min(now_ms + LIST_PERIOD_BLIND_MS);
    }

    /// An event that may change the list.
    pub fn event(&mut self, now_ms: u64) {
        // Not past the quiet time for ever: events that never pause would keep the list from being read.
        let first = self.dirty_ms.is_none();
        self.dirty_ms = Some(now_ms);
        if first {
            self.list_next_ms =
                self.list_next_ms.min((now_ms + LIST_APART_MS).max(self.list_begun_ms + LIST_APART_MS));
        }
    }

    pub fn listed(&mut self, now_ms: u64) {
        self.list_asked = false;
        self.list_retry_ms = ENGINE_RETRY_MS_MIN;
        let period = if self.has_stream() { LIST_PERIOD_MS } else { LIST_PERIOD_BLIND_MS };
        self.list_next_ms = now_ms.max(self.list_begun_ms + period);
    }

    pub fn list_failed(&mut self, now_ms: u64) {
        self.list_asked = false;
        let pause = Self::pause(&mut self.list_retry_ms, &mut self.jitter);
        self.list_next_ms = now_ms + pause.max(LIST_PERIOD_BLIND_MS);
    }

    /// The pause before the next attempt: longer each time, never the same for two balancers.
    fn pause(retry_ms: &mut u64, jitter: &mut Jitter) -> u64 {
        let pause = jitter.around(*retry_ms, 20);
        *retry_ms = (*retry_ms * 2).min(ENGINE_RETRY_MS_MAX);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected() -> Discovery {
        let mut discovery = Discovery::new(0, 1);
        assert_eq!(discovery.due(0), [Ask::Version]);
        assert_eq!(discovery.due(0), []);
        discovery.version_agreed(1);
        assert_eq!(discovery.due(1), [Ask::Events]);
        assert_eq!(discovery.next_due_ms(), None, "no list before the stream is open");
        discovery.stream_opened(2);
        assert_eq!(discovery.due(2), [Ask::List]);
        discovery.listed(3);
        discovery
    }

    #[test]
    fn the_stream_comes_first_and_the_list_behind_it() {
        let mut discovery = connected();
        assert_eq!(discovery.next_due_ms(), Some(2 + LIST_PERIOD_MS));
        assert_eq!(discovery.due(2 + LIST_PERIOD_MS), [Ask::List]);
    }

    #[test]
    fn events_ask_for_a_list_after_a_quiet_moment_and_not_too_often() {
        let mut discovery = connected();
        discovery.event(1000);
        assert_eq!(discovery.due(1000), []);
        discovery.event(1015);
        assert_eq!(discovery.next_due_ms(), Some(1015 + LIST_QUIET_MS));
        assert_eq!(discovery.due(1035), [Ask::List]);
        discovery.event(1036);
        discovery.listed(1040);
        assert_eq!(discovery.next_due_ms(), Some(1035 + LIST_APART_MS));
        // Events that never pause cannot put the list off.
        let mut discovery = connected();
        let mut listed_at = None;
        for now in 1000..2000 {
            discovery.event(now);
            if !discovery.due(now).is_empty() {
                listed_at = Some(now);
                break;
            }
        }
        assert!(listed_at.is_some_and(|at| at <= 1000 + LIST_APART_MS), "{listed_at:?}");
    }

    #[test]
    fn without_a_stream_the_list_is_read_more_often_and_the_stream_is_tried_for_ever() {
        let mut discovery = connected();
        discovery.stream_closed(1000);
        let mut lists = 0;
        let mut streams = Vec::new();
        for now in 1000..61_000 {
            for ask in discovery.due(now) {
                match ask {
                    Ask::List => {
                        lists += 1;
                        discovery.listed(now);
                    }
                    Ask::Events => {
                        streams.push(now);
                        discovery.stream_closed(now);
                    }
                    Ask::Version => panic!("it is agreed on"),
                }
            }
        }
        assert!((110..=121).contains(&lists), "{lists}");
        assert!(streams[0] - 1000 <= 2 * ENGINE_RETRY_MS_MIN * 12 / 10, "{streams:?}");
        let gaps: Vec<u64> = streams.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(gaps.iter().all(|gap| *gap <= ENGINE_RETRY_MS_MAX * 12 / 10), "{gaps:?}");
        assert!(gaps.last().is_some_and(|gap| *gap >= ENGINE_RETRY_MS_MAX * 8 / 10), "{gaps:?}");
    }

    #[test]
    fn a_refused_version_is_agreed_on_again() {
        let mut discovery = connected();
        discovery.version_refused(100);
        let due = discovery.next_due_ms().expect("a time");
        assert!(due > 100, "an engine that refuses everything must not be asked without pause");
        assert_eq!(discovery.due(due), [Ask::Version]);
        discovery.version_failed(due);
        let again = discovery.next_due_ms().expect("a time");
        assert!(again > due);
    }
}
