//! What rows of logits say: the probability of the token that came, and the distance between two runs.
//!
//! Logits go in as they are, everything after that is in f64, so that the figures below 1e-6 that two
//! settings of one engine differ by are no rounding of ours. Pure: knows no models and no files.

use serde::Serialize;

/// How well the tokens were predicted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// Scored positions.
    pub positions: usize,
    /// exp of the mean negative log-probability.
    pub ppl: f64,
    /// Standard error of `ppl`, as if positions were independent.
    pub ppl_error: f64,
}

/// How far the run is from the base's, over the same positions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// Mean of KL(base || this), in nats.
    pub mean: f64,
    /// Standard error of that mean.
    pub mean_error: f64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    /// Share of the positions at which both find the same token likeliest.
    pub top1_agreement: f64,
    /// Of the base.
    pub base_ppl: f64,
}

/// Rows taken so far.
#[derive(Default)]
pub struct Scores {
    nll: Vec<f64>,
    base_nll: Vec<f64>,
    kl: Vec<f64>,
    agreeing: usize,
}

impl Scores {
    /// Rows so far.
    pub fn len(&self) -> usize {
        self.nll.len()
    }

    /// Scores a row whose next token was `target`; None for a logit that is not finite.
    pub fn add(&mut self, row: &[f32], target: usize) -> Option<()> {
        self.nll.push(log_sum_exp(row)? - f64::from(row[target]));
        Some(())
    }

    /// Compares the row just added with the base's; None for a logit of the base that is not finite.
    pub fn compare(&mut self, base: &[f32], row: &[f32], target: usize) -> Option<()> {
        let (base_sum, row_sum) = (log_sum_exp(base)?, log_sum_exp(row)?);
        let terms = base.iter().zip(row).map(|(&b, &r)| {
            let (b, r) = (f64::from(b) - base_sum, f64::from(r) - row_sum);
            b.exp() * (b - r)
        });
        // A sum of terms of both signs: equal up to rounding may come out just below 0.
        self.kl.push(terms.sum::<f64>().max(0.0));
        self.base_nll.push(base_sum - f64::from(base[target]));
        self.agreeing += usize::from(likeliest(base) == likeliest(row));
        Some(())
    }

    /// Of all rows.
    pub fn perplexity(&self) -> Perplexity {
        let (mean, error) = mean(&self.nll);
        Perplexity { positions: self.nll.len(), ppl: mean.exp(), ppl_error: error * mean.exp() }
    }

    /// None if nothing was compared.
    pub fn divergence(&self) -> Option<Divergence> {
        let mut sorted = self.kl.clone();
        sorted.sort_by(f64::total_cmp);
        let max = *sorted.last()?;
        // Nearest rank: the smallest value with that share of all at or below it.
        let quantile = |share: f64| sorted[((share * sorted.len() as f64).ceil() as usize).max(1) - 1];
        let (mean_kl, mean_error) = mean(&self.kl);
        Some(Divergence {
            mean: mean_kl,
            mean_error,
            p50: quantile(0.5),
            p99: quantile(0.99),
            max,
            top1_agreement: self.agreeing as f64 / sorted.len() as f64,
            base_ppl: mean(&self.base_nll).0.exp(),
        })
    }
}

/// ln of the sum of the exponentials; None where a value is not finite.
fn log_sum_exp(row: &[f32]) -> Option<f64> {
    if row.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    Some(max + row.iter().map(|&value| (f64::from(value) - max).exp()).sum::<f64>().ln())
}

/// Index of the greatest value; the lowest of equals.
fn likeliest(row: &[f32]) -> usize {
    let better = |best: usize, index: usize| if row[index] > row[best] { index } else { best };
    (0..row.len()).fold(0, better)
}

/// Mean and its standard error (0 for a single value).
fn mean(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    let error = if values.len() > 1 { (square / (count - 1.0) / count).sqrt() } else { 0.0 };
    (mean, error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Logits of these probabilities, off by a constant, as logits may be.
    fn logits(probabilities: &[f64]) -> Vec<f32> {
        probabilities.iter().map(|p| (p.ln() + 3.0) as f32).collect()
    }

    #[test]
    fn figures_counted_by_hand() {
        let even = logits(&[0.25, 0.25, 0.25, 0.25]);
        let skewed = logits(&[0.5, 0.25, 0.125, 0.125]);
        let mut scores = Scores::default();
        scores.add(&skewed, 0).unwrap();
        scores.compare(&even, &skewed, 0).unwrap();
        scores.add(&skewed, 2).unwrap();
        scores.compare(&skewed, &skewed, 2).unwrap();
        // Probabilities 1/2 and 1/8: the geometric mean is 1/4. ln 2 and 3 ln 2 are ln 2 from their mean.
        let perplexity = scores.perplexity();
        assert_eq!(perplexity.positions, 2);
        assert!((perplexity.ppl - 4.0).abs() < 1e-6, "{perplexity:?}");
        assert!((perplexity.ppl_error - 4.0 * 2f64.ln()).abs() < 1e-5, "{perplexity:?}");
        // sum of 1/4 ln(1/4 / q): (ln 1/2 + ln 1 + ln 2 + ln 2) / 4, and 0 for equal rows.
        let kl = scores.divergence().unwrap();
        let by_hand = 2f64.ln() / 4.0;
        assert!((kl.max - by_hand).abs() < 1e-6 && (kl.mean - by_hand / 2.0).abs() < 1e-6, "{kl:?}");
        assert_eq!((kl.p50, kl.p99), (0.0, kl.max));
        // The base of the second row is the row itself; all four are likeliest in the first: the lowest.
        assert_eq!(kl.top1_agreement, 1.0);
        assert!((kl.base_ppl - 32f64.sqrt()).abs() < 1e-5, "{kl:?}");
    }

    #[test]
    fn another_likeliest_token_is_no_agreement() {
        let (one, other) = (logits(&[0.6, 0.4]), logits(&[0.4, 0.6]));
        let mut scores = Scores::default();
        scores.add(&one, 0).unwrap();
        scores.compare(&other, &one, 0).unwrap();
        assert_eq!(scores.divergence().unwrap().top1_agreement, 0.0);
    }

    #[test]
    fn logits_far_apart_do_not_overflow_and_what_is_no_number_is_refused() {
        let mut scores = Scores::default();
        scores.add(&[3e38, -3e38], 0).unwrap();
        assert_eq!(scores.perplexity().ppl, 1.0);
        assert_eq!(scores.add(&[f32::NAN, 0.0], 0), None);
        assert_eq!(scores.compare(&[f32::INFINITY, 0.0], &[0.0, 0.0], 0), None);
        assert_eq!(Scores::default().divergence(), None);
    }
}
