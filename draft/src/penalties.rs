//! Penalties on what the text has just said, so that it does not repeat itself.
//!
//! Owns the change of logits by `repeat_penalty`, `presence_penalty` and `frequency_penalty` over the
//! last `repeat_last_n` tokens. It must not know laws, noise or drafts.

use std::borrow::Cow;

use crate::{History, SamplerConfig, TokenId};

/// The logits with recent tokens penalised; the row itself, not copied, when nothing is.
pub(crate) fn penalised<'l>(
    config: &SamplerConfig,
    logits: &'l [f32],
    history: History<'_>,
) -> Cow<'l, [f32]> {
    if !config.has_penalties() {
        return Cow::Borrowed(logits);
    }
    let mut changed = logits.to_vec();
    let mut recent: Vec<TokenId> = history.recent(config.repeat_last_n).collect();
    recent.sort_unstable();
    for same in recent.chunk_by(|a, b| a == b) {
        if let Some(logit) = changed.get_mut(same[0] as usize) {
            *logit = penalise(config, *logit, same.len());
        }
    }
    Cow::Owned(changed)
}

/// A token's logit after it occurred `count` times. What was finite stays so; a logit of -inf, which
/// is no candidate, stays one of -inf.
fn penalise(config: &SamplerConfig, logit: f32, count: usize) -> f32 {
    if !logit.is_finite() {
        return logit;
    }
    let scaled = if logit > 0.0 { logit / config.repeat_penalty } else { logit * config.repeat_penalty };
    let taken = config.presence_penalty + config.frequency_penalty * count as f32;
    (scaled - taken).clamp(f32::MIN, f32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [2.0, -2.0, 0.5, f32::NEG_INFINITY];

    fn run(config: SamplerConfig, committed: &[TokenId], drafted: &[TokenId]) -> Vec<f32> {
        penalised(&config, &LOGITS, History { committed, drafted }).into_owned()
    }

    #[test]
    fn each_penalty_does_what_it_documents() {
        let plain = SamplerConfig::plain(1.0, 0);
        let text = [0, 0, 1, 3];
        let repeat = SamplerConfig { repeat_penalty: 2.0, ..plain };
        assert_eq!(run(repeat, &text, &[]), [1.0, -4.0, 0.5, f32::NEG_INFINITY]);
        let presence = SamplerConfig { presence_penalty: 0.25, ..plain };
        assert_eq!(run(presence, &text, &[]), [1.75, -2.25, 0.5, f32::NEG_INFINITY]);
        let frequency = SamplerConfig { frequency_penalty: 0.25, ..plain };
        assert_eq!(run(frequency, &text, &[]), [1.5, -2.25, 0.5, f32::NEG_INFINITY]);
        let all = SamplerConfig { repeat_penalty: 2.0, presence_penalty: 0.25, ..frequency };
        assert_eq!(run(all, &text, &[]), [1.0 - 0.25 - 0.5, -4.0 - 0.5, 0.5, f32::NEG_INFINITY]);
    }

    #[test]
    fn the_window_counts_from_the_last_drafted_token() {
        let config =
            SamplerConfig { frequency_penalty: 1.0, repeat_last_n: 3, ..SamplerConfig::plain(1.0, 0) };
        assert_eq!(run(config, &[2, 2, 0], &[1, 1])[..3], [1.0, -4.0, 0.5]);
        assert_eq!(run(config, &[0, 1], &[])[..3], [1.0, -3.0, 0.5], "a text shorter than the window");
        assert_eq!(run(config, &[99, 98], &[97])[..3], LOGITS[..3], "ids the row does not have");
    }

    #[test]
    fn without_penalties_the_row_is_not_copied() {
        let config = SamplerConfig::plain(1.0, 0);
        assert!(matches!(penalised(&config, &LOGITS, History::of(&[0, 1])), Cow::Borrowed(_)));
    }

    #[test]
    fn no_logit_leaves_the_candidates_by_a_penalty() {
        let config = SamplerConfig { repeat_penalty: 10.0, ..SamplerConfig::plain(1.0, 0) };
        assert_eq!(penalise(&config, -f32::MAX, 1), f32::MIN);
        assert!(penalise(&config, f32::NAN, 1).is_nan());
    }
}
