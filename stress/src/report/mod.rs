//! What a run has shown, as one value: the terminal, the files and the comparisons are all made from it. Times
//! are integers in nanoseconds. The schema is `stress/report.schema.json`.

pub mod build;
pub mod files;
pub mod html;
pub mod svg;
pub mod text;

use crate::machine::Host;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const SCHEMA: u64 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: u64,
    pub tool: Tool,
    pub verdict: Verdict,
    /// Why it is invalid, and what else one must know to read the numbers.
    pub reasons: Vec<String>,
    pub host: Host,
    pub target: Vec<TargetInfo>,
    pub config: Config,
    /// RFC 3339, UTC.
    pub started: String,
    pub interrupted: bool,
    pub elapsed_ns: u64,
    pub counts: Counts,
    pub rate: Rate,
    pub client: Client,
    pub latency: Latency,
    pub intervals: Vec<IntervalSummary>,
    pub runs: Vec<RunSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Comparison>,
    pub slo: Vec<SloResult>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    pub version: String,
    pub commit: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Valid,
    Invalid,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetInfo {
    pub url: String,
    /// What `/status` says; null where it is not answered.
    pub version: Option<String>,
    /// Records before the run.
    pub keys: Option<u64>,
    /// Records after it.
    pub keys_after: Option<u64>,
    /// This target's own counts, where they were taken apart (`verify`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
}

/// Every flag that shapes the run, as it was in effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub mode: String,
    pub requests: Option<u64>,
    pub duration_ns: Option<u64>,
    pub warmup_ns: u64,
    pub connections: u64,
    pub threads: u64,
    pub pipeline: u64,
    pub rate: Option<f64>,
    pub arrival: Option<crate::arrival::Arrival>,
    pub mix: String,
    pub keys: u64,
    pub key_dist: String,
    pub value_size: Option<(u64, u64)>,
    pub seed: u64,
    pub timeout_ns: u64,
    pub verify: crate::run::Verify,
    pub template: Option<String>,
    pub expect: Option<String>,
    pub runs: u64,
    pub noise: f64,
    pub slo: Option<String>,
    pub baseline: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests that were begun: `ok + failed + unfinished`.
    pub sent: u64,
    pub ok: u64,
    pub failed: u64,
    /// Not answered when the drain ended.
    pub unfinished: u64,
    /// Open loop: came due and were never sent.
    pub late: u64,
    pub errors: Errors,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    pub connect: u64,
    pub timeout: u64,
    pub reset: u64,
    pub verify: u64,
    /// By status.
    pub http: BTreeMap<String, u64>,
}

impl Counts {
    /// Everything that was not answered rightly.
    pub fn bad(&self) -> u64 {
        self.failed + self.unfinished + self.late
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    pub target: Option<f64>,
    /// Right answers a second within the window.
    pub achieved: f64,
    /// Over the runs.
    pub mean: f64,
    /// Half of the 95 % interval; null with one run.
    pub ci95: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Client {
    pub cpu_user_ns: u64,
    pub cpu_sys_ns: u64,
    pub cpu_ns_per_req: u64,
    /// Open loop: the part of the sends that were on time or late only for want of a free connection.
    pub timely_ratio: Option<f64>,
    pub max_thread_util: f64,
    pub backlog_max: u64,
    pub reconnects: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// From the intended send; absent in a closed loop, which has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<BTreeMap<String, H>>,
    /// From the real send; by operation and `all`.
    pub service: BTreeMap<String, H>,
    pub failed: H,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_lag: Option<H>,
}

impl Latency {
    /// The clock that counts: response time where there is one.
    pub fn primary(&self) -> &BTreeMap<String, H> {
        self.response.as_ref().unwrap_or(&self.service)
    }

    pub fn primary_name(&self) -> &'static str {
        if self.response.is_some() { "response" } else { "service" }
    }
}

/// A histogram: its usual numbers and, for those who want others, all of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct H {
    pub count: u64,
    pub min: u64,
    pub mean: f64,
    pub stdev: f64,
    pub p50: u64,
    pub p75: u64,
    pub p90: u64,
    pub p95: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub p99_99: u64,
    pub max: u64,
    /// `HdrHistogram` V2, deflated, in base64: what its libraries read.
    pub hdr: String,
}

impl H {
    pub fn of(times: &Histogram<u64>) -> Self {
        let at = |quantile| times.value_at_quantile(quantile);
        let mut bytes = Vec::new();
        V2DeflateSerializer::new().serialize(times, &mut bytes).expect("a vector takes everything");
        Self {
            count: times.len(),
            min: times.min(),
            mean: if times.is_empty() { 0.0 } else { times.mean() },
            stdev: if times.is_empty() { 0.0 } else { times.stdev() },
            p50: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: times.max(),
            hdr: base64(&bytes),
        }
    }

    /// # Errors
    /// `hdr` is not what it should be: the file was changed.
    pub fn histogram(&self) -> Result<Histogram<u64>, String> {
        let bytes = unbase64(&self.hdr).ok_or("a histogram is not base64")?;
        Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| format!("a histogram cannot be read: {error}"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntervalSummary {
    /// Its beginning, from the end of the warm-up.
    pub t_ns: u64,
    pub ok: u64,
    pub failed: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

/// One of several runs (or steps of a sweep).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    pub target_rate: Option<f64>,
    pub elapsed_ns: u64,
    pub ok: u64,
    pub bad: u64,
    pub rate: f64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub max: u64,
    pub cpu_ns_per_req: u64,
    pub timely_ratio: Option<f64>,
    pub verdict: Verdict,
    /// Whether the objectives were met; null without any.
    pub slo_pass: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub base: String,
    pub noise: f64,
    pub metrics: Vec<Compared>,
    pub regression: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    pub name: String,
    pub base: f64,
    pub new: f64,
    /// (new - base) / base.
    pub change: f64,
    /// Two-sided, by Welch's t test; null where a side has one run.
    pub p: Option<f64>,
    pub outcome: Change,
    /// Whether this metric decides about a regression, or is told for information.
    pub decides: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Same,
    Better,
    Worse,
    /// Too few runs to tell.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SloResult {
    pub expr: String,
    pub value: f64,
    pub pass: bool,
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let sextet = (bits >> (18 - 6 * at)) & 63;
            out.push(if at <= three.len() { BASE64[sextet as usize] as char } else { '=' });
        }
    }
    out
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for four in text.as_bytes().chunks(4) {
        let padding = four.iter().rev().take_while(|byte| **byte == b'=').count();
        if four.len() != 4 || padding > 2 {
            return None;
        }
        let mut bits = 0;
        for byte in &four[..4 - padding] {
            bits = bits << 6 | BASE64.iter().position(|known| known == byte)? as u32;
        }
        bits <<= 6 * padding;
        out.extend_from_slice(&bits.to_be_bytes()[1..4 - padding]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_rfc_4648() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
            assert_eq!(unbase64(coded).as_deref(), Some(plain.as_bytes()));
        }
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(unbase64(&base64(&bytes)), Some(bytes));
        for bad in ["Z", "Zg=", "Z===", "Z!==", "Zm9v\n"] {
            assert_eq!(unbase64(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_histogram_comes_back_whole() {
        let mut times = crate::stats::histogram();
        for n in 1..5000u64 {
            times.record(n * n).unwrap();
        }
        let h = H::of(&times);
        assert_eq!(h.histogram().unwrap(), times);
        assert!(H { hdr: "AAAA".to_owned(), ..h }.histogram().is_err());
    }
}
