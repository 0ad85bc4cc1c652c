//! The balancer against HAProxy in TCP mode: one command, one table.
//!
//! `cargo bench --bench balancer -- [--tiny] [--runs 5] [--seconds 3] [--print]`
//!
//! The proxy runs on core 0, with one thread; nginx and wrk share core 1. Within a round all proxies are
//! measured one after the other, rounds follow each other, and ratios are taken within a round: what
//! disturbs the machine for longer than a moment disturbs both sides of a ratio. HAProxy is measured as it
//! comes and with splice forced, since its `splice-auto` makes no splice calls on recent kernels. Needs
//! Debian's haproxy, nginx, wrk; a table is kept in `benches/records`.

mod fleet;

use fleet::{Fleet, Proxy};
use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

type Done<T> = Result<T, Box<dyn Error>>;

/// What is asked of each proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// 64 connections, one small request after the other.
    KeepAlive,
    /// 64 clients, a connection for each small request.
    Connections,
    /// 16 connections, bodies of 1 MiB.
    Bulk,
}

const LOADS: [Load; 3] = [Load::KeepAlive, Load::Connections, Load::Bulk];

impl Load {
    fn name(self) -> &'static str {
        match self {
            Load::KeepAlive => "keep-alive, 64 connections",
            Load::Connections => "a connection each, 64 clients",
            Load::Bulk => "1 MiB bodies, 16 connections",
        }
    }

    fn arguments(self) -> (&'static [&'static str], &'static str) {
        match self {
            Load::KeepAlive => (&["-c64"], "/"),
            Load::Connections => (&["-c64", "-H", "Connection: close"], "/"),
            Load::Bulk => (&["-c16"], "/mib"),
        }
    }
}

/// What one proxy did under one load.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    /// Requests a second.
    rate: f64,
    p99_ms: f64,
    /// Microseconds of the proxy's CPU a request.
    cpu_us: f64,
}

struct Options {
    runs: usize,
    window: Duration,
    /// Keeps no record.
    print: bool,
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options { runs: 5, window: Duration::from_secs(3), print: false };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        let number = |text: &String| text.parse::<u64>().ok().filter(|number| *number > 0);
        match argument.as_str() {
            // What cargo adds.
            "--bench" => {}
            "--tiny" => options = Options { runs: 1, window: Duration::from_secs(1), print: true },
            "--print" => options.print = true,
            "--runs" => options.runs = number(value()?).ok_or("--runs: expected a number")? as usize,
            "--seconds" => {
                options.window = Duration::from_secs(number(value()?).ok_or("--seconds: expected a number")?);
            }
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(options)
}

#[allow(dead_code, reason = "the smoke test calls `smoke`")]
fn main() -> Done<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let options = parse(&arguments)?;
    let rows = measure(&options)?;
    let Some(rows) = rows else { return Err("haproxy, nginx and wrk are needed".into()) };
    let page = rows.join("\n") + "\n";
    print!("{page}");
    if !options.print {
        fleet::keep(&page)?;
    }
    Ok(())
}

/// The table with small numbers; `None` where this machine lacks what it needs.
#[allow(dead_code, reason = "the benchmark calls `main`")]
pub(crate) fn smoke() -> Done<Option<Vec<String>>> {
    measure(&Options { runs: 1, window: Duration::from_secs(1), print: true })
}

fn measure(options: &Options) -> Done<Option<Vec<String>>> {
    let Some(fleet) = Fleet::start()? else { return Ok(None) };
    let proxies = fleet.proxies()?;
    let names: Vec<&str> = proxies.iter().map(|proxy| proxy.name).collect();
    let mut rows = vec![format!("| load | figure | {} |", names.join(" | "))];
    rows.push(format!("|---|---|{}", "---|".repeat(names.len())));
    let mut verdicts = Vec::new();
    for load in LOADS {
        let mut rounds: Vec<Vec<Outcome>> = Vec::new();
        for _ in 0..options.runs {
            let round: Done<Vec<Outcome>> =
                proxies.iter().map(|proxy| one(&fleet, proxy, load, options.window)).collect();
            rounds.push(round?);
        }
        type Figure = (&'static str, fn(&Outcome) -> f64);
        let figures: [Figure; 3] =
            [("requests/s", |o| o.rate), ("p99, ms", |o| o.p99_ms), ("CPU a request, µs", |o| o.cpu_us)];
        for (label, figure) in figures {
            let mut row = format!("| {} | {label} |", load.name());
            for at in 0..proxies.len() {
                let middle = median(rounds.iter().map(|round| figure(&round[at])).collect());
                let _ = write!(row, " {} |", shown(middle));
            }
            rows.push(row);
        }
        let at = |name: &str| names.iter().position(|known| *known == name).expect("a known name");
        let ratio = |of: &str, to: &str, figure: fn(&Outcome) -> f64| {
            let (of, to) = (at(of), at(to));
            let ratios = rounds.iter().map(|round| figure(&round[of]) / figure(&round[to])).collect();
            median(ratios)
        };
        let mut verdict = |what: &str, measured: f64, aim: f64, least: bool| {
            let met = if least { measured >= aim } else { measured <= aim };
            let sign = if least { "≥" } else { "≤" };
            let missed = if met { "" } else { " (missed)" };
            verdicts.push(format!("| {}: {what} | {measured:.2} | {sign} {aim}{missed} |", load.name()));
        };
        match load {
            Load::KeepAlive => {
                verdict("requests ÷ HAProxy", ratio("meshkv", "HAProxy", |o| o.rate), 1.0, true);
                verdict("CPU a request ÷ HAProxy", ratio("meshkv", "HAProxy", |o| o.cpu_us), 0.95, false);
                verdict("p99 ÷ HAProxy", ratio("meshkv", "HAProxy", |o| o.p99_ms), 1.0, false);
            }
            Load::Connections => {
                verdict("connections ÷ HAProxy", ratio("meshkv", "HAProxy", |o| o.rate), 1.0, true);
                verdict("CPU a connection ÷ HAProxy", ratio("meshkv", "HAProxy", |o| o.cpu_us), 1.0, false);
            }
            Load::Bulk => {
                verdict("bytes ÷ HAProxy", ratio("meshkv", "HAProxy", |o| o.rate), 1.3, true);
                verdict("bytes ÷ HAProxy, splice", ratio("meshkv", "HAProxy, splice", |o| o.rate), 1.0, true);
            }
        }
    }
    rows.push(String::new());
    rows.push("| figure | measured | aim |".to_owned());
    rows.push("|---|---|---|".to_owned());
    rows.extend(verdicts);
    Ok(Some(rows))
}

fn one(fleet: &Fleet, proxy: &Proxy, load: Load, window: Duration) -> Done<Outcome> {
    let (arguments, path) = load.arguments();
    let before = proxy.cpu_seconds()?;
    let answer = fleet.wrk(arguments, &format!("http://{}{path}", proxy.address), window)?;
    let cpu = proxy.cpu_seconds()? - before;
    if answer.failed > 0 {
        return Err(format!("{}: {} requests failed", proxy.name, answer.failed).into());
    }
    let cpu_us = cpu * 1e6 / answer.requests.max(1.0);
    Ok(Outcome { rate: answer.rate, p99_ms: answer.p99_ms, cpu_us })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn shown(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
