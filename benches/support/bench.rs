//! What the parts of a benchmark share: the options, the servers, rounds, ratios, and the run itself.

use super::drive::{self, Operation, Outcome, Plan, other};
use super::fleet::{self, Peer, Yard};
use super::report::{Report, Spread};
use std::error::Error;
use std::io;
use std::rc::Rc;
use std::time::Duration;

pub(crate) type Done = Result<(), Box<dyn Error>>;
pub(crate) type Part = fn(&mut Bench) -> Done;
pub(crate) type Parts = &'static [(&'static str, Part)];

/// What the command line asks for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) only: Vec<String>,
    pub(crate) runs: usize,
    pub(crate) keys: u64,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    pub(crate) tiny: bool,
    /// Keeps no record: somebody else does.
    pub(crate) print: bool,
}

impl Options {
    pub(crate) fn tiny() -> Options {
        let (warm_up, window) = (Duration::from_millis(10), Duration::from_millis(50));
        Options { only: Vec::new(), runs: 2, keys: 2000, warm_up, window, tiny: true, print: true }
    }

    fn parse(arguments: &[String], parts: Parts) -> Result<Options, String> {
        let mut options = Options {
            runs: 5,
            keys: 10_000_000,
            warm_up: Duration::from_millis(200),
            window: Duration::from_millis(1200),
            tiny: false,
            print: false,
            only: Vec::new(),
        };
        if arguments.iter().any(|argument| argument == "--tiny") {
            options = Options::tiny();
        }
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                // `--bench` is what cargo adds.
                "--tiny" | "--bench" => {}
                "--print" => options.print = true,
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                "--runs" => options.runs = value()?.parse().map_err(|_| "--runs: expected a number")?,
                "--keys" => {
                    let text = value()?.to_lowercase();
                    let (digits, unit) = match text.strip_suffix('m') {
                        Some(millions) => (millions, 1_000_000),
                        None => (text.as_str(), 1),
                    };
                    options.keys =
                        digits.parse::<u64>().map_err(|_| "--keys: expected 10m or 500000")? * unit;
                }
                other => return Err(format!("unknown argument {other}")),
            }
        }
        let unknown = options.only.iter().find(|name| !parts.iter().any(|(part, _)| part == name));
        if let Some(name) = unknown {
            let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
            return Err(format!("--only {name}: there are {}", names.join(", ")));
        }
        if options.runs == 0 || options.keys < 1000 {
            return Err("at least one run and 1000 keys".to_owned());
        }
        Ok(options)
    }
}

pub(crate) struct Bench {
    pub(crate) yard: Yard,
    pub(crate) options: Options,
    pub(crate) report: Report,
    /// Servers that hold all records, or hold none.
    shared: Vec<Rc<Peer>>,
}

/// One server under one load, round after round.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) plan: Plan,
    pub(crate) rounds: Vec<Outcome>,
}

/// A server that is measured, and how.
pub(crate) fn contender(name: &'static str, plan: Plan) -> Contender {
    Contender { name, plan, rounds: Vec::new() }
}

impl Bench {
    pub(crate) fn new(yard: Yard, options: Options) -> Bench {
        Bench { yard, options, report: Report::default(), shared: Vec::new() }
    }

    /// The shared server of this name, started and loaded when it is first asked for; `None` if it is not
    /// installed.
    pub(crate) fn peer(&mut self, name: &'static str) -> io::Result<Option<Rc<Peer>>> {
        if let Some(peer) = self.shared.iter().find(|peer| peer.name == name) {
            return Ok(Some(Rc::clone(peer)));
        }
        let started = match name {
            "meshkv" => Some(self.yard.node(1)?),
            _ => self.yard.foreign(name)?,
        };
        let Some(peer) = started else { return Ok(None) };
        if name != "nginx" {
            load(&peer, 0, self.options.keys, |_| {})?;
        }
        let peer = Rc::new(peer);
        self.shared.push(Rc::clone(&peer));
        Ok(Some(peer))
    }

    pub(crate) fn node(&mut self) -> io::Result<Rc<Peer>> {
        self.peer("meshkv")?.ok_or_else(|| other("the node is always there"))
    }

    /// Measures all of them in each round, in turn.
    pub(crate) fn rounds(&self, contenders: &mut [Contender]) -> io::Result<()> {
        for _ in 0..self.options.runs {
            for contender in contenders.iter_mut() {
                contender.rounds.push(self.once(&contender.plan)?);
            }
        }
        Ok(())
    }

    pub(crate) fn once(&self, plan: &Plan) -> io::Result<Outcome> {
        let mut plan = plan.clone();
        (plan.warm_up, plan.window) = (self.options.warm_up, self.options.window);
        drive::run(&plan)
    }

    /// Tells CPU, rate and the generator's own CPU of each.
    pub(crate) fn tell_all(&mut self, what: &str, contenders: &[Contender]) {
        for Contender { name, rounds, .. } in contenders {
            self.report.tell(
                format!("{what}: {name}, CPU ns per request"),
                over(rounds, Outcome::cpu_ns_per_request),
            );
            self.report
                .tell(format!("{what}: {name}, requests per second"), over(rounds, Outcome::per_second));
        }
    }
}

pub(crate) fn over(rounds: &[Outcome], figure: impl Fn(&Outcome) -> f64) -> Spread {
    Spread::of(rounds.iter().map(figure).collect())
}

/// The figure of `of` divided by that of `by`, round by round.
pub(crate) fn ratio(of: &Contender, by: &Contender, figure: impl Fn(&Outcome) -> f64) -> Spread {
    Spread::of(of.rounds.iter().zip(&by.rounds).map(|(of, by)| figure(of) / figure(by)).collect())
}

pub(crate) const CPU: fn(&Outcome) -> f64 = Outcome::cpu_ns_per_request;
pub(crate) const RATE: fn(&Outcome) -> f64 = Outcome::per_second;

pub(crate) fn named<'c>(contenders: &'c [Contender], name: &str) -> Option<&'c Contender> {
    contenders.iter().find(|contender| contender.name == name)
}

/// Sets the keys from `from` up to `to`; `adapt` changes sizes.
pub(crate) fn load(peer: &Peer, from: u64, to: u64, adapt: impl Fn(&mut Plan)) -> io::Result<()> {
    let mut plan = peer.plan(Operation::Set, to, 64);
    plan.each = Some(from..to);
    plan.connections = 8;
    adapt(&mut plan);
    drive::run(&plan)?;
    peer.settle();
    Ok(())
}

/// Runs the parts that were asked for, or all.
pub(crate) fn measure(parts: Parts, options: Options) -> Result<Report, Box<dyn Error>> {
    meshkv::system::raise_descriptor_limit();
    let yard = Yard::new(std::path::Path::new(env!("CARGO_BIN_EXE_meshkv")))?;
    if yard.cores < 2 {
        eprintln!("one core only: server and load generator share it, times mean little");
    }
    fleet::pin_this_thread(yard.client_core())?;
    let mut bench = Bench::new(yard, options);
    for (name, part) in parts {
        if bench.options.only.is_empty() || bench.options.only.iter().any(|only| only == name) {
            eprintln!("{name}");
            part(&mut bench).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    Ok(std::mem::take(&mut bench.report))
}

/// The whole of a benchmark's command: measures, prints the table, keeps it unless it was a tiny one.
pub(crate) fn command(bench: &str, parts: Parts, arguments: &[String]) -> Done {
    let options = Options::parse(arguments, parts)?;
    let (tiny, print) = (options.tiny, options.print);
    let report = measure(parts, options)?;
    print!("{}", report.table());
    if tiny {
        println!("\nTiny: this shows that everything runs; the figures mean nothing.");
    } else if !print {
        let shown: Vec<&str> =
            arguments.iter().map(String::as_str).filter(|argument| *argument != "--bench").collect();
        println!("\nkept in {}", report.record(bench, &shown.join(" "))?.display());
    }
    Ok(())
}
