//! What the cache would miss if nothing were ever drafted.
//!
//! Owns [`Shadow`]: two replays of the routing as it happens, one with every row that was computed and one with
//! the rows that stayed, one after another. Rejected rows bring their own experts and make others leave, so plain
//! passes amid drafted ones miss more than plain decoding would, and measuring them flatters drafting. What the
//! replays differ by, times what the cache really missed, tells the two apart. Both evict the least recently
//! used: what counts is the difference. It must not know tokens, time or what is done about it.

use crate::error::OffloadError;
use crate::index::ExpertIndex;
use crate::policy::{PolicyConfig, PolicyKind};
use crate::replay::{Replay, Window, Workload};

/// Misses of one pass in both replays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShadowMisses {
    /// With all rows of the pass, as they were.
    pub as_run: u64,
    /// With the rows that stayed, each a pass of its own.
    pub plain: u64,
}

/// Two caches that hold nothing, beside the one that does.
pub struct Shadow {
    shape: Workload,
    used: usize,
    as_run: Replay,
    plain: Replay,
    /// By layer: the experts of the rows since the last commit, `used` a row.
    picks: Vec<Vec<u32>>,
}

impl Shadow {
    /// For a cache of `slots` over the experts of `index`, of which a row uses `used`.
    pub fn new(index: &ExpertIndex, slots: usize, used: usize) -> Shadow {
        let experts = (0..index.layers() as u32).map(|layer| index.experts(layer) as u32).collect();
        Shadow::of(Workload::new(experts, used as u32), slots, used)
    }

    fn of(shape: Workload, slots: usize, used: usize) -> Shadow {
        let replay = |config: &PolicyConfig| Replay::new(&shape, slots, PolicyKind::Lru.build(config));
        let config = shape.policy_config(slots);
        let (as_run, plain) = (replay(&config), replay(&config));
        Shadow { picks: vec![Vec::new(); shape.layers()], used: used.max(1), as_run, plain, shape }
    }

    /// The pass at work sent its rows of `layer` to `experts`, `used` a row.
    pub fn routed(&mut self, layer: u32, experts: impl Iterator<Item = u32>) {
        if let Some(picks) = self.picks.get_mut(layer as usize) {
            picks.extend(experts);
        }
    }

    /// The pass is over and its first `rows` rows stay. A prompt's rows are one pass in both replays
    /// (`is_prompt`).
    ///
    /// # Errors
    /// Experts that the index does not know. The pass is forgotten then.
    pub fn commit(&mut self, rows: usize, is_prompt: bool) -> Result<ShadowMisses, OffloadError> {
        let picks: Vec<Vec<u32>> = self.picks.iter_mut().map(std::mem::take).collect();
        let each = if is_prompt { rows.max(1) } else { 1 };
        let kept: Vec<_> = (0..rows).step_by(each).map(|row| row..row + each).collect();
        let every = 0..picks.iter().map(|picks| picks.len() / self.used).max().unwrap_or(0);
        let as_run = self.windows(&picks, &[every])?;
        let plain = self.windows(&picks, &kept)?;
        Ok(ShadowMisses { as_run: step(&mut self.as_run, &as_run), plain: step(&mut self.plain, &plain) })
    }

    /// Forgets a pass that failed.
    pub fn abandon(&mut self) {
        self.picks.iter_mut().for_each(Vec::clear);
    }

    /// The windows of passes over these ranges of rows, layer by layer in each.
    fn windows(
        &self,
        picks: &[Vec<u32>],
        passes: &[std::ops::Range<usize>],
    ) -> Result<Vec<Window>, OffloadError> {
        let mut windows = Vec::with_capacity(passes.len() * picks.len());
        for rows in passes {
            for (layer, picks) in picks.iter().enumerate() {
                let of_rows = picks.iter().skip(rows.start * self.used).take(rows.len() * self.used);
                windows.push(self.shape.window(layer as u32, of_rows.copied())?);
            }
        }
        Ok(windows)
    }
}

/// Misses of these windows.
fn step(replay: &mut Replay, windows: &[Window]) -> u64 {
    let misses = |replay: &Replay| replay.accesses() - replay.hits();
    let before = misses(replay);
    windows.iter().for_each(|window| replay.step(window));
    misses(replay) - before
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    fn shadow(slots: usize) -> Shadow {
        Shadow::of(Workload::new(vec![8], 1), slots, 1)
    }

    fn pass(shadow: &mut Shadow, experts: &[u32], kept: usize) -> ShadowMisses {
        shadow.routed(0, experts.iter().copied());
        shadow.commit(kept, false).unwrap()
    }

    #[test]
    fn passes_without_a_draft_miss_the_same_in_both() {
        let mut shadow = shadow(2);
        for expert in [0, 1, 0, 2, 1, 1, 3, 0, 2] {
            let misses = pass(&mut shadow, &[expert], 1);
            assert_eq!(misses.as_run, misses.plain);
        }
    }

    #[test]
    fn what_rejected_rows_drive_out_is_missed_only_as_run() {
        let mut shadow = shadow(2);
        // The text goes 0 1 0 1; every draft wants expert 5 as well, which never stays.
        let misses: Vec<ShadowMisses> = [0, 1, 0, 1].map(|expert| pass(&mut shadow, &[expert, 5], 1)).into();
        assert_eq!(misses.iter().map(|m| m.plain).sum::<u64>(), 2, "0 and 1, once each");
        assert!(misses.iter().map(|m| m.as_run).sum::<u64>() > 4, "{misses:?}");
    }

    #[test]
    fn rows_that_stay_are_passes_of_their_own_and_share_nothing() {
        let mut shadow = shadow(1);
        let misses = pass(&mut shadow, &[3, 4, 3], 3);
        assert_eq!(misses, ShadowMisses { as_run: 2, plain: 3 });
    }

    #[test]
    fn a_prompt_is_one_pass_in_both_and_a_failed_pass_is_none() {
        let mut shadow = shadow(4);
        shadow.routed(0, [1, 2, 1].into_iter());
        shadow.abandon();
        shadow.routed(0, [1, 2, 1].into_iter());
        assert_eq!(shadow.commit(3, true).unwrap(), ShadowMisses { as_run: 2, plain: 2 });
        assert_eq!(pass(&mut shadow, &[1], 1), ShadowMisses::default());
    }

    #[test]
    fn an_unknown_expert_is_refused_and_the_pass_forgotten() {
        let mut shadow = shadow(4);
        shadow.routed(0, [8].into_iter());
        assert!(shadow.commit(1, false).is_err());
        assert_eq!(pass(&mut shadow, &[1], 1), ShadowMisses { as_run: 1, plain: 1 });
    }
}
