//! The command line: what can be asked, and who does it.
//!
//! Flags are described here; `settings` joins them with the environment and the defaults. Data goes to
//! stdout, everything else to stderr. Exit codes: 0 done, 1 it failed, 2 it was asked for wrongly, 128 plus
//! the signal's number when a second signal cut a drain short.

mod balance;
mod healthcheck;
mod log;
mod manual;
mod serve;
mod settings;
mod up;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueHint};
use meshkv::config::{AckLevel, MemorySize};
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit   ",
    env!("MESHKV_BUILD_COMMIT"),
    "\ntarget   ",
    env!("MESHKV_BUILD_TARGET"),
    "\nfeatures ",
    env!("MESHKV_BUILD_FEATURES"),
);

/// Lines of at most 79 columns: they are wrapped at the width of the terminal.
const EXAMPLES: &str = "\
Examples:
  meshkv                                     a node on http://127.0.0.1:8080
  meshkv --port 0 --unix /tmp/meshkv.sock    a free port, and a UNIX socket too
  meshkv --host 0.0.0.0                      reachable from other machines
  meshkv --port 9000 --max-memory 50%        another port, half of the memory
  PORT=9000 MESHKV_MAX_MEMORY=50% meshkv     the same by environment
  meshkv check --max-memory 50%              each setting and its origin
  meshkv healthcheck                         0 if the node here is healthy

  curl 'http://127.0.0.1:8080/set?k=greeting&v=hello'
  curl 'http://127.0.0.1:8080/get?k=greeting'

Precedence: flag, then environment, then default. An empty variable counts as
not set. Where two variables are named, the first that is set wins.

Exit codes: 0 stopped cleanly, 1 failed while running, 2 wrong usage or
configuration; 130 and 143 if a second SIGINT or SIGTERM ended a drain.";

/// An in-memory key-value server that anything able to send an HTTP GET can use.
///
/// Without a command it runs a node, as `meshkv serve` does.
#[derive(Parser, Debug)]
#[command(
    name = "meshkv",
    version,
    long_version = LONG_VERSION,
    after_long_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    max_term_width = 110
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a node until SIGTERM or SIGINT
    ///
    /// The first signal drains: health turns 503, listeners close, answers in flight finish, at most 5 s. A
    /// second signal ends it at once.
    #[command(after_long_help = EXAMPLES)]
    Serve(NodeArgs),
    /// Balance TCP connections over the containers of a compose service, or over a list
    ///
    /// Finds the containers by itself through the Docker engine, routes to those that are healthy, and follows
    /// them as they come, go, pause and restart. Needs nothing but the engine's socket; --backends, --backends-file
    /// and --dns-name do without it. SIGTERM drains for at most 8 s; SIGHUP reads the file again.
    Balance(balance::BalanceArgs),
    /// Run a whole mesh on this machine: nodes and a balancer before them, one process tree
    ///
    /// Ctrl-C ends all of it. From another terminal: `meshkv up status`, `meshkv up add`, `meshkv up kill n2`.
    Up(up::UpArgs),
    /// A node that ends with its parent
    #[command(hide = true)]
    Member(NodeArgs),
    /// Removes a file when its input ends
    #[command(hide = true)]
    Janitor { path: PathBuf },
    /// Validate the configuration, print it with the origin of each value, and exit
    ///
    /// Takes the flags and the environment of `serve`, opens no port and starts nothing.
    Check(NodeArgs),
    /// Ask a node for its health: exit code 0 if it is healthy, 1 if not
    ///
    /// Meant for container health checks: it needs no shell and no other program.
    Healthcheck(HealthcheckArgs),
    /// Print a completion script for a shell
    ///
    /// For bash: meshkv completions bash > /etc/bash_completion.d/meshkv
    Completions {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    ///
    /// To read it: meshkv man | man -l -
    Man,
}

/// What a node can be told. The names of the environment variables and the defaults are in
/// [`settings::SETTINGS`], which adds them to the help.
#[derive(Args, Debug, Default)]
struct NodeArgs {
    /// Address to bind
    ///
    /// An IP address or `localhost`. Beyond loopback, anyone who reaches the port can read and write.
    #[arg(long, value_name = "IP", help_heading = "Network", value_parser = settings::host)]
    host: Option<IpAddr>,
    /// HTTP port; 0 takes a free one and prints it
    #[arg(long, short, value_name = "PORT", help_heading = "Network", value_parser = settings::port)]
    port: Option<u16>,
    /// UNIX socket to listen on as well
    ///
    /// For clients on the same machine: about half the cost of TCP.
    #[arg(long, value_name = "PATH", help_heading = "Network", value_hint = ValueHint::FilePath)]
    unix: Option<PathBuf>,
    /// Client connections open at once
    ///
    /// The default follows the descriptor limit, which is raised to its hard limit first.
    #[arg(long, value_name = "N", help_heading = "Network", value_parser = settings::count)]
    max_connections: Option<usize>,
    /// Origin that browsers may call from, or *
    ///
    /// Sent as Access-Control-Allow-Origin: scheme://host[:port].
    #[arg(long, value_name = "ORIGIN", help_heading = "Network")]
    cors_origin: Option<String>,
    /// Worker threads, one event loop each
    ///
    /// The affinity mask and the cgroup's CPU quota count as cores.
    #[arg(long, value_name = "N", help_heading = "Network", value_parser = settings::count)]
    workers: Option<usize>,

    /// Memory for records: 512M, 2GiB, 80%
    ///
    /// K, M, G, T (also KiB, MiB, ...) count in 1024s, KB, MB, ... in 1000s. A percentage is of the machine's
    /// memory or of the cgroup's limit, whichever is smaller. A record that does not fit is refused with 507;
    /// everything else goes on.
    #[arg(long, value_name = "SIZE", help_heading = "Store", value_parser = settings::memory)]
    max_memory: Option<MemorySize>,
    /// Characters of a key
    ///
    /// At most 1024. A request line of 8 KiB must hold the key and the value, percent-encoded.
    #[arg(long, value_name = "CHARS", help_heading = "Store", value_parser = settings::count)]
    max_key_length: Option<usize>,
    /// Characters of a value
    ///
    /// At most 4096. A request line of 8 KiB must hold the key and the value, percent-encoded.
    #[arg(long, value_name = "CHARS", help_heading = "Store", value_parser = settings::count)]
    max_value_length: Option<usize>,

    /// Seconds to go on serving after SIGTERM while health says 503
    ///
    /// For balancers, which need a moment to notice. The drain begins after it.
    #[arg(long, value_name = "SECONDS", help_heading = "Network", value_parser = settings::notice)]
    leave_notice: Option<Duration>,

    /// Name of this node
    #[arg(long, value_name = "NAME", help_heading = "Mesh", value_hint = ValueHint::Hostname)]
    name: Option<String>,
    /// URL of a node to join (repeatable)
    ///
    /// http://host[:port] of any member, or of a balancer before them. Several may be given, also separated
    /// by commas.
    #[arg(long, value_name = "URL", help_heading = "Mesh", value_hint = ValueHint::Url, value_delimiter = ',')]
    join: Vec<String>,
    /// Port for peers
    #[arg(long, value_name = "PORT", help_heading = "Mesh", value_parser = settings::port)]
    peer_port: Option<u16>,
    /// Address that peers are told: host or host:port
    #[arg(long, value_name = "ADDRESS", help_heading = "Mesh")]
    advertise: Option<String>,
    /// Nodes that must hold a write before it is answered
    ///
    /// local, quorum, all, or a number of nodes. A request may ask for another level with `w`.
    #[arg(long, value_name = "LEVEL", help_heading = "Mesh", value_parser = settings::acks)]
    acks: Option<AckLevel>,
    /// File with the secret that peers share
    ///
    /// At least 32 bytes; spaces and line breaks around it do not count. MESHKV_SECRET may hold the secret
    /// itself instead. There is no flag for the secret: other users of the machine can read those.
    #[arg(long, value_name = "PATH", help_heading = "Mesh", value_hint = ValueHint::FilePath)]
    secret_file: Option<PathBuf>,

    /// How log lines look on stderr
    #[arg(long, value_name = "FORMAT", help_heading = "Logging", value_enum, ignore_case = true)]
    log_format: Option<log::Format>,
    /// Least important log lines to show
    #[arg(long, value_name = "LEVEL", help_heading = "Logging", value_enum, ignore_case = true)]
    log_level: Option<log::Level>,
}

#[derive(Args, Debug)]
struct HealthcheckArgs {
    /// Node to ask
    ///
    /// http://host[:port], with or without the path /healthcheck. The default is built from MESHKV_HOST and
    /// MESHKV_PORT or PORT, as the node itself reads them; an address such as 0.0.0.0 becomes loopback.
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    url: Option<String>,
    /// Seconds to wait for the whole answer
    #[arg(long, value_name = "SECONDS", value_parser = settings::seconds)]
    timeout: Option<Duration>,
}

/// The command line's description, with environment variables and defaults in the help.
fn command() -> clap::Command {
    let command = settings::document(Cli::command());
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, settings::document))
}

/// Reads the command line of this process and does what it asks.
pub(crate) fn run() -> ExitCode {
    let mut description = command();
    let parsed = description.try_get_matches_from_mut(std::env::args_os());
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    let environment = |name: &str| std::env::var_os(name);
    let outcome = match cli.command {
        None => serve::run(cli.node, &environment),
        Some(Command::Serve(node)) => serve::run(node, &environment),
        Some(Command::Balance(flags)) => balance::run(flags, &environment),
        Some(Command::Up(arguments)) => up::run(arguments, &environment),
        Some(Command::Member(node)) => up::member(node, &environment),
        Some(Command::Janitor { path }) => up::clean_up(&path),
        Some(Command::Check(node)) => check(node, &environment),
        Some(Command::Healthcheck(arguments)) => healthcheck::run(arguments, &environment),
        Some(Command::Completions { shell }) => print(&manual::completions(shell, &command())),
        Some(Command::Man) => print(&manual::page(description.clone())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(reason)) => {
            let reason = format!("{reason}\n");
            explain(&clap::Error::raw(clap::error::ErrorKind::InvalidValue, reason).with_cmd(&description))
        }
        Err(Failure::Runtime(reason)) => {
            // The log may not be set up yet, and may be filtered: the reason of an exit always shows.
            let _ = writeln!(std::io::stderr(), "error: {reason}");
            ExitCode::FAILURE
        }
        Err(Failure::Logged) => ExitCode::FAILURE,
    }
}

/// Why a command did not succeed.
#[derive(Debug)]
enum Failure {
    /// The caller asked wrongly: exit code 2.
    Usage(String),
    /// It went wrong later: exit code 1.
    Runtime(String),
    /// As `Runtime`, and the log has the reason already.
    Logged,
}

/// Shows what clap has to say: help and version on stdout, mistakes on stderr.
fn explain(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Writes data to stdout. A reader that went away (`meshkv man | head`) is no failure.
fn print(data: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(data).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Runtime(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// `meshkv check`.
fn check(node: NodeArgs, environment: settings::Environment<'_>) -> Result<(), Failure> {
    meshkv::system::raise_descriptor_limit();
    let resolved = settings::resolve(node, environment).map_err(Failure::Usage)?;
    log::start(resolved.log_format, resolved.log_level);
    serve::warn_of(&resolved);
    print(resolved.describe().as_bytes())
}
