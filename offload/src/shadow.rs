//! What the cache would miss if nothing were ever drafted.
//!
//! Owns [`Shadow`]: two replays of the routing as it happens, one with every row that was computed and one with
//! the rows that stayed, one after another. Rejected rows bring their own experts and make others leave, so plain
//! passes amid drafted ones miss more than plain decoding would, and measuring them flatters drafting. What the
//! replays differ by, times what the cache really missed, tells the two apart. Both evict the least recently
//! used: what counts is the difference. It must not know tokens, time or what is done about it.

use crate::ExpertId;
use crate::error::OffloadError;
use crate::index::ExpertIndex;

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
    /// By layer: the number of its first expert among all, and how many it has.
    layers: Vec<(u32, u32)>,
    used: usize,
    as_run: Recency,
    plain: Recency,
    /// By layer: the experts of the rows since the last commit, `used` a row.
    picks: Vec<Vec<u32>>,
}

impl Shadow {
    /// For a cache of `slots` over the experts of `index`, of which a row uses `used`.
    pub fn new(index: &ExpertIndex, slots: usize, used: usize) -> Shadow {
        Shadow::of((0..index.layers() as u32).map(|layer| index.experts(layer) as u32), slots, used)
    }

    fn of(experts: impl Iterator<Item = u32>, slots: usize, used: usize) -> Shadow {
        let mut all = 0;
        let number = |experts| {
            let first = all;
            all += experts;
            (first, experts)
        };
        let layers: Vec<(u32, u32)> = experts.map(number).collect();
        let (as_run, plain) = (Recency::new(all, slots), Recency::new(all, slots));
        Shadow { picks: vec![Vec::new(); layers.len()], used: used.max(1), as_run, plain, layers }
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
        let known = self.check();
        let misses = known.map(|()| {
            let as_run = replay(&mut self.as_run, &self.layers, &self.picks, 0..usize::MAX);
            let each = self.used * if is_prompt { rows.max(1) } else { 1 };
            let starts = (0..rows * self.used).step_by(each);
            let plain = starts
                .map(|start| replay(&mut self.plain, &self.layers, &self.picks, start..start + each))
                .sum();
            ShadowMisses { as_run, plain }
        });
        self.abandon();
        misses
    }

    /// Forgets a pass that failed.
    pub fn abandon(&mut self) {
        self.picks.iter_mut().for_each(Vec::clear);
    }

    fn check(&self) -> Result<(), OffloadError> {
        for (layer, (picks, (_, experts))) in (0..).zip(self.picks.iter().zip(&self.layers)) {
            if let Some(expert) = picks.iter().find(|expert| **expert >= *experts) {
                let id = ExpertId { layer, expert: *expert };
                return Err(OffloadError::NoSuchExpert { id, experts: *experts as usize });
            }
        }
        Ok(())
    }
}

/// Misses of a pass over the rows whose picks are at `rows`, layer by layer.
fn replay(
    cache: &mut Recency,
    layers: &[(u32, u32)],
    picks: &[Vec<u32>],
    rows: std::ops::Range<usize>,
) -> u64 {
    let each = layers.iter().zip(picks);
    each.map(|((first, _), picks)| {
        let of_rows = picks.iter().take(rows.end).skip(rows.start);
        cache.serve(of_rows.map(|expert| first + expert))
    })
    .sum()
}

/// A cache of numbers that evicts the one not asked for the longest: which it holds, in that order.
///
/// This runs after every pass of a model that may take less than a millisecond, so it is a list within two arrays and
/// not [`crate::policy::Policy`] behind [`crate::replay::Replay`], to which tests hold it.
struct Recency {
    /// By number, and one more for the list itself: who was asked for just before and just after. Its own number in
    /// `newer` for one that is not held.
    older: Vec<u32>,
    newer: Vec<u32>,
    held: usize,
    slots: usize,
    /// By number: the last window that asked for it.
    asked: Vec<u32>,
    window: u32,
    /// Of this window: those that were held and those that were not.
    hits: Vec<u32>,
    misses: Vec<u32>,
}

impl Recency {
    /// An empty cache of `slots` (at least 1) for numbers below `numbers`.
    fn new(numbers: u32, slots: usize) -> Recency {
        let own: Vec<u32> = (0..=numbers).collect();
        Recency {
            older: own.clone(),
            newer: own,
            held: 0,
            slots: slots.max(1),
            asked: vec![0; numbers as usize],
            window: 0,
            hits: Vec::new(),
            misses: Vec::new(),
        }
    }

    /// Asks for what one layer wants at one time, each number as often as it likes, and returns how many were not held.
    /// More than slots come in pieces, one cacheful at a time.
    fn serve(&mut self, wanted: impl Iterator<Item = u32>) -> u64 {
        self.begin_window();
        let (mut missed, mut piece) = (0, 0);
        for number in wanted {
            if std::mem::replace(&mut self.asked[number as usize], self.window) == self.window {
                continue;
            }
            if piece == self.slots {
                missed += self.end_piece();
                piece = 0;
            }
            piece += 1;
            if self.is_held(number) { &mut self.hits } else { &mut self.misses }.push(number);
        }
        missed + self.end_piece()
    }

    fn begin_window(&mut self) {
        self.window = self.window.wrapping_add(1);
        if self.window == 0 {
            // All numbers have come round.
            self.asked.fill(0);
            self.window = 1;
        }
    }

    /// Those held become the newest, in order, and then those that were not, in place of the oldest.
    fn end_piece(&mut self) -> u64 {
        for i in 0..self.hits.len() {
            self.take(self.hits[i]);
            self.put(self.hits[i]);
        }
        for i in 0..self.misses.len() {
            if self.held == self.slots {
                self.take(self.newer[self.list()]);
            }
            self.put(self.misses[i]);
        }
        self.hits.clear();
        let missed = self.misses.len() as u64;
        self.misses.clear();
        missed
    }

    fn list(&self) -> usize {
        self.asked.len()
    }

    fn is_held(&self, number: u32) -> bool {
        self.newer[number as usize] != number
    }

    /// `number`, which is held, is no longer.
    fn take(&mut self, number: u32) {
        let (older, newer) = (self.older[number as usize], self.newer[number as usize]);
        self.newer[older as usize] = newer;
        self.older[newer as usize] = older;
        (self.older[number as usize], self.newer[number as usize]) = (number, number);
        self.held -= 1;
    }

    /// `number`, which is not held, becomes the newest.
    fn put(&mut self, number: u32) {
        let list = self.list() as u32;
        let newest = self.older[list as usize];
        (self.older[number as usize], self.newer[number as usize]) = (newest, list);
        self.newer[newest as usize] = number;
        self.older[list as usize] = number;
        self.held += 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::policy::PolicyKind;
    use crate::replay::{Replay, Workload};

    fn shadow(slots: usize) -> Shadow {
        Shadow::of([8].into_iter(), slots, 1)
    }

    fn pass(shadow: &mut Shadow, experts: &[u32], kept: usize) -> ShadowMisses {
        shadow.routed(0, experts.iter().copied());
        shadow.commit(kept, false).unwrap()
    }

    /// Numbers that look random.
    fn random(state: &mut u64) -> u32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as u32
    }

    #[test]
    fn it_misses_what_a_replay_through_the_lru_policy_does() {
        let experts = [8, 5, 8];
        for (slots, used) in [(1, 2), (3, 2), (6, 2), (7, 3), (20, 2), (21, 3)] {
            let shape = Workload::new(experts.to_vec(), used);
            let new = || Replay::new(&shape, slots, PolicyKind::Lru.build(&shape.policy_config(slots)));
            let (mut as_run, mut plain) = (new(), new());
            let mut shadow = Shadow::of(experts.into_iter(), slots, used as usize);
            let mut state = slots as u64;
            let misses = |replay: &mut Replay, layer, picks: &[u32]| {
                let before = replay.accesses() - replay.hits();
                replay.step(&shape.window(layer, picks.iter().copied()).unwrap());
                replay.accesses() - replay.hits() - before
            };
            for pass in 0..400 {
                let (rows, is_prompt) = if pass % 50 == 0 { (12, true) } else { (1 + pass % 4, false) };
                let kept = if is_prompt { rows } else { 1 + random(&mut state) as usize % rows };
                let picks =
                    experts.map(|n| (0..rows * used as usize).map(|_| random(&mut state) % n).collect());
                let picks: [Vec<u32>; 3] = picks;
                let mut expected = ShadowMisses::default();
                for (layer, picks) in (0..).zip(&picks) {
                    shadow.routed(layer, picks.iter().copied());
                    expected.as_run += misses(&mut as_run, layer, picks);
                }
                let each = used as usize * if is_prompt { rows } else { 1 };
                for start in (0..kept * used as usize).step_by(each) {
                    for (layer, picks) in (0..).zip(&picks) {
                        expected.plain += misses(&mut plain, layer, &picks[start..start + each]);
                    }
                }
                assert_eq!(shadow.commit(kept, is_prompt).unwrap(), expected, "pass {pass}, {slots} slots");
            }
        }
    }

    #[test]
    fn numbers_of_windows_may_come_round() {
        let mut cache = Recency::new(4, 2);
        cache.window = u32::MAX - 1;
        assert_eq!(cache.serve([0, 1].into_iter()), 2);
        assert_eq!(
            cache.serve([3].into_iter()),
            1,
            "the first window of all, were its number one that stands for none"
        );
        let misses: Vec<u64> = (0..3).map(|_| cache.serve([0, 1, 0].into_iter())).collect();
        assert_eq!(misses, [1, 0, 0]);
        assert_eq!(cache.serve([2, 0].into_iter()), 1);
        assert_eq!(cache.serve([1].into_iter()), 1, "the oldest made room");
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
