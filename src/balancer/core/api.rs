//! How the engine is asked: where it is, which version of its interface, and the only three requests that
//! are ever made: `/version`, `/events` and `/containers/json`, all of them GET.

use serde_json::Value;
use std::fmt;

/// The greatest version whose answers are known to be as expected here.
const OURS: ApiVersion = ApiVersion { major: 1, minor: 47 };
/// Below this, `/containers/json` lacks fields that are needed.
const OURS_MIN: ApiVersion = ApiVersion { major: 1, minor: 24 };

/// A version of the engine's interface. Compared as numbers: 1.9 comes before 1.41.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    major: u16,
    minor: u16,
}

impl ApiVersion {
    /// The least that is understood here.
    pub const LEAST: ApiVersion = OURS_MIN;

    #[must_use]
    pub fn parse(text: &str) -> Option<ApiVersion> {
        let (major, minor) = text.split_once('.')?;
        let number = |text: &str| {
            let plain = text.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| text.parse::<u16>().ok()).flatten()
        };
        Some(ApiVersion { major: number(major)?, minor: number(minor)? })
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Chooses the version from the body of `/version`: ours or the engine's, whichever is lower, never below
/// the engine's minimum.
///
/// # Errors
/// A sentence for people, when the engine is too old or is none.
pub fn choose_version(body: &[u8]) -> Result<ApiVersion, String> {
    let value: Value =
        serde_json::from_slice(body).map_err(|_| "/version is not JSON: this is no Docker engine")?;
    let version = |name: &str| value[name].as_str().and_then(ApiVersion::parse);
    let engine = version("ApiVersion").ok_or("/version names no ApiVersion: this is no Docker engine")?;
    if engine < OURS_MIN {
        return Err(format!("the engine is too old: its API is {engine}, at least {OURS_MIN} is needed"));
    }
    let least = version("MinAPIVersion").unwrap_or(OURS_MIN);
    Ok(engine.min(OURS).max(least))
}

/// Where the engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Unix(std::path::PathBuf),
    /// `host:port`, as a resolver takes it.
    Tcp(String),
}

impl Location {
    /// `/path`, `unix:///path`, `http://host:port`, `tcp://host:port`.
    ///
    /// # Errors
    /// A sentence that says what would do.
    pub fn parse(text: &str) -> Result<Location, String> {
        const RULE: &str = "expected a socket's path, unix:///path, http://host:port or tcp://host:port";
        if text.starts_with("https://") {
            return Err("https is not supported: use the socket, or a socket proxy on a private network by \
                        http://host:port"
                .to_owned());
        }
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if path.starts_with('/') {
            return match path.len() {
                // The system's address structure bounds it.
                2..=107 => Ok(Location::Unix(path.into())),
                length => Err(format!("a socket's path has at most 107 bytes, this has {length}")),
            };
        }
        let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("tcp://")) else {
            return Err(RULE.to_owned());
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let odd = |b: u8| !b.is_ascii_graphic() || b"/@?#".contains(&b);
        if authority.is_empty() || authority.starts_with(':') || authority.bytes().any(odd) {
            return Err(RULE.to_owned());
        }
        let port_from = authority.rfind(']').unwrap_or(0);
        match authority[port_from..].rfind(':') {
            // The engine's customary port without TLS.
            None => Ok(Location::Tcp(format!("{authority}:2375"))),
            Some(colon) if authority[port_from + colon + 1..].parse::<u16>().is_ok_and(|port| port > 0) => {
                Ok(Location::Tcp(authority.to_owned()))
            }
            Some(_) => Err(RULE.to_owned()),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Unix(path) => write!(f, "{}", path.display()),
            Location::Tcp(authority) => write!(f, "tcp://{authority}"),
        }
    }
}

#[must_use]
pub fn version_request(host: &str) -> Vec<u8> {
    get("/version", host)
}

/// The compose label is asked for without a value: the balancer's own container tells its project.
#[must_use]
pub fn list_request(version: ApiVersion, host: &str) -> Vec<u8> {
    // {"label":["com.docker.compose.service"]}
    get(
        &format!(
            "/v{version}/containers/json?filters=%7B%22label%22%3A%5B%22com.docker.compose.service%22%5D%7D"
        ),
        host,
    )
}

/// `since`: seconds since 1970 by the engine's clock.
#[must_use]
pub fn events_request(version: ApiVersion, since: Option<u64>, host: &str) -> Vec<u8> {
    let since = since.map(|seconds| format!("since={seconds}&")).unwrap_or_default();
    // {"type":["container","network"]}
    let filters = "filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D";
    get(&format!("/v{version}/events?{since}{filters}"), host)
}

/// One request on a connection of its own.
#[must_use]
pub fn get(target: &str, host: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: meshkv\r\nConnection: close\r\n\r\n")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_version_is_taken_but_never_below_the_engines_minimum() {
        let chosen = |engine: &str, least: &str| {
            let body = format!(r#"{{"ApiVersion":"{engine}","MinAPIVersion":"{least}"}}"#);
            choose_version(body.as_bytes()).map(|version| version.to_string())
        };
        assert_eq!(chosen("1.41", "1.12").as_deref(), Ok("1.41"));
        assert_eq!(chosen("1.99", "1.24").as_deref(), Ok("1.47"));
        assert_eq!(chosen("1.99", "1.60").as_deref(), Ok("1.60"));
        assert_eq!(chosen("1.24", "").as_deref(), Ok("1.24"));
        assert!(chosen("1.9", "1.1").is_err_and(|reason| reason.contains("too old")));
        assert!(chosen("x", "1.1").is_err());
        assert!(choose_version(b"<html>").is_err());
    }

    #[test]
    fn locations_are_understood_or_refused_with_a_reason() {
        let unix = |path: &str| Ok(Location::Unix(path.into()));
        let tcp = |authority: &str| Ok(Location::Tcp(authority.to_owned()));
        assert_eq!(Location::parse("/var/run/docker.sock"), unix("/var/run/docker.sock"));
        assert_eq!(Location::parse("unix:///run/d.sock"), unix("/run/d.sock"));
        assert_eq!(Location::parse("http://engine:2375/"), tcp("engine:2375"));
        assert_eq!(Location::parse("tcp://10.0.0.1"), tcp("10.0.0.1:2375"));
        assert_eq!(Location::parse("tcp://[::1]:9"), tcp("[::1]:9"));
        assert!(Location::parse("https://e:2376").is_err_and(|reason| reason.contains("https")));
        for bad in [
            "",
            "docker.sock",
            "tcp://",
            "http://:80",
            "http://a:0",
            "http://a:x",
            "http://u@h:1",
            "tcp://a b:1",
            "unix://x",
        ] {
            assert!(Location::parse(bad).is_err(), "{bad}");
        }
        assert!(Location::parse(&format!("/{}", "x".repeat(107))).is_err());
    }

    #[test]
    fn the_requests_are_what_engines_expect() {
        let version = ApiVersion { major: 1, minor: 41 };
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("ASCII");
        assert!(text(version_request("docker")).starts_with("GET /version HTTP/1.1\r\nHost: docker\r\n"));
        assert!(
            text(list_request(version, "d")).starts_with("GET /v1.41/containers/json?filters=%7B%22label")
        );
        assert!(text(events_request(version, Some(7), "d")).contains("/v1.41/events?since=7&filters="));
        assert!(text(events_request(version, None, "d")).contains("/v1.41/events?filters="));
    }
}
