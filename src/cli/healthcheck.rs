//! `meshkv healthcheck`: one GET to a node, for containers without a shell. Everything is bounded by one
//! deadline and a few kilobytes.

use super::settings::{self, Environment};
use super::{Failure, HealthcheckArgs, print};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Seconds, unless told otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(3);
/// Bytes of an answer that are looked at.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// Characters of a body that are shown.
const SHOWN_CHARS_MAX: usize = 200;

pub(super) fn run(arguments: HealthcheckArgs, environment: Environment<'_>) -> Result<(), Failure> {
    let place = if arguments.url.is_some() { "--url" } else { "environment variable MESHKV_HEALTHCHECK_URL" };
    let pick = settings::from_environment("url", arguments.url, environment, |text| Ok(text.to_owned()));
    let target = match pick.map_err(Failure::Usage)? {
        // Without the value: there may be a password in it.
        Some(url) => Target::parse(&url).map_err(|rule| Failure::Usage(format!("{place}: {rule}")))?,
        None => Target::local(environment).map_err(Failure::Usage)?,
    };
    let timeout = settings::from_environment("timeout", arguments.timeout, environment, settings::seconds);
    let timeout = timeout.map_err(Failure::Usage)?.unwrap_or(TIMEOUT_DEFAULT);
    let shown = format!("http://{}{}", target.authority, target.path);
    match ask(&target, Instant::now() + timeout) {
        Ok(Answer { status: 200, body }) => print(format!("{body}\n").as_bytes()),
        Ok(Answer { status, body }) => Err(Failure::Runtime(format!("{shown} answers {status}: {body}"))),
        Err(reason) => Err(Failure::Runtime(format!("{shown}: {reason}"))),
    }
}

/// Whom to ask for what.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    /// `host:port`, as the resolver and the `Host` field take it.
    authority: String,
    path: String,
}

impl Target {
    fn parse(url: &str) -> Result<Target, &'static str> {
        let rule = "expected http://host[:port][/path]";
        let Some(rest) = url.strip_prefix("http://") else { return Err(rule) };
        let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        // An @ may come with a password, and anything outside printable ASCII could forge a request.
        let odd = |b: u8| !b.is_ascii_graphic() || b == b'@' || b == b'#' || b == b'?';
        if authority.is_empty() || authority.starts_with(':') || authority.bytes().any(odd) {
            return Err(rule);
        }
        if path.bytes().any(|b| !b.is_ascii_graphic() || b == b'#') {
            return Err(rule);
        }
        let host_end = authority.rfind(']').unwrap_or(0);
        let (authority, port) = match authority[host_end..].rfind(':') {
            Some(colon) => (authority.to_owned(), &authority[host_end + colon + 1..]),
            None => (format!("{authority}:80"), "80"),
        };
        if settings::port(port).is_err() {
            return Err(rule);
        }
        let path = if path.is_empty() || path == "/" { "/healthcheck" } else { path };
        Ok(Target { authority, path: path.to_owned() })
    }

    /// The node that this environment would start.
    fn local(environment: Environment<'_>) -> Result<Target, String> {
        let host = settings::from_environment("host", None, environment, settings::host)?;
        let port = settings::from_environment("port", None, environment, settings::port)?;
        let host = match host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)) {
            IpAddr::V4(host) if host.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(host) if host.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            host => host,
        };
        let port = port.unwrap_or(meshkv::config::PORT_DEFAULT);
        Ok(Target { authority: SocketAddr::new(host, port).to_string(), path: "/healthcheck".to_owned() })
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// Cut short, and safe to show.
    body: String,
}

fn ask(target: &Target, deadline: Instant) -> Result<Answer, String> {
    let addresses = target.authority.to_socket_addrs().map_err(|error| error.to_string())?;
    let mut failure = "the name has no address".to_owned();
    for address in addresses {
        match connect(address, deadline) {
            Ok(stream) => return exchange(stream, target, deadline),
            Err(error) => failure = format!("cannot connect to {address}: {error}"),
        }
    }
    Err(failure)
}

fn connect(address: SocketAddr, deadline: Instant) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&address, left(deadline)?)
}

/// What is left until the deadline, never zero (which would mean no timeout at all).
fn left(deadline: Instant) -> std::io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(std::io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn exchange(mut stream: TcpStream, target: &Target, deadline: Instant) -> Result<Answer, String> {
    let Target { authority, path } = target;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    let sent = left(deadline).and_then(|left| {
        stream.set_write_timeout(Some(left))?;
        stream.write_all(request.as_bytes())
    });
    sent.map_err(reason_of)?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = left(deadline).and_then(|left| {
            stream.set_read_timeout(Some(left))?;
            stream.read(&mut chunk)
        });
        let length = read.map_err(reason_of)?;
        answer.extend_from_slice(&chunk[..length]);
        let ended = length == 0 || answer.len() >= ANSWER_BYTES_MAX;
        if let Some(answer) = understand(&answer, ended)? {
            return Ok(answer);
        }
    }
}

fn reason_of(error: std::io::Error) -> String {
    match error.kind() {
        // A read timeout reports itself as `WouldBlock` here.
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        _ => error.to_string(),
    }
}

/// The answer, once it is all there; `ended`: no more will come.
fn understand(bytes: &[u8], ended: bool) -> Result<Option<Answer>, String> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut fields);
    let parsed = head.parse(bytes).map_err(|error| format!("not an HTTP answer: {error}"))?;
    let (httparse::Status::Complete(head_length), Some(status)) = (parsed, head.code) else {
        return if ended { Err("the answer ends before its head does".to_owned()) } else { Ok(None) };
    };
    let length = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.trim().parse::<usize>().ok());
    let body = &bytes[head_length..];
    match length {
        Some(length) if body.len() >= length => Ok(Some(Answer { status, body: shown(&body[..length]) })),
        _ if ended => Ok(Some(Answer { status, body: shown(body) })),
        _ => Ok(None),
    }
}

/// Fit for a terminal and a container's health log.
fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.trim().chars().take(SHOWN_CHARS_MAX);
    text.map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    #[test]
    fn urls_become_targets() {
        for (url, authority, path) in [
            ("http://n1", "n1:80", "/healthcheck"),
            ("http://n1/", "n1:80", "/healthcheck"),
            ("http://n1:8080", "n1:8080", "/healthcheck"),
            ("http://n1:8080/ready", "n1:8080", "/ready"),
            ("http://[::1]", "[::1]:80", "/healthcheck"),
            ("http://[::1]:9/x", "[::1]:9", "/x"),
        ] {
            let target = Target { authority: authority.into(), path: path.into() };
            assert_eq!(Target::parse(url), Ok(target), "{url}");
        }
        for bad in
            ["", "n1", "https://n1", "http://", "http://:80", "http://n1:x", "http://n1:99999", "http://a b"]
        {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
        assert!(Target::parse("http://me:hunter2@n1").is_err());
        assert!(Target::parse("http://n1/a\r\nX: y").is_err());
    }

    #[test]
    fn the_local_node_is_found_as_it_finds_itself() {
        let target = |pairs: &'static [(&str, &str)]| {
            let read = move |name: &str| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
            };
            Target::local(&read).map(|target| target.authority)
        };
        assert_eq!(target(&[]).as_deref(), Ok("127.0.0.1:8080"));
        assert_eq!(target(&[("PORT", "1"), ("MESHKV_PORT", "2")]).as_deref(), Ok("127.0.0.1:2"));
        assert_eq!(target(&[("MESHKV_HOST", "0.0.0.0"), ("PORT", "1")]).as_deref(), Ok("127.0.0.1:1"));
        assert_eq!(target(&[("MESHKV_HOST", "::")]).as_deref(), Ok("[::1]:8080"));
        assert_eq!(target(&[("MESHKV_HOST", "10.0.0.9")]).as_deref(), Ok("10.0.0.9:8080"));
        assert!(target(&[("PORT", "x")]).is_err_and(|reason| reason.contains("PORT")));
    }

    #[test]
    fn an_answer_is_understood_at_every_split() {
        let whole = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 20\r\n\r\n{\"status\":\"leaving\"}";
        for end in 0..whole.len() {
            assert_eq!(understand(&whole[..end], false), Ok(None), "{end}");
        }
        let answer = understand(whole, false).expect("parses").expect("complete");
        assert_eq!(answer, Answer { status: 503, body: r#"{"status":"leaving"}"#.into() });
        let close_delimited = b"HTTP/1.0 200 OK\r\n\r\n\x1b[31m";
        assert_eq!(understand(close_delimited, false), Ok(None));
        let answer = understand(close_delimited, true).expect("parses").expect("complete");
        assert_eq!(answer, Answer { status: 200, body: "\u{fffd}[31m".into() });
        assert!(understand(b"", true).is_err());
        assert!(understand(b"SSH-2.0-x\r\n", false).is_err());
    }
}
