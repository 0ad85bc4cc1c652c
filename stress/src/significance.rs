//! Whether a difference between runs is more than chance: Student's interval for a mean, Welch's test for two.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// The mean of `values` and half its 95 % interval; no interval with fewer than two.
pub fn mean_ci95(values: &[f64]) -> (f64, Option<f64>) {
    let (mean, variance) = mean_variance(values);
    if values.len() < 2 {
        return (mean, None);
    }
    let n = values.len() as f64;
    let half = StudentsT::new(0.0, 1.0, n - 1.0).ok().map(|t| t.inverse_cdf(0.975) * (variance / n).sqrt());
    (mean, half)
}

fn mean_variance(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, squares / (n - 1.0).max(1.0))
}

/// The probability that two samples of one population differ at least as much as these; `None` where one of
/// them has fewer than two values.
pub fn welch(left: &[f64], right: &[f64]) -> Option<f64> {
    if left.len() < 2 || right.len() < 2 {
        return None;
    }
    let ((mean_left, variance_left), (mean_right, variance_right)) =
        (mean_variance(left), mean_variance(right));
    let (n_left, n_right) = (left.len() as f64, right.len() as f64);
    let (part_left, part_right) = (variance_left / n_left, variance_right / n_right);
    let both = part_left + part_right;
    if both == 0.0 {
        return Some(if mean_left == mean_right { 1.0 } else { 0.0 });
    }
    let freedom = both.powi(2) / (part_left.powi(2) / (n_left - 1.0) + part_right.powi(2) / (n_right - 1.0));
    let t = (mean_left - mean_right).abs() / both.sqrt();
    StudentsT::new(0.0, 1.0, freedom).ok().map(|students| 2.0 * (1.0 - students.cdf(t)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against published figures: t(0.975, 4) is 2.776; two samples whose p was found by integrating
    /// Student's density by hand.
    #[test]
    fn known_figures() {
        let (mean, half) = mean_ci95(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(mean, 3.0);
        let expected = 2.776_445 * (2.5f64 / 5.0).sqrt();
        assert!((half.unwrap() - expected).abs() < 1e-5);
        assert_eq!(mean_ci95(&[7.0]), (7.0, None));
        let left = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4];
        let right =
            [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 30.5, 24.5];
        let p = welch(&left, &right).unwrap();
        assert!((p - 0.007_962).abs() < 1e-5, "{p}");
        assert_eq!(welch(&[1.0, 1.0], &[1.0, 1.0]), Some(1.0));
        assert_eq!(welch(&[1.0, 1.0], &[2.0, 2.0]), Some(0.0));
        assert_eq!(welch(&[1.0], &[2.0, 2.0]), None);
    }
}
