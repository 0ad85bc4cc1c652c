//! Finding the mesh: asks the URLs that the node was told for their members, at first often, then for ever at
//! a slow pace. A thread of its own, because names are resolved and connections made in the ordinary, blocking
//! way. What it finds are addresses to try; who is a member is decided on the peer links.

use super::Control;
use crate::mesh::Mesh;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// For a connection to come about, and then for the whole answer.
const TIMEOUT: Duration = Duration::from_millis(1_000);
/// Between two rounds while the node looks for its mesh, and after.
const SOON: Duration = Duration::from_millis(250);
const LATER: Duration = Duration::from_secs(5);
/// An answer that is longer is not one of a node.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;

/// Asks until the node stops.
pub(super) fn run(urls: &[String], mesh: &Arc<Mesh>, control: &Control) {
    let _ = control.discovery.set(std::thread::current());
    while !control.stopping.load(Ordering::Acquire) {
        let me = format!("{:?}", mesh.view().me);
        let mut sees_mesh = false;
        // Hints come from anybody: they add addresses to try, and decide nothing.
        let hints = mesh.take_hints();
        let asked = urls.iter().map(|url| (url, true)).chain(hints.iter().map(|url| (url, false)));
        for (url, is_told) in asked {
            if control.stopping.load(Ordering::Acquire) {
                return;
            }
            match ask(url) {
                Ok(found) if is_told => {
                    sees_mesh |= found.is_ready && found.incarnation != me;
                    mesh.discovered(&found.addresses);
                }
                Ok(found) => mesh.hinted(&found.addresses),
                Err(error) => tracing::debug!("mesh   {url} did not answer: {error}"),
            }
        }
        mesh.saw_mesh(sees_mesh);
        let settled = mesh.is_ready() && mesh.view().size > 1;
        let until = Instant::now() + if settled { LATER } else { SOON };
        while !control.stopping.load(Ordering::Acquire) && !mesh.has_hints() {
            // The end and hints wake it.
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            else {
                break;
            };
            std::thread::park_timeout(left);
        }
    }
}

/// What the node behind a URL has said.
#[derive(Debug)]
struct Found {
    /// Its own lifetime.
    incarnation: String,
    is_ready: bool,
    /// Peer addresses of the members that it knows, itself included.
    addresses: Vec<SocketAddr>,
}

fn ask(url: &str) -> std::io::Result<Found> {
    let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
        !port.is_empty()
            && port.bytes().all(|b| b.is_ascii_digit())
            && (!host.contains(':') || host.ends_with(']'))
    });
    let target = if has_port { address.to_owned() } else { format!("{address}:80") };
    let mut last = invalid("the name has no address");
    for candidate in target.to_socket_addrs()? {
        match TcpStream::connect_timeout(&candidate, TIMEOUT) {
            Ok(stream) => return exchange(stream, address),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn exchange(mut stream: TcpStream, host: &str) -> std::io::Result<Found> {
    let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let begun = Instant::now();
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET /ping HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 8 * 1024];
    // For the whole of the answer, or a byte a second would hold up all other URLs.
    while (answer.len() as u64) < ANSWER_BYTES_MAX {
        let left = TIMEOUT.checked_sub(begun.elapsed()).filter(|left| !left.is_zero());
        stream.set_read_timeout(Some(
            left.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::TimedOut))?,
        ))?;
        match stream.read(&mut piece)? {
            0 => break,
            count => answer.extend_from_slice(&piece[..count]),
        }
    }
    let split = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = &answer[split.ok_or_else(|| invalid("not an HTTP answer"))? + 4..];
    let body: serde_json::Value =
        serde_json::from_slice(body).map_err(|_| invalid("the answer is not JSON"))?;
    let nodes = body["nodes"].as_array().ok_or_else(|| invalid("the answer is not a node's"))?;
    let peers = nodes.iter().filter(|node| node["isDown"] != true).filter_map(|node| node["peer"].as_str());
    Ok(Found {
        incarnation: nodes.first().and_then(|node| node["inc"].as_str()).unwrap_or_default().to_owned(),
        is_ready: nodes.first().is_some_and(|node| node["isReady"] == true),
        addresses: peers.filter_map(|peer| peer.parse().ok()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn addresses_come_from_a_nodes_answer_and_nothing_else_does_harm() {
        for (answer, expected) in [
            (
                "HTTP/1.1 200 OK\r\n\r\n{\"nodes\":[{\"peer\":\"10.0.0.1:7373\"},{\"peer\":\"x\"},{\"peer\":\"1.2.3.4:5\",\"isDown\":true}]}",
                Some(1),
            ),
            ("HTTP/1.1 200 OK\r\n\r\n{\"nodes\":7}", None),
            ("HTTP/1.1 503 No\r\n\r\nnothing", None),
            ("garbage", None),
            ("", None),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let url = format!("http://{}", listener.local_addr().expect("an address"));
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut request = [0; 256];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(answer.as_bytes());
            });
            assert_eq!(ask(&url).ok().map(|found| found.addresses.len()), expected, "{answer}");
            server.join().expect("the server");
        }
    }
}
