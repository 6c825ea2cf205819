//! A TEST drafter: it knows the answer, and is right as often as it is told to be.
//!
//! Owns [`ScriptedDrafter`], by which the eval harness measures what speculation costs and yields at a given
//! acceptance, without a draft model of that quality. Whether it is right at a place is a hash of (seed, position, the
//! token there): the same for every draft length, cache size and repetition of a text, and another for other texts. It
//! must not know files; whoever builds it has read the script.

use crate::{Draft, DraftError, Drafter, Request, TokenId};
use std::time::{Duration, Instant};

/// Share of positions with the high acceptance under [`ScriptConfidence::Split`] (ALGORITHMS.md 0.4).
const HIGH_SHARE: f64 = 0.7;
/// The distance between high and low there: 0.95 and 0.40 around their mean of 0.785.
const SPREAD: f64 = 0.55;
/// Waits are slept through but for their last part, which sleeping would overshoot.
const SPIN: Duration = Duration::from_micros(150);

/// What the drafter says of its own guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScriptConfidence {
    /// Always the mean acceptance.
    Flat,
    /// Each position's own: 70 % of positions are accepted often, 30 % seldom, and the drafter knows which
    /// (it is calibrated).
    Split,
}

/// How the drafter behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScriptConfig {
    /// Share of positions at which it is right, 0 to 1.
    pub accept: f64,
    /// Microseconds it takes for each drafted token: stands in for the cost of a draft model that runs on
    /// other hardware, since waiting leaves the CPU to others.
    pub us_per_token: u64,
    /// Decides at which places it is right.
    pub seed: u64,
    /// What it says of itself.
    pub confidence: ScriptConfidence,
}

impl ScriptConfig {
    /// Checks every field against its limits.
    ///
    /// # Errors
    /// [`DraftError::Setting`] names the field outside its limits.
    pub fn validate(&self) -> Result<(), DraftError> {
        let wrong = |field, value: String, limits| Err(DraftError::Setting { field, value, limits });
        if !(0.0..=1.0).contains(&self.accept) {
            return wrong("accept", self.accept.to_string(), "from 0 to 1");
        }
        if self.us_per_token > 1_000_000 {
            return wrong("us", self.us_per_token.to_string(), "from 0 to 1000000");
        }
        Ok(())
    }

    /// The chance of being right at `place`.
    fn acceptance(&self, place: Place) -> f64 {
        match self.confidence {
            ScriptConfidence::Flat => self.accept,
            ScriptConfidence::Split => {
                let mean = self.accept;
                let spread = SPREAD.min(mean / HIGH_SHARE).min((1.0 - mean) / (1.0 - HIGH_SHARE));
                match unit(self.seed, place, 1) < HIGH_SHARE {
                    true => mean + (1.0 - HIGH_SHARE) * spread,
                    false => mean - HIGH_SHARE * spread,
                }
            }
        }
    }

    fn is_right(&self, place: Place) -> bool {
        unit(self.seed, place, 0) < self.acceptance(place)
    }
}

/// A position in a text, and the token there.
type Place = (usize, TokenId);

/// The answer, and how well it is to be known.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// Prompt and the target's own continuation.
    pub tokens: Vec<TokenId>,
    /// How the drafter behaves.
    pub config: ScriptConfig,
}

/// Drafts from its script with errors; abstains where the context is not a prefix of it. See the module.
#[derive(Clone, Debug)]
pub struct ScriptedDrafter {
    script: Script,
}

impl ScriptedDrafter {
    /// A drafter for a configuration that has passed [`ScriptConfig::validate`].
    pub fn new(script: Script) -> ScriptedDrafter {
        ScriptedDrafter { script }
    }
}

impl Drafter for ScriptedDrafter {
    fn name(&self) -> &'static str {
        "script"
    }

    fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError> {
        let started = Instant::now();
        let Script { tokens, config } = &self.script;
        let from = request.context.len();
        if request.context.is_empty() || !tokens.starts_with(request.context) {
            return Ok(Draft::default());
        }
        let mut draft = Draft::default();
        let mut survival = 1.0;
        let places = tokens.iter().copied().enumerate().skip(from);
        for place @ (_, token) in places.take(request.max_tokens) {
            draft.tokens.push(if config.is_right(place) { token } else { other_than(token) });
            let confidence = config.acceptance(place) as f32;
            draft.confidence.push(confidence);
            survival = request.stop.survival(survival, confidence);
            if request.stop.stops(survival) {
                break;
            }
        }
        let cost = Duration::from_micros(config.us_per_token.saturating_mul(draft.tokens.len() as u64));
        wait_until(started, cost);
        Ok(draft)
    }
}

/// Another token of the same vocabulary.
fn other_than(token: TokenId) -> TokenId {
    token.checked_sub(1).unwrap_or(1)
}

/// Returns `cost` after `started`.
fn wait_until(started: Instant, cost: Duration) {
    if let Some(rest) = cost.checked_sub(started.elapsed() + SPIN) {
        std::thread::sleep(rest);
    }
    while started.elapsed() < cost {
        std::hint::spin_loop();
    }
}

/// A number in [0, 1) from (seed, place, use), by SplitMix64's finalizer.
fn unit(seed: u64, (position, token): Place, which: u64) -> f64 {
    let mix = |x: u64| {
        let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    };
    let bits = mix(mix(mix(mix(seed) ^ position as u64) ^ u64::from(token)) ^ which);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]
    use super::*;
    use crate::{Sampler, SamplerConfig};

    const LEN: usize = 20_000;

    fn config(accept: f64, confidence: ScriptConfidence) -> ScriptConfig {
        ScriptConfig { accept, us_per_token: 0, seed: 3, confidence }
    }

    fn script() -> Vec<TokenId> {
        (0..LEN as TokenId).map(|i| i % 7).collect()
    }

    fn propose(config: ScriptConfig, context: &[TokenId], max_tokens: usize) -> Draft {
        let sampler = Sampler::new(SamplerConfig::plain(0.0, 0));
        let mut drafter = ScriptedDrafter::new(Script { tokens: script(), config });
        drafter.propose(Request::new(context, max_tokens, &sampler)).unwrap()
    }

    #[test]
    fn it_is_right_as_often_as_told_and_knows_how_often() {
        for accept in [0.0, 0.3, 0.6, 0.8, 0.95, 1.0] {
            for confidence in [ScriptConfidence::Flat, ScriptConfidence::Split] {
                let draft = propose(config(accept, confidence), &script()[..1], LEN);
                let right: Vec<bool> = draft.tokens.iter().zip(&script()[1..]).map(|(a, b)| a == b).collect();
                let mean =
                    |right: &[&bool]| right.iter().filter(|r| ***r).count() as f64 / right.len() as f64;
                let all = mean(&right.iter().collect::<Vec<_>>());
                assert!((all - accept).abs() < 0.015, "{accept} {confidence:?}: {all}");
                // Of the positions it gave one confidence, as many are right as it says.
                let mut levels = draft.confidence.clone();
                levels.sort_by(f32::total_cmp);
                levels.dedup();
                let is_split = confidence == ScriptConfidence::Split && accept > 0.0 && accept < 1.0;
                assert_eq!(levels.len(), 1 + usize::from(is_split), "{levels:?}");
                for level in levels {
                    let some: Vec<&bool> = right
                        .iter()
                        .zip(&draft.confidence)
                        .filter_map(|(r, c)| (*c == level).then_some(r))
                        .collect();
                    assert!((mean(&some) - f64::from(level)).abs() < 0.02, "{level} {confidence:?}");
                }
            }
        }
    }

    #[test]
    fn what_it_says_of_a_position_does_not_depend_on_where_the_draft_began() {
        let config = config(0.6, ScriptConfidence::Split);
        let long = propose(config, &script()[..10], 50);
        for from in 10..50 {
            let draft = propose(config, &script()[..from], 3);
            assert_eq!(draft.tokens, long.tokens[from - 10..from - 7]);
            assert_eq!(draft.confidence, long.confidence[from - 10..from - 7]);
        }
    }

    #[test]
    fn other_texts_meet_other_errors() {
        let config = config(0.5, ScriptConfidence::Flat);
        let right = |shift: TokenId| {
            let tokens: Vec<TokenId> = script().iter().map(|token| token + shift).collect();
            let errors = |position: usize| config.is_right((position, tokens[position]));
            (0..400).map(errors).collect::<Vec<bool>>()
        };
        let alike = right(0).iter().zip(&right(7)).filter(|(a, b)| a == b).count();
        assert!((150..250).contains(&alike), "{alike} of 400");
        assert_eq!(right(3), right(3));
    }

    #[test]
    fn off_the_script_and_past_its_end_it_abstains() {
        let config = config(1.0, ScriptConfidence::Flat);
        assert_eq!(propose(config, &[0, 1, 3], 4), Draft::default());
        assert_eq!(propose(config, &script(), 4), Draft::default());
        assert_eq!(propose(config, &script()[..LEN - 2], 4).tokens.len(), 2);
    }

    #[test]
    fn it_takes_the_time_it_is_given() {
        let started = Instant::now();
        propose(ScriptConfig { us_per_token: 700, ..config(1.0, ScriptConfidence::Flat) }, &[0, 1], 5);
        assert!(started.elapsed() >= Duration::from_micros(3500), "no less, whatever the machine does");
    }

    #[test]
    fn settings_are_checked_by_name() {
        for accept in [-0.1, 1.5, f64::NAN] {
            let error = config(accept, ScriptConfidence::Flat).validate().unwrap_err();
            assert!(error.to_string().starts_with("accept = "), "{error}");
        }
        let slow = ScriptConfig { us_per_token: 2_000_000, ..config(0.5, ScriptConfidence::Flat) };
        assert!(slow.validate().unwrap_err().to_string().starts_with("us = "));
        assert!(config(0.5, ScriptConfidence::Split).validate().is_ok());
    }
}
