//! What a node says about its mesh, in `/status` and `/metrics`. Cold paths.

use super::Node;
use super::info::Page;
use crate::base::clock::Now;
use crate::base::version::Incarnation;
use crate::mesh::compare::Verdict;
use crate::mesh::figures::{ROUND_TRIP_BOUNDS, RoundTrips};
use crate::mesh::members::Member;
use crate::peer::frame::{Held, Reason};
use crate::peer::link::LinkError;
use crate::store::Storage;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// What a member said that it holds of this node's writes, in its last beat, against what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    acked: u64,
    pending: u64,
}

impl Told {
    /// `heads`: by worker, the last operation that it accepted.
    fn of(member: &Member, me: Incarnation, heads: &[u64]) -> Told {
        let held = member.report.as_ref().and_then(|report| report.vectors.get(&me));
        Told::sum(held.map_or(&[], |vector| vector.workers.as_slice()), heads)
    }

    fn sum(held: &[Held], heads: &[u64]) -> Told {
        let beyond = |held: &Held| held.ranges.iter().map(|(base, upto)| upto - base).sum::<u64>();
        let acked = held.iter().map(|held| held.applied + beyond(held)).sum();
        // The beat may be younger than the heads.
        Told { acked, pending: heads.iter().sum::<u64>().saturating_sub(acked) }
    }
}

fn round_trips(page: &mut Page, peer: &str, trips: &RoundTrips) {
    let mut cumulative = 0;
    let bounds = ROUND_TRIP_BOUNDS.iter().map(|(_, label)| *label).chain(["+Inf"]);
    for (count, bound) in trips.buckets.iter().zip(bounds) {
        cumulative += count;
        page.sample("meshkv_peer_round_trip_seconds_bucket", &[("peer", peer), ("le", bound)], cumulative);
    }
    let seconds = trips.sum_ns as f64 / 1e9;
    page.sample("meshkv_peer_round_trip_seconds_sum", &[("peer", peer)], seconds);
    page.sample("meshkv_peer_round_trip_seconds_count", &[("peer", peer)], cumulative);
}

impl<S: Storage> Node<S> {
    /// The `mesh` object of `/status`.
    pub(super) fn mesh_status(&self, now: Now) -> Value {
        let mesh = &self.mesh;
        let heads = mesh.heads();
        mesh.with_members(|members| {
            let peer = |member: &Member| {
                let told = Told::of(member, members.me().incarnation, &heads);
                let origin = mesh.progress().get(member.info.incarnation);
                let applied: u64 =
                    origin.as_ref().map_or(0, |o| o.vector().workers.iter().map(|held| held.applied).sum());
                let closed_ms = origin.as_ref().map_or(0, |origin| origin.closed().millis());
                let streams = mesh.streams_to(member.info.incarnation);
                json!({
                    "name": member.info.name,
                    "inc": format!("{:?}", member.info.incarnation),
                    "address": member.info.address.to_string(),
                    "state": member.health.label(),
                    "phase": member.report.as_ref().map_or("unknown", |report| report.phase.label()),
                    "roundTripMs": member.round_trip_ns as f64 / 1e6,
                    "clockOffsetMs": member.clock_offset_ms,
                    "applied": applied,
                    "sent": streams.sent,
                    "acked": told.acked,
                    "pending": told.pending,
                    "cursorRoomBytes": streams.room_bytes,
                    "lagMs": (closed_ms > 0).then(|| now.wall_ms.saturating_sub(closed_ms)),
                    "comparison": mesh.comparisons().last(member.info.incarnation).map(|(verdict, at_ns)| json!({
                        "verdict": verdict.label(),
                        "ageMs": now.mono_ns.saturating_sub(at_ns) / 1_000_000,
                        "keys": if let Verdict::Diverged(keys) = verdict { keys } else { 0 },
                    })),
                    "hasGap": origin.is_some_and(|origin| origin.has_gap()),
                })
            };
            json!({
                "phase": members.phase().label(),
                "lineage": format!("{:032x}", members.lineage()),
                "viewHash": format!("{:016x}", members.view_hash()),
                "isAgreed": members.is_agreed(),
                "size": members.others().count() + 1,
                "accepted": heads.iter().sum::<u64>(),
                // Null before there is one.
                "floorAgeMs": mesh.floor().filter(|floor| floor.millis() > 0).map(|floor| now.wall_ms.saturating_sub(floor.millis())),
                "peers": members.others().map(peer).collect::<Vec<_>>(),
            })
        })
    }

    /// The mesh's part of `/metrics`.
    pub(super) fn mesh_metrics(&self, now: Now, page: &mut Page) {
        let mesh = &self.mesh;
        let counters = &mesh.counters;
        let name = "meshkv_peer_link_errors_total";
        page.family(name, "counter", "Peer links ended by a fault of the other side, by kind.");
        for (kind, counter) in LinkError::LABELS.iter().zip(&counters.link_errors) {
            page.sample(name, &[("kind", kind)], get(counter));
        }
        let name = "meshkv_peer_refusals_total";
        page.family(name, "counter", "Peer links that this node has refused or ended, by reason.");
        for (reason, counter) in Reason::ALL.iter().zip(&counters.refusals) {
            page.sample(name, &[("reason", reason.label())], get(counter));
        }
        let streams = "Streams to peers that went on where they had stopped.";
        page.single("meshkv_replication_resumes_total", "counter", streams, get(&counters.resumes));
        let streams =
            "Streams to peers that began anew, because the log did not reach back or the peer is new.";
        page.single("meshkv_replication_restarts_total", "counter", streams, get(&counters.restarts));
        let name = "meshkv_pulls_total";
        page.family(name, "counter", "Pulls that this node has made: whole copies, and of what is newer.");
        page.sample(name, &[("kind", "full")], get(&counters.pulls_full));
        page.sample(name, &[("kind", "partial")], get(&counters.pulls_partial));
        let name = "meshkv_repair_sessions_total";
        page.family(name, "counter", "Pulls that have ended, the whole copies of a start included.");
        page.sample(name, &[("outcome", "complete")], get(&counters.pulls_complete));
        page.sample(name, &[("outcome", "abandoned")], get(&counters.pulls_abandoned));
        let name = "meshkv_comparisons_total";
        page.family(name, "counter", "Comparisons of what this node holds with another member, by verdict.");
        for (verdict, count) in Verdict::LABELS.iter().zip(mesh.comparisons().counts()) {
            page.sample(name, &[("verdict", verdict)], count);
        }
        let name = "meshkv_repair_entries_total";
        page.family(name, "counter", "Records that pulls have moved.");
        page.sample(name, &[("direction", "received")], get(&counters.pull_records_received));
        page.sample(name, &[("direction", "sent")], get(&counters.pull_records_sent));
        let help = "Operations that came too late: decided before.";
        page.single("meshkv_replication_below_floor_total", "counter", help, get(&counters.below_floor));
        let help = "Times that this node had to start over under a new incarnation.";
        page.single("meshkv_rebirths_total", "counter", help, get(&counters.rebirths));
        let heads = mesh.heads();
        mesh.with_members(|members| {
            let me = members.me().incarnation;
            let members: Vec<&Member> = members.others().collect();
            let origin = |member: &Member| mesh.progress().get(member.info.incarnation);
            let name = "meshkv_replication_applied_total";
            page.family(name, "counter", "Operations of each peer that were applied here.");
            for member in &members {
                let applied = origin(member).map_or(0, |origin| get(&origin.applied_total));
                page.sample(name, &[("peer", &member.info.name)], applied);
            }
            let name = "meshkv_replication_superseded_total";
            page.family(name, "counter", "Operations of each peer that lost against a later write.");
            for member in &members {
                let superseded = origin(member).map_or(0, |origin| get(&origin.superseded_total));
                page.sample(name, &[("peer", &member.info.name)], superseded);
            }
            let streams = |member: &Member| mesh.streams_to(member.info.incarnation);
            let name = "meshkv_replication_sent_total";
            page.family(name, "counter", "Operations sent to each peer, repeated ones counted again.");
            for member in &members {
                page.sample(name, &[("peer", &member.info.name)], streams(member).sent_total);
            }
            let name = "meshkv_replication_pending_bytes";
            page.family(
                name,
                "gauge",
                "Bytes of the logs that each peer has not acknowledged, 64 KiB a worker too many at most.",
            );
            for member in &members {
                page.sample(name, &[("peer", &member.info.name)], streams(member).pending_bytes);
            }
            let name = "meshkv_replication_acked_total";
            page.family(name, "counter", "Operations of this node that each peer's last beat said it holds.");
            for member in &members {
                let told = Told::of(member, me, &heads);
                page.sample(name, &[("peer", &member.info.name)], told.acked);
            }
            let name = "meshkv_replication_pending_operations";
            page.family(name, "gauge", "Operations of this node that each peer has not said it holds.");
            for member in &members {
                let told = Told::of(member, me, &heads);
                page.sample(name, &[("peer", &member.info.name)], told.pending);
            }
            let name = "meshkv_replication_lag_seconds";
            page.family(name, "gauge", "Everything that each peer accepted before this age is held here.");
            for member in &members {
                let closed_ms = origin(member).map_or(0, |origin| origin.closed().millis());
                if closed_ms == 0 {
                    // Nothing has been heard: there is no age yet.
                    continue;
                }
                let lag_ms = now.wall_ms.saturating_sub(closed_ms);
                page.sample(name, &[("peer", &member.info.name)], lag_ms as f64 / 1e3);
            }
            let name = "meshkv_clock_offset_seconds";
            page.family(name, "gauge", "Each peer's clock against this node's.");
            for member in &members {
                let labels = [("peer", member.info.name.as_str())];
                page.sample(name, &labels, member.clock_offset_ms as f64 / 1e3);
            }
            let name = "meshkv_peer_round_trip_seconds";
            page.family(name, "histogram", "Round trips to each peer, the time it took to answer included.");
            for member in &members {
                round_trips(page, &member.info.name, &member.round_trips);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_beyond_a_gap_counts() {
        let held =
            |applied, ranges: &[(u64, u64)]| Held { applied, ranges: ranges.to_vec(), ..Held::default() };
        let told = Told::sum(&[held(5, &[(7, 9)]), held(3, &[])], &[10, 3]);
        assert_eq!(told, Told { acked: 10, pending: 3 });
        assert_eq!(
            Told::sum(&[held(6, &[])], &[5]),
            Told { acked: 6, pending: 0 },
            "a beat younger than the heads"
        );
        assert_eq!(Told::sum(&[], &[4]), Told { acked: 0, pending: 4 }, "not heard yet");
    }
}
