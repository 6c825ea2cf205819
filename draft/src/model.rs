//! Drafting with a small model that lives on its own thread.
//!
//! Owns the thread, its channel and the draft model's token history: each request rolls the KV cache
//! back to the prefix it shares with the new context, feeds the rest, and samples ahead with the
//! sequence's own sampler. It must not know which architecture the model has or where it came from.
//!
//! While the target verifies, the thread can draft on ([`Drafter::run_ahead`]) as if all of the draft stood,
//! its own guess of the target's next token included. What comes true of that is what would have been
//! drafted anyway (guesses are functions of text and seed), so only time depends on it. The next request
//! ends it between two tokens.
//!
//! A draft model may lack tokens that the target has, and the reverse ([`SharedVocabulary`]). It reads the
//! text without the tokens it does not know, and abstains right behind one; its own other tokens are never
//! proposed, and a draft ends where the model would rather say one of them.

use crate::{
    Draft, DraftError, Drafter, History, LanguageModel, LogitRows, Request, Sampler, StopRule, TokenId,
};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::borrow::Cow;
use std::thread::JoinHandle;

/// Drafts with a [`LanguageModel`] on a thread of its own, joined on drop.
///
/// An error of the model leaves the drafter usable; a panic ends the thread, and that call and every
/// later one fail with [`DraftError::Stopped`].
pub struct ModelDrafter {
    link: Link,
    /// Whether the thread may be drafting for nobody yet.
    is_ahead: bool,
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

/// The two ends of a running thread, or why there is none.
enum Link {
    Up { orders: Sender<Order>, replies: Receiver<Result<Draft, DraftError>>, thread: JoinHandle<()> },
    Down { reason: String },
}

/// What the thread is told to do.
enum Order {
    /// Draft, and reply.
    Draft(Job),
    /// Draft on behind a context that may come true, until the next order comes; no reply.
    Ahead(Job),
    /// Leave what was begun ahead.
    Rest,
    /// Forget every text, too.
    Forget,
}

/// One request, owned so that it can cross to the thread.
struct Job {
    context: Vec<TokenId>,
    max_tokens: usize,
    sampler: Sampler,
    stop: StopRule,
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
        let (orders, inbox) = bounded::<Order>(1);
        let (outbox, replies) = bounded(1);
        let work = move || {
            let mut worker = Worker::new(model, vocabulary);
            // Either end going away ends the thread.
            while let Ok(order) = inbox.recv() {
                match order {
                    Order::Ahead(job) => worker.run_ahead(job, &|| !inbox.is_empty()),
                    Order::Draft(job) if outbox.send(worker.draft(&job)).is_err() => break,
                    Order::Draft(_) | Order::Rest => {}
                    Order::Forget => worker.forget(),
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("draft".into()).spawn(work).map_err(DraftError::Spawn)?;
        Ok(ModelDrafter { link: Link::Up { orders, replies, thread }, is_ahead: false })
    }

    /// Hands an order to the thread; false when the thread is gone.
    fn submit(&self, order: Order) -> bool {
        match &self.link {
            Link::Up { orders, .. } => orders.send(order).is_ok(),
            Link::Down { .. } => false,
        }
    }

    /// Waits for the thread's answer to the job in flight; `None` when the thread is gone.
    fn collect(&self) -> Option<Result<Draft, DraftError>> {
        match &self.link {
            Link::Up { replies, .. } => replies.recv().ok(),
            Link::Down { .. } => None,
        }
    }

    /// Ends the thread, waiting for a draft in flight, and keeps the reason for later calls.
    fn stop(&mut self) -> DraftError {
        self.rest();
        let down = Link::Down { reason: "it was told to end".into() };
        let reason = match std::mem::replace(&mut self.link, down) {
            Link::Down { reason } => reason,
            Link::Up { orders, replies, thread } => {
                drop((orders, replies));
                thread
                    .join()
                    .map_or_else(|payload| panic_message(&*payload), |()| "it ended by itself".into())
            }
        };
        self.link = Link::Down { reason: reason.clone() };
        DraftError::Stopped { reason }
    }
}

impl Drafter for ModelDrafter {
    fn name(&self) -> &'static str {
        "model"
    }

    fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError> {
        if request.max_tokens == 0 || request.context.is_empty() {
            self.rest();
            return Ok(Draft::default());
        }
        self.is_ahead = false;
        let Request { context, max_tokens, sampler, stop, .. } = request;
        let job = Job { context: context.to_vec(), max_tokens, sampler: *sampler, stop };
        match self.submit(Order::Draft(job)).then(|| self.collect()).flatten() {
            Some(reply) => reply,
            None => Err(self.stop()),
        }
    }

    fn run_ahead(&mut self, request: Request<'_>, draft: &Draft) {
        // Drawn guesses are keyed by where their draft began: fresh ones would be others.
        if !draft.laws.is_empty() || draft.tokens.is_empty() {
            return;
        }
        let Request { context, max_tokens, sampler, stop, .. } = request;
        let context = [context, &draft.tokens].concat();
        // One more: the target's own token comes first. A thread that is gone is told of by the next request.
        self.submit(Order::Ahead(Job { context, max_tokens: max_tokens + 1, sampler: *sampler, stop }));
        self.is_ahead = true;
    }

    fn rest(&mut self) {
        if std::mem::take(&mut self.is_ahead) {
            self.submit(Order::Rest);
        }
    }

    fn forget(&mut self) {
        self.is_ahead = false;
        self.submit(Order::Forget);
    }
}

impl Drop for ModelDrafter {
    fn drop(&mut self) {
        self.stop();
    }
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    format!("it panicked: {}", text.as_deref().unwrap_or("no message"))
}

/// The thread's state.
struct Worker {
    model: Box<dyn LanguageModel>,
    vocabulary: Option<SharedVocabulary>,
    /// The tokens of the KV cache, row by row.
    history: Vec<TokenId>,
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

impl Worker {
    fn new(model: Box<dyn LanguageModel>, vocabulary: Option<SharedVocabulary>) -> Worker {
        let (history, logits) = (Vec::new(), Vec::new());
        Worker { model, vocabulary, history, logits, logits_len: 0, is_ours: true, ahead: None }
    }

    fn forget(&mut self) {
        self.model.truncate(0);
        self.history.clear();
        (self.logits_len, self.ahead) = (0, None);
    }

    fn draft(&mut self, job: &Job) -> Result<Draft, DraftError> {
        let begun = self.ahead.take().and_then(|ahead| ahead.behind(&job.context, &job.sampler));
        self.draft_from(begun.unwrap_or_default(), job, &|| false)
    }

    /// Drafts behind the job's context until it is told to stop. What fails here fails again, and is told
    /// of, when it is asked for.
    fn run_ahead(&mut self, job: Job, is_told_to_stop: &dyn Fn() -> bool) {
        self.ahead = None;
        if let Ok(draft) = self.draft_from(Draft::default(), &job, is_told_to_stop) {
            self.ahead = Some(Ahead { sampler: job.sampler, context: job.context, draft });
        }
    }

    /// Draws out `draft`, guesses made already behind the job's context, as far as the job wants.
    fn draft_from(
        &mut self,
        mut draft: Draft,
        job: &Job,
        is_told_to_stop: &dyn Fn() -> bool,
    ) -> Result<Draft, DraftError> {
        let Some(mut known) = self.known(&job.context) else { return Ok(Draft::default()) };
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
            known.to_mut().extend_from_slice(&draft.tokens);
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]
    use super::*;
    use crate::{ModelError, SamplerConfig};
    use crossbeam_channel::unbounded;
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

    #[test]
    fn a_drafter_dropped_while_busy_waits_for_its_thread_and_no_longer() {
        let (entered, has_entered) = unbounded();
        let (open, gate) = unbounded();
        let drafter = ModelDrafter::spawn(Box::new(Gated { entered, gate })).unwrap();
        let sampler = Sampler::new(SamplerConfig::plain(0.0, 0));
        let job = Job { context: vec![0], max_tokens: 1, sampler, stop: StopRule::NEVER };
        assert!(drafter.submit(Order::Draft(job)));
        has_entered.recv_timeout(Duration::from_secs(60)).unwrap();
        let (done, dropped) = bounded(1);
        let dropping = std::thread::spawn(move || {
            drop(drafter);
            done.send(()).unwrap();
        });
        open.send(()).unwrap();
        dropped.recv_timeout(Duration::from_secs(60)).expect("no hang");
        dropping.join().unwrap();
        assert!(has_entered.recv().is_err(), "the thread ended and dropped the model");
    }

    /// A drafter whose thread is in the first of up to six passes ahead; what tells of passes, and lets them go.
    fn ahead() -> (ModelDrafter, Receiver<()>, Sender<()>) {
        let (entered, has_entered) = unbounded();
        let (open, gate) = unbounded();
        let mut drafter = ModelDrafter::spawn(Box::new(Gated { entered, gate })).unwrap();
        let sampler = Sampler::new(SamplerConfig::plain(0.0, 0));
        let (context, stop) = (&[0], StopRule::NEVER);
        let request = Request { context, max_tokens: 5, sampler: &sampler, stop, features: None };
        drafter.run_ahead(request, &Draft::new(vec![1], vec![1.0]));
        has_entered.recv_timeout(Duration::from_secs(60)).unwrap();
        (drafter, has_entered, open)
    }

    #[test]
    fn a_wrong_branch_is_left_between_two_tokens() {
        let (drafter, has_entered, open) = ahead();
        let sampler = Sampler::new(SamplerConfig::plain(0.0, 0));
        // The target chose otherwise, and says so while the thread is at it.
        let job = Job { context: vec![0, 0], max_tokens: 1, sampler, stop: StopRule::NEVER };
        assert!(drafter.submit(Order::Draft(job)));
        (0..10).for_each(|_| open.send(()).unwrap());
        assert_eq!(drafter.collect().unwrap().unwrap().tokens, [1]);
        assert_eq!(has_entered.len(), 1, "the pass under way was the last; one more served the request");
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
