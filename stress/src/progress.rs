//! How a run is shown while it goes on: a bar on a terminal, a line a second elsewhere, both on stderr.

use crate::compat;
use crate::options::Options;
use crate::run::{Plan, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

pub(crate) struct Shower {
    kind: Kind,
    duration: Option<Duration>,
}

enum Kind {
    Nothing,
    Bar(ProgressBar),
    Lines {
        last: Instant,
    },
    /// As the original tool did, on stdout.
    Compat(compat::Lines),
}

const EVERY: Duration = Duration::from_secs(1);

impl Shower {
    pub(crate) fn new(options: &Options, plan: &Plan) -> Self {
        let duration = plan.duration.map(|duration| duration + plan.warmup);
        let kind = if options.compat {
            Kind::Compat(compat::Lines::new(options.requests))
        } else if options.quiet || options.no_progress {
            Kind::Nothing
        } else if std::io::stderr().is_terminal() {
            // With a duration, the bar is of time.
            let length = duration.map_or(plan.requests.unwrap_or(1), |duration| duration.as_millis() as u64);
            let bar = ProgressBar::new(length.max(1));
            if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent} %  {msg}") {
                bar.set_style(style);
            }
            Kind::Bar(bar)
        } else {
            Kind::Lines { last: Instant::now() }
        };
        Self { kind, duration }
    }

    pub(crate) fn show(&mut self, progress: Progress) {
        let (ok, failed, elapsed) = match progress {
            Progress::Tick { ok, failed, elapsed } => (ok, failed, elapsed),
            Progress::Thousand(thousand) => {
                if let Kind::Compat(lines) = &mut self.kind {
                    // A closed pipe is no reason to stop.
                    let _ = std::io::stdout().write_all(lines.add(thousand).as_bytes());
                }
                return;
            }
        };
        match &mut self.kind {
            Kind::Compat(_) => {}
            Kind::Nothing => {}
            Kind::Bar(bar) => {
                bar.set_position(self.duration.map_or(ok + failed, |_| elapsed.as_millis() as u64));
                bar.set_message(format!("{ok} ok, {failed} failed"));
            }
            Kind::Lines { last } => {
                if last.elapsed() >= EVERY {
                    *last = Instant::now();
                    eprintln!("{ok} ok, {failed} failed, {:.0} s", elapsed.as_secs_f64());
                }
            }
        }
    }

    pub(crate) fn finish(self) {
        if let Kind::Bar(bar) = self.kind {
            bar.finish_and_clear();
        }
    }
}
