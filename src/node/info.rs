//! `/`, `/healthcheck`, `/status`, `/ping`, `/metrics`: what a node says about itself. Cold paths: here
//! formatting is allowed.

use super::metrics::{Cell, DURATION_BOUNDS};
use super::routes::{PATHS, Route};
use super::{Node, State};
use crate::base::clock::Now;
use crate::http::answer::{Framing, JSON, PROMETHEUS};
use crate::http::error::{ErrorCode, Status};
use crate::http::query;
use crate::mesh::view::Health;
use crate::peer::frame::Phase;
use crate::store::Storage;
use serde_json::json;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const COMMIT: &str = env!("MESHKV_BUILD_COMMIT");
/// Addresses that one `/ping` may name.
const PING_NODES_MAX: usize = 256;

/// Checks the `nodes` parameter: `host:port`, separated by `|`; empty entries are skipped.
///
/// They are asked for their members, as the URLs are that a node was told to join.
pub(super) fn check_nodes(raw_query: &[u8]) -> Result<Vec<String>, ErrorCode> {
    let [nodes] = query::find(raw_query, [b"nodes"]);
    let Some(text) = super::keys::option(nodes)? else { return Ok(Vec::new()) };
    let entries = text.split(|&b| b == b'|').filter(|entry| !entry.is_empty());
    let mut found = Vec::new();
    for entry in entries {
        if found.len() == PING_NODES_MAX || !is_address(entry) {
            return Err(ErrorCode::BadNodes);
        }
        found.push(String::from_utf8_lossy(entry).into_owned());
    }
    Ok(found)
}

/// `host:port`, the host a name, an IPv4 address or an IPv6 address in brackets.
fn is_address(entry: &[u8]) -> bool {
    let Some(colon) = entry.iter().rposition(|&b| b == b':') else { return false };
    let (host, port) = (&entry[..colon], &entry[colon + 1..]);
    let port = std::str::from_utf8(port).ok().filter(|p| p.bytes().all(|b| b.is_ascii_digit()));
    let port_fits = port.and_then(|p| p.parse::<u16>().ok()).is_some_and(|p| p != 0);
    let plain = |host: &[u8]| host.iter().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(b));
    let bracketed = |host: &[u8]| {
        let inner = host.strip_prefix(b"[").and_then(|h| h.strip_suffix(b"]"));
        inner.is_some_and(|inner| {
            std::str::from_utf8(inner).is_ok_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok())
        })
    };
    port_fits && !host.is_empty() && host.len() <= 255 && (plain(host) || bracketed(host))
}

impl<S: Storage> Node<S> {
    /// Answers the routes that need nothing but the node.
    pub(super) fn info(
        &self,
        route: Route,
        framing: Framing,
        now: Now,
        state: State,
        out: &mut Vec<u8>,
    ) -> Status {
        let (status, content_type, body) = match route {
            Route::Healthcheck => {
                let (name, reason) = self.health(now, state);
                let healthy = name == State::Ready.name();
                let status = if healthy { Status::Ok } else { Status::Unavailable };
                let body = match reason {
                    Some(reason) => format!("{{\"status\":\"{name}\",\"reason\":\"{reason}\"}}"),
                    None => format!("{{\"status\":\"{name}\"}}"),
                };
                (status, JSON, body)
            }
            Route::Status => (Status::Ok, JSON, self.status_body(now, state)),
            Route::Metrics => (Status::Ok, PROMETHEUS, self.metrics_page(now)),
            _ => {
                let mut routes: Vec<String> = PATHS.iter().map(|path| (*path).to_owned()).collect();
                routes.extend(self.extensions.snapshot().routes.iter().map(|(path, _)| path.clone()));
                (
                    Status::Ok,
                    JSON,
                    json!({"name": "meshkv", "version": VERSION, "routes": routes}).to_string(),
                )
            }
        };
        let headers = if status == Status::Unavailable { "Retry-After: 1\r\n" } else { "" };
        self.answers.with_body(out, status.line(), framing, content_type, headers, body.as_bytes());
        status
    }

    /// What `/healthcheck` and `/status` call the state that a worker is in, and why, where that needs a word.
    fn health(&self, now: Now, state: State) -> (&'static str, Option<&'static str>) {
        let state = if self.is_parting() { State::Leaving } else { state };
        let degraded = [("clock", self.mesh.is_skewed()), ("memory", self.mesh.lacks_memory(now.mono_ns))];
        match degraded.into_iter().find(|(_, is_so)| state == State::Ready && *is_so) {
            Some((reason, _)) => ("degraded", Some(reason)),
            None => (state.name(), None),
        }
    }

    /// Answers `/ping`: the members, this node first, under the address that the client used.
    pub(super) fn ping(&self, local: Option<SocketAddr>, framing: Framing, out: &mut Vec<u8>) -> Status {
        let view = self.view();
        // A listener for both families sees addresses of the old one in a form that is nobody's.
        let local = local.map(|address| address.ip().to_canonical());
        let host = local.map_or_else(|| "localhost".to_owned(), |ip| ip.to_string());
        let mut peer = self.mesh.config.me.address;
        if peer.ip().is_unspecified() {
            peer.set_ip(local.unwrap_or(Ipv4Addr::LOCALHOST.into()));
        }
        let me = json!({
            "host": host,
            "port": self.settings.port,
            "isDown": false,
            "isReady": self.state() == State::Ready,
            "name": view.name,
            "inc": format!("{:?}", view.me),
            "peer": peer.to_string(),
        });
        let others = view.peers.iter().map(|peer| {
            json!({
                "host": peer.address.ip().to_string(),
                "port": peer.http_port,
                "isDown": peer.health == Health::Down,
                "isReady": peer.phase == Phase::Ready && peer.health == Health::Alive,
                "name": peer.name,
                "inc": format!("{:?}", peer.incarnation),
                "peer": peer.address.to_string(),
            })
        });
        let nodes: Vec<_> = std::iter::once(me).chain(others).collect();
        let body = json!({ "nodes": nodes }).to_string();
        self.answers.with_body(out, Status::Ok.line(), framing, JSON, "", body.as_bytes());
        Status::Ok
    }

    fn uptime_seconds(&self, now: Now) -> f64 {
        now.mono_ns.saturating_sub(self.started_mono_ns.load(Ordering::Relaxed)) as f64 / 1e9
    }

    fn status_body(&self, now: Now, state: State) -> String {
        let (state, reason) = self.health(now, state);
        let usage = self.store.usage(now.wall_ms);
        let view = self.view();
        let mesh = self.mesh_status(now);
        let me = json!({"name": view.name, "inc": format!("{:?}", view.me), "isDown": false});
        let others = view.peers.iter().map(|peer| {
            let is_down = peer.health == Health::Down;
            json!({"name": peer.name, "inc": format!("{:?}", peer.incarnation), "isDown": is_down})
        });
        let members: Vec<_> = std::iter::once(me).chain(others).collect();
        json!({
            "version": VERSION,
            "commit": COMMIT,
            "hostname": view.name,
            "port": self.settings.port,
            "maxKeyLength": self.settings.max_key_chars,
            "maxValueLength": self.settings.max_value_chars,
            "availableRecords": self.store.size(now.wall_ms),
            "state": state,
            "reason": reason,
            "inc": format!("{:?}", view.me),
            "mesh": mesh,
            "acks": self.settings.acks.to_string(),
            "members": members,
            "memoryBytes": usage.memory_bytes,
            "memoryLimitBytes": usage.memory_limit_bytes,
            "tombstones": usage.tombstones,
            "connections": self.connections(),
            "maxConnections": self.settings.max_connections,
            "workers": self.settings.workers,
            "uptimeSeconds": (self.uptime_seconds(now) * 1000.0).round() / 1000.0,
        })
        .to_string()
    }

    fn metrics_page(&self, now: Now) -> String {
        let workers = self.worker_metrics();
        let usage = self.store.usage(now.wall_ms);
        let mut page = Page(String::with_capacity(8 * 1024));

        page.family("meshkv_build_info", "gauge", "Always 1; the labels say what is running.");
        page.sample("meshkv_build_info", &[("version", VERSION), ("commit", COMMIT)], 1);

        page.family("meshkv_commands_total", "counter", "Requests answered, by route and HTTP status.");
        for route in Route::ALL {
            for status in Status::ALL {
                let sum: u64 =
                    workers.iter().map(|w| w.commands[route as usize][status as usize].get()).sum();
                if sum > 0 {
                    let labels = [("command", route.label()), ("status", status.label())];
                    page.sample("meshkv_commands_total", &labels, sum);
                }
            }
        }

        let name = "meshkv_command_duration_seconds";
        page.family(name, "histogram", "From a request read to its answer ready, by route.");
        for route in Route::ALL {
            let sum = |cell: &dyn Fn(&super::metrics::DurationCells) -> &Cell| -> u64 {
                workers.iter().map(|worker| cell(&worker.durations[route as usize]).get()).sum()
            };
            let counts: Vec<u64> =
                (0..=DURATION_BOUNDS.len()).map(|b| sum(&|cells| &cells.buckets[b])).collect();
            let total: u64 = counts.iter().sum();
            if total == 0 {
                continue;
            }
            let mut cumulative = 0;
            let bounds = DURATION_BOUNDS.iter().map(|(_, label)| *label).chain(["+Inf"]);
            for (count, bound) in counts.iter().zip(bounds) {
                cumulative += count;
                let labels = [("command", route.label()), ("le", bound)];
                page.sample("meshkv_command_duration_seconds_bucket", &labels, cumulative);
            }
            let labels = [("command", route.label())];
            let seconds = sum(&|cells| &cells.sum_ns) as f64 / 1e9;
            page.sample("meshkv_command_duration_seconds_sum", &labels, seconds);
            page.sample("meshkv_command_duration_seconds_count", &labels, total);
        }

        let total = |cell: &dyn Fn(&super::metrics::WorkerMetrics) -> &Cell| -> u64 {
            workers.iter().map(|worker| cell(worker).get()).sum()
        };
        let help = "Records; one that has expired counts until it is removed, which takes about a second.";
        page.single("meshkv_keys", "gauge", help, usage.live_records);
        page.single("meshkv_tombstones", "gauge", "Removals that are still remembered.", usage.tombstones);
        page.single(
            "meshkv_memory_bytes",
            "gauge",
            "Memory of the store, everything included.",
            usage.memory_bytes,
        );
        let limit = usage.memory_limit_bytes;
        page.single("meshkv_memory_limit_bytes", "gauge", "What the store may occupy.", limit);
        page.single("meshkv_connections", "gauge", "Client connections open.", total(&|w| &w.connections));
        let accepted = total(&|w| &w.connections_total);
        page.single("meshkv_connections_total", "counter", "Client connections accepted.", accepted);
        let rejected = total(&|w| &w.connections_rejected_total);
        page.single(
            "meshkv_connections_rejected_total",
            "counter",
            "Client connections over the limit.",
            rejected,
        );
        let read = total(&|w| &w.read_bytes_total);
        page.single("meshkv_read_bytes_total", "counter", "Bytes read from clients.", read);
        let written = total(&|w| &w.written_bytes_total);
        page.single("meshkv_written_bytes_total", "counter", "Bytes written to clients.", written);

        page.family("meshkv_member_state", "gauge", "1 for the state that each member is in.");
        let view = self.view();
        page.sample("meshkv_member_state", &[("member", &view.name), ("state", "alive")], 1);
        for peer in &view.peers {
            let labels = [("member", peer.name.as_str()), ("state", peer.health.label())];
            page.sample("meshkv_member_state", &labels, 1);
        }
        let help = "Bytes of writes that are kept for peers.";
        page.single("meshkv_replication_log_bytes", "gauge", help, total(&|w| &w.log_bytes));
        self.mesh_metrics(now, &mut page);

        let process = (self.process)();
        page.single("process_cpu_seconds_total", "counter", "User and system CPU time.", process.cpu_seconds);
        page.single("process_resident_memory_bytes", "gauge", "Resident memory.", process.resident_bytes);
        page.single("process_virtual_memory_bytes", "gauge", "Virtual memory.", process.virtual_bytes);
        page.single("process_open_fds", "gauge", "Open descriptors.", process.open_descriptors);
        page.single("process_max_fds", "gauge", "Limit of open descriptors.", process.max_descriptors);
        let start = process.start_seconds;
        page.single("process_start_time_seconds", "gauge", "Start, in seconds since the epoch.", start);
        page.0
    }
}

/// A page of Prometheus text under construction.
pub(super) struct Page(String);

impl Page {
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (place, (label, text)) in labels.iter().enumerate() {
            let open = if place == 0 { '{' } else { ',' };
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{open}{label}=\"{escaped}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    pub(super) fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_lists_are_checked_entry_by_entry() {
        for good in ["", "nodes=", "nodes=a:1", "nodes=10.0.0.1:8080|n2.example:65535|", "nodes=%5B::1%5D:80"]
        {
            assert!(check_nodes(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in [
            "nodes=a",
            "nodes=a:0",
            "nodes=a:65536",
            "nodes=:80",
            "nodes=a%20b:80",
            "nodes=::1:80",
            "nodes=a:+80",
        ] {
            assert_eq!(check_nodes(bad.as_bytes()), Err(ErrorCode::BadNodes), "{bad}");
        }
        let many = format!("nodes={}", "a:1|".repeat(PING_NODES_MAX + 1));
        assert_eq!(check_nodes(many.as_bytes()), Err(ErrorCode::BadNodes));
    }
}
