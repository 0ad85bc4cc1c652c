//! `meshkv-stress`: loads an HTTP key-value server, looks at every answer, and reports what it saw.

use clap::Parser;
use hdrhistogram::Histogram;
use meshkv_stress::run::{Plan, Verify, thread};
use meshkv_stress::stats::{Stats, all};
use meshkv_stress::target::Target;
use meshkv_stress::workload::{KeyDist, OPS, Template, Workload, Zipf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Loads a key-value server over HTTP, closed loop, and checks every answer.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 all answers right, 1 errors or unreachable, 2 usage, 130 interrupted.\n\
    A get of a key that nobody has set is a 404 and counts as an error: set the keys first."
)]
struct Options {
    /// Servers, as http://host:port; connections are spread over them
    #[arg(env = "SERVICE_URL", default_value = "http://127.0.0.1:8080", value_delimiter = ',')]
    url: Vec<String>,
    /// Requests to send, exactly (k and m suffixes)
    #[arg(short = 'n', long, env = "STRESS_AMOUNT", default_value = "100000", value_parser = count)]
    requests: u64,
    /// Send for this many seconds instead of a number of requests
    #[arg(short = 'd', long, value_parser = seconds)]
    duration: Option<Duration>,
    /// Connections; else clusters times workers
    #[arg(short = 'c', long)]
    connections: Option<usize>,
    #[arg(long, env = "STRESS_CLUSTERS", default_value_t = 50, hide = true)]
    clusters: usize,
    #[arg(long, env = "STRESS_WORKERS", default_value_t = 20, hide = true)]
    workers: usize,
    /// Threads [default: one per core]
    #[arg(short = 't', long)]
    threads: Option<usize>,
    /// Weights of the operations
    #[arg(long, default_value = "set=1", value_parser = mix)]
    mix: Mix,
    /// Distinct keys [default: as many as requests]
    #[arg(long, value_parser = count)]
    keys: Option<u64>,
    /// seq, uniform or zipf:0.99
    #[arg(long, default_value = "seq")]
    key_dist: String,
    /// Bytes of a value, as A or A-B [default: value:N]
    #[arg(long, value_parser = size)]
    value_size: Option<(usize, usize)>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 1)]
    pipeline: usize,
    /// Seconds until a request has failed
    #[arg(long, default_value = "5", value_parser = seconds)]
    timeout: Duration,
    /// body, status or none
    #[arg(long, default_value = "body", value_parser = verify)]
    verify: Verify,
    /// A request target of your own ({n}, {k}, {v}), for servers that are not meshkv
    #[arg(long)]
    template: Option<String>,
    /// What every answer to the template must be
    #[arg(long, requires = "template")]
    expect: Option<String>,
    /// No progress lines
    #[arg(long)]
    no_progress: bool,
}

#[derive(Clone, Copy, Debug)]
struct Mix([u64; 4]);

fn count(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1_000),
        None => text.strip_suffix(['m', 'M']).map_or((text, 1), |digits| (digits, 1_000_000)),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number such as 500, 10k or 2m")?;
    number.checked_mul(unit).filter(|&n| n > 0).ok_or_else(|| "out of range".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.trim_end_matches('s').parse().map_err(|_| "expected seconds")?;
    if number > 0.0 && number < 1e7 {
        Ok(Duration::from_secs_f64(number))
    } else {
        Err("out of range".into())
    }
}

fn size(text: &str) -> Result<(usize, usize), String> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (low.parse(), high.parse()) {
        (Ok(low), Ok(high)) if low <= high && high <= 1 << 20 => Ok((low, high)),
        _ => Err("expected bytes as A or A-B, at most 1 MiB".into()),
    }
}

fn verify(text: &str) -> Result<Verify, String> {
    match text {
        "body" => Ok(Verify::Body),
        "status" => Ok(Verify::Status),
        "none" => Ok(Verify::None),
        _ => Err("expected body, status or none".into()),
    }
}

fn mix(text: &str) -> Result<Mix, String> {
    let mut weights = [0; 4];
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

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(code) => ExitCode::from(code),
        Err((code, message)) => {
            eprintln!("error: {message}");
            ExitCode::from(code)
        }
    }
}

fn run(options: &Options) -> Result<u8, (u8, String)> {
    let usage = |message: String| (2, message);
    let targets: Vec<Target> =
        options.url.iter().map(|url| Target::new(url)).collect::<Result<_, _>>().map_err(usage)?;
    let keys = options.keys.unwrap_or(options.requests);
    let dist = key_dist(&options.key_dist, keys).map_err(usage)?;
    let template = options.template.as_deref().map(|path| Template::new(path, options.expect.as_deref()));
    let workload = Workload::new(options.mix.0, keys, dist, options.value_size, options.seed, template);

    let wanted = options.connections.unwrap_or(options.clusters * options.workers).max(1);
    let (_, limit) = raise_descriptor_limit();
    let connections = wanted.min(limit.saturating_sub(32).max(1));
    if connections < wanted {
        eprintln!("warning: the descriptor limit allows {connections} connections, not {wanted}");
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.unwrap_or(cores).clamp(1, connections);
    let plan = Arc::new(Plan {
        targets,
        workload,
        requests: if options.duration.is_some() { u64::MAX } else { options.requests },
        deadline: options.duration,
        pipeline: options.pipeline.max(1),
        timeout: options.timeout,
        verify: options.verify,
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends the process at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&interrupted))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupted)))
            .map_err(|error| (1, format!("cannot watch for signals: {error}")))?;
    }

    println!(
        "workload  {} on {}, {} keys {}, verify {:?}",
        describe(options),
        options.url.join(" "),
        keys,
        options.key_dist,
        options.verify
    );
    println!(
        "load      closed loop, {connections} connections x {} deep, {threads} threads; latencies are not safe \
         from coordinated omission",
        plan.pipeline
    );
    let begun = Instant::now();
    let cpu_begun = cpu();
    let workers: Vec<_> = (0..threads)
        .map(|number| {
            let plan = Arc::clone(&plan);
            let (first, next) = (connections * number / threads, connections * (number + 1) / threads);
            std::thread::spawn(move || thread(&plan, next - first, first))
        })
        .collect();
    let mut shown = Instant::now();
    while workers.iter().any(|worker| !worker.is_finished()) {
        std::thread::sleep(Duration::from_millis(10));
        if interrupted.load(Ordering::Relaxed) {
            plan.stop.store(true, Ordering::Relaxed);
        }
        if !options.no_progress && shown.elapsed() > Duration::from_secs(1) {
            shown = Instant::now();
            let (done, failed) = (plan.done.load(Ordering::Relaxed), plan.failed.load(Ordering::Relaxed));
            eprintln!("{done} done, {failed} failed, {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    let cpu_used = cpu() - cpu_begun;
    let mut stats = Stats::default();
    for worker in workers {
        match worker.join() {
            Ok(Ok(part)) => stats.add(&part),
            Ok(Err(message)) => return Err((1, message)),
            Err(_) => return Err((1, "a thread panicked; this is a bug".to_owned())),
        }
    }
    report(&stats, cpu_used);
    if interrupted.load(Ordering::Relaxed) {
        println!("interrupted: the report covers what was done");
        return Ok(130);
    }
    Ok(u8::from(stats.failed > 0 || stats.ok() == 0))
}

fn describe(options: &Options) -> String {
    match (&options.template, options.duration) {
        (Some(template), _) => format!("{} x {template}", options.requests),
        (None, Some(duration)) => format!("{} s of {}", duration.as_secs_f64(), weights(options.mix)),
        (None, None) => format!("{} x {}", options.requests, weights(options.mix)),
    }
}

fn weights(Mix(weights): Mix) -> String {
    let used = OPS.iter().zip(weights).filter(|(_, weight)| *weight > 0);
    used.map(|((_, name), weight)| format!("{name}={weight}")).collect::<Vec<_>>().join(",")
}

fn report(stats: &Stats, cpu_used: Duration) {
    let elapsed = stats.end_ns.max(1) as f64 / 1e9;
    let requests = stats.sent.max(1) as f64;
    println!("counts    {} sent, {} ok, {} failed", stats.sent, stats.ok(), stats.failed);
    if stats.failed > 0 {
        let errors = &stats.errors;
        let http: Vec<_> = errors.http.iter().map(|(status, count)| format!("{count} x {status}")).collect();
        println!(
            "errors    connect {}, timeout {}, reset {}, verify {}, http [{}]",
            errors.connect,
            errors.timeout,
            errors.reset,
            errors.verify,
            http.join(", ")
        );
    }
    println!("rate      {:.0} verified answers/s in {elapsed:.2} s", stats.ok() as f64 / elapsed);
    println!("client    {:.2} us of CPU a request", cpu_used.as_secs_f64() * 1e6 / requests);
    println!("service time, ms      p50       p90       p99     p99.9    p99.99       max");
    let row = |name: &str, times: &Histogram<u64>| {
        let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e6;
        println!(
            "  {name:<12} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>9.3}",
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            at(0.9999),
            times.max() as f64 / 1e6
        );
    };
    row("all", &all(&stats.service));
    for ((_, name), times) in OPS.iter().zip(&stats.service) {
        if !times.is_empty() {
            row(name, times);
        }
    }
}

/// CPU time of this process.
fn cpu() -> Duration {
    let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    used.map_or(Duration::ZERO, |usage| {
        let part = |time: nix::sys::time::TimeVal| {
            Duration::new(time.tv_sec().max(0) as u64, time.tv_usec().max(0) as u32 * 1000)
        };
        part(usage.user_time()) + part(usage.system_time())
    })
}

/// Raises the limit as far as it goes; what it was and what it is.
fn raise_descriptor_limit() -> (usize, usize) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return (1024, 1024) };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    (soft as usize, if raised { hard } else { soft } as usize)
}
