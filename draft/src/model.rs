//! Drafting with a small model that lives on its own thread.
//!
//! Owns the draft model and its token history: each request rolls the KV cache back to the prefix it shares
//! with the new context, feeds the rest, and samples ahead with the sequence's own sampler. It must not know
//! which architecture the model has or where it came from, nor how requests reach the thread (`handover.rs`).
//!
//! While the target verifies, the thread can draft on ([`Drafter::run_ahead`]) as if all of the draft stood,
//! its own guess of the target's next token included. What comes true of that is what would have been
//! drafted anyway (guesses are functions of text and seed), so only time depends on it. The next request
//! ends it between two tokens.
//!
//! Where a target decoded many tokens without asking, the model reads the last of them alone ([`UNREAD_MAX`]): what it
//! has read before and they make a text with a gap, which costs a draft little and spares reading what would never be
//! asked about. Prompts are read whole.
//!
//! A draft model may lack tokens that the target has, and the reverse ([`SharedVocabulary`]). It reads the
//! text without the tokens it does not know, and abstains right behind one; its own other tokens are never
//! proposed, and a draft ends where the model would rather say one of them.

use crate::handover::{Desk, Job, Serve, Threaded};
use crate::{
    Draft, DraftError, Drafter, History, LanguageModel, LogitRows, Request, Sampler, TokenId, UNREAD_MAX,
};
use std::borrow::Cow;
use std::ops::Range;

/// Drafts with a [`LanguageModel`] on a thread of its own, joined on drop.
///
/// An error of the model leaves the drafter usable; a panic ends the thread, and that call and every
/// later one fail with [`DraftError::Stopped`].
pub struct ModelDrafter {
    desk: Desk<Threaded>,
}

/// Which token ids mean the same to draft model and target: those below `shared` that are not in `except`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedVocabulary {
    /// Size of the target's vocabulary.
    pub target: usize,
    /// Ids from here on are known to one side alone. At most the smaller vocabulary's size.
    pub shared: usize,
    /// Ids below `shared` that stand for different tokens, in ascending order.
    pub except: Vec<TokenId>,
}

impl SharedVocabulary {
    fn has(&self, token: TokenId) -> bool {
        (token as usize) < self.shared && self.except.binary_search(&token).is_err()
    }

    /// Makes a row of the draft model's logits one of the target's: ids that are not shared get -inf. False
    /// when one of the draft model's own tokens is likelier than every shared one.
    fn translate(&self, logits: &mut Vec<f32>) -> bool {
        let greatest = |values: &[f32]| values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut foreign = greatest(logits.get(self.shared..).unwrap_or_default());
        logits.truncate(self.shared);
        for &token in &self.except {
            if let Some(logit) = logits.get_mut(token as usize) {
                foreign = foreign.max(std::mem::replace(logit, f32::NEG_INFINITY));
            }
        }
        let is_ours = foreign <= greatest(logits);
        logits.resize(self.target, f32::NEG_INFINITY);
        is_ours
    }
}

impl ModelDrafter {
    /// Moves `model` to a new thread.
    ///
    /// # Errors
    /// [`DraftError::Spawn`] if the operating system refuses the thread.
    pub fn spawn(model: Box<dyn LanguageModel>) -> Result<ModelDrafter, DraftError> {
        ModelDrafter::spawn_sharing(model, None)
    }

    /// Moves `model` to a new thread; it shares with the target the ids that `vocabulary` says, or all.
    ///
    /// # Errors
    /// As [`ModelDrafter::spawn`].
    pub fn spawn_sharing(
        model: Box<dyn LanguageModel>,
        vocabulary: Option<SharedVocabulary>,
    ) -> Result<ModelDrafter, DraftError> {
        Ok(ModelDrafter { desk: Desk::new(Threaded::spawn(Worker::new(model, vocabulary))?) })
    }
}

impl Drafter for ModelDrafter {
    fn name(&self) -> &'static str {
        "model"
    }

    fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError> {
        let Request { context, prompt_len, max_tokens, sampler, stop, .. } = request;
        if max_tokens == 0 || context.is_empty() {
            self.desk.rest();
            return Ok(Draft::default());
        }
        self.desk.draft(Job { context: context.to_vec(), prompt_len, max_tokens, sampler: *sampler, stop })
    }

    fn run_ahead(&mut self, request: Request<'_>, draft: &Draft) {
        // Drawn guesses are keyed by where their draft began: fresh ones would be others.
        if !draft.laws.is_empty() || draft.tokens.is_empty() {
            return;
        }
        let Request { context, prompt_len, max_tokens, sampler, stop, .. } = request;
        let context = [context, &draft.tokens].concat();
        // One more: the target's own token comes first.
        self.desk.run_ahead(Job { context, prompt_len, max_tokens: max_tokens + 1, sampler: *sampler, stop });
    }

    fn rest(&mut self) {
        self.desk.rest();
    }

    fn forget(&mut self) {
        self.desk.forget();
    }
}

/// The thread's state.
pub(crate) struct Worker {
    model: Box<dyn LanguageModel>,
    vocabulary: Option<SharedVocabulary>,
    /// The tokens of the KV cache, row by row.
    history: Vec<TokenId>,
    /// What it was last asked to continue, without the tokens that the model does not know, and its draft behind it,
    context: Vec<TokenId>,
    /// and the places in it that the model has not read, ascending.
    gaps: Vec<Range<usize>>,
    /// After the last of them, if `logits_len` is their number.
    logits: Vec<f32>,
    logits_len: usize,
    /// Whether the likeliest token of `logits` was one that the target has, too.
    is_ours: bool,
    ahead: Option<Ahead>,
}

/// A draft behind a context that has not come true yet.
struct Ahead {
    sampler: Sampler,
    context: Vec<TokenId>,
    draft: Draft,
}

impl Ahead {
    /// What of the draft continues `context`, if that came true.
    fn behind(self, context: &[TokenId], sampler: &Sampler) -> Option<Draft> {
        let Draft { tokens, confidence, .. } = self.draft;
        let known = context.strip_prefix(self.context.as_slice()).filter(|_| self.sampler == *sampler)?;
        let rest = tokens.strip_prefix(known).filter(|rest| !rest.is_empty())?;
        Some(Draft::new(rest.to_vec(), confidence[known.len()..].to_vec()))
    }
}

impl Serve for Worker {
    fn forget(&mut self) {
        self.model.truncate(0);
        self.history.clear();
        self.context.clear();
        self.gaps.clear();
        (self.logits_len, self.ahead) = (0, None);
    }

    fn draft(&mut self, job: &Job) -> Result<Draft, DraftError> {
        let begun = self.ahead.take().and_then(|ahead| ahead.behind(&job.context, &job.sampler));
        // Gaps are made here alone: how far the model drafted ahead is chance.
        if let Some(context) = self.known(&job.context).map(Cow::into_owned) {
            self.gaps = self.gaps_in(&context, self.prompt_len(job));
            self.context = context;
        }
        let draft = self.draft_from(begun.unwrap_or_default(), job, &|| false)?;
        self.context.extend_from_slice(&draft.tokens);
        Ok(draft)
    }

    /// Drafts behind the job's context until it is told to stop. What fails here fails again, and is told
    /// of, when it is asked for.
    fn run_ahead(&mut self, job: Job, is_told_to_stop: &dyn Fn() -> bool) {
        self.ahead = None;
        if let Ok(draft) = self.draft_from(Draft::default(), &job, is_told_to_stop) {
            self.ahead = Some(Ahead { sampler: job.sampler, context: job.context, draft });
        }
    }
}

impl Worker {
    /// A worker that has read nothing yet.
    pub(crate) fn new(model: Box<dyn LanguageModel>, vocabulary: Option<SharedVocabulary>) -> Worker {
        let (history, logits) = (Vec::new(), Vec::new());
        Worker {
            model,
            vocabulary,
            history,
            context: Vec::new(),
            gaps: Vec::new(),
            logits,
            logits_len: 0,
            is_ours: true,
            ahead: None,
        }
    }

    /// Draws out `draft`, guesses made already behind the job's context, as far as the job wants.
    fn draft_from(
        &mut self,
        mut draft: Draft,
        job: &Job,
        is_told_to_stop: &dyn Fn() -> bool,
    ) -> Result<Draft, DraftError> {
        let Some(known) = self.known(&job.context) else { return Ok(Draft::default()) };
        let mut known = left_out(&known, &self.gaps_in(&known, self.prompt_len(job)));
        let len_max = self.room_behind(known.len()).min(job.max_tokens);
        draft.truncate(len_max);
        let mut survival = 1.0;
        for (index, &confidence) in draft.confidence.iter().enumerate() {
            survival = job.stop.survival(survival, confidence);
            if job.stop.stops(survival) {
                draft.truncate(index + 1);
                return Ok(draft);
            }
        }
        if draft.tokens.len() == len_max || is_told_to_stop() {
            return Ok(draft);
        }
        if !draft.tokens.is_empty() {
            known.extend_from_slice(&draft.tokens);
        }
        self.sync(&known)?;
        while self.is_ours && !is_told_to_stop() {
            // Noise and penalties go by the whole text, whatever the draft model reads of it.
            let history = History { committed: &job.context, drafted: &draft.tokens };
            let guess = job.sampler.guess(&self.logits, history);
            let token = guess.token;
            survival = job.stop.survival(survival, guess.confidence);
            draft.push(guess);
            if draft.tokens.len() == len_max || job.stop.stops(survival) {
                break;
            }
            self.feed(&[token])?;
        }
        Ok(draft)
    }

    /// The context without the tokens that the draft model does not know; `None` when the last is one.
    fn known<'a>(&self, context: &'a [TokenId]) -> Option<Cow<'a, [TokenId]>> {
        let Some(vocabulary) = &self.vocabulary else { return Some(Cow::Borrowed(context)) };
        context.last().filter(|last| vocabulary.has(**last))?;
        Some(context.iter().copied().filter(|token| vocabulary.has(*token)).collect())
    }

    /// How many of the tokens that the model knows are the prompt.
    fn prompt_len(&self, job: &Job) -> usize {
        let prompt = &job.context[..job.prompt_len.min(job.context.len())];
        let known =
            |vocabulary: &SharedVocabulary| prompt.iter().filter(|token| vocabulary.has(**token)).count();
        self.vocabulary.as_ref().map_or(prompt.len(), known)
    }

    /// What the model does not read of `context`, of which `prompt_len` tokens are the prompt: where many were written
    /// behind it since it was last asked, all but the last. Gaps stay while the text does, also where it has become part
    /// of a prompt: to close one, all rows behind it would have to be computed again.
    fn gaps_in(&self, context: &[TokenId], prompt_len: usize) -> Vec<Range<usize>> {
        let same = self.context.iter().zip(context).take_while(|(a, b)| a == b).count();
        let last = prompt_len.max(same)..context.len().saturating_sub(UNREAD_MAX);
        let stay = self.gaps.iter().filter(|gap| gap.end <= same).cloned();
        stay.chain(Some(last).filter(|gap| !gap.is_empty())).collect()
    }

    /// How many tokens can be drafted behind `context_len` before the KV cache is full; the last one needs no
    /// row.
    fn room_behind(&self, context_len: usize) -> usize {
        (self.model.context_len() + 1).saturating_sub(context_len)
    }

    /// Makes the KV cache hold `context` and `logits` its last row, recomputing only what differs.
    fn sync(&mut self, context: &[TokenId]) -> Result<(), DraftError> {
        let same = self.history.iter().zip(context).take_while(|(a, b)| a == b).count();
        if same == context.len() && self.logits_len == same && self.history.len() == same {
            return Ok(());
        }
        // The last token is fed again if need be: its logits are what the first guess comes from.
        let keep = same.min(self.model.len()).min(context.len() - 1);
        self.model.truncate(keep);
        self.history.truncate(keep);
        self.logits_len = 0;
        self.feed(&context[keep..])
    }

    fn feed(&mut self, tokens: &[TokenId]) -> Result<(), DraftError> {
        let vocab = self.model.vocab();
        if let Some(&token) = tokens.iter().find(|t| **t as usize >= vocab) {
            return Err(DraftError::TokenOutOfVocabulary { token, vocab });
        }
        self.logits_len = 0;
        self.model.forward(tokens, LogitRows::Last, &mut self.logits).map_err(DraftError::Model)?;
        self.history.extend_from_slice(tokens);
        if self.logits.len() != vocab {
            return Err(DraftError::LogitCount { got: self.logits.len(), want: vocab });
        }
        self.is_ours =
            self.vocabulary.as_ref().is_none_or(|vocabulary| vocabulary.translate(&mut self.logits));
        self.logits_len = self.history.len();
        Ok(())
    }
}

/// `context` without `gaps`, which lie in it.
fn left_out(context: &[TokenId], gaps: &[Range<usize>]) -> Vec<TokenId> {
    let (mut read, mut at) = (Vec::with_capacity(context.len()), 0);
    for gap in gaps {
        read.extend_from_slice(&context[at..gap.start]);
        at = gap.end;
    }
    read.extend_from_slice(&context[at..]);
    read
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]
    use super::*;
    use crate::{ModelError, SamplerConfig, StopRule};
    use crossbeam_channel::{Receiver, Sender, unbounded};
    use std::time::Duration;

    /// Waits in its forward pass until the test lets it go on.
    struct Gated {
        entered: Sender<()>,
        gate: Receiver<()>,
    }

    impl LanguageModel for Gated {
        fn vocab(&self) -> usize {
            2
        }
        fn context_len(&self) -> usize {
            8
        }
        fn len(&self) -> usize {
            0
        }
        fn forward(&mut self, _: &[TokenId], _: LogitRows, logits: &mut Vec<f32>) -> Result<(), ModelError> {
            self.entered.send(()).unwrap();
            self.gate.recv().unwrap();
            *logits = vec![0.0, 1.0];
            Ok(())
        }
        fn truncate(&mut self, _: usize) {}
    }

    /// A drafter whose thread is in the first of up to six passes ahead; what tells of passes, and lets them go.
    fn ahead() -> (ModelDrafter, Receiver<()>, Sender<()>) {
        let (entered, has_entered) = unbounded();
        let (open, gate) = unbounded();
        let mut drafter = ModelDrafter::spawn(Box::new(Gated { entered, gate })).unwrap();
        let sampler = Sampler::new(SamplerConfig::plain(0.0, 0));
        let (context, stop) = (&[0], StopRule::NEVER);
        let request = Request { stop, ..Request::new(context, 5, &sampler) };
        drafter.run_ahead(request, &Draft::new(vec![1], vec![1.0]));
        has_entered.recv_timeout(Duration::from_secs(60)).unwrap();
        (drafter, has_entered, open)
    }

    #[test]
    fn a_drafter_told_to_rest_or_dropped_leaves_what_it_began_ahead() {
        for is_dropped in [false, true] {
            let (mut drafter, has_entered, open) = ahead();
            if !is_dropped {
                drafter.rest();
            }
            let dropping = std::thread::spawn(move || drop(drafter));
            while is_dropped && !dropping.is_finished() && has_entered.is_empty() {
                // Dropping tells it to rest before it waits; once it has, one pass is all there is.
                std::thread::sleep(Duration::from_millis(50));
                let _ = open.send(());
            }
            (0..10).for_each(|_| _ = open.send(()));
            dropping.join().unwrap();
            let more = has_entered.try_iter().count();
            assert!(more <= usize::from(is_dropped), "{more} passes after it was told to rest");
        }
    }
}
