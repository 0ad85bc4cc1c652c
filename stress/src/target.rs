//! Where requests go: `http://host:port/prefix`, resolved once before the run.

use std::net::{SocketAddr, ToSocketAddrs};

#[derive(Clone, Debug)]
pub struct Target {
    pub url: String,
    pub addr: SocketAddr,
    /// The path before every route, without a trailing slash.
    pub prefix: Vec<u8>,
    /// The end of every request, from ` HTTP/1.1` to the blank line.
    pub tail: Vec<u8>,
}

impl Target {
    /// Errors are for people: what is wrong with the URL, or why its host has no address.
    pub fn new(url: &str) -> Result<Self, String> {
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => return Err(format!("{url}: only http:// is spoken, not {scheme}://")),
            None => url,
        };
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if host.is_empty() {
            return Err(format!("{url}: no host"));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let address = if has_port { host.to_string() } else { format!("{host}:80") };
        let addr = address
            .to_socket_addrs()
            .map_err(|e| format!("{url}: {e}"))?
            .next()
            .ok_or_else(|| format!("{url}: the name has no address"))?;
        let tail = format!(" HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
        Ok(Self { url: url.into(), addr, prefix: path.trim_end_matches('/').into(), tail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let target = Target::new("http://127.0.0.1:8080/base/").unwrap();
        assert_eq!((target.addr.port(), &target.prefix[..]), (8080, &b"/base"[..]));
        assert_eq!(Target::new("http://127.0.0.1").unwrap().addr.port(), 80);
        assert_eq!(Target::new("http://[::1]:81").unwrap().addr.port(), 81);
        assert!(Target::new("https://127.0.0.1").is_err());
        assert!(Target::new("http:///x").is_err());
    }
}
