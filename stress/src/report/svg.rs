//! The charts: latency by percentile, and the seconds of the run. Plain SVG whose colours come from the style
//! sheet, so that they follow the reader's light or dark mode.

use super::{IntervalSummary, Report};
use crate::slo;
use hdrhistogram::Histogram;
use std::fmt::Write;

/// In the chart's own units; small, so that letters stay readable on a phone.
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 26.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 58.0;
/// Points of a percentile curve.
pub const POINTS: usize = 96;
/// More seconds than this are drawn in groups.
const GROUPS_MAX: usize = 300;

/// Colours for both modes, and what the charts' classes mean.
pub const STYLE: &str = "\
:root{--bg:#fff;--panel:#f6f7f9;--ink:#1b1f24;--soft:#59636e;--grid:#d5dae0;--a:#0b62d6;--b:#b45309;--c:#6b7280;\
--bad:#c62828;--good:#1a7f37}\
@media(prefers-color-scheme:dark){:root{--bg:#12161b;--panel:#1a2027;--ink:#e6eaef;--soft:#9aa5b1;--grid:#343d47;\
--a:#6ab0ff;--b:#f0a35e;--c:#9aa5b1;--bad:#ff7b72;--good:#56d364}}\
.bg{fill:var(--bg)}.grid{stroke:var(--grid);stroke-width:1}.line{fill:none;stroke-width:1.8;stroke-linejoin:round}\
text{fill:var(--soft);font:12px system-ui,sans-serif}.title{fill:var(--ink);font-weight:600;font-size:13px}\
.response,.p99,.rate{stroke:var(--a)}.service,.p50{stroke:var(--b)}.baseline{stroke:var(--c);stroke-dasharray:6 3}\
.max{stroke:var(--c)}.slo{stroke:var(--bad);stroke-dasharray:2 3}.dot{fill:var(--bad)}\
.failed{fill:var(--bad);fill-opacity:.45;stroke:none}";

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A time with its unit, short.
pub fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let digits = if value >= 100.0 { 0 } else { usize::from(value >= 10.0) + usize::from(value < 10.0) * 2 };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {unit}")
}

/// A linear or logarithmic scale onto the chart's height.
struct Scale {
    low: f64,
    high: f64,
    log: bool,
}

impl Scale {
    /// Whole decades around the values.
    fn log(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .filter(|value| *value > 0.0)
            .fold((f64::INFINITY, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if high == 0.0 { (1.0, 10.0) } else { (low, high) };
        let (floor, ceiling) = (low.log10().floor(), high.log10().ceil());
        Self { low: floor, high: ceiling.max(floor + 1.0), log: true }
    }

    /// From zero to a round number.
    fn linear(most: f64) -> Self {
        let decade = 10f64.powf(most.max(1.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * decade).find(|step| *step >= most);
        Self { low: 0.0, high: step.unwrap_or(most.max(1.0)), log: false }
    }

    fn y(&self, value: f64) -> f64 {
        let value = if self.log { value.max(1e-9).log10() } else { value };
        let part = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log {
            (self.low as i32..=self.high as i32).map(|decade| 10f64.powi(decade)).collect()
        } else {
            (0..=4).map(|quarter| self.high * f64::from(quarter) / 4.0).collect()
        }
    }
}

struct Chart {
    body: String,
    legend_x: f64,
}

impl Chart {
    fn new(title: &str, scale: &Scale, label: impl Fn(f64) -> String) -> Self {
        let mut body = format!("<text class=\"title\" x=\"{LEFT}\" y=\"18\">{}</text>", escape(title));
        for tick in scale.ticks() {
            let y = scale.y(tick);
            let _ = write!(
                body,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                label(tick)
            );
        }
        Self { body, legend_x: 14.0 }
    }

    fn x_label(&mut self, x: f64, text: &str) {
        let _ = write!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
            HEIGHT - BOTTOM + 17.0
        );
    }

    fn line(&mut self, class: &str, points: &[(f64, f64)]) {
        if points.is_empty() {
            return;
        }
        let _ = write!(self.body, "<polyline class=\"line {class}\" points=\"{}\"/>", coordinates(points));
    }

    fn legend(&mut self, class: &str, text: &str) {
        let y = HEIGHT - 14.0;
        let x = self.legend_x;
        let sample = if class == "failed" {
            format!("<rect class=\"failed\" x=\"{x}\" y=\"{}\" width=\"18\" height=\"8\"/>", y - 8.0)
        } else {
            format!("<path class=\"line {class}\" d=\"M{x} {}h18\"/>", y - 4.0)
        };
        let _ = write!(self.body, "{sample}<text x=\"{}\" y=\"{y}\">{}</text>", x + 23.0, escape(text));
        // Letters are about 6.2 units wide.
        self.legend_x += 23.0 + text.chars().count() as f64 * 6.2 + 14.0;
    }

    fn end(self, what: &str) -> String {
        format!(
            "<svg class=\"chart\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{}\">{}</svg>",
            escape(what),
            self.body
        )
    }
}

fn coordinates(points: &[(f64, f64)]) -> String {
    points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
}

fn across(part: f64) -> f64 {
    LEFT + part * (WIDTH - LEFT - RIGHT)
}

/// Latency by percentile, both logarithmic: each step to the right is a tenth of the requests.
fn latency(report: &Report, baseline: Option<&Report>) -> String {
    let of = |map: Option<&std::collections::BTreeMap<String, super::H>>| {
        map.and_then(|map| map.get("all")).filter(|h| h.count > 0).and_then(|h| h.histogram().ok())
    };
    let curves: Vec<(&str, &str, Histogram<u64>)> = [
        ("response", "response", of(report.latency.response.as_ref())),
        ("service", "service", of(Some(&report.latency.service))),
        ("baseline", "baseline", of(baseline.map(|base| base.latency.primary()))),
    ]
    .into_iter()
    .filter_map(|(class, name, times)| Some((class, name, times?)))
    .collect();
    let slos: Vec<(Option<f64>, f64)> =
        report.slo.iter().filter_map(|result| slo::parse(&result.expr).ok()?.first()?.line()).collect();
    let most = curves.iter().map(|(.., times)| times.len()).max().unwrap_or(1);
    let decades = (most as f64).log10().ceil().clamp(1.0, 6.0);
    let at = |times: &Histogram<u64>, point: usize| {
        let nines = decades * point as f64 / (POINTS - 1) as f64;
        times.value_at_quantile(1.0 - 10f64.powf(-nines)) as f64
    };
    let edges = curves.iter().flat_map(|(.., times)| [at(times, 0), at(times, POINTS - 1)]);
    let scale = Scale::log(edges.chain(slos.iter().map(|(_, bound)| *bound)));
    let mut chart = Chart::new("Latency by percentile (%)", &scale, time);
    for (nines, label) in ["0", "90", "99", "99.9", "99.99", "99.999", "99.9999"].iter().enumerate() {
        if nines as f64 <= decades {
            chart.x_label(across(nines as f64 / decades), label);
        }
    }
    for (class, name, times) in &curves {
        let points: Vec<_> = (0..POINTS)
            .map(|point| (across(point as f64 / (POINTS - 1) as f64), scale.y(at(times, point))))
            .collect();
        chart.line(class, &points);
        chart.legend(class, name);
    }
    for (quantile, bound) in &slos {
        let y = scale.y(*bound);
        chart.line("slo", &[(LEFT, y), (WIDTH - RIGHT, y)]);
        if let Some(quantile) = quantile {
            let nines = (-(1.0 - quantile).max(1e-9).log10()).min(decades);
            let _ = write!(
                chart.body,
                "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\"/>",
                across(nines / decades)
            );
        }
    }
    if !slos.is_empty() {
        chart.legend("slo", "objective");
    }
    chart.end("Latency by percentile")
}

/// Seconds put together where there are too many: the sums of counts, the worst of the times.
fn groups(intervals: &[IntervalSummary]) -> (usize, Vec<IntervalSummary>) {
    let size = intervals.len().div_ceil(GROUPS_MAX).max(1);
    let group = |seconds: &[IntervalSummary]| IntervalSummary {
        t_ns: seconds[0].t_ns,
        ok: seconds.iter().map(|second| second.ok).sum(),
        failed: seconds.iter().map(|second| second.failed).sum(),
        p50: seconds.iter().map(|second| second.p50).max().unwrap_or(0),
        p99: seconds.iter().map(|second| second.p99).max().unwrap_or(0),
        max: seconds.iter().map(|second| second.max).max().unwrap_or(0),
    };
    (size, intervals.chunks(size).map(group).collect())
}

/// Two points a group: from its beginning to its end.
fn steps(groups: &[IntervalSummary], y: impl Fn(&IntervalSummary) -> f64) -> Vec<(f64, f64)> {
    let n = groups.len() as f64;
    groups
        .iter()
        .enumerate()
        .flat_map(|(at, group)| {
            let y = y(group);
            [(across(at as f64 / n), y), (across((at + 1) as f64 / n), y)]
        })
        .collect()
}

fn time_axis(chart: &mut Chart, intervals: &[IntervalSummary]) {
    let seconds = intervals.len();
    for quarter in 0..=4 {
        let at = seconds as f64 * f64::from(quarter) / 4.0;
        // Whole seconds only: a run of two has three marks.
        if at.fract() == 0.0 || seconds > 20 {
            chart.x_label(across(f64::from(quarter) / 4.0), &format!("{at:.0} s"));
        }
    }
}

fn rate(report: &Report) -> String {
    let (size, groups) = groups(&report.intervals);
    let a_second = |count: u64| count as f64 / size as f64;
    let most = groups.iter().map(|group| a_second(group.ok.max(group.failed))).fold(0.0, f64::max);
    let scale = Scale::linear(most.max(report.rate.target.unwrap_or(0.0)));
    let mut chart = Chart::new("Right answers and errors a second", &scale, |value| match value {
        value if value >= 1e6 => {
            format!("{:.4}", value / 1e6).trim_end_matches('0').trim_end_matches('.').to_owned() + "m"
        }
        value if value >= 1e4 => {
            format!("{:.1}", value / 1e3).trim_end_matches('0').trim_end_matches('.').to_owned() + "k"
        }
        value => super::text::number(value),
    });
    time_axis(&mut chart, &report.intervals);
    if groups.iter().any(|group| group.failed > 0) {
        let mut points = vec![(across(0.0), scale.y(0.0))];
        points.extend(steps(&groups, |group| scale.y(a_second(group.failed))));
        points.push((across(1.0), scale.y(0.0)));
        let _ = write!(chart.body, "<polygon class=\"failed\" points=\"{}\"/>", coordinates(&points));
    }
    chart.line("rate", &steps(&groups, |group| scale.y(a_second(group.ok))));
    chart.legend("rate", "right answers");
    if let Some(target) = report.rate.target {
        chart.line("baseline", &[(across(0.0), scale.y(target)), (across(1.0), scale.y(target))]);
        chart.legend("baseline", "asked for");
    }
    chart.legend("failed", "errors");
    chart.end("Right answers and errors a second")
}

fn latency_by_second(report: &Report) -> String {
    let (size, groups) = groups(&report.intervals);
    let used = groups.iter().filter(|group| group.ok > 0);
    let scale = Scale::log(used.flat_map(|group| [group.p50 as f64, group.max as f64]));
    let clock = if report.latency.response.is_some() { "Response" } else { "Service" };
    let title = match size {
        1 => format!("{clock} time by second"),
        size => format!("{clock} time, worst second of each {size}"),
    };
    let mut chart = Chart::new(&title, &scale, time);
    time_axis(&mut chart, &report.intervals);
    for class in ["max", "p99", "p50"] {
        let value = |group: &IntervalSummary| match class {
            "max" => group.max,
            "p99" => group.p99,
            _ => group.p50,
        };
        // A second without an answer is a gap, not a zero.
        let all = steps(&groups, |group| if group.ok > 0 { scale.y(value(group) as f64) } else { f64::NAN });
        for part in all.split(|(_, y)| y.is_nan()) {
            chart.line(class, part);
        }
        chart.legend(class, class);
    }
    chart.end(&title)
}

/// All charts of a report. A run without seconds has only the first.
pub fn charts(report: &Report, baseline: Option<&Report>) -> Vec<String> {
    let mut charts = vec![latency(report, baseline)];
    if !report.intervals.is_empty() {
        charts.push(rate(report));
        charts.push(latency_by_second(report));
    }
    charts
}

/// The charts below each other as a file of its own.
pub fn file(report: &Report, baseline: Option<&Report>) -> String {
    let charts = charts(report, baseline);
    let height = HEIGHT * charts.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{}\" height=\"{}\">\
         <style>{STYLE}</style><rect class=\"bg\" width=\"{WIDTH}\" height=\"{height}\"/>",
        WIDTH * 1.5,
        height * 1.5
    );
    for (number, chart) in charts.iter().enumerate() {
        let place = format!("<svg y=\"{}\" width=\"{WIDTH}\" height=\"{HEIGHT}\"", HEIGHT * number as f64);
        out.push_str(&chart.replacen("<svg", &place, 1));
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_scales() {
        for (ns, text) in [
            (1.0, "1 ns"),
            (999.0, "999 ns"),
            (1e3, "1 µs"),
            (1550.0, "1.55 µs"),
            (12_340_000.0, "12.3 ms"),
            (1e9, "1 s"),
        ] {
            assert_eq!(time(ns), text);
        }
        let scale = Scale::log([15_000.0, 2_000_000.0].into_iter());
        assert_eq!(scale.ticks(), [1e4, 1e5, 1e6, 1e7]);
        assert_eq!((scale.y(1e4), scale.y(1e7)), (HEIGHT - BOTTOM, TOP));
        assert_eq!(Scale::log(std::iter::empty()).ticks().len(), 2);
        assert_eq!(Scale::linear(4321.0).ticks(), [0.0, 1250.0, 2500.0, 3750.0, 5000.0]);
        assert_eq!(escape("<a b=\"c\">&"), "&lt;a b=&quot;c&quot;&gt;&amp;");
    }

    #[test]
    fn many_seconds_are_grouped_by_their_worst() {
        let second = |t: u64| IntervalSummary { t_ns: t, ok: 10, failed: 1, p50: t, p99: 2 * t, max: 3 * t };
        let seconds: Vec<_> = (0..1000).map(second).collect();
        let (size, groups) = groups(&seconds);
        assert_eq!((size, groups.len()), (4, 250));
        assert_eq!((groups[1].ok, groups[1].failed, groups[1].p50, groups[1].max), (40, 4, 7, 21));
    }
}
