//! What the text tells of drafting beside what verification does: drafts that nobody verifies, the drafter saying what it
//! would and the target writing alone, and how certain the target is.
//!
//! Owns such drafts until enough has come. It must not know what is made of the answers. Only where tokens stand by being
//! equal do they mean that they would have stood.

use std::borrow::Cow;

use drafthorse_draft::{Draft, History, LanguageModel, TokenId, Verdict};
use drafthorse_scheduler::Watched;

use super::Engine;
use crate::sequence::Sequence;

/// The drafts under way: one a pass, each as long as it is right.
#[derive(Default)]
pub(super) struct Watch {
    pending: Vec<Pending>,
}

struct Pending {
    /// Tokens of the text when it was made.
    at: usize,
    seen: Watched,
}

impl Engine {
    /// How certain the target was of each token of `verdict`, which `sequence` has not got yet; nothing where nobody asks.
    pub(super) fn certainty<'a>(
        &self,
        sequence: &Sequence,
        draft: &Draft,
        verdict: &'a Verdict,
    ) -> Cow<'a, [f32]> {
        if !verdict.certainty.is_empty() || self.drafter.is_none() || !self.controller.wants_certainty() {
            return Cow::Borrowed(&verdict.certainty);
        }
        let vocab = self.target.vocab();
        let certain = |row: usize| {
            let history = History { committed: sequence.tokens(), drafted: &draft.tokens[..row] };
            sequence.sampler.certainty(&self.logits[row * vocab..(row + 1) * vocab], history)
        };
        (0..=verdict.accepted).map(certain).collect()
    }
}

impl Watch {
    /// Compares `draft`, made behind `at` tokens when `asked` were asked for, with what comes.
    pub(super) fn begin(&mut self, at: usize, asked: usize, draft: Draft) {
        self.pending.push(Pending { at, seen: Watched { asked, draft, ..Watched::default() } });
    }

    /// Forgets them: another text follows.
    pub(super) fn end(&mut self) {
        self.pending.clear();
    }

    /// The text is `tokens` now, of whose last ones the target was that certain. The drafts of which all is known that
    /// there is to know.
    pub(super) fn told(&mut self, tokens: &[TokenId], certainty: &[f32]) -> Vec<Watched> {
        let mut known = Vec::new();
        self.pending.retain_mut(|Pending { at, seen }| {
            seen.certainty.extend(certainty);
            let came = tokens.get(*at..).unwrap_or_default();
            seen.stood = seen.draft.tokens.iter().zip(came).take_while(|(a, b)| a == b).count();
            let is_known = seen.stood < came.len() || seen.stood == seen.draft.tokens.len();
            known.extend(is_known.then(|| std::mem::take(seen)));
            !is_known
        });
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(drafted: &[TokenId]) -> Watch {
        let mut watch = Watch::default();
        watch.begin(2, 4, Draft::new(drafted.to_vec(), vec![0.5; drafted.len()]));
        watch
    }

    #[test]
    fn a_draft_is_told_of_when_it_is_through_or_wrong_and_once() {
        let mut right = watch(&[7, 8]);
        assert_eq!(right.told(&[1, 2, 7], &[0.9]), [], "one more is to come");
        let told = right.told(&[1, 2, 7, 8], &[0.8]);
        assert_eq!((told.len(), told[0].asked, told[0].stood), (1, 4, 2));
        assert_eq!(told[0].certainty, [0.9, 0.8]);
        assert_eq!(right.told(&[1, 2, 7, 8, 9], &[0.7]), []);
        let mut wrong = watch(&[7, 8, 9]);
        assert_eq!(wrong.told(&[1, 2, 7], &[0.9]), []);
        assert_eq!(wrong.told(&[1, 2, 7, 5], &[0.8])[0].stood, 1);
    }

    #[test]
    fn each_draft_is_compared_from_its_own_place() {
        let mut watch = watch(&[7, 8, 9]);
        assert_eq!(watch.told(&[1, 2, 7], &[0.9]), []);
        watch.begin(3, 4, Draft::new(vec![6, 6], vec![0.5; 2]));
        let told = watch.told(&[1, 2, 7, 8], &[0.8]);
        assert_eq!(
            (told.len(), told[0].stood, &told[0].certainty),
            (1, 0, &vec![0.8]),
            "the second was wrong"
        );
        let told = watch.told(&[1, 2, 7, 8, 9], &[0.7]);
        assert_eq!((told.len(), told[0].stood, told[0].certainty.len()), (1, 3, 3));
    }

    #[test]
    fn a_drafter_that_abstains_is_told_of_at_once_and_an_ended_text_never() {
        let told = watch(&[]).told(&[1, 2, 7], &[0.9]);
        assert_eq!((told[0].asked, told[0].stood, told[0].draft.tokens.len()), (4, 0, 0));
        let mut ended = watch(&[7, 8]);
        ended.end();
        assert_eq!(ended.told(&[1, 2, 7, 8], &[0.9, 0.9]), []);
    }
}
