//! What a balancer is told.

use super::core::api::Location;
use super::core::containers::Group;
use super::core::patience::Patience;
use super::core::pick::Selection;
use super::core::pool::CheckMode;
use crate::system;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The port of the status pages, unless told otherwise.
pub const STATUS_PORT_DEFAULT: u16 = 9900;
/// The bound of connections is never above this by default: each may hold buffers.
pub const CONNECTIONS_DEFAULT_MAX: usize = 65_536;

/// Where backends come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The containers of a compose service.
    Docker { location: Location, group: Group },
    /// `host:port` each; those of the file, one a line, are read again on [`super::Balancer::reload`].
    Static { backends: Vec<String>, file: Option<PathBuf> },
    /// Every address of a name, looked up each second.
    Dns { name: String, port: u16 },
    /// What [`super::Balancer::set_members`] says.
    Given(Vec<super::Member>),
}

#[derive(Clone, Debug)]
pub struct BalanceConfig {
    pub listen: SocketAddr,
    /// Where the status pages are; `None`: nowhere.
    pub status: Option<SocketAddr>,
    pub source: Source,
    pub check: CheckMode,
    pub selection: Selection,
    pub workers: usize,
    pub max_connections: usize,
    /// Bulk goes through pipes inside the kernel instead of being copied.
    pub splice: bool,
    /// How long connections may stand still, and how many may wait.
    pub patience: Patience,
}

impl BalanceConfig {
    /// A balancer on a port of this machine's loopback, with what the machine grants.
    #[must_use]
    pub fn new(source: Source) -> BalanceConfig {
        let workers = system::cores();
        BalanceConfig {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            status: None,
            source,
            check: CheckMode::Http,
            selection: Selection::RoundRobin,
            workers,
            max_connections: connections_for(system::descriptor_limit(), workers)
                .min(CONNECTIONS_DEFAULT_MAX),
            splice: true,
            patience: Patience::default(),
        }
    }
}

/// How many connections a descriptor limit leaves room for: each takes two, and the balancer itself needs
/// some for pipes, checks and the engine. At most half goes to those.
#[must_use]
pub fn connections_for(descriptors: u64, workers: usize) -> usize {
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let own = workers.saturating_mul(2 * crate::limits::RELAY_PIPES_MAX + 16).saturating_add(256);
    ((descriptors - own.min(descriptors / 2)) / 2).max(1)
}

/// `host:port`, checked; the host may be a name or an address, IPv6 in brackets.
///
/// # Errors
/// A sentence that says what would do.
pub fn parse_backend(text: &str) -> Result<(String, u16), String> {
    let rule = || format!("{text:?}: expected host:port");
    let (host, port) = text.rsplit_once(':').ok_or_else(rule)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let odd = |b: u8| !b.is_ascii_graphic() || b"/@?#,[]".contains(&b);
    let is_name = !bare.is_empty() && bare.len() <= 253 && !bare.bytes().any(odd);
    if !is_name || (bare.contains(':') && bare == host) {
        return Err(rule());
    }
    let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(rule)?;
    Ok((bare.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_hosts_with_ports() {
        for (text, host, port) in
            [("n1:80", "n1", 80), ("10.0.0.1:8080", "10.0.0.1", 8080), ("[::1]:9", "::1", 9)]
        {
            assert_eq!(parse_backend(text), Ok((host.to_owned(), port)));
        }
        for bad in ["", "n1", ":80", "n1:0", "n1:x", "n1:99999", "::1:80", "a b:1", "http://n1:80", "u@h:1"] {
            assert!(parse_backend(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_connection_has_room_for_its_two_descriptors() {
        for (descriptors, workers) in [(1024, 2), (20_000, 8), (64, 64), (u64::MAX, 1)] {
            let most = connections_for(descriptors, workers);
            assert!(
                most >= 1 && (most as u64).saturating_mul(2) <= descriptors.max(2),
                "{descriptors} {most}"
            );
        }
        assert!(connections_for(65_536, 2) > 30_000);
    }
}
