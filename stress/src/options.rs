//! The command line. Everything that is wrong with it is a usage error, said before anything is sent.

use crate::arrival::Arrival;
use crate::report::Config;
use crate::run::{Pace, Plan, Verify};
use crate::target::Target;
use crate::workload::{KeyDist, OPS, Template, Workload, Zipf};
use clap::{Args, ColorChoice, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// The help's library makes a line break of an n in braces. An escape sequence that changes nothing keeps it from that; it
/// goes to terminals alone.
const TEMPLATE_HELP: &str =
    "A request target of your own ({\u{1b}[0mn}, {k}, {v}), for servers that are not meshkv";

/// Loads a key-value server over HTTP and checks every answer.
#[derive(Debug, Parser)]
#[command(
    name = "meshkv-stress",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Without a mode it runs: meshkv-stress -n 1m http://127.0.0.1:8080\n\
    Exit codes: 0 all is well, 1 errors or unreachable, 2 usage, 3 an objective missed or a regression, 4 INVALID (the client could not keep up), \
    130 interrupted.\n\
    A get of a key that nobody has set is a 404 and counts as an error: `load` sets the keys first."
)]
pub struct Cli {
    #[command(subcommand)]
    pub mode: Option<Mode>,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Debug, Subcommand)]
pub enum Mode {
    /// Loads the servers and reports (what happens without a mode)
    Run(Box<Options>),
    /// Sets each of -n keys once
    Load(Box<Options>),
    /// Gets each of -n keys from every server
    Verify(Box<Options>),
    /// Raises the rate step by step until an objective is missed, and says where
    Sweep {
        /// The first rate
        #[arg(long, default_value = "1000", value_parser = rate)]
        from: f64,
        /// What each rate is multiplied by
        #[arg(long, default_value = "1.5", value_parser = factor)]
        step: f64,
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Sets on the first server and gets from the others until they show it
    Lag(Box<Options>),
    /// Tells whether the second report's runs differ from the first one's
    Compare {
        /// A report, or some (a.json,b.json) whose runs are taken together
        base: Files,
        new: Files,
        /// Changes up to this are none
        #[arg(long, default_value = "1%", value_parser = percent)]
        noise: f64,
        #[arg(long, default_value = "auto")]
        color: ColorChoice,
    },
    /// Draws the report that --json wrote: --html, --svg, or SVG on stdout
    Plot {
        file: PathBuf,
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        /// Another report, for its curve
        #[arg(long, value_name = "FILE")]
        baseline: Option<PathBuf>,
    },
    /// Prints the report that --json wrote
    Show {
        file: PathBuf,
        #[arg(long, default_value = "auto")]
        color: ColorChoice,
    },
}

/// One file or some, as one argument.
#[derive(Clone, Debug)]
pub struct Files(pub Vec<PathBuf>);

impl std::str::FromStr for Files {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.split(',').map(PathBuf::from).collect()))
    }
}

impl std::fmt::Display for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let paths: Vec<_> = self.0.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&paths.join(","))
    }
}

#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Servers, as http://host:port; connections are spread over them
    #[arg(env = "SERVICE_URL", default_value = "http://127.0.0.1:8080", value_delimiter = ',')]
    pub url: Vec<String>,
    /// Requests to send, exactly (k and m suffixes)
    #[arg(short = 'n', long, env = "STRESS_AMOUNT", default_value = "100000", value_parser = count)]
    pub requests: u64,
    /// Send for this long instead of a number of requests (seconds, or with ms, s, m)
    #[arg(short = 'd', long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Connections [default: clusters times workers, 1000]
    #[arg(short = 'c', long, value_parser = count)]
    pub connections: Option<u64>,
    #[arg(long, env = "STRESS_CLUSTERS", default_value = "50", value_parser = count, hide = true)]
    pub clusters: u64,
    #[arg(long, env = "STRESS_WORKERS", default_value = "20", value_parser = count, hide = true)]
    pub workers: u64,
    /// Threads [default: one per core]
    #[arg(short = 't', long, value_parser = count)]
    pub threads: Option<u64>,
    /// Requests a second, sent when they are due whatever the server does [default: closed loop]
    #[arg(short = 'r', long, value_parser = rate)]
    pub rate: Option<f64>,
    /// When requests are due, with --rate [default: poisson]
    #[arg(long, value_enum)]
    pub arrival: Option<Arrival>,
    /// Weights of the operations
    #[arg(long, default_value = "set=1", value_parser = mix)]
    pub mix: Mix,
    /// Distinct keys [default: as many as requests]
    #[arg(long, value_parser = count)]
    pub keys: Option<u64>,
    /// seq, uniform or zipf:0.99
    #[arg(long, default_value = "seq")]
    pub key_dist: String,
    /// Bytes of a value, as A or A-B [default: value:N]
    #[arg(long, value_parser = size)]
    pub value_size: Option<(usize, usize)>,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Not counted at the beginning [default: 2s with -d, none with -n]
    #[arg(long, value_parser = duration)]
    pub warmup: Option<Duration>,
    /// Until a request has failed
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub timeout: Duration,
    /// Requests in flight on each connection [default: 1; load and verify: 16]
    #[arg(long, value_parser = count)]
    pub pipeline: Option<u64>,
    /// How closely answers are looked at
    #[arg(long, value_enum, default_value = "body")]
    pub verify: Verify,
    #[arg(long, help = TEMPLATE_HELP)]
    pub template: Option<String>,
    /// What the body of every answer to the template must be
    #[arg(long, requires = "template")]
    pub expect: Option<String>,
    /// Times that the same is done, for an interval of the mean and for comparisons (at least 5)
    #[arg(long, default_value = "1", value_parser = count)]
    pub runs: u64,
    /// Objectives, such as 'p99<2ms,errors=0' (also rate, error_rate, service.get.p99.9); missed: exit code 3
    #[arg(long, value_name = "OBJECTIVES")]
    pub slo: Option<String>,
    /// A report to compare with; worse: exit code 3
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Changes from the baseline up to this are none
    #[arg(long, default_value = "1%", value_parser = percent)]
    pub noise: f64,
    /// The output of the original stress tool, and nothing else on stdout
    #[arg(long, conflicts_with_all = ["duration", "rate", "connections", "runs"])]
    pub compat: bool,
    /// Write the whole report as JSON (schema: stress/report.schema.json)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the seconds' histograms as an HdrHistogram log
    #[arg(long, value_name = "FILE")]
    pub hdr_log: Option<PathBuf>,
    /// Write the seconds as CSV
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Write the report as one HTML page with charts
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the charts
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Nothing on the terminal but errors
    #[arg(short = 'q', long)]
    pub quiet: bool,
    #[arg(long, default_value = "auto")]
    pub color: ColorChoice,
    #[arg(long)]
    pub no_progress: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Mix(pub [u64; OPS.len()]);

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let used = OPS.iter().zip(self.0).filter(|(_, weight)| *weight > 0);
        let text: Vec<_> = used.map(|((_, name), weight)| format!("{name}={weight}")).collect();
        f.write_str(&text.join(","))
    }
}

fn count(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1_000),
        None => text.strip_suffix(['m', 'M']).map_or((text, 1), |digits| (digits, 1_000_000)),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number such as 500, 10k or 2m")?;
    // Numbers of requests are added and multiplied; a fifth of a million years at a million a second is enough.
    number.checked_mul(unit).filter(|n| (1..1 << 60).contains(n)).ok_or_else(|| "out of range".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1e3),
        None => text.strip_suffix(['m', 'M']).map_or((text, 1.0), |digits| (digits, 1e6)),
    };
    let number: f64 = digits.parse().map_err(|_| "expected requests a second, such as 5000 or 20k")?;
    let rate = number * unit;
    if (0.001..=1e9).contains(&rate) { Ok(rate) } else { Err("out of range".into()) }
}

fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("", 1.0)];
    let (digits, unit) = units
        .iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits, unit)))
        .unwrap_or((text, &1.0));
    let number: f64 = digits.parse().map_err(|_| "expected a time such as 10, 500ms or 2m")?;
    let seconds = number * unit;
    if (0.0..1e7).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("out of range".into())
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim_end_matches('%').parse().map_err(|_| "expected percent, such as 1%")?;
    if (0.0..=100.0).contains(&number) { Ok(number / 100.0) } else { Err("out of range".into()) }
}

fn factor(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a factor such as 1.5")?;
    if (1.01..=100.0).contains(&number) { Ok(number) } else { Err("expected 1.01 to 100".into()) }
}

fn size(text: &str) -> Result<(usize, usize), String> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (low.parse(), high.parse()) {
        (Ok(low), Ok(high)) if low <= high && high <= 1 << 20 => Ok((low, high)),
        _ => Err("expected bytes as A or A-B, at most 1 MiB".into()),
    }
}

fn mix(text: &str) -> Result<Mix, String> {
    let mut weights = [0; OPS.len()];
    for part in text.split(',') {
        let (name, weight) = part.split_once('=').ok_or("expected set=1,get=9")?;
        let place =
            OPS.iter().position(|(_, known)| *known == name).ok_or_else(|| format!("no operation {name}"))?;
        weights[place] = weight.parse::<u32>().map_err(|_| format!("{weight} is no weight"))?.into();
    }
    if weights.iter().sum::<u64>() == 0 { Err("all weights are 0".into()) } else { Ok(Mix(weights)) }
}

fn key_dist(text: &str, keys: u64) -> Result<KeyDist, String> {
    match text.split_once(':') {
        None if text == "seq" => Ok(KeyDist::Seq),
        None if text == "uniform" => Ok(KeyDist::Uniform),
        Some(("zipf", exponent)) => match exponent.parse() {
            Ok(exponent) if exponent > 0.0 && exponent < 10.0 => Ok(KeyDist::Zipf(Zipf::new(keys, exponent))),
            _ => Err(format!("{exponent} is no exponent")),
        },
        _ => Err(format!("{text}: expected seq, uniform or zipf:0.99")),
    }
}

impl Options {
    /// What `load` and `verify` do: each key once, many in flight.
    pub fn each_key_once(mut self, operation: &str) -> Result<Self, String> {
        for (given, flag) in [
            (self.duration.is_some(), "--duration"),
            (self.template.is_some(), "--template"),
            (self.key_dist != "seq", "--key-dist"),
            (self.keys.is_some_and(|keys| keys != self.requests), "--keys"),
            (self.runs > 1, "--runs"),
            (self.compat, "--compat"),
        ] {
            if given {
                return Err(format!("{flag} has no place here: each of -n keys is taken once"));
            }
        }
        self.mix = mix(&format!("{operation}=1"))?;
        self.pipeline = self.pipeline.or(Some(16));
        Ok(self)
    }

    /// The plan, given how many descriptors there may be; a warning where that is fewer than asked for.
    ///
    /// # Errors
    /// What is wrong with the options.
    pub fn plan(&self, nofile: u64) -> Result<(Plan, Option<String>), String> {
        let targets: Vec<Target> = self.url.iter().map(|url| Target::new(url)).collect::<Result<_, _>>()?;
        let keys = self.keys();
        let dist = key_dist(&self.key_dist, keys)?;
        let template = self.template.as_deref().map(|path| Template::new(path, self.expect.as_deref()));
        let workload = Workload::new(self.mix.0, keys, dist, self.value_size, self.seed, template);
        // Every server is asked, and threads share them evenly.
        let wanted =
            self.connections.unwrap_or(self.clusters.saturating_mul(self.workers)).max(targets.len() as u64);
        // Beside the connections: the event queues and timers, the files, the standard streams.
        let most = nofile.saturating_sub(64).max(1);
        let connections = wanted.min(most);
        let warning = (connections < wanted)
            .then(|| format!("the descriptor limit allows {connections} connections, not {wanted}"));
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let threads =
            self.threads.unwrap_or(cores).clamp(1, (connections / targets.len() as u64).max(1)).min(1024);
        // Errors and successes are counted in 32 bits each there.
        if self.compat && self.requests > u64::from(u32::MAX) {
            return Err("--compat: at most 4294967295 requests".to_owned());
        }
        if self.pipeline.unwrap_or(1) > 65_536 {
            return Err("--pipeline: at most 65536".to_owned());
        }
        let plan = Plan {
            targets,
            workload,
            requests: self.duration.is_none().then_some(self.requests),
            duration: self.duration,
            warmup: self.warmup.unwrap_or(Duration::from_secs(if self.duration.is_some() { 2 } else { 0 })),
            pace: self.rate.map(|rate| Pace { rate, arrival: self.arrival() }),
            connections: connections as usize,
            threads: threads as usize,
            pipeline: self.pipeline.unwrap_or(1) as usize,
            timeout: self.timeout,
            verify: self.verify,
            seed: self.seed,
            tell_thousands: self.compat,
        };
        Ok((plan, warning))
    }

    pub fn arrival(&self) -> Arrival {
        self.arrival.unwrap_or(Arrival::Poisson)
    }

    fn keys(&self) -> u64 {
        self.keys.unwrap_or(self.requests)
    }

    /// What the report says about the options.
    pub fn config(&self, mode: &str, plan: &Plan) -> Config {
        Config {
            mode: mode.to_owned(),
            requests: plan.requests,
            duration_ns: plan.duration.map(|duration| duration.as_nanos() as u64),
            warmup_ns: plan.warmup.as_nanos() as u64,
            connections: plan.connections as u64,
            threads: plan.threads as u64,
            pipeline: plan.pipeline as u64,
            rate: self.rate,
            arrival: self.rate.map(|_| self.arrival()),
            mix: self.mix.to_string(),
            keys: self.keys(),
            key_dist: self.key_dist.clone(),
            value_size: self.value_size.map(|(low, high)| (low as u64, high as u64)),
            seed: self.seed,
            timeout_ns: plan.timeout.as_nanos() as u64,
            verify: plan.verify,
            template: self.template.clone(),
            expect: self.expect.clone(),
            runs: self.runs,
            noise: self.noise,
            slo: self.slo.clone(),
            baseline: self.baseline.as_ref().map(|path| path.display().to_string()),
        }
    }
}
