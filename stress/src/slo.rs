//! Objectives such as `p99<2ms,errors=0`: what they say, and whether a report meets them.

use crate::report::{Report, SloResult};
use crate::workload::OPS;

/// One objective.
#[derive(Clone, Debug, PartialEq)]
pub struct Slo {
    text: String,
    metric: Metric,
    relation: Relation,
    bound: f64,
}

#[derive(Clone, Debug, PartialEq)]
enum Metric {
    /// Nanoseconds.
    Time { service: bool, operation: &'static str, statistic: Statistic },
    /// Failed, unfinished and late requests.
    Errors,
    /// Their part of all requests, in percent.
    ErrorRate,
    /// Right answers a second.
    Rate,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Statistic {
    Quantile(f64),
    Mean,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Relation {
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
}

const RELATIONS: [(&str, Relation); 5] = [
    ("<=", Relation::LessOrEqual),
    (">=", Relation::GreaterOrEqual),
    ("<", Relation::Less),
    (">", Relation::Greater),
    ("=", Relation::Equal),
];

/// # Errors
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<Vec<Slo>, String> {
    text.split(',').map(|part| one(part.trim())).collect()
}

fn one(text: &str) -> Result<Slo, String> {
    let (name, relation, bound) = RELATIONS
        .iter()
        .find_map(|(sign, relation)| text.split_once(sign).map(|(name, bound)| (name, *relation, bound)))
        .ok_or_else(|| format!("{text}: expected an objective such as p99<2ms, errors=0 or rate>=5000"))?;
    let metric = metric(name.trim()).ok_or_else(|| format!("{name} is nothing that is measured"))?;
    let bound = bound.trim();
    let wrong = || format!("{bound} is no bound for {name}");
    let units: &[(&str, f64)] = match metric {
        Metric::Time { .. } => &[("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)],
        Metric::ErrorRate => &[("%", 1.0)],
        Metric::Errors | Metric::Rate => &[("k", 1e3), ("m", 1e6), ("", 1.0)],
    };
    let (digits, unit) = units
        .iter()
        .find_map(|(suffix, unit)| bound.strip_suffix(suffix).map(|digits| (digits, unit)))
        .ok_or_else(wrong)?;
    let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
    if !number.is_finite() || number < 0.0 {
        return Err(wrong());
    }
    Ok(Slo { text: text.to_owned(), metric, relation, bound: number * unit })
}

fn metric(name: &str) -> Option<Metric> {
    match name {
        "errors" => return Some(Metric::Errors),
        "error_rate" => return Some(Metric::ErrorRate),
        "rate" => return Some(Metric::Rate),
        _ => {}
    }
    let mut rest = name;
    let service = rest.strip_prefix("service.").is_some_and(|after| {
        rest = after;
        true
    });
    let mut operation = "all";
    for (_, known) in OPS {
        if let Some(after) = rest.strip_prefix(known).and_then(|after| after.strip_prefix('.')) {
            (operation, rest) = (known, after);
        }
    }
    let statistic = match rest {
        "mean" => Statistic::Mean,
        "max" => Statistic::Max,
        _ => {
            let percent: f64 = rest.strip_prefix('p')?.parse().ok()?;
            (0.0..=100.0).contains(&percent).then_some(Statistic::Quantile(percent / 100.0))?
        }
    };
    Some(Metric::Time { service, operation, statistic })
}

impl Slo {
    /// Whether `report` meets it. Of times that nobody measured no objective is met.
    pub fn judge(&self, report: &Report) -> SloResult {
        let value = self.value(report);
        let pass = value.is_some_and(|value| match self.relation {
            Relation::Less => value < self.bound,
            Relation::LessOrEqual => value <= self.bound,
            Relation::Equal => value == self.bound,
            Relation::GreaterOrEqual => value >= self.bound,
            Relation::Greater => value > self.bound,
        });
        SloResult { expr: self.text.clone(), value: value.unwrap_or(0.0), pass }
    }

    fn value(&self, report: &Report) -> Option<f64> {
        match &self.metric {
            Metric::Errors => Some(report.counts.bad() as f64),
            Metric::ErrorRate => {
                let all = (report.counts.sent + report.counts.late).max(1);
                Some(report.counts.bad() as f64 * 100.0 / all as f64)
            }
            Metric::Rate => Some(report.rate.achieved),
            Metric::Time { service, operation, statistic } => {
                let clock = if *service { &report.latency.service } else { report.latency.primary() };
                let h = clock.get(*operation).filter(|h| h.count > 0)?;
                Some(match statistic {
                    Statistic::Mean => h.mean,
                    Statistic::Max => h.max as f64,
                    Statistic::Quantile(quantile) => h.histogram().ok()?.value_at_quantile(*quantile) as f64,
                })
            }
        }
    }

    /// The bound of a time, in nanoseconds, and its quantile if it has one: for the chart.
    pub fn line(&self) -> Option<(Option<f64>, f64)> {
        let Metric::Time { statistic, .. } = &self.metric else { return None };
        let quantile = match statistic {
            Statistic::Quantile(quantile) => Some(*quantile),
            Statistic::Mean | Statistic::Max => None,
        };
        Some((quantile, self.bound))
    }

    /// A value of this metric for people.
    pub fn shown(&self, value: f64) -> String {
        match self.metric {
            Metric::Time { .. } => format!("{:.3} ms", value / 1e6),
            Metric::ErrorRate => format!("{value:.4} %"),
            Metric::Errors => format!("{value:.0}"),
            Metric::Rate => format!("{value:.0}/s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_understood() {
        let parsed =
            parse("p99<2ms, errors=0,service.get.p99.9<=1.5s,rate>=20k,error_rate<0.1%,max<10us").unwrap();
        let time = |service, operation, statistic| Metric::Time { service, operation, statistic };
        let expected = [
            (time(false, "all", Statistic::Quantile(0.99)), Relation::Less, 2e6),
            (Metric::Errors, Relation::Equal, 0.0),
            (time(true, "get", Statistic::Quantile(0.999)), Relation::LessOrEqual, 1.5e9),
            (Metric::Rate, Relation::GreaterOrEqual, 20e3),
            (Metric::ErrorRate, Relation::Less, 0.1),
            (time(false, "all", Statistic::Max), Relation::Less, 10e3),
        ];
        for (slo, (metric, relation, bound)) in parsed.iter().zip(expected) {
            if let (
                Metric::Time { statistic: Statistic::Quantile(found), operation, service },
                Metric::Time {
                    statistic: Statistic::Quantile(wanted),
                    operation: wanted_operation,
                    service: wanted_service,
                },
            ) = (&slo.metric, &metric)
            {
                assert!((found - wanted).abs() < 1e-9, "{slo:?}");
                assert_eq!((operation, service), (wanted_operation, wanted_service));
            } else {
                assert_eq!(slo.metric, metric);
            }
            assert_eq!((slo.relation, slo.bound), (relation, bound), "{slo:?}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "p99", "p99<2", "p101<1ms", "put.p99<1ms", "errors<x", "p99<-1ms", "rate>infk", "p99<2ms,"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
