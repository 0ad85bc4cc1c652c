//! What a node is told: [`NodeConfig`], its defaults and its rules. Flags and environment variables are the
//! binary's business; a program that embeds a node fills this in by hand.

use crate::limits::{
    CONNECTION_WAIT_MS_MAX, HEAD_ARRIVAL_MS, IDLE_CONNECTION_MS, KEY_CHARS_DEFAULT, KEY_CHARS_MAX,
    PEER_WORKERS_MAX, STRIPES_DEFAULT, VALUE_CHARS_DEFAULT, VALUE_CHARS_MAX,
};
use crate::system;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

/// The HTTP port, unless told otherwise.
pub const PORT_DEFAULT: u16 = 8080;
/// The port for peers, unless told otherwise or taken.
pub const PEER_PORT_DEFAULT: u16 = 7373;
/// The part of the usable memory that the store may fill, in percent.
pub const MEMORY_PERCENT_DEFAULT: u64 = 80;
/// What the store may fill where the system does not say how much memory there is, in bytes.
pub const MEMORY_BYTES_FALLBACK: u64 = 1 << 30;
/// The least memory limit that is accepted, in bytes.
pub const MEMORY_BYTES_MIN: u64 = 1 << 20;
/// The most worker threads that are accepted: peers take no more of a member.
pub const WORKERS_MAX: usize = PEER_WORKERS_MAX;
/// The most stripes that are accepted.
pub const STRIPES_MAX: usize = 1 << 20;
/// The default bound of connections is never above this, however many descriptors there are: each
/// connection may hold buffers, so the bound on connections is also a bound on memory.
pub const CONNECTIONS_DEFAULT_MAX: usize = 65_536;
/// Bytes of a node's name.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a secret, least and most.
pub const SECRET_BYTES_MIN: usize = 32;
/// See [`SECRET_BYTES_MIN`].
pub const SECRET_BYTES_MAX: usize = 4096;
/// Bytes of a UNIX socket's path, which the system's address structure bounds.
pub const UNIX_PATH_BYTES_MAX: usize = 100;

const _: () = assert!(STRIPES_DEFAULT <= STRIPES_MAX && STRIPES_MAX.is_power_of_two());
const _: () = assert!(MEMORY_BYTES_MIN <= MEMORY_BYTES_FALLBACK && MEMORY_PERCENT_DEFAULT <= 100);

/// All that a node is told before it starts. [`Default`] asks the machine (cores, memory, descriptors, host
/// name); [`NodeConfig::validate`] says what is wrong with a hand-made one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The address that the HTTP listeners bind. Beyond loopback, anyone who reaches it can read and write.
    pub host: IpAddr,
    /// The HTTP port; 0 lets the system choose.
    pub port: u16,
    /// The node's name, as `/status` and its peers show it.
    pub name: String,
    /// Where to find the mesh, as `http://host[:port]`; empty: a lone node, which others may still join.
    pub join: Vec<String>,
    /// The port for peers; `None`: [`PEER_PORT_DEFAULT`], or a free one if that is taken.
    pub peer_port: Option<u16>,
    /// The address that peers are told, as `host` or `host:port`; `None`: the one they see.
    pub advertise: Option<String>,
    /// Worker threads, each with an event loop of its own.
    pub workers: usize,
    /// How many nodes must hold a write before it is answered, unless the request says so itself.
    pub acks: AckLevel,
    /// What the store may occupy, everything included.
    pub max_memory_bytes: u64,
    /// What peers share to trust each other.
    pub secret: Option<Secret>,
    /// A UNIX socket to listen on as well. While it is opened or removed a file of its name and `.lock` lies beside it.
    pub unix: Option<PathBuf>,
    /// Characters of a key.
    pub max_key_chars: usize,
    /// Characters of a value.
    pub max_value_chars: usize,
    /// Client connections open at once, over all workers.
    pub max_connections: usize,
    /// An idle connection is closed after this, in milliseconds.
    pub idle_connection_ms: u64,
    /// A request head that takes longer than this to arrive is refused, in milliseconds.
    pub head_arrival_ms: u64,
    /// The `Access-Control-Allow-Origin` to send: an origin or `*`; `None`: no CORS.
    pub cors_origin: Option<String>,
    /// Stripes of the store, a power of two.
    pub stripes: usize,
}

impl Default for NodeConfig {
    fn default() -> NodeConfig {
        let workers = system::cores().min(WORKERS_MAX);
        NodeConfig {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: PORT_DEFAULT,
            name: system::host_name(),
            join: Vec::new(),
            peer_port: None,
            advertise: None,
            workers,
            acks: AckLevel::All,
            max_memory_bytes: MemorySize::Percent(MEMORY_PERCENT_DEFAULT).resolve(system::Memory::detect()),
            secret: None,
            unix: None,
            max_key_chars: KEY_CHARS_DEFAULT,
            max_value_chars: VALUE_CHARS_DEFAULT,
            max_connections: connections_for(system::descriptor_limit(), workers)
                .min(CONNECTIONS_DEFAULT_MAX),
            idle_connection_ms: IDLE_CONNECTION_MS,
            head_arrival_ms: HEAD_ARRIVAL_MS,
            cors_origin: None,
            stripes: STRIPES_DEFAULT,
        }
    }
}

impl NodeConfig {
    /// The default of `max_connections` for so many workers: what the descriptor limit leaves room for, at
    /// most [`CONNECTIONS_DEFAULT_MAX`].
    #[must_use]
    pub fn connections_default(workers: usize) -> usize {
        connections_for(system::descriptor_limit(), workers).min(CONNECTIONS_DEFAULT_MAX)
    }

    /// Checks every field by itself and against the machine's limits.
    ///
    /// # Errors
    /// The first field that cannot work, with the reason. Nothing has been done.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check("name", self.name_fault())?;
        for url in &self.join {
            check("join", join_fault(url))?;
        }
        if self.peer_port.is_some_and(|peer| peer != 0 && peer == self.port) {
            return fault("peer_port", format!("{} is the HTTP port already", self.port));
        }
        if let Some(address) = &self.advertise {
            check("advertise", advertise_fault(address))?;
        }
        within("workers", self.workers, 1, WORKERS_MAX)?;
        if self.acks == AckLevel::Count(0) {
            return fault("acks", "a count of nodes must be at least 1 (this node is the first)");
        }
        if self.max_memory_bytes < MEMORY_BYTES_MIN {
            return fault("max_memory", format!("{} bytes is below 1 MiB", self.max_memory_bytes));
        }
        if let Some(path) = &self.unix {
            let length = path.as_os_str().len();
            if length == 0 || length > UNIX_PATH_BYTES_MAX {
                let rule = format!("a path of 1 to {UNIX_PATH_BYTES_MAX} bytes is needed, this has {length}");
                return fault("unix", rule);
            }
        }
        within("max_key_length", self.max_key_chars, 1, KEY_CHARS_MAX)?;
        within("max_value_length", self.max_value_chars, 1, VALUE_CHARS_MAX)?;
        self.check_connections(system::descriptor_limit())?;
        within("idle_connection", self.idle_connection_ms as usize, 1, CONNECTION_WAIT_MS_MAX as usize)?;
        within("head_arrival", self.head_arrival_ms as usize, 1, CONNECTION_WAIT_MS_MAX as usize)?;
        if let Some(origin) = &self.cors_origin {
            check("cors_origin", origin_fault(origin))?;
        }
        if !self.stripes.is_power_of_two() || self.stripes > STRIPES_MAX {
            let rule = format!("{} is not a power of two from 1 to {STRIPES_MAX}", self.stripes);
            return fault("stripes", rule);
        }
        Ok(())
    }

    fn name_fault(&self) -> Option<String> {
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            let length = self.name.len();
            return Some(format!("a name of 1 to {NAME_BYTES_MAX} bytes is needed, this has {length}"));
        }
        let odd = self.name.chars().find(|c| c.is_control() || c.is_whitespace())?;
        Some(format!("a name has no spaces or control characters, this has {odd:?}"))
    }

    fn check_connections(&self, descriptors: u64) -> Result<(), ConfigError> {
        if self.max_connections == 0 {
            return fault("max_connections", "at least 1 is needed");
        }
        let most = connections_for(descriptors, self.workers);
        if self.max_connections > most {
            let rule = format!(
                "{} is more than the descriptor limit of {descriptors} leaves room for ({most}): raise it \
                 (ulimit -n) or ask for less",
                self.max_connections
            );
            return fault("max_connections", rule);
        }
        Ok(())
    }
}

/// How many connections a descriptor limit leaves room for, beside what the node itself opens: per worker
/// a poller, a waker, listeners and links to peers; standard streams and files. At most half goes to those.
fn connections_for(descriptors: u64, workers: usize) -> usize {
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let own = workers.saturating_mul(32).saturating_add(64).min(descriptors / 2);
    (descriptors - own).max(1)
}

/// Why a [`NodeConfig`] cannot work: the caller's mistake, found before anything was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The field at fault, by its flag's name with underscores.
    pub field: &'static str,
    /// What is wrong with it, for people. Never holds a secret.
    pub reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

impl std::error::Error for ConfigError {}

fn fault(field: &'static str, reason: impl Into<String>) -> Result<(), ConfigError> {
    Err(ConfigError { field, reason: reason.into() })
}

fn check(field: &'static str, reason: Option<String>) -> Result<(), ConfigError> {
    reason.map_or(Ok(()), |reason| fault(field, reason))
}

fn within(field: &'static str, value: usize, least: usize, most: usize) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    fault(field, format!("{value} is not within {least} and {most}"))
}

/// What is wrong with a `join` URL, if anything.
fn join_fault(url: &str) -> Option<String> {
    const EXAMPLE: &str = "(an example: http://10.0.0.5:8080)";
    if url.contains('@') {
        // Not shown: what stands before the @ may be a password.
        return Some(format!("a URL with a user name or password is not supported {EXAMPLE}"));
    }
    let Some(rest) = url.strip_prefix("http://") else {
        return Some(match url.split_once("://") {
            Some((scheme, _)) => format!("{scheme:?} is not supported, only http {EXAMPLE}"),
            None => format!("{url:?} does not begin with http:// {EXAMPLE}"),
        });
    };
    let address = rest.strip_suffix('/').unwrap_or(rest);
    if address.contains(['/', '?', '#']) {
        return Some(format!("{url:?} must end after the port {EXAMPLE}"));
    }
    host_port_fault(address).map(|reason| format!("{url:?}: {reason} {EXAMPLE}"))
}

/// What is wrong with an `advertise` address, if anything.
fn advertise_fault(address: &str) -> Option<String> {
    if address.contains("://") {
        return Some(format!("{address:?} is a URL; a host or host:port is needed"));
    }
    if let Ok(ip) = address.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>()
        && ip.is_unspecified()
    {
        return Some(format!("{address} is not an address that peers can reach"));
    }
    host_port_fault(address).map(|reason| format!("{address:?}: {reason}"))
}

/// What is wrong with `host`, `host:port`, `[v6]`, `[v6]:port` or a bare v6 address, if anything.
fn host_port_fault(address: &str) -> Option<String> {
    if address.parse::<Ipv6Addr>().is_ok() {
        return None;
    }
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let Some((host, rest)) = rest.split_once(']') else {
            return Some("the bracket is not closed".to_owned());
        };
        if host.parse::<Ipv6Addr>().is_err() {
            return Some("between brackets an IPv6 address is needed".to_owned());
        }
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Some("after the bracket a colon and a port are needed".to_owned()),
        }
    } else {
        match address.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        }
    };
    if host.is_empty() {
        return Some("the host is missing".to_owned());
    }
    // Letters of any script, for names that a resolver or a local hosts file knows.
    let odd = |c: char| !(c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ':'));
    if let Some(odd) = host.chars().find(|&c| odd(c)) {
        return Some(format!("{odd:?} cannot be part of a host"));
    }
    match port {
        Some(port) if port.parse::<u16>().is_ok_and(|port| port != 0) => None,
        Some(port) => Some(format!("{port:?} is not a port from 1 to 65535")),
        None => None,
    }
}

/// What is wrong with a CORS origin, if anything. It goes into a header as it is, so nothing may break out.
fn origin_fault(origin: &str) -> Option<String> {
    if origin == "*" {
        return None;
    }
    let Some((scheme, rest)) = origin.split_once("://") else {
        return Some(format!("{origin:?} is not an origin such as https://example.com, nor *"));
    };
    let scheme_fits = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let rest_fits = !rest.is_empty()
        && rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'[' | b']'));
    if scheme_fits && rest_fits {
        return None;
    }
    Some(format!("{origin:?} is not an origin: scheme://host[:port], without a path and without spaces"))
}

/// How many nodes must hold a write before it is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AckLevel {
    /// This node alone.
    Local,
    /// A majority of the members, this node included.
    Quorum,
    /// Every ready member that is not down.
    #[default]
    All,
    /// So many, this node included: at least 1.
    Count(u32),
}

/// The text is no [`AckLevel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnAckLevel;

impl fmt::Display for NotAnAckLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected local, quorum, all or a number of nodes from 1")
    }
}

impl std::error::Error for NotAnAckLevel {}

impl FromStr for AckLevel {
    type Err = NotAnAckLevel;

    fn from_str(text: &str) -> Result<AckLevel, NotAnAckLevel> {
        match text {
            "local" => Ok(AckLevel::Local),
            "quorum" => Ok(AckLevel::Quorum),
            "all" => Ok(AckLevel::All),
            // Digits only: the standard parser would take a plus sign as well.
            _ if !text.bytes().all(|b| b.is_ascii_digit()) => Err(NotAnAckLevel),
            _ => match text.parse() {
                Ok(0) | Err(_) => Err(NotAnAckLevel),
                Ok(count) => Ok(AckLevel::Count(count)),
            },
        }
    }
}

impl fmt::Display for AckLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AckLevel::Local => f.write_str("local"),
            AckLevel::Quorum => f.write_str("quorum"),
            AckLevel::All => f.write_str("all"),
            AckLevel::Count(count) => write!(f, "{count}"),
        }
    }
}

/// What peers share to trust each other. It has no way into a log: `Debug` hides it, `Display` is missing,
/// and only [`Secret::expose`] gives it out.
#[derive(Clone)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Spaces and line breaks around it do not count, so that a file may end in a line break. Two lines are two
    /// secrets: links are made with the first and accepted with either, to change from one to the other.
    ///
    /// # Errors
    /// A line is shorter or longer than [`SECRET_BYTES_MIN`] and [`SECRET_BYTES_MAX`] allow, or there are more than two.
    pub fn new(bytes: &[u8]) -> Result<Secret, ConfigError> {
        let wrong = |reason| Err(ConfigError { field: "secret", reason });
        let lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let lines: Vec<&[u8]> = lines.filter(|line| !line.is_empty()).collect();
        if lines.len() > 2 {
            return wrong(format!("two lines at most, a secret each; this has {}", lines.len()));
        }
        let lengths = lines.iter().map(|line| line.len());
        let misfit = lengths.clone().find(|length| !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(length));
        match misfit.or((lines.is_empty()).then_some(0)) {
            None => Ok(Secret(lines.join(&b'\n').into())),
            Some(length) => wrong(format!(
                "{SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes are needed, this has {length} (openssl rand \
                 -base64 32 makes a good one)"
            )),
        }
    }

    /// The bytes, for the handshake and nothing else.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

impl PartialEq for Secret {
    /// Takes as long for a wrong first byte as for a wrong last one. The length is not hidden.
    fn eq(&self, other: &Secret) -> bool {
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).fold(0, |differs, (a, b)| std::hint::black_box(differs | (a ^ b)))
                == 0
    }
}

impl Eq for Secret {}

/// An amount of memory as people write it: `512M`, `2GiB`, `1.5g`, `80%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySize {
    Bytes(u64),
    /// Of the smaller of the machine's and the cgroup's memory: 1 to 100.
    Percent(u64),
}

impl MemorySize {
    /// In bytes; [`MEMORY_BYTES_FALLBACK`] for a part of an unknown amount.
    #[must_use]
    pub fn resolve(self, memory: system::Memory) -> u64 {
        match self {
            MemorySize::Bytes(bytes) => bytes,
            MemorySize::Percent(percent) => match memory.usable() {
                // Divided first: the product of a huge limit might not fit. What is lost is below 100 bytes.
                Some(usable) => usable / 100 * percent,
                None => MEMORY_BYTES_FALLBACK,
            },
        }
    }
}

/// The text is no [`MemorySize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAMemorySize;

impl fmt::Display for NotAMemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a size such as 512M, 2GiB or 80%")
    }
}

impl std::error::Error for NotAMemorySize {}

impl FromStr for MemorySize {
    type Err = NotAMemorySize;

    fn from_str(text: &str) -> Result<MemorySize, NotAMemorySize> {
        let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start_matches(' ').to_ascii_lowercase();
        if unit == "%" {
            return match number.parse() {
                Ok(percent @ 1..=100) => Ok(MemorySize::Percent(percent)),
                _ => Err(NotAMemorySize),
            };
        }
        let scale: u64 = match unit.as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(NotAMemorySize),
        };
        scaled(number, scale).map(MemorySize::Bytes).ok_or(NotAMemorySize)
    }
}

/// `number × scale`, where the number may have decimals, in whole numbers throughout; what is below one is
/// cut off.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, decimals) = number.split_once('.').map_or((number, None), |(w, d)| (w, Some(d)));
    let mut total = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    if let Some(decimals) = decimals {
        if scale == 1 || decimals.is_empty() || decimals.len() > 6 {
            return None;
        }
        let tenths = 10_u64.pow(u32::try_from(decimals.len()).ok()?);
        let part = u128::from(decimals.parse::<u64>().ok()?) * u128::from(scale) / u128::from(tenths);
        total = total.checked_add(u64::try_from(part).ok()?)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests;
