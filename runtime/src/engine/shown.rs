//! What the drafter is shown of the target: hidden states of committed rows, in time and no longer than
//! they are wanted.
//!
//! Owns the asking: every call of the drafter goes through [`Engine::ask`]. Rejected rows' states went with
//! their KV rows; those a drafter has taken in are forgotten. Without a drafter that needs them, nothing is
//! recorded and nothing is done here.

use drafthorse_draft::{Draft, FeatureNeed, Request, StopRule, TokenId};

use super::Engine;
use crate::api::Progress;
use crate::sequence::Sequence;

/// To continue the first `context_len` tokens of `sequence`, without features.
fn request(sequence: &Sequence, context_len: usize, (max_tokens, stop): (usize, StopRule)) -> Request<'_> {
    let prompt_len = sequence.len() - sequence.generated().len();
    let context = &sequence.tokens()[..context_len];
    Request { prompt_len, stop, ..Request::new(context, max_tokens, &sequence.sampler) }
}

impl Engine {
    /// Asks the drafter to continue `sequence`. One that fails is put away and said so; the text does not
    /// need it.
    pub(super) fn ask(
        &mut self,
        sequence: &Sequence,
        wanted: (usize, StopRule),
        progress: &mut dyn Progress,
    ) -> Draft {
        self.ask_behind((sequence, sequence.len()), wanted, progress)
    }

    fn ask_behind(
        &mut self,
        (sequence, context_len): (&Sequence, usize),
        wanted: (usize, StopRule),
        progress: &mut dyn Progress,
    ) -> Draft {
        let Some(drafter) = &mut self.drafter else { return Draft::default() };
        let features = self.target.features();
        let proposed = drafter.propose(Request { features, ..request(sequence, context_len, wanted) });
        drafter.notices().iter().for_each(|line| progress.notice(line));
        match proposed {
            Ok(draft) => {
                let need = drafter.features();
                self.forget_features(need);
                draft
            }
            Err(error) => {
                let reason = format!("the {} drafter failed and was put away: {error}", drafter.name());
                progress.notice(&reason);
                self.drafter_missing = Some(reason);
                self.drafter = None;
                self.target.record_features(&[]);
                Draft::default()
            }
        }
    }

    /// A plain pass: a drafter that works ahead leaves the processor to it.
    pub(super) fn draft_nothing(&mut self) -> Draft {
        self.drafter.iter_mut().for_each(|drafter| drafter.rest());
        Draft::default()
    }

    /// A plain pass, beside which the drafter says for comparison how the next `watch` tokens would go on.
    pub(super) fn draft_to_watch(
        &mut self,
        sequence: &Sequence,
        watch: usize,
        progress: &mut dyn Progress,
    ) -> Draft {
        if watch > 0 && sequence.sampler.config().stands_by_equality() {
            let draft = self.ask(sequence, (watch, StopRule::NEVER), progress);
            self.watch.begin(sequence.len(), watch, draft);
        }
        self.draft_nothing()
    }

    /// Any token, for what verifying one takes; the drafter works no further.
    pub(super) fn draft_blank(&mut self, context: &[TokenId]) -> Draft {
        self.draft_nothing();
        Draft::new(context.last().copied().into_iter().collect(), vec![0.0])
    }

    /// Lets the drafter go on behind `draft` while the target verifies it.
    pub(super) fn draft_ahead(&mut self, sequence: &Sequence, wanted: (usize, StopRule), draft: &Draft) {
        if let Some(drafter) = &mut self.drafter {
            drafter.run_ahead(request(sequence, sequence.len(), wanted), draft);
        }
    }

    /// Before a pass over `rows` rows behind the first `context_len` of `sequence`: where their hidden states would not
    /// fit beside those kept, the drafter takes these in.
    pub(super) fn make_feature_room(
        &mut self,
        (sequence, context_len): (&Sequence, usize),
        rows: usize,
        progress: &mut dyn Progress,
    ) {
        if self.target.feature_tape().is_some_and(|tape| !tape.has_room(rows)) {
            self.ask_behind((sequence, context_len), (0, StopRule::NEVER), progress);
        }
    }

    /// Of `cached` tokens whose rows could stay, how many should: a head makes its last row of the hidden
    /// state before it, which is then computed once more.
    pub(super) fn rows_to_keep(&self, cached: usize) -> usize {
        cached.saturating_sub(usize::from(self.target.features().is_some()))
    }

    fn forget_features(&mut self, need: FeatureNeed) {
        let Some(tape) = self.target.feature_tape() else { return };
        match need {
            // The head of a chain was put away.
            FeatureNeed::None => self.target.record_features(&[]),
            FeatureNeed::Since(position) => tape.forget(position),
            FeatureNeed::Latest => tape.keep_last(),
        }
    }
}
