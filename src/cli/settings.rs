//! Flag, then environment, then default: what a node is told, and where each part of it came from.

use super::NodeArgs;
use super::log::{Format, Level};
use clap::ValueEnum;
use meshkv::config::{AckLevel, MemorySize, NodeConfig, Secret};
use meshkv::system::Memory;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Reads a variable; a parameter so that tests need not touch the process's own.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// What the help and the environment know of a flag.
pub(super) struct Setting {
    /// The flag's name, with underscores.
    pub(super) id: &'static str,
    /// Its variables; the first that is set wins.
    pub(super) variables: &'static [&'static str],
    /// As the help shows it.
    pub(super) default: &'static str,
}

const fn setting(id: &'static str, variables: &'static [&'static str], default: &'static str) -> Setting {
    Setting { id, variables, default }
}

/// Every flag with its variables. The short names are those that deployments already use.
pub(super) const SETTINGS: &[Setting] = &[
    setting("host", &["MESHKV_HOST"], "127.0.0.1"),
    setting("port", &["MESHKV_PORT", "PORT"], "8080"),
    setting("unix", &["MESHKV_UNIX"], "none"),
    setting("max_connections", &["MESHKV_MAX_CONNECTIONS"], "from the descriptor limit, at most 65536"),
    setting("cors_origin", &["MESHKV_CORS_ORIGIN"], "off"),
    setting("workers", &["MESHKV_WORKERS"], "one per core"),
    setting("max_memory", &["MESHKV_MAX_MEMORY"], "80%"),
    setting("max_key_length", &["MESHKV_MAX_KEY_LENGTH"], "64"),
    setting("max_value_length", &["MESHKV_MAX_VALUE_LENGTH"], "256"),
    setting("name", &["MESHKV_NAME", "HOSTNAME"], "the system's host name"),
    setting("join", &["MESHKV_JOIN", "MESH_NETWORK_URL"], "none"),
    setting("peer_port", &["MESHKV_PEER_PORT"], "7373, or a free one if that is taken"),
    setting("advertise", &["MESHKV_ADVERTISE"], "the address that peers see"),
    setting("acks", &["MESHKV_ACKS"], "all"),
    setting("secret_file", &["MESHKV_SECRET_FILE", "MESHKV_SECRET"], "none"),
    setting("leave_notice", &["MESHKV_LEAVE_NOTICE"], "0"),
    setting("log_format", &["MESHKV_LOG_FORMAT"], "text"),
    setting("log_level", &["MESHKV_LOG_LEVEL"], "info"),
    setting("service_port", &["MESHKV_BALANCE_PORT", "SERVICE_PORT"], "8080"),
    setting("status_port", &["MESHKV_BALANCE_STATUS_PORT"], "9900"),
    setting(
        "balance_connections",
        &["MESHKV_BALANCE_MAX_CONNECTIONS", "MAX_CONNECTIONS"],
        "from the descriptor limit, at most 65536",
    ),
    setting("docker", &["MESHKV_BALANCE_DOCKER", "DOCKER_API_LOCATION"], "/var/run/docker.sock"),
    setting("group_name", &["MESHKV_BALANCE_GROUP_NAME", "GROUP_NAME"], "database"),
    setting("group_port", &["MESHKV_BALANCE_GROUP_PORT", "GROUP_PORT"], "8080"),
    setting("group_project", &["MESHKV_BALANCE_GROUP_PROJECT", "GROUP_PROJECT"], "our own, or the only one"),
    setting(
        "group_network",
        &["MESHKV_BALANCE_GROUP_NETWORK", "GROUP_NETWORK"],
        "one that we are in as well",
    ),
    setting("backends", &["MESHKV_BALANCE_BACKENDS", "BACKENDS"], "none: ask the engine"),
    setting("backends_file", &["MESHKV_BALANCE_BACKENDS_FILE", "BACKENDS_FILE"], "none"),
    setting("dns_name", &["MESHKV_BALANCE_DNS_NAME", "DNS_NAME"], "none"),
    setting("check", &["MESHKV_BALANCE_CHECK", "CHECK"], "http"),
    setting("select", &["MESHKV_BALANCE_SELECT", "SELECT"], "round-robin"),
    setting("nodes", &["MESHKV_UP_NODES"], "3"),
    setting("up_port", &["MESHKV_UP_PORT", "PORT"], "8080"),
    setting("url", &["MESHKV_HEALTHCHECK_URL"], "the node of this environment"),
    setting("timeout", &["MESHKV_HEALTHCHECK_TIMEOUT"], "3"),
];

fn variables_of(id: &str) -> &'static [&'static str] {
    SETTINGS.iter().find(|setting| setting.id == id).map_or(&[], |setting| setting.variables)
}

/// `--max-memory` for `max_memory`.
pub(super) fn flag_of(id: &str) -> String {
    format!("--{}", id.replace('_', "-"))
}

/// Adds variables and defaults to the help of a command's flags: the short help has the default, the long
/// help both.
pub(super) fn document(command: clap::Command) -> clap::Command {
    command.mut_args(|argument| {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.id == argument.get_id().as_str()) else {
            return argument;
        };
        let short = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let long = argument.get_long_help().map_or_else(|| short.clone(), ToString::to_string);
        let default = setting.default;
        let variables = setting.variables.join(", ");
        argument
            .help(format!("{short} [default: {default}]"))
            .long_help(format!("{long}\n\n[env: {variables}] [default: {default}]"))
    })
}

pub(super) fn host(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| "expected an IP address such as 127.0.0.1, 0.0.0.0 or ::1".to_owned())
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    digits(text).ok_or_else(|| "expected a port from 0 to 65535".to_owned())
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    digits(text).filter(|&count| count > 0).ok_or_else(|| "expected a whole number from 1".to_owned())
}

pub(super) fn memory(text: &str) -> Result<MemorySize, String> {
    text.parse::<MemorySize>().map_err(|error| error.to_string())
}

pub(super) fn acks(text: &str) -> Result<AckLevel, String> {
    text.parse::<AckLevel>().map_err(|error| error.to_string())
}

/// Seconds with at most three decimals, above zero and at most an hour.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let seconds = text.parse::<f64>().ok().filter(|seconds| plain && (0.001..=3600.0).contains(seconds));
    let seconds = seconds.ok_or_else(|| "expected seconds from 0.001 to 3600".to_owned())?;
    Ok(Duration::from_secs_f64(seconds))
}

/// Seconds that leave Docker's ten room for the drain.
pub(super) fn notice(text: &str) -> Result<Duration, String> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let seconds = text.parse::<f64>().ok().filter(|seconds| plain && (0.0..=4.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected seconds from 0 to 4".to_owned())
}

/// A number without sign or spaces, which the standard parser alone would take.
fn digits<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

pub(super) fn word<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, true).map_err(|_| {
        let words: Vec<String> = T::value_variants()
            .iter()
            .filter_map(|variant| variant.to_possible_value().map(|value| value.get_name().to_owned()))
            .collect();
        format!("expected {}", words.join(", "))
    })
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Flag,
    Variable(&'static str),
    Default,
}

/// A node's configuration with the origin of each part.
pub(super) struct Resolved {
    pub(super) config: NodeConfig,
    pub(super) leave_notice: Duration,
    pub(super) log_format: Format,
    pub(super) log_level: Level,
    /// What was overlooked on purpose, for people.
    pub(super) remarks: Vec<String>,
    origins: Vec<(&'static str, Origin)>,
}

/// Joins flags, environment and defaults, and validates the whole.
///
/// # Errors
/// A sentence that names the flag or the variable at fault. It never holds a secret.
pub(super) fn resolve(flags: NodeArgs, environment: Environment<'_>) -> Result<Resolved, String> {
    let mut sources = Sources { environment, origins: Vec::new(), remarks: Vec::new() };
    let mut config = NodeConfig::default();
    replace(&mut config.host, sources.pick("host", flags.host, host)?);
    replace(&mut config.port, sources.pick("port", flags.port, port)?);
    config.unix = sources.pick_path("unix", flags.unix);
    replace(&mut config.workers, sources.pick("workers", flags.workers, count)?);
    let connections = sources.pick("max_connections", flags.max_connections, count)?;
    config.max_connections = connections.unwrap_or_else(|| NodeConfig::connections_default(config.workers));
    config.cors_origin = sources.pick("cors_origin", flags.cors_origin, text)?;
    let memory = sources.pick("max_memory", flags.max_memory, memory)?;
    replace(&mut config.max_memory_bytes, memory.map(|size| size.resolve(Memory::detect())));
    replace(&mut config.max_key_chars, sources.pick("max_key_length", flags.max_key_length, count)?);
    replace(&mut config.max_value_chars, sources.pick("max_value_length", flags.max_value_length, count)?);
    replace(&mut config.name, sources.pick("name", flags.name, text)?);
    let join = Some(flags.join).filter(|urls| !urls.is_empty());
    let split = |text: &str| Ok(text.split(',').map(str::to_owned).collect());
    let urls: Vec<String> = sources.pick("join", join, split)?.unwrap_or_default();
    config.join = urls.iter().map(|url| url.trim().to_owned()).filter(|url| !url.is_empty()).collect();
    config.peer_port = sources.pick("peer_port", flags.peer_port, port)?;
    config.advertise = sources.pick("advertise", flags.advertise, text)?;
    replace(&mut config.acks, sources.pick("acks", flags.acks, acks)?);
    config.secret = sources.secret(flags.secret_file)?;
    let leave_notice = sources.pick("leave_notice", flags.leave_notice, notice)?.unwrap_or_default();
    let log_format = sources.pick("log_format", flags.log_format, word)?.unwrap_or(Format::Text);
    let log_level = sources.pick("log_level", flags.log_level, word)?.unwrap_or(Level::Info);
    config.validate().map_err(|error| {
        let place = match sources.origins.iter().find(|(id, _)| *id == error.field) {
            Some((_, Origin::Variable(name))) => format!("environment variable {name}"),
            _ => flag_of(error.field),
        };
        format!("{place}: {}", error.reason)
    })?;
    let Sources { origins, remarks, .. } = sources;
    Ok(Resolved { config, leave_notice, log_format, log_level, remarks, origins })
}

fn replace<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// A value of the environment alone, for what is no node's configuration.
pub(super) fn from_environment<T>(
    id: &'static str,
    flag: Option<T>,
    environment: Environment<'_>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, String> {
    Sources { environment, origins: Vec::new(), remarks: Vec::new() }.pick(id, flag, parse)
}

struct Sources<'a> {
    environment: Environment<'a>,
    origins: Vec<(&'static str, Origin)>,
    remarks: Vec<String>,
}

impl Sources<'_> {
    /// The flag, else the first variable that is set; `None` leaves the default.
    fn pick<T>(
        &mut self,
        id: &'static str,
        flag: Option<T>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        if flag.is_some() {
            self.origins.push((id, Origin::Flag));
            return Ok(flag);
        }
        let Some((name, value)) = self.variable(id) else {
            self.origins.push((id, Origin::Default));
            return Ok(None);
        };
        self.origins.push((id, Origin::Variable(name)));
        let Some(value) = value.to_str() else {
            return Err(format!("environment variable {name} is not valid UTF-8"));
        };
        let parsed = parse(value);
        parsed
            .map(Some)
            .map_err(|rule| format!("invalid value {value:?} for environment variable {name}: {rule}"))
    }

    /// As `pick`, for what may be any bytes.
    fn pick_path(&mut self, id: &'static str, flag: Option<PathBuf>) -> Option<PathBuf> {
        let variable = self.variable(id);
        let (origin, path) = match (flag, variable) {
            (Some(path), _) => (Origin::Flag, Some(path)),
            (None, Some((name, path))) => (Origin::Variable(name), Some(PathBuf::from(path))),
            (None, None) => (Origin::Default, None),
        };
        self.origins.push((id, origin));
        path
    }

    fn secret(&mut self, flag: Option<PathBuf>) -> Result<Option<Secret>, String> {
        let shown = |name: &'static str| self.value(name).map(|value| (name, value));
        let (inline, file) = (shown("MESHKV_SECRET"), shown("MESHKV_SECRET_FILE"));
        let (origin, place, bytes) = match (flag, file, inline) {
            (Some(path), ..) => (Origin::Flag, "--secret-file", read_secret("--secret-file", &path)?),
            (None, Some(_), Some(_)) => {
                return Err("MESHKV_SECRET and MESHKV_SECRET_FILE are both set: keep one of them".to_owned());
            }
            (None, Some((name, path)), None) => {
                (Origin::Variable(name), name, read_secret(name, Path::new(&path))?)
            }
            (None, None, Some((name, value))) => (Origin::Variable(name), name, value.into_encoded_bytes()),
            (None, None, None) => {
                self.origins.push(("secret_file", Origin::Default));
                return Ok(None);
            }
        };
        self.origins.push(("secret_file", origin));
        Secret::new(&bytes).map(Some).map_err(|error| format!("{place}: {}", error.reason))
    }

    fn variable(&mut self, id: &str) -> Option<(&'static str, OsString)> {
        for &name in variables_of(id) {
            let Some(value) = self.value(name) else { continue };
            if id == "port" && is_service_link(&value) {
                let remark = format!("{name} ignored: it describes a service, as Kubernetes sets it");
                if !self.remarks.contains(&remark) {
                    self.remarks.push(remark);
                }
                continue;
            }
            return Some((name, value));
        }
        None
    }

    fn value(&self, name: &str) -> Option<OsString> {
        (self.environment)(name).filter(|value| !value.is_empty())
    }
}

/// Kubernetes sets `MESHKV_PORT=tcp://10.0.0.1:8080` in every pod beside a service named `meshkv`. That
/// value was not meant for us, so it must not keep a node from starting.
fn is_service_link(value: &OsStr) -> bool {
    value.to_str().is_some_and(|value| value.starts_with("tcp://") || value.starts_with("udp://"))
}

/// A secret file's content. The read is bounded, since the path may be anything.
fn read_secret(place: &str, path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let cannot = |error: std::io::Error| format!("{place}: cannot read {}: {error}", path.display());
    let file = std::fs::File::open(path).map_err(cannot)?;
    let mut bytes = Vec::new();
    file.take(64 * 1024).read_to_end(&mut bytes).map_err(cannot)?;
    Ok(bytes)
}

impl Resolved {
    /// One line per setting: its name, its value, where that came from. A secret is only said to be set.
    pub(super) fn describe(&self) -> String {
        let config = &self.config;
        let none = || "none".to_owned();
        let mut lines = String::new();
        for (id, origin) in &self.origins {
            let value = match *id {
                "host" => config.host.to_string(),
                "port" => config.port.to_string(),
                "unix" => config.unix.as_ref().map_or_else(none, |path| path.display().to_string()),
                "max_connections" => config.max_connections.to_string(),
                "cors_origin" => config.cors_origin.clone().unwrap_or_else(|| "off".to_owned()),
                "workers" => config.workers.to_string(),
                "max_memory" => format!("{} bytes", config.max_memory_bytes),
                "max_key_length" => config.max_key_chars.to_string(),
                "max_value_length" => config.max_value_chars.to_string(),
                "name" => config.name.clone(),
                "join" if config.join.is_empty() => none(),
                "join" => config.join.join(","),
                "peer_port" => {
                    config.peer_port.map_or_else(|| "automatic".to_owned(), |port| port.to_string())
                }
                "advertise" => config.advertise.clone().unwrap_or_else(|| "automatic".to_owned()),
                "acks" => config.acks.to_string(),
                "secret_file" => config.secret.as_ref().map_or_else(none, |_| "set (hidden)".to_owned()),
                "leave_notice" => format!("{} s", self.leave_notice.as_secs_f64()),
                "log_format" => name_of(self.log_format),
                "log_level" => name_of(self.log_level),
                _ => continue,
            };
            let origin = match origin {
                Origin::Flag => flag_of(id),
                Origin::Variable(name) => (*name).to_owned(),
                Origin::Default => "default".to_owned(),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{:<17} {value:<24} {origin}", id.replace('_', "-"));
        }
        lines.push_str("configuration is valid\n");
        lines
    }
}

fn name_of<T: ValueEnum>(value: T) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
