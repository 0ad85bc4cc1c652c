//! How much a server can take: the rate is raised step by step until an objective is missed, then the gap between
//! the last step that met them and the first that did not is halved a few times.

use crate::report::RunSummary;
use crate::report::Verdict;

/// More steps than this are a server without a limit, or a factor too small.
const STEPS_MAX: usize = 60;
/// Halvings of the last gap: an eighth of a step is left.
const HALVINGS: u32 = 3;
/// An INVALID step may be a moment's noise on the client's machine: it is done this often before it counts, so that a
/// sweep takes at most as many times longer.
const ATTEMPTS: u32 = 3;

/// How a sweep has ended.
pub(crate) struct Swept {
    /// The step that met the objectives at the greatest rate.
    pub(crate) knee: Option<usize>,
    /// The first step beyond it was INVALID: the limit is the client's.
    pub(crate) client_limited: bool,
}

/// Carries out steps: `step` runs one at a rate and says how it went, `None` to stop. The last attempt at a step is
/// the one that counts; `again` says that this one takes the place of the one before.
///
/// # Errors
/// What a step could not do.
pub(crate) fn sweep(
    from: f64,
    factor: f64,
    mut step: impl FnMut(f64, bool) -> Result<Option<RunSummary>, String>,
) -> Result<Swept, String> {
    let mut swept = Swept { knee: None, client_limited: false };
    let (mut good, mut bad, mut rate) = (None, None, from);
    let mut halvings = 0;
    for number in 0..STEPS_MAX {
        let mut attempted = step(rate, false)?;
        for _ in 1..ATTEMPTS {
            if attempted.as_ref().is_some_and(|summary| summary.verdict == Verdict::Invalid) {
                attempted = step(rate, true)?;
            }
        }
        let Some(summary) = attempted else { break };
        if summary.verdict == Verdict::Valid && summary.slo_pass != Some(false) {
            (good, swept.knee) = (Some(rate), Some(number));
        } else {
            bad = Some(rate);
            swept.client_limited = summary.verdict == Verdict::Invalid;
        }
        rate = match (good, bad) {
            (_, None) => rate * factor,
            (Some(good), Some(bad)) if halvings < HALVINGS => {
                halvings += 1;
                f64::midpoint(good, bad)
            }
            _ => break,
        };
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(rate: f64, verdict: Verdict, pass: bool) -> RunSummary {
        RunSummary {
            target_rate: Some(rate),
            elapsed_ns: 1,
            ok: 1,
            bad: 0,
            rate,
            p50: 1,
            p90: 1,
            p99: 1,
            p99_9: 1,
            max: 1,
            cpu_ns_per_req: 1,
            timely_ratio: None,
            verdict,
            slo_pass: Some(pass),
        }
    }

    fn steps(limit: f64, verdict: Verdict) -> (Vec<f64>, Swept) {
        let mut rates = Vec::new();
        let swept = sweep(1000.0, 2.0, |rate, again| {
            if !again {
                rates.push(rate);
            }
            let over = rate > limit;
            Ok(Some(summary(rate, if over { verdict } else { Verdict::Valid }, !over)))
        });
        (rates, swept.unwrap())
    }

    #[test]
    fn the_knee_is_found_by_doubling_and_halving() {
        let (rates, swept) = steps(5300.0, Verdict::Valid);
        assert_eq!(rates, [1000.0, 2000.0, 4000.0, 8000.0, 6000.0, 5000.0, 5500.0]);
        assert_eq!((swept.knee, swept.client_limited), (Some(5), false));
        let (rates, swept) = steps(500.0, Verdict::Valid);
        assert_eq!((rates.len(), swept.knee), (1, None), "nothing below the first is tried");
        assert!(steps(3000.0, Verdict::Invalid).1.client_limited);
        assert_eq!(steps(f64::INFINITY, Verdict::Valid).0.len(), STEPS_MAX);
    }

    #[test]
    fn an_invalid_step_is_done_again_and_counts_after_three_times() {
        let mut done = Vec::new();
        let swept = sweep(1000.0, 2.0, |rate, again| {
            done.push((rate as u32, again));
            // At 2000 the machine is disturbed once; 4000 is too much for the client.
            let invalid = (rate == 2000.0 && !again) || rate == 4000.0;
            let verdict = if invalid { Verdict::Invalid } else { Verdict::Valid };
            Ok((rate <= 4000.0).then(|| summary(rate, verdict, true)))
        });
        let swept = swept.unwrap();
        assert_eq!(done[..3], [(1000, false), (2000, false), (2000, true)]);
        assert_eq!(done[3..6], [(4000, false), (4000, true), (4000, true)]);
        assert_eq!(done[6..], [(3000, false), (3500, false), (3750, false)]);
        assert!(swept.client_limited, "what ended it was the client");
        assert_eq!(swept.knee, Some(5), "the steps are 1000, 2000, 4000, 3000, 3500, 3750");
    }
}
