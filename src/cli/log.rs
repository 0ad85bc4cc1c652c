//! Log lines on stderr: plain facts for people, or one JSON object a line for programs.
//!
//! Text has no time stamps: the service managers that keep logs add their own, and a person who watches
//! does not need them. JSON lines are for shipping, and carry them.

use clap::ValueEnum;
use std::fmt;
use std::io::IsTerminal;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// The target of start-up facts: in text their message says everything, so the fields stay out.
pub(crate) const START_UP: &str = "meshkv::start";
/// The target of those that show at every level: nobody else could say which port the system chose.
pub(crate) const CHOSEN: &str = "meshkv::start::chosen";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One fact a line, for people
    Text,
    /// One JSON object a line, with a time stamp
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> LevelFilter {
        match level {
            Level::Error => LevelFilter::ERROR,
            Level::Warn => LevelFilter::WARN,
            Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
            Level::Trace => LevelFilter::TRACE,
        }
    }
}

/// Sends log lines to stderr from here on. Called once, before any thread is started.
pub(crate) fn start(format: Format, level: Level) {
    let shown = Targets::new().with_default(level).with_target(CHOSEN, LevelFilter::INFO);
    // A stderr that nobody reads must not bring the node down, so a failed write is let go.
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false);
    let lines = match format {
        Format::Text => lines.event_format(Text { colour: colour_wanted() }).boxed(),
        Format::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
        }
    };
    tracing_subscriber::registry().with(shown).with(lines).init();
}

/// On a terminal that can, unless `NO_COLOR` is set to anything.
fn colour_wanted() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    !refused && !dumb && std::io::stderr().is_terminal()
}

/// `message`, or `warn   message key=value`: only what is out of the ordinary names its level.
struct Text {
    colour: bool,
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (word, colour) = match *event.metadata().level() {
            tracing::Level::ERROR => ("error  ", "\x1b[31m"),
            tracing::Level::WARN => ("warn   ", "\x1b[33m"),
            tracing::Level::INFO => ("", ""),
            tracing::Level::DEBUG => ("debug  ", "\x1b[2m"),
            tracing::Level::TRACE => ("trace  ", "\x1b[2m"),
        };
        if self.colour && !word.is_empty() {
            write!(out, "{colour}{word}\x1b[0m")?;
        } else {
            out.write_str(word)?;
        }
        let mut line = Line { message: String::new(), fields: String::new() };
        event.record(&mut line);
        out.write_str(&line.message)?;
        if !event.metadata().target().starts_with(START_UP) {
            out.write_str(&line.fields)?;
        }
        out.write_char('\n')
    }
}

/// One event's message and its ` key=value` fields. Line breaks and other control characters are escaped,
/// so that what a client sent cannot forge a line.
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let (target, text) = if field.name() == "message" {
            (&mut self.message, format!("{value:?}"))
        } else {
            (&mut self.fields, format!(" {}={value:?}", field.name()))
        };
        for c in text.chars() {
            if c.is_control() {
                target.extend(c.escape_default());
            } else {
                target.push(c);
            }
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // Quoted only where it must be, for legibility.
        let plain = !value.is_empty() && value.chars().all(|c| !c.is_whitespace() && c != '"' && c != '=');
        if plain || field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }
}
