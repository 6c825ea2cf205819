//! The hand-over in the orders that its two threads can take, by shuttle: the desk, the loop and the worker
//! that users run, between channels and threads that are switched at any step. Orders are drawn (from a fixed
//! seed): a single draft has millions. A deadlock ends the test, and prints the order that led there.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::model::Worker as Drafting;
use crate::{LanguageModel, LogitRows, ModelError, SamplerConfig};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::{Condvar, Mutex, MutexGuard};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, PoisonError};

const VOCAB: usize = 3;
const CONTEXT_LEN: usize = 64;
/// Tokens wanted of a draft, and of one made ahead: far more than there is time for.
const DRAFT_LEN: usize = 2;
const AHEAD_LEN: usize = 8;
/// Of the orders drawn.
const SEED: u64 = 20_261_126;

/// One end of a channel with room for one item; a channel closes when either end is dropped.
struct End<T>(Arc<(Mutex<Content<T>>, Condvar)>);

struct Content<T> {
    item: Option<T>,
    is_closed: bool,
}

fn channel<T>() -> (End<T>, End<T>) {
    let shared = Arc::new((Mutex::new(Content { item: None, is_closed: false }), Condvar::new()));
    (End(Arc::clone(&shared)), End(shared))
}

impl<T> End<T> {
    fn content(&self) -> MutexGuard<'_, Content<T>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The content once it is closed or `is_ready`.
    fn when(&self, is_ready: impl Fn(&Option<T>) -> bool) -> MutexGuard<'_, Content<T>> {
        let mut content = self.content();
        while !is_ready(&content.item) && !content.is_closed {
            content = self.0.1.wait(content).unwrap_or_else(PoisonError::into_inner);
        }
        content
    }

    fn send(&self, item: T) -> bool {
        let mut content = self.when(Option::is_none);
        if !content.is_closed {
            content.item = Some(item);
            self.0.1.notify_all();
        }
        !content.is_closed
    }

    fn recv(&self) -> Option<T> {
        let item = self.when(Option::is_some).item.take();
        self.0.1.notify_all();
        item
    }

    fn is_full(&self) -> bool {
        self.content().item.is_some()
    }
}

impl<T> Drop for End<T> {
    fn drop(&mut self) {
        self.content().is_closed = true;
        self.0.1.notify_all();
    }
}

struct Asking {
    orders: End<Order>,
    answers: End<Answer>,
    thread: shuttle::thread::JoinHandle<()>,
}

impl Link for Asking {
    fn order(&self, order: Order) -> bool {
        self.orders.send(order)
    }
    fn answer(&self) -> Option<Answer> {
        self.answers.recv()
    }
    fn join(self) -> std::thread::Result<()> {
        drop((self.orders, self.answers));
        self.thread.join()
    }
}

struct Serving {
    orders: End<Order>,
    answers: End<Answer>,
    /// Orders until the thread ends by itself.
    left: Cell<usize>,
}

impl Post for Serving {
    fn next(&self) -> Option<Order> {
        self.left.set(self.left.get().checked_sub(1)?);
        self.orders.recv()
    }
    fn has_next(&self) -> bool {
        self.orders.is_full()
    }
    fn reply(&self, answer: Answer) -> bool {
        self.answers.send(answer)
    }
}

/// Logits are a hash of every token in the cache, so that one row too many or too few shows.
#[derive(Default)]
struct Hashing {
    rows: Vec<TokenId>,
    seen: Arc<Seen>,
}

/// What the test sees of the thread.
#[derive(Default)]
struct Seen {
    passes: AtomicUsize,
    fed: AtomicUsize,
    is_gone: AtomicBool,
}

impl LanguageModel for Hashing {
    fn vocab(&self) -> usize {
        VOCAB
    }
    fn context_len(&self) -> usize {
        CONTEXT_LEN
    }
    fn len(&self) -> usize {
        self.rows.len()
    }
    fn forward(&mut self, tokens: &[TokenId], _: LogitRows, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        self.seen.passes.fetch_add(1, SeqCst);
        self.seen.fed.fetch_add(tokens.len(), SeqCst);
        self.rows.extend(tokens);
        let mix = |hash: u64, token: u64| (hash ^ token).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        let key = self.rows.iter().fold(1, |hash, token| mix(hash, 1 + u64::from(*token)));
        *logits = (0..VOCAB as u64).map(|token| (mix(key, token) >> 40) as f32).collect();
        Ok(())
    }
    fn truncate(&mut self, len: usize) {
        self.rows.truncate(len);
    }
}

impl Drop for Hashing {
    fn drop(&mut self) {
        self.seen.is_gone.store(true, SeqCst);
    }
}

/// A desk whose thread ends after `left` orders.
fn desk(left: usize) -> (Desk<Asking>, Arc<Seen>) {
    let ((orders, inbox), (outbox, answers)) = (channel(), channel());
    let seen = Arc::<Seen>::default();
    let model = Box::new(Hashing { rows: Vec::new(), seen: Arc::clone(&seen) });
    let work = move || {
        let post = Serving { orders: inbox, answers: outbox, left: Cell::new(left) };
        serve(&mut Drafting::new(model, None), &post);
    };
    let thread = shuttle::thread::spawn(work);
    (Desk::new(Asking { orders, answers, thread }), seen)
}

fn job(context: &[TokenId], max_tokens: usize) -> Job {
    let sampler = Sampler::new(SamplerConfig::plain(0.0, 0));
    Job { context: context.to_vec(), prompt_len: context.len(), max_tokens, sampler, stop: StopRule::NEVER }
}

/// What is drafted behind `context` by one who has done nothing before.
fn undisturbed(context: &[TokenId], max_tokens: usize) -> Vec<TokenId> {
    Drafting::new(Box::<Hashing>::default(), None).draft(&job(context, max_tokens)).unwrap().tokens
}

/// What the engine does next.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// All of the last draft stood, and the target went on as the thread guesses ahead: draft.
    Stood,
    /// The target said something else: draft.
    Fell,
    /// Verify: the thread drafts on meanwhile.
    Ahead,
    Rest,
    Forget,
}
use Step::{Ahead, Fell, Forget, Rest, Stood};
const STEPS: [Step; 5] = [Stood, Fell, Ahead, Rest, Forget];

/// The engine's side of a text.
struct Engine {
    desk: Desk<Asking>,
    seen: Arc<Seen>,
    text: Vec<TokenId>,
    drafted: Vec<TokenId>,
    /// Tokens the model had been fed when it was told to forget, if that was after the last draft.
    forgot_at: Option<usize>,
}

impl Engine {
    /// One that has drafted once, with a thread that ends after `left` orders.
    fn new(left: usize) -> Engine {
        let (desk, seen) = desk(left);
        let mut engine = Engine { desk, seen, text: vec![1, 2], drafted: Vec::new(), forgot_at: None };
        engine.draft();
        engine
    }

    fn behind_draft(&self) -> Vec<TokenId> {
        [&self.text[..], &self.drafted].concat()
    }

    /// Does what the step says; whether the thread was there where it had to answer.
    fn take(&mut self, step: Step) -> bool {
        match step {
            Stood | Fell => {
                self.text = self.behind_draft();
                let guess = undisturbed(&self.text, 1)[0];
                self.text.push(if step == Stood { guess } else { (guess + 1) % VOCAB as TokenId });
                return self.draft();
            }
            Ahead => self.desk.run_ahead(job(&self.behind_draft(), AHEAD_LEN)),
            Rest => self.desk.rest(),
            Forget => {
                self.desk.forget();
                self.forgot_at = Some(self.seen.fed.load(SeqCst));
            }
        }
        true
    }

    /// Drafts, and checks the draft; false when the thread is gone.
    fn draft(&mut self) -> bool {
        let answer = self.desk.draft(job(&self.text, DRAFT_LEN));
        if let Err(error) = &answer {
            assert!(matches!(error, DraftError::Stopped { .. }), "{error}");
            return false;
        }
        self.drafted = answer.unwrap().tokens;
        assert_eq!(self.drafted, undisturbed(&self.text, DRAFT_LEN), "behind {:?}", self.text);
        if let Some(fed) = self.forgot_at.take() {
            let fed = self.seen.fed.load(SeqCst) - fed;
            assert!(fed >= self.text.len(), "{fed} of {} tokens read again", self.text.len());
        }
        true
    }

    /// Drops the desk; the passes that were begun since `before` of them.
    fn end(self, before: usize) -> usize {
        let seen = Arc::clone(&self.seen);
        drop(self);
        assert!(seen.is_gone.load(SeqCst), "who has dropped the desk has seen the thread end");
        seen.passes.load(SeqCst) - before
    }

    fn passes(&self) -> usize {
        self.seen.passes.load(SeqCst)
    }
}

/// Runs a scene in `count` orders; half of them switch threads rarely, which finds other faults.
fn explore(count: usize, scene: impl Fn() + Clone + Send + Sync + 'static) {
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 18;
    let random = RandomScheduler::new_from_seed(SEED, count.div_ceil(2));
    shuttle::Runner::new(random, config.clone()).run(scene.clone());
    shuttle::Runner::new(PctScheduler::new_from_seed(SEED, 3, count / 2), config).run(scene);
}

/// The fewest and the most that a scene counted, over `count` orders.
fn counted(count: usize, scene: impl Fn() -> usize + Clone + Send + Sync + 'static) -> (usize, usize) {
    let fewest_most = Arc::new((AtomicUsize::new(usize::MAX), AtomicUsize::new(0)));
    let seen = Arc::clone(&fewest_most);
    explore(count, move || {
        let passes = scene();
        seen.0.fetch_min(passes, SeqCst);
        seen.1.fetch_max(passes, SeqCst);
    });
    (fewest_most.0.load(SeqCst), fewest_most.1.load(SeqCst))
}

/// All sequences of so many steps.
fn sequences(len: u32) -> impl Iterator<Item = Vec<Step>> {
    let count = STEPS.len();
    (0..count.pow(len)).map(move |n| (0..len).map(|digit| STEPS[n / count.pow(digit) % count]).collect())
}

#[test]
fn whatever_was_begun_ahead_every_draft_is_the_undisturbed_one_and_the_thread_is_joined() {
    for steps in sequences(4) {
        explore(60, move || {
            let mut engine = Engine::new(usize::MAX);
            assert!(steps.iter().all(|step| engine.take(*step)), "{steps:?}: the thread is there");
            engine.end(0);
        });
    }
}

#[test]
fn a_rest_ends_what_was_begun_ahead_after_the_pass_under_way() {
    for before in sequences(2) {
        let (_, most) = counted(500, move || {
            let mut engine = Engine::new(usize::MAX);
            [&before[..], &[Ahead, Rest]].concat().iter().for_each(|step| _ = engine.take(*step));
            let passes = engine.passes();
            engine.end(passes)
        });
        assert!(most <= 1, "{most} passes were begun when it had been told to rest");
    }
}

#[test]
fn a_drop_and_another_draft_end_what_was_begun_ahead() {
    let (fewest, most) = counted(2000, || {
        let mut engine = Engine::new(usize::MAX);
        engine.take(Ahead);
        let passes = engine.passes();
        engine.end(passes)
    });
    assert!(fewest <= 1 && most <= AHEAD_LEN, "{fewest} to {most} passes of {AHEAD_LEN} for nobody");
    for step in [Stood, Fell] {
        let (fewest, _) = counted(2000, move || {
            let mut engine = Engine::new(usize::MAX);
            engine.take(Ahead);
            let passes = engine.passes();
            engine.take(step);
            engine.end(passes)
        });
        assert!(fewest <= 1 + DRAFT_LEN, "{step:?}: at least {fewest} passes for {DRAFT_LEN} tokens");
    }
}

#[test]
fn a_thread_that_is_gone_is_told_of_by_every_later_draft_and_never_waited_for() {
    for (left, steps) in (0..4).flat_map(|left| sequences(3).map(move |steps| (left, steps))) {
        explore(20, move || {
            let mut engine = Engine::new(left);
            let answered: Vec<bool> = steps.iter().map(|step| engine.take(*step)).collect();
            // Every step is an order, but a rest from nothing: with none of those, it is known which is not answered.
            if !steps.contains(&Rest) {
                let gone = |(at, step): (usize, &Step)| at + 2 > left && [Stood, Fell].contains(step);
                let expected: Vec<bool> = steps.iter().enumerate().map(|at| !gone(at)).collect();
                assert_eq!(answered, expected, "{steps:?}, {left} orders");
            }
            engine.end(0);
        });
    }
}
