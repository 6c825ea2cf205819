//! How tokens are chosen: the settings of the sampler.
//!
//! Owns [`SamplerConfig`], [`VerifyRule`] and their limits. It must not know how any of it is done.

use crate::DraftError;

/// How the target's law and a drafted token come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyRule {
    /// Draft and target share their noise; a guess stands when it is the target's own choice. The text
    /// is the same whatever was drafted (arXiv 2408.07978).
    Coupled,
    /// The drafter draws by itself and the target verifies the draft as a block. More guesses stand;
    /// the text follows the same law, but which text it is depends on the draft (arXiv 2403.10444).
    Block,
}

/// How the next token is chosen: penalties, then temperature and filters in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerConfig {
    /// Divides positive logits of recent tokens, multiplies negative ones; 1 changes nothing. 0.1 to
    /// 10. (CTRL, arXiv 1909.05858, with llama.cpp's treatment of signs.)
    pub repeat_penalty: f32,
    /// Taken from the logit of every recent token; 0 changes nothing. -10 to 10.
    pub presence_penalty: f32,
    /// Taken from the logit of a recent token once for each time it occurs; 0 changes nothing. -10 to
    /// 10.
    pub frequency_penalty: f32,
    /// How many of the last tokens, prompt included, count as recent; 0 penalises nothing.
    pub repeat_last_n: usize,
    /// 0 takes the most likely token; otherwise logits are divided by it. 0 to 100.
    pub temperature: f32,
    /// Keeps the k most likely tokens (a tie goes to the lower id); 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens whose probabilities sum to this much; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Fixes the noise, and with it the text.
    pub seed: u64,
    /// What makes a drafted token stand.
    pub verify: VerifyRule,
}

impl SamplerConfig {
    /// The model's own law at that temperature: no filters, no penalties, coupled verification.
    pub const fn plain(temperature: f32, seed: u64) -> SamplerConfig {
        SamplerConfig {
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_last_n: 64,
            temperature,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed,
            verify: VerifyRule::Coupled,
        }
    }

    /// Checks every field against its limits.
    ///
    /// # Errors
    /// [`DraftError::Setting`] names the first field outside its limits.
    pub fn validate(&self) -> Result<(), DraftError> {
        let check = |ok: bool, field, value: f32, limits| match ok {
            true => Ok(()),
            false => Err(DraftError::Setting { field, value: value.to_string(), limits }),
        };
        let SamplerConfig { repeat_penalty, presence_penalty, frequency_penalty, .. } = *self;
        check((0.1..=10.0).contains(&repeat_penalty), "repeat_penalty", repeat_penalty, "from 0.1 to 10")?;
        let additive = [("presence_penalty", presence_penalty), ("frequency_penalty", frequency_penalty)];
        for (field, value) in additive {
            check((-10.0..=10.0).contains(&value), field, value, "from -10 to 10")?;
        }
        check((0.0..=100.0).contains(&self.temperature), "temperature", self.temperature, "from 0 to 100")?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", self.min_p, "from 0 to 1")
    }

    /// Whether any recent token's logit is changed.
    pub fn has_penalties(&self) -> bool {
        let is_neutral =
            self.repeat_penalty == 1.0 && self.presence_penalty == 0.0 && self.frequency_penalty == 0.0;
        self.repeat_last_n > 0 && !is_neutral
    }

    /// Whether a guess stands exactly when it equals the target's choice: always in coupled
    /// verification, and in greedy decoding, where block verification comes down to the same.
    pub fn stands_by_equality(&self) -> bool {
        self.verify == VerifyRule::Coupled || self.temperature == 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_outside_its_limits_is_named() {
        let plain = SamplerConfig::plain(1.0, 1);
        assert!(plain.validate().is_ok());
        let wrong = [
            (SamplerConfig { temperature: -0.1, ..plain }, "temperature"),
            (SamplerConfig { temperature: f32::NAN, ..plain }, "temperature"),
            (SamplerConfig { top_p: 0.0, ..plain }, "top_p"),
            (SamplerConfig { top_p: f32::NAN, ..plain }, "top_p"),
            (SamplerConfig { min_p: 1.5, ..plain }, "min_p"),
            (SamplerConfig { repeat_penalty: 0.0, ..plain }, "repeat_penalty"),
            (SamplerConfig { repeat_penalty: f32::INFINITY, ..plain }, "repeat_penalty"),
            (SamplerConfig { presence_penalty: -11.0, ..plain }, "presence_penalty"),
            (SamplerConfig { frequency_penalty: f32::NAN, ..plain }, "frequency_penalty"),
        ];
        for (config, name) in wrong {
            let message = config.validate().expect_err(name).to_string();
            assert!(message.starts_with(name) && message.contains("must be"), "{message}");
        }
    }

    #[test]
    fn a_window_of_nothing_and_neutral_values_penalise_nothing() {
        let plain = SamplerConfig::plain(1.0, 1);
        assert!(!plain.has_penalties());
        for config in [
            SamplerConfig { repeat_penalty: 1.1, ..plain },
            SamplerConfig { presence_penalty: -0.5, ..plain },
            SamplerConfig { frequency_penalty: 0.5, ..plain },
        ] {
            assert!(config.has_penalties());
            assert!(!SamplerConfig { repeat_last_n: 0, ..config }.has_penalties());
        }
    }
}
