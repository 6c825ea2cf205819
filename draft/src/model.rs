//! Drafting with a small model that lives on its own thread.
//!
//! Owns the thread, its channel and the draft model's token history: each request rolls the KV cache
//! back to the prefix it shares with the new context, feeds the rest, and samples ahead with the
//! sequence's own sampler. It must not know which architecture the model has or where it came from.

use crate::{Draft, DraftError, Drafter, LanguageModel, LogitRows, Request, Sampler, TokenId};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::thread::JoinHandle;

/// Drafts with a [`LanguageModel`] on a thread of its own, joined on drop.
///
/// An error of the model leaves the drafter usable; a panic ends the thread, and that call and every
/// later one fail with [`DraftError::Stopped`].
pub struct ModelDrafter {
    link: Link,
}

/// The two ends of a running thread, or why there is none.
enum Link {
    Up { jobs: Sender<Job>, replies: Receiver<Result<Draft, DraftError>>, thread: JoinHandle<()> },
    Down { reason: String },
}

/// One request, owned so that it can cross to the thread.
struct Job {
    context: Vec<TokenId>,
    max_tokens: usize,
    sampler: Sampler,
}

impl ModelDrafter {
    /// Moves `model` to a new thread.
    ///
    /// # Errors
    /// [`DraftError::Spawn`] if the operating system refuses the thread.
    pub fn spawn(model: Box<dyn LanguageModel>) -> Result<ModelDrafter, DraftError> {
        let (jobs, inbox) = bounded::<Job>(1);
        let (outbox, replies) = bounded(1);
        let work = move || {
            let mut worker = Worker { model, history: Vec::new(), logits: Vec::new() };
            // Either end going away ends the thread.
            while let Ok(job) = inbox.recv() {
                if outbox.send(worker.draft(&job)).is_err() {
                    break;
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("draft".into()).spawn(work).map_err(DraftError::Spawn)?;
        Ok(ModelDrafter { link: Link::Up { jobs, replies, thread } })
    }

    /// Hands a job to the thread; false when the thread is gone.
    fn submit(&self, job: Job) -> bool {
        match &self.link {
            Link::Up { jobs, .. } => jobs.send(job).is_ok(),
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
        let down = Link::Down { reason: "it was told to end".into() };
        let reason = match std::mem::replace(&mut self.link, down) {
            Link::Down { reason } => reason,
            Link::Up { jobs, replies, thread } => {
                drop((jobs, replies));
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
            return Ok(Draft::default());
        }
        let Request { context, max_tokens, sampler, .. } = request;
        let job = Job { context: context.to_vec(), max_tokens, sampler: *sampler };
        match self.submit(job).then(|| self.collect()).flatten() {
            Some(reply) => reply,
            None => Err(self.stop()),
        }
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

/// The thread's state. `history` holds the tokens of the KV cache, row by row.
struct Worker {
    model: Box<dyn LanguageModel>,
    history: Vec<TokenId>,
    logits: Vec<f32>,
}

impl Worker {
    fn draft(&mut self, job: &Job) -> Result<Draft, DraftError> {
        let mut draft = Draft::default();
        let len_max = self.room_for(job);
        if len_max == 0 {
            return Ok(draft);
        }
        self.sync(&job.context)?;
        loop {
            let position = job.context.len() + draft.tokens.len();
            let choice = job.sampler.choose(&self.logits, position);
            draft.tokens.push(choice.token);
            draft.confidence.push(choice.probability);
            if draft.tokens.len() == len_max {
                return Ok(draft);
            }
            self.feed(&[choice.token])?;
        }
    }

    /// How many tokens can be drafted before the KV cache is full; the last one needs no row.
    fn room_for(&self, job: &Job) -> usize {
        (self.model.context_len() + 1).saturating_sub(job.context.len()).min(job.max_tokens)
    }

    /// Makes the KV cache hold `context` and `logits` its last row, recomputing only what differs.
    fn sync(&mut self, context: &[TokenId]) -> Result<(), DraftError> {
        let same = self.history.iter().zip(context).take_while(|(a, b)| a == b).count();
        // The last token is always fed again: its logits are what the first guess comes from.
        let keep = same.min(self.model.len()).min(context.len() - 1);
        self.model.truncate(keep);
        self.history.truncate(keep);
        self.feed(&context[keep..])
    }

    fn feed(&mut self, tokens: &[TokenId]) -> Result<(), DraftError> {
        let vocab = self.model.vocab();
        if let Some(&token) = tokens.iter().find(|t| **t as usize >= vocab) {
            return Err(DraftError::TokenOutOfVocabulary { token, vocab });
        }
        self.model.forward(tokens, LogitRows::Last, &mut self.logits).map_err(DraftError::Model)?;
        self.history.extend_from_slice(tokens);
        match self.logits.len() {
            got if got != vocab => Err(DraftError::LogitCount { got, want: vocab }),
            _ => Ok(()),
        }
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
        let sampler =
            Sampler::new(SamplerConfig { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 });
        assert!(drafter.submit(Job { context: vec![0], max_tokens: 1, sampler }));
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
}
