//! What the status pages say.

use super::Keeper;
use super::status::Answer;
use crate::balancer::config::Source;
use crate::balancer::shared::{Counters, Failure};
use serde_json::{Value, json};
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

pub(super) fn answer(keeper: &Keeper, path: &str) -> Answer {
    let text = |status: u16, body: &str| Answer { status, kind: "application/json", body: body.to_owned() };
    match path {
        "/live" => text(200, r#"{"status":"ok"}"#),
        "/ready" => match not_ready(keeper) {
            None => text(200, r#"{"status":"ok"}"#),
            Some(reason) => text(503, &json!({ "status": reason }).to_string()),
        },
        "/status" => text(200, &format!("{:#}\n", status(keeper))),
        "/metrics" => Answer { status: 200, kind: "text/plain; version=0.0.4", body: metrics(keeper) },
        "/" => text(200, r#"{"routes":["/status","/metrics","/live","/ready"]}"#),
        _ => text(404, r#"{"error":"NO_SUCH_ROUTE"}"#),
    }
}

fn not_ready(keeper: &Keeper) -> Option<&'static str> {
    if keeper.shared.is_stopping() {
        return Some("stopping");
    }
    let tiers = keeper.pool.routes().tiers;
    (tiers[0].is_empty() && tiers[1].is_empty()).then_some("no backend")
}

fn source(keeper: &Keeper) -> Value {
    match (&keeper.config.source, &keeper.engine) {
        (Source::Docker { group, .. }, Some(engine)) => json!({
            "kind": "docker",
            "location": engine.location.to_string(),
            "group": group.name,
            "project": group.project,
            "network": group.network,
            "api": engine.version.map(|version| version.to_string()),
            "stream": engine.discovery.has_stream(),
            "fault": engine.fault,
            "remark": engine.remark,
            "listed_ms_ago": engine.listed_ms.map(|at| keeper.now_ms.saturating_sub(at)),
        }),
        (Source::Dns { name, port }, _) => json!({ "kind": "dns", "name": name, "port": port }),
        (Source::Static { backends, file }, _) => {
            json!({ "kind": "static", "backends": backends, "file": file.as_ref().map(|path| path.display().to_string()) })
        }
        _ => json!({ "kind": "given" }),
    }
}

fn status(keeper: &Keeper) -> Value {
    let totals = &keeper.shared.totals;
    let none = Counters::default();
    let backends = keeper.pool.backends().map(|backend| {
        let counters = keeper.counters.get(&backend.id).map_or(&none, |counters| &**counters);
        let failures: serde_json::Map<String, Value> = Failure::ALL
            .iter()
            .map(|kind| (kind.name().to_owned(), counters.failures(*kind).into()))
            .collect();
        json!({
            "id": backend.id,
            "name": backend.name,
            "address": backend.address.map(|address| address.to_string()),
            "state": backend.state.name(),
            "reason": backend.reason,
            "for_ms": keeper.now_ms.saturating_sub(backend.since_ms),
            "active": counters.active.load(Relaxed),
            "total": counters.total.load(Relaxed),
            "sent_bytes": counters.sent_bytes.load(Relaxed),
            "received_bytes": counters.received_bytes.load(Relaxed),
            "failures": failures,
            "last_check": backend.last_check.as_ref().map(|(at, result)| {
                json!({ "ms_ago": keeper.now_ms.saturating_sub(*at), "result": result })
            }),
        })
    });
    json!({
        "state": not_ready(keeper).unwrap_or("ready"),
        "listen": keeper.config.listen.to_string(),
        "source": source(keeper),
        "connections": {
            "active": totals.active.load(Relaxed),
            "max": keeper.shared.max_connections,
            "accepted": totals.accepted.load(Relaxed),
            "waiting": totals.waiting.load(Relaxed),
            "unavailable": totals.unavailable.load(Relaxed),
            "retries": totals.retries.load(Relaxed),
            "out_of_descriptors": totals.out_of_descriptors.load(Relaxed),
        },
        "backends": backends.collect::<Vec<_>>(),
    })
}

fn metrics(keeper: &Keeper) -> String {
    let totals = &keeper.shared.totals;
    let mut page = String::new();
    let mut family = |name: &str, kind: &str, help: &str, lines: &[(String, u64)]| {
        // Writing to a string cannot fail.
        let _ = writeln!(page, "# HELP meshkv_balancer_{name} {help}\n# TYPE meshkv_balancer_{name} {kind}");
        for (labels, value) in lines {
            let _ = writeln!(page, "meshkv_balancer_{name}{labels} {value}");
        }
    };
    let one = |value: u64| [(String::new(), value)];
    family("connections", "gauge", "Clients connected.", &one(totals.active.load(Relaxed) as u64));
    family("waiting", "gauge", "Clients waiting for a backend.", &one(totals.waiting.load(Relaxed) as u64));
    for (name, help, value) in [
        ("connections_total", "Clients accepted.", &totals.accepted),
        ("unavailable_total", "Clients answered 503.", &totals.unavailable),
        ("retries_total", "Attempts after a failed one.", &totals.retries),
        ("spliced_bytes_total", "Bytes that were not copied.", &totals.spliced_bytes),
        ("out_of_descriptors_total", "Times that no descriptor was left.", &totals.out_of_descriptors),
    ] {
        family(name, "counter", help, &one(value.load(Relaxed)));
    }
    let mut per: [Vec<(String, u64)>; 6] = Default::default();
    for backend in keeper.pool.backends() {
        let Some(counters) = keeper.counters.get(&backend.id) else { continue };
        let name: String =
            backend.name.chars().filter(|c| !c.is_control() && *c != '"' && *c != '\\').collect();
        let label = |more: &str| format!("{{backend=\"{name}\"{more}}}");
        per[0].push((label(&format!(",state=\"{}\"", backend.state.name())), 1));
        per[1].push((label(""), counters.active.load(Relaxed) as u64));
        per[2].push((label(""), counters.total.load(Relaxed)));
        per[3].push((label(""), counters.sent_bytes.load(Relaxed)));
        per[4].push((label(""), counters.received_bytes.load(Relaxed)));
        for kind in Failure::ALL {
            per[5].push((label(&format!(",kind=\"{}\"", kind.name())), counters.failures(kind)));
        }
    }
    family("backend_state", "gauge", "The state that a backend is in.", &per[0]);
    family("backend_connections", "gauge", "Connections to a backend.", &per[1]);
    family("backend_connections_total", "counter", "Connections made to a backend.", &per[2]);
    family("backend_sent_bytes_total", "counter", "Bytes to a backend.", &per[3]);
    family("backend_received_bytes_total", "counter", "Bytes from a backend.", &per[4]);
    family("backend_failures_total", "counter", "Connections to a backend that failed.", &per[5]);
    page
}
