//! The report as one HTML file: no script, nothing from the network, readable in light and dark mode and on a phone.

use super::svg::{STYLE, charts, escape, time};
use super::text::{load, number, workload};
use super::{Change, H, Report, Verdict};
use crate::slo;
use std::fmt::Write;

const PAGE_STYLE: &str = "\
*{box-sizing:border-box}html{color-scheme:light dark}\
body{margin:0 auto;padding:20px 16px 48px;max-width:1320px;background:var(--bg);color:var(--ink);\
font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}\
h1{font-size:21px;margin:0 0 2px}h2{font-size:16px;margin:30px 0 8px}p{margin:2px 0}.soft{color:var(--soft)}\
.verdict{display:inline-block;font-weight:700;padding:1px 10px;border-radius:4px;border:1.5px solid;margin-top:10px}\
.good{color:var(--good)}.bad{color:var(--bad)}ul{margin:8px 0;padding-left:20px}\
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:10px;margin:18px 0}\
.figures div{background:var(--panel);padding:10px 12px;border-radius:6px}\
.figures b{display:block;font-size:20px;font-variant-numeric:tabular-nums}\
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:14px}\
.charts div{background:var(--panel);border-radius:6px;padding:6px}.chart{display:block;width:100%;height:auto}\
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{padding:4px 10px;border-bottom:1px solid var(--grid);text-align:right;white-space:nowrap}\
th:first-child,td:first-child{text-align:left;padding-left:0}th{color:var(--soft);font-weight:500}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:0}dt{color:var(--soft)}dd{margin:0}\
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:0 40px}";

fn cells(out: &mut String, tag: &str, cells: impl IntoIterator<Item = String>) {
    out.push_str("<tr>");
    for cell in cells {
        let _ = write!(out, "<{tag}>{}</{tag}>", escape(&cell));
    }
    out.push_str("</tr>");
}

fn table(out: &mut String, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    out.push_str("<div class=\"scroll\"><table>");
    cells(out, "th", head.iter().map(|text| (*text).to_owned()));
    for row in rows {
        cells(out, "td", row);
    }
    out.push_str("</table></div>");
}

fn list(out: &mut String, title: &str, rows: &[(String, String)]) {
    let _ = write!(out, "<div><h2>{title}</h2><dl>");
    for (name, value) in rows {
        let _ = write!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
    }
    out.push_str("</dl></div>");
}

fn figures(out: &mut String, report: &Report) {
    let clock = report.latency.primary_name();
    let mut figures = vec![("right answers a second".to_owned(), number(report.rate.achieved.round()))];
    if let Some(all) = report.latency.primary().get("all") {
        for (name, value) in [("p50", all.p50), ("p99", all.p99), ("p99.9", all.p99_9), ("max", all.max)] {
            figures.push((format!("{clock} {name}"), time(value as f64)));
        }
    }
    figures.push(("errors".to_owned(), report.counts.bad().to_string()));
    out.push_str("<div class=\"figures\">");
    for (name, value) in figures {
        let _ =
            write!(out, "<div><b>{}</b><span class=\"soft\">{}</span></div>", escape(&value), escape(&name));
    }
    out.push_str("</div>");
}

fn latencies(out: &mut String, report: &Report) {
    let row = |name: String, h: &H| {
        let times = [h.p50, h.p90, h.p99, h.p99_9, h.p99_99, h.max].map(|ns| time(ns as f64));
        [vec![name, h.count.to_string()], times.to_vec()].concat()
    };
    let mut rows = Vec::new();
    let clocks = [("response", report.latency.response.as_ref()), ("service", Some(&report.latency.service))];
    for (clock, map) in clocks {
        for (operation, h) in map.into_iter().flatten() {
            rows.push(row(format!("{clock} {operation}"), h));
        }
    }
    if report.latency.failed.count > 0 {
        rows.push(row("failed".to_owned(), &report.latency.failed));
    }
    if let Some(lag) = &report.latency.replication_lag {
        rows.push(row("replication lag".to_owned(), lag));
    }
    out.push_str("<h2>Latency</h2>");
    table(out, &["", "count", "p50", "p90", "p99", "p99.9", "p99.99", "max"], rows);
}

fn judgements(out: &mut String, report: &Report) {
    if !report.slo.is_empty() {
        out.push_str("<h2>Objectives</h2>");
        let rows = report.slo.iter().map(|result| {
            let value = slo::parse(&result.expr)
                .map_or_else(|_| number(result.value), |parsed| parsed[0].shown(result.value));
            vec![result.expr.clone(), value, if result.pass { "met" } else { "missed" }.to_owned()]
        });
        table(out, &["objective", "seen", ""], rows);
    }
    if let Some(baseline) = &report.baseline {
        let _ = write!(out, "<h2>Compared with {}</h2>", escape(&baseline.base));
        let rows = baseline.metrics.iter().map(|metric| {
            let outcome = match metric.outcome {
                Change::Same => "no difference",
                Change::Better => "better",
                Change::Worse => "worse",
                Change::Unknown => "too few runs",
            };
            vec![
                metric.name.clone(),
                number(metric.base),
                number(metric.new),
                format!("{:+.2} %", metric.change * 100.0),
                metric.p.map_or("–".to_owned(), |p| format!("{p:.4}")),
                outcome.to_owned(),
            ]
        });
        table(out, &["", "baseline", "now", "change", "p", ""], rows);
    }
    if report.runs.len() > 1 {
        out.push_str("<h2>Runs</h2>");
        let rows = report.runs.iter().enumerate().map(|(at, run)| {
            let times = [run.p50, run.p99, run.p99_9, run.max].map(|ns| time(ns as f64));
            let asked = run.target_rate.map_or("–".to_owned(), |rate| format!("{rate:.0}"));
            let verdict = match (run.verdict, run.slo_pass) {
                (Verdict::Invalid, _) => "INVALID",
                (Verdict::Valid, Some(true)) => "met",
                (Verdict::Valid, Some(false)) => "missed",
                (Verdict::Valid, None) => "",
            };
            let first = vec![(at + 1).to_string(), asked, format!("{:.0}", run.rate)];
            [first, times.to_vec(), vec![run.bad.to_string(), verdict.to_owned()]].concat()
        });
        table(out, &["run", "asked for", "1/s", "p50", "p99", "p99.9", "max", "errors", ""], rows);
    }
}

/// A flat object of the report, as names and values.
fn flat(of: &impl serde::Serialize) -> Vec<(String, String)> {
    let Ok(serde_json::Value::Object(object)) = serde_json::to_value(of) else { return Vec::new() };
    let shown = |value: serde_json::Value| match value {
        serde_json::Value::Null => "–".to_owned(),
        serde_json::Value::Object(map) if map.is_empty() => "–".to_owned(),
        serde_json::Value::Number(n) if n.is_f64() => number(n.as_f64().unwrap_or(0.0)),
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    object.into_iter().map(|(name, value)| (name.replace('_', " "), shown(value))).collect()
}

/// The whole page; `baseline` is for the chart.
pub fn page(report: &Report, baseline: Option<&Report>) -> String {
    let mut out = String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    let (verdict, class) = match report.verdict {
        Verdict::Valid => ("VALID", "good"),
        Verdict::Invalid => ("INVALID", "bad"),
    };
    let urls: Vec<&str> = report.target.iter().map(|target| target.url.as_str()).collect();
    let _ = write!(
        out,
        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>meshkv-stress, {}</title>\
         <style>{STYLE}{PAGE_STYLE}</style></head><body><header><h1>meshkv-stress</h1><p>{}</p><p>{}</p>\
         <p class=\"soft\">{}; {}</p><p class=\"verdict {class}\">{verdict}</p>",
        escape(&report.started),
        escape(&urls.join(" ")),
        escape(&workload(&report.config)),
        escape(&load(&report.config)),
        escape(&report.started)
    );
    if !report.reasons.is_empty() {
        out.push_str("<ul>");
        for reason in &report.reasons {
            let _ = write!(out, "<li>{}</li>", escape(reason));
        }
        out.push_str("</ul>");
    }
    out.push_str("</header><main>");
    figures(&mut out, report);
    out.push_str("<div class=\"charts\">");
    for chart in charts(report, baseline) {
        let _ = write!(out, "<div>{chart}</div>");
    }
    out.push_str("</div>");
    latencies(&mut out, report);
    judgements(&mut out, report);
    out.push_str("<div class=\"sides\">");
    let mut counts = flat(&report.counts);
    counts.retain(|(name, _)| name != "errors");
    counts.extend(
        flat(&report.counts.errors).into_iter().map(|(name, value)| (format!("errors: {name}"), value)),
    );
    list(&mut out, "Counts", &counts);
    list(&mut out, "Client", &flat(&report.client));
    list(&mut out, "Configuration", &flat(&report.config));
    list(&mut out, "Host", &flat(&report.host));
    out.push_str("</div></main></body></html>\n");
    out
}
