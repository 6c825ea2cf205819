//! What is to be expected of a normal variable beyond a bound: what finding out may bring (Jones, Schonlau and Welch 1998).
//!
//! Owns that arithmetic. It must not know what the variable is.

/// The mean of what a normal variable is above `least`, 0 where it is below.
pub(crate) fn expected_above(mean: f64, deviation: f64, least: f64) -> f64 {
    if deviation <= 0.0 {
        return (mean - least).max(0.0);
    }
    let z = (mean - least) / deviation;
    let density = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
    (deviation * (density + z * normal_below(z))).max(0.0)
}

/// The share of a normal variable below `z` deviations, to 0.0002 (Page 1977).
fn normal_below(z: f64) -> f64 {
    1.0 / (1.0 + (-z * (1.5976 + 0.070_565_992 * z * z)).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_above_a_bound_is_the_mean_above_it() {
        // Against the integral as a sum.
        let by_sum = |mean: f64, deviation: f64, least: f64| {
            let step = 1e-3;
            let at = |i: i64| mean + deviation * step * i as f64;
            let density =
                |i: i64| (-0.5 * (step * i as f64).powi(2)).exp() / (2.0 * std::f64::consts::PI).sqrt();
            (-8000..8000).map(|i| (at(i) - least).max(0.0) * density(i) * step).sum::<f64>()
        };
        for (mean, deviation, least) in
            [(0.0, 0.1, 0.0), (-0.1, 0.05, 0.03), (0.2, 0.1, 0.0), (0.5, 0.01, 0.03)]
        {
            let (ours, sum) = (expected_above(mean, deviation, least), by_sum(mean, deviation, least));
            assert!((ours - sum).abs() < 2e-4, "{mean} {deviation} {least}: {ours} {sum}");
        }
        assert_eq!(
            (expected_above(0.2, 0.0, 0.05), expected_above(-0.2, 0.0, 0.05)),
            (0.15000000000000002, 0.0)
        );
    }
}
