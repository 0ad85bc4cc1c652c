//! `meshkv balance`: starts the balancer, says so, and stops it when a signal asks.

use super::settings::{self, Environment};
use super::{Failure, log};
use clap::{Args, ValueEnum, ValueHint};
use meshkv::balancer::Balancer;
use meshkv::balancer::StartError;
use meshkv::balancer::config::{
    BalanceConfig, CONNECTIONS_DEFAULT_MAX, STATUS_PORT_DEFAULT, Source, connections_for, parse_backend,
};
use meshkv::balancer::core::api::Location;
use meshkv::balancer::core::containers::Group;
use meshkv::balancer::core::pick::Selection;
use meshkv::balancer::core::pool::CheckMode;
use meshkv::limits::BALANCER_DRAIN_MS;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

const GROUP_NAME_DEFAULT: &str = "database";
const DOCKER_DEFAULT: &str = "/var/run/docker.sock";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum CheckArg {
    /// GET /healthcheck: 200 to 399 is healthy, 503 is warming up
    Http,
    /// A connection that opens is healthy
    Tcp,
    /// What the engine says of the container's own health check
    Docker,
    /// Everything is healthy until connections to it fail
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum SelectArg {
    /// One after the other
    RoundRobin,
    /// Of two, the one with fewer connections
    Least,
}

/// What a balancer can be told; variables and defaults are in [`settings::SETTINGS`].
#[derive(Args, Debug, Default)]
pub(super) struct BalanceArgs {
    /// Address to bind
    #[arg(long, id = "host", value_name = "IP", help_heading = "Network", value_parser = settings::host)]
    host: Option<IpAddr>,
    /// Port that clients connect to; 0 takes a free one and prints it
    #[arg(long = "port", short = 'p', id = "service_port", value_name = "PORT", help_heading = "Network",
        value_parser = settings::port)]
    port: Option<u16>,
    /// Port of /status, /metrics, /live and /ready on 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "PORT", help_heading = "Network", value_parser = settings::port)]
    status_port: Option<u16>,
    /// Client connections open at once
    ///
    /// Each takes two descriptors; the default follows their limit, which is raised to its hard limit first.
    #[arg(long = "max-connections", id = "balance_connections", value_name = "N", help_heading = "Network",
        value_parser = settings::count)]
    max_connections: Option<usize>,
    /// Worker threads, one event loop each
    #[arg(long, id = "workers", value_name = "N", help_heading = "Network", value_parser = settings::count)]
    workers: Option<usize>,

    /// Docker engine: a socket's path, unix://, http:// or tcp://
    #[arg(long, value_name = "LOCATION", help_heading = "Docker")]
    docker: Option<String>,
    /// Compose service to balance
    #[arg(long, value_name = "SERVICE", help_heading = "Docker")]
    group_name: Option<String>,
    /// Port that its containers listen on
    #[arg(long, value_name = "PORT", help_heading = "Docker", value_parser = settings::port)]
    group_port: Option<u16>,
    /// Compose project of the service
    #[arg(long, value_name = "PROJECT", help_heading = "Docker")]
    group_project: Option<String>,
    /// Network to reach the containers by
    #[arg(long, value_name = "NETWORK", help_heading = "Docker")]
    group_network: Option<String>,

    /// Backends instead of containers, separated by commas
    #[arg(long, value_name = "HOST:PORT", help_heading = "Without Docker", value_delimiter = ',')]
    backends: Vec<String>,
    /// File with one backend a line, read again on SIGHUP
    #[arg(long, value_name = "PATH", help_heading = "Without Docker", value_hint = ValueHint::FilePath)]
    backends_file: Option<PathBuf>,
    /// Name whose addresses are the backends, looked up each second; they listen on the group port
    #[arg(long, value_name = "NAME", help_heading = "Without Docker")]
    dns_name: Option<String>,

    /// How health is found out
    #[arg(long, value_name = "HOW", help_heading = "Backends", value_enum, ignore_case = true)]
    check: Option<CheckArg>,
    /// How one of several backends is chosen
    #[arg(long, value_name = "HOW", help_heading = "Backends", value_enum, ignore_case = true)]
    select: Option<SelectArg>,

    /// How log lines look on stderr
    #[arg(
        long,
        id = "log_format",
        value_name = "FORMAT",
        help_heading = "Logging",
        value_enum,
        ignore_case = true
    )]
    log_format: Option<log::Format>,
    /// Least important log lines to show
    #[arg(
        long,
        id = "log_level",
        value_name = "LEVEL",
        help_heading = "Logging",
        value_enum,
        ignore_case = true
    )]
    log_level: Option<log::Level>,
}

/// The configuration, whether the status port was asked for, and how to log.
struct Resolved {
    config: BalanceConfig,
    status_asked: bool,
    log_format: log::Format,
    log_level: log::Level,
}

fn resolve(flags: BalanceArgs, environment: Environment<'_>) -> Result<Resolved, String> {
    use settings::{from_environment, word};
    let text = |text: &str| Ok(text.trim().to_owned());
    let host = from_environment("host", flags.host, environment, settings::host)?;
    let port = from_environment("service_port", flags.port, environment, settings::port)?;
    let status = from_environment("status_port", flags.status_port, environment, settings::port)?;
    let workers = from_environment("workers", flags.workers, environment, settings::count)?;
    let most = from_environment("balance_connections", flags.max_connections, environment, settings::count)?;
    let group_port = from_environment("group_port", flags.group_port, environment, settings::port)?;
    let group_port = group_port.unwrap_or(meshkv::config::PORT_DEFAULT);
    if group_port == 0 {
        return Err("--group-port: 0 is no port to connect to".to_owned());
    }
    let listed = Some(flags.backends).filter(|backends| !backends.is_empty());
    let split = |text: &str| Ok(text.split(',').map(|one| one.trim().to_owned()).collect());
    let backends: Option<Vec<String>> = from_environment("backends", listed, environment, split)?;
    let file = flags.backends_file.map(|path| path.to_string_lossy().into_owned());
    let file = from_environment("backends_file", file, environment, text)?;
    let dns_name = from_environment("dns_name", flags.dns_name, environment, text)?;
    let docker = from_environment("docker", flags.docker, environment, text)?;
    let source = match (backends, file, dns_name) {
        (None, None, None) => {
            let location = docker.unwrap_or_else(|| DOCKER_DEFAULT.to_owned());
            let location =
                Location::parse(&location).map_err(|rule| format!("--docker {location:?}: {rule}"))?;
            let name = from_environment("group_name", flags.group_name, environment, text)?;
            let name = name.unwrap_or_else(|| GROUP_NAME_DEFAULT.to_owned());
            let project = from_environment("group_project", flags.group_project, environment, text)?;
            let network = from_environment("group_network", flags.group_network, environment, text)?;
            Source::Docker { location, group: Group { name, port: group_port, project, network } }
        }
        (None, None, Some(name)) => {
            parse_backend(&format!("{name}:{group_port}")).map_err(|rule| format!("--dns-name: {rule}"))?;
            Source::Dns { name, port: group_port }
        }
        (_, _, Some(_)) => return Err("--dns-name and a list of backends exclude each other".to_owned()),
        (backends, file, None) => {
            let backends: Vec<String> =
                backends.unwrap_or_default().into_iter().filter(|text| !text.is_empty()).collect();
            for backend in &backends {
                parse_backend(backend).map_err(|rule| format!("--backends: {rule}"))?;
            }
            Source::Static { backends, file: file.map(PathBuf::from) }
        }
    };
    let is_docker = matches!(source, Source::Docker { .. });
    let mut config = BalanceConfig::new(source);
    let host = host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    config.listen = SocketAddr::new(host, port.unwrap_or(meshkv::config::PORT_DEFAULT));
    let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    config.status = Some(loopback(status.unwrap_or(STATUS_PORT_DEFAULT)));
    config.workers = workers.unwrap_or(config.workers).min(meshkv::config::WORKERS_MAX);
    let room = connections_for(meshkv::system::descriptor_limit(), config.workers);
    config.max_connections = most.unwrap_or_else(|| room.min(CONNECTIONS_DEFAULT_MAX));
    if config.max_connections > room {
        let asked = config.max_connections;
        return Err(format!(
            "--max-connections: {asked} is more than the descriptor limit leaves room for ({room}): raise it \
             (ulimit -n) or ask for less"
        ));
    }
    let check = from_environment("check", flags.check, environment, word::<CheckArg>)?;
    config.check = match check.unwrap_or(CheckArg::Http) {
        CheckArg::Http => CheckMode::Http,
        CheckArg::Tcp => CheckMode::Tcp,
        CheckArg::Docker if !is_docker => {
            return Err("--check docker: without the engine nobody knows of its health checks".to_owned());
        }
        CheckArg::Docker => CheckMode::Docker,
        CheckArg::Off => CheckMode::Off,
    };
    let select = from_environment("select", flags.select, environment, word::<SelectArg>)?;
    config.selection = match select.unwrap_or(SelectArg::RoundRobin) {
        SelectArg::RoundRobin => Selection::RoundRobin,
        SelectArg::Least => Selection::LeastOfTwo,
    };
    let log_format = from_environment("log_format", flags.log_format, environment, word)?;
    let log_level = from_environment("log_level", flags.log_level, environment, word)?;
    Ok(Resolved {
        config,
        status_asked: status.is_some(),
        log_format: log_format.unwrap_or(log::Format::Text),
        log_level: log_level.unwrap_or(log::Level::Info),
    })
}

/// Runs until a signal or a failure.
pub(super) fn run(flags: BalanceArgs, environment: Environment<'_>) -> Result<(), Failure> {
    meshkv::system::raise_descriptor_limit();
    let resolved = resolve(flags, environment).map_err(Failure::Usage)?;
    log::start(resolved.log_format, resolved.log_level);
    let config = resolved.config;
    let (version, commit, pid) = (env!("CARGO_PKG_VERSION"), env!("MESHKV_BUILD_COMMIT"), std::process::id());
    tracing::info!(target: log::START_UP, version, commit, pid, "meshkv {version} ({commit}) pid {pid} balance");
    let (workers, connections) = (config.workers, config.max_connections);
    tracing::info!(target: log::START_UP, workers, connections, "workers {workers}  connections {connections}");
    tracing::info!(target: log::START_UP, "group  {}", describe(&config.source));
    // Before the start, so that a signal is never met by the default action, which the first process of a
    // container does not even have.
    let running: Arc<OnceLock<Arc<Balancer>>> = Arc::new(OnceLock::new());
    watch_signals(Arc::clone(&running))?;
    let (wanted, wanted_status) = (config.listen, config.status.map(|status| status.port()));
    let balancer = match Balancer::start(config.clone()) {
        Err(StartError::Listen { address, cause })
            if Some(address) == config.status && !resolved.status_asked =>
        {
            tracing::warn!(
                "no status pages: cannot listen on {address}: {cause}; set --status-port to another"
            );
            Balancer::start(BalanceConfig { status: None, ..config })
        }
        started => started,
    };
    let balancer = match balancer {
        Ok(balancer) => Arc::clone(running.get_or_init(|| Arc::new(balancer))),
        Err(error @ StartError::Config(_)) => return Err(Failure::Usage(error.to_string())),
        Err(error) => {
            tracing::error!("{error}");
            return Err(Failure::Logged);
        }
    };
    let http = format!("http://{}", balancer.address());
    match wanted.port() {
        0 => tracing::info!(target: log::CHOSEN, http, "http   {http}"),
        _ => tracing::info!(target: log::START_UP, http, "http   {http}"),
    }
    if let Some(address) = balancer.status_address() {
        let status = format!("http://{address}");
        match wanted_status {
            Some(0) => tracing::info!(target: log::CHOSEN, status, "status {status}/status"),
            _ => tracing::info!(target: log::START_UP, status, "status {status}/status"),
        }
    }
    if !wanted.ip().is_loopback() {
        tracing::warn!("listening beyond loopback: anyone who reaches this port reaches the backends");
    }
    tracing::info!(target: log::START_UP, "ready");
    balancer.wait().map_err(|reason| {
        tracing::error!("{reason}");
        Failure::Logged
    })?;
    tracing::info!("stop   done");
    Ok(())
}

fn describe(source: &Source) -> String {
    match source {
        Source::Docker { location, group } => {
            format!("service {} on port {}, from the engine at {location}", group.name, group.port)
        }
        Source::Static { backends, file: None } => backends.join(", "),
        Source::Static { backends, file: Some(path) } if backends.is_empty() => path.display().to_string(),
        Source::Static { backends, file: Some(path) } => {
            format!("{}, {}", backends.join(", "), path.display())
        }
        Source::Dns { name, port } => format!("every address of {name}, on port {port}"),
        Source::Given(_) => "given".to_owned(),
    }
}

/// SIGHUP reads the static list again; SIGTERM and SIGINT drain, and a second one ends at once.
fn watch_signals(balancer: Arc<OnceLock<Arc<Balancer>>>) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::Runtime(format!("cannot watch for signals: {error}"));
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(cannot)?;
    let watch = move || {
        let mut draining = false;
        for signal in signals.forever() {
            match balancer.get() {
                Some(balancer) if signal == SIGHUP => balancer.reload(),
                None if signal == SIGHUP => {}
                Some(balancer) if !draining => {
                    draining = true;
                    let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
                    let seconds = BALANCER_DRAIN_MS / 1000;
                    tracing::info!(
                        "stop   {name}: draining, at most {seconds} s; a second signal ends at once"
                    );
                    balancer.stop();
                }
                _ => signal_hook::low_level::exit(128 + signal),
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(cannot)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn source(pairs: &'static [(&str, &str)]) -> Result<Source, String> {
        let read = move |name: &str| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        resolve(BalanceArgs::default(), &read).map(|resolved| resolved.config.source)
    }

    #[test]
    fn the_environment_says_where_backends_come_from() {
        let docker = source(&[
            ("DOCKER_API_LOCATION", "tcp://engine:2375"),
            ("GROUP_NAME", "db"),
            ("GROUP_PORT", "81"),
        ]);
        let group = Group { name: "db".into(), port: 81, project: None, network: None };
        assert_eq!(docker, Ok(Source::Docker { location: Location::Tcp("engine:2375".into()), group }));
        let listed = source(&[("BACKENDS", "a:1, b:2,")]);
        assert_eq!(listed, Ok(Source::Static { backends: vec!["a:1".into(), "b:2".into()], file: None }));
        let named = source(&[("DNS_NAME", "database")]);
        assert_eq!(named, Ok(Source::Dns { name: "database".into(), port: 8080 }));
        for (pairs, hint) in [
            (&[("DOCKER_API_LOCATION", "https://engine:2376")][..], "https"),
            (&[("BACKENDS", "a")], "host:port"),
            (&[("BACKENDS", "a:1"), ("DNS_NAME", "b")], "exclude"),
            (&[("DNS_NAME", "a b")], "--dns-name"),
            (&[("GROUP_PORT", "0")], "--group-port"),
            (&[("SERVICE_PORT", "x")], "SERVICE_PORT"),
            (&[("MAX_CONNECTIONS", "99999999999")], "--max-connections"),
            (&[("BACKENDS", "a:1"), ("CHECK", "docker")], "--check"),
        ] {
            let refused = source(pairs).expect_err("wrong");
            assert!(refused.contains(hint), "{refused}");
        }
    }
}
