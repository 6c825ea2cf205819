//! Which measurement is worth what it costs: the expected improvement of lengths that may be better than they
//! seem (Jones, Schonlau and Welch 1998).
//!
//! Owns what a measurement of a length may bring and is expected to lose. It must not plan.

use super::{Controller, GAIN_MIN};

/// Passes of plain decoding in which a better length is expected to be of use: as many as the text has had so
/// far, within these.
const HORIZON_MIN: f64 = 24.0;
const HORIZON_MAX: f64 = 96.0;
/// What a measurement must promise of its price.
const WORTH: f64 = 3.0;
/// What it is taken to cost at least, in plain passes.
const PRICE_MIN: f64 = 0.2;

/// A length that may be measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) draft_len: usize,
    /// Seconds it is expected to bring, less what it is expected to lose.
    pub(super) value_s: f64,
}

impl Controller {
    /// What measuring `draft_len` in `passes` passes is worth while `best` is in use; `None` if it is not worth
    /// its price.
    pub(super) fn candidate(&self, draft_len: usize, best: usize, passes: usize) -> Option<Candidate> {
        let (plain_s, reference) = (self.plain_s()?, self.rate(best));
        let (seconds, tokens) = (self.seconds(draft_len)?, self.survival.tokens(draft_len));
        let gain = tokens / seconds / reference - 1.0;
        let needed = match (best, draft_len) {
            (0, _) => GAIN_MIN,
            (_, 0) => -GAIN_MIN,
            _ => 0.0,
        };
        let price_s = passes as f64 * (seconds - tokens / reference).max(0.0) + self.reading_up(draft_len);
        let horizon = (self.spent_s / plain_s).clamp(HORIZON_MIN, HORIZON_MAX);
        let promise_s = horizon * plain_s * expected_above(gain, self.error(draft_len, best), needed);
        (promise_s > WORTH * price_s.max(PRICE_MIN * plain_s)).then_some(Candidate { draft_len, value_s: promise_s - price_s })
    }

    /// Relative standard deviation of what `draft_len` gains over `best`. While something is drafted, what stands
    /// comes to be known anyway.
    fn error(&self, draft_len: usize, best: usize) -> f64 {
        let age = (self.passes - self.last_drafted) as f64;
        let tokens = if best == 0 { self.survival.error(draft_len, age) } else { 0.0 };
        self.verify_s.error(draft_len, best).hypot(tokens)
    }

    /// Seconds that a drafter first takes for what was written without it.
    fn reading_up(&self, draft_len: usize) -> f64 {
        if draft_len > 0 { self.catch_up() } else { 0.0 }
    }
}

/// The mean of what a normal variable is above `least`, 0 where it is below.
fn expected_above(mean: f64, deviation: f64, least: f64) -> f64 {
    if deviation <= 0.0 {
        return (mean - least).max(0.0);
    }
    let z = (mean - least) / deviation;
    let density = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
    (deviation * (density + z * normal_below(z))).max(0.0)
}

/// The share of a normal variable below `z` deviations, to 0.001 (a logistic with a cubic term, Page 1977).
fn normal_below(z: f64) -> f64 {
    1.0 / (1.0 + (-z * (1.5976 + 0.070_565 * z * z)).exp())
}
