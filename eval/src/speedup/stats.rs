//! The arithmetic of repeats: medians, 5th and 95th percentiles.
//!
//! Pure: knows numbers only.

use serde::{Deserialize, Serialize};

/// Repeats of one number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half lie below.
    pub median: f64,
    /// 5 of 100 lie below.
    pub p5: f64,
    /// 5 of 100 lie above.
    pub p95: f64,
}

impl Spread {
    /// None of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share| quantile(&sorted, share);
        Some(Spread { median: at(0.5)?, p5: at(0.05)?, p95: at(0.95)? })
    }
}

/// The value below which that share lies, interpolated between neighbours (Hyndman and Fan 1996, type 7:
/// numpy's default); None of nothing. `sorted` ascends.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = share.clamp(0.0, 1.0) * last as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    Some(sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64))
}

/// The median alone.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    Spread::of(values).map(|spread| spread.median)
}

/// A quotient, or nothing.
pub fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn percentiles_counted_by_hand() {
        // 1..=5: places 0.2, 2 and 3.8 of 0..=4.
        let spread = Spread::of([5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!(spread.median, 3.0);
        assert!((spread.p5 - 1.2).abs() < 1e-12 && (spread.p95 - 4.8).abs() < 1e-12, "{spread:?}");
        // numpy.percentile([10, 20, 30, 40], [5, 50, 95]) = 11.5, 25, 38.5
        let spread = Spread::of([40.0, 10.0, 30.0, 20.0]).unwrap();
        assert!((spread.p5 - 11.5).abs() < 1e-12 && (spread.p95 - 38.5).abs() < 1e-12, "{spread:?}");
        assert_eq!(spread.median, 25.0);
    }

    #[test]
    fn one_value_is_all_of_them_and_none_is_none() {
        assert_eq!(Spread::of([7.0]), Some(Spread { median: 7.0, p5: 7.0, p95: 7.0 }));
        assert_eq!(Spread::of([]), None);
        assert_eq!((median([1.0, 3.0]), ratio(1.0, 0.0), ratio(1.0, 4.0)), (Some(2.0), None, Some(0.25)));
    }
}
