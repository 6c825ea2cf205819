//! Which of several settings is fastest, from runs that took turns, on a machine that is never quiet.
//!
//! Owns the rule of `tune`: the default stays unless another setting beats it by more than the noise; of
//! settings that are as good as the best, the one with the least memory is taken. Only measured tokens/s
//! and major faults count, never hit rates: speed is not monotone in the size of a cache (ALGORITHMS.md
//! A). Pure: it must not know what the settings are or how they were run.

use serde::Serialize;

/// Shares of the runs' speed: a gain below this is not worth departing from a default.
const GAIN_MIN: f64 = 0.02;
/// More major faults a token than this: memory is short, whatever the speed was this time.
const FAULTS_MAX: f64 = 1.0;
/// Memory that differs by less than this share is the same: plans vary by what the process holds.
const MEMORY_SAME: f64 = 0.02;
/// One-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; the normal one beyond. That
/// several settings are compared is not corrected for: one that is taken by chance is as fast as the default.
const T_95: [f64; 12] = [6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782];
const T_95_MANY: f64 = 1.645;

/// One setting's measurements.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Tokens/s by round; `None` in rounds without it. Settings of a round ran the same text in turns.
    pub tok_s: Vec<Option<f64>>,
    /// What its memory plan adds up to.
    pub memory_bytes: u64,
    /// Major page faults a generated token, median of the rounds.
    pub faults_per_token: f64,
}

/// How many times as fast one setting is as another, over the rounds that have both.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// Geometric mean.
    pub mean: f64,
    /// Bounds that each are right in 95 of 100 cases; infinite (null in JSON) with a single pair.
    pub low: f64,
    /// As `low`.
    pub high: f64,
    /// Rounds.
    pub pairs: usize,
}

impl Ratio {
    /// What `a` is to `b`; `None` without a round that has both.
    pub fn of(a: &Measured, b: &Measured) -> Option<Ratio> {
        let logs: Vec<f64> = a
            .tok_s
            .iter()
            .zip(&b.tok_s)
            .filter_map(|(a, b)| Some((a.filter(|a| *a > 0.0)? / b.filter(|b| *b > 0.0)?).ln()))
            .collect();
        let n = logs.len();
        if n == 0 {
            return None;
        }
        let mean = logs.iter().sum::<f64>() / n as f64;
        let squares: f64 = logs.iter().map(|log| (log - mean).powi(2)).sum();
        let error = match n {
            1 => f64::INFINITY,
            _ => t_95(n - 1) * (squares / (n - 1) as f64 / n as f64).sqrt(),
        };
        Some(Ratio { mean: mean.exp(), low: (mean - error).exp(), high: (mean + error).exp(), pairs: n })
    }

    /// Whether the first is faster than noise explains, and enough to matter.
    fn is_win(&self) -> bool {
        self.low > 1.0 && self.mean >= 1.0 + GAIN_MIN
    }
}

fn t_95(degrees: usize) -> f64 {
    T_95.get(degrees - 1).copied().unwrap_or(T_95_MANY)
}

/// Why a setting was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The default could not be run, so there was nothing to compare with.
    DefaultNotRun,
    /// Nothing was compared with the default often enough to tell.
    TooFewRounds,
    /// Nothing beats the default by more than the noise.
    NothingBetter,
    /// It is the fastest by more than the noise, or ties with the fastest and takes less memory or comes
    /// first.
    Faster,
    /// It is no slower than the default, under which memory was short.
    FewerFaults,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Index of the setting.
    pub chosen: usize,
    /// Why.
    pub reason: Reason,
    /// What it is to the default; `None` for the default itself.
    pub gain: Option<Ratio>,
}

/// Chooses among `cells`, in order of preference among equals; the first is the default.
pub fn decide(cells: &[Measured]) -> Decision {
    let keep = |reason| Decision { chosen: 0, reason, gain: None };
    let Some(default) = cells.first() else { return keep(Reason::TooFewRounds) };
    if default.tok_s.iter().all(Option::is_none) {
        return keep(Reason::DefaultNotRun);
    }
    let gains: Vec<Option<Ratio>> = cells.iter().map(|cell| Ratio::of(cell, default)).collect();
    let is_compared = |gain: &Option<Ratio>| gain.is_some_and(|gain| gain.pairs >= 2);
    if !gains.iter().skip(1).any(is_compared) {
        return keep(Reason::TooFewRounds);
    }
    let wins = |index: &usize| gains[*index].is_some_and(|gain| gain.is_win());
    let mut eligible: Vec<usize> = (1..cells.len()).filter(wins).collect();
    let mut reason = Reason::Faster;
    if eligible.is_empty() && is_short(default) {
        // The default has lost what it is preferred for: whoever keeps up without faults will do.
        let keeps_up = |index: &usize| {
            is_compared(&gains[*index]) && !is_short(&cells[*index]) && !beats(default, &cells[*index])
        };
        eligible = (1..cells.len()).filter(keeps_up).collect();
        reason = Reason::FewerFaults;
    }
    let speed = |index: usize| gains[index].map_or(0.0, |gain| gain.mean);
    let Some(best) = eligible.iter().copied().max_by(|a, b| speed(*a).total_cmp(&speed(*b))) else {
        return keep(Reason::NothingBetter);
    };
    eligible.retain(|index| !beats(&cells[best], &cells[*index]));
    if eligible.iter().any(|index| !is_short(&cells[*index])) {
        eligible.retain(|index| !is_short(&cells[*index]));
    }
    let chosen = eligible.into_iter().reduce(|kept, other| smaller(cells, kept, other)).unwrap_or(best);
    Decision { chosen, reason, gain: gains[chosen] }
}

fn beats(a: &Measured, b: &Measured) -> bool {
    Ratio::of(a, b).is_some_and(|ratio| ratio.is_win())
}

fn is_short(cell: &Measured) -> bool {
    cell.faults_per_token > FAULTS_MAX
}

/// Of two equals the one with less memory, or the first.
fn smaller(cells: &[Measured], first: usize, second: usize) -> usize {
    let (one, other) = (cells[first].memory_bytes as f64, cells[second].memory_bytes as f64);
    if other < one * (1.0 - MEMORY_SAME) { second } else { first }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
