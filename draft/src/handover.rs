//! The hand-over between the engine's thread and the draft thread: orders one way, answers the other.
//!
//! Owns the protocol: what is asked for is answered, once; any order ends what was begun ahead; a thread that
//! is gone is told of and never waited for; who drops the desk has seen the thread end. Channels and thread
//! come through [`Link`] and [`Post`], so that the tests can run it in the orders that two threads can take
//! (`handover_tests.rs`, `scripts/handover-check.sh`). It must not know models, or how a draft is made.

use crate::{Draft, DraftError, Sampler, StopRule, TokenId};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::thread::JoinHandle;

/// What the thread is told to do.
pub(crate) enum Order {
    /// Draft, and answer.
    Draft(Job),
    /// Draft on behind a context that may come true, until the next order comes; no answer.
    Ahead(Job),
    /// Leave what was begun ahead.
    Rest,
    /// Forget every text, too.
    Forget,
}

/// One request, owned so that it can cross to the thread.
pub(crate) struct Job {
    pub(crate) context: Vec<TokenId>,
    pub(crate) prompt_len: usize,
    pub(crate) max_tokens: usize,
    pub(crate) sampler: Sampler,
    pub(crate) stop: StopRule,
}

/// What came of an order to draft.
pub(crate) type Answer = Result<Draft, DraftError>;

/// Who carries orders out.
pub(crate) trait Serve {
    /// Drafts what the job wants.
    fn draft(&mut self, job: &Job) -> Answer;
    /// Drafts on until it is told to stop, which it asks between two tokens.
    fn run_ahead(&mut self, job: Job, is_told_to_stop: &dyn Fn() -> bool);
    /// Forgets every text.
    fn forget(&mut self);
}

/// The asking side: room for one order on its way, and for one answer.
pub(crate) trait Link {
    /// Waits until there is room for the order; false when the thread is gone.
    fn order(&self, order: Order) -> bool;
    /// Waits for an answer; `None` when the thread is gone.
    fn answer(&self) -> Option<Answer>;
    /// Lets go of both channels and waits for the thread to end: an error is what it panicked with.
    fn join(self) -> std::thread::Result<()>;
}

/// The thread's side.
pub(crate) trait Post {
    /// Waits for the next order; `None` when nobody will give one.
    fn next(&self) -> Option<Order>;
    /// Whether an order waits.
    fn has_next(&self) -> bool;
    /// Hands over an answer; false when nobody wants it.
    fn reply(&self, answer: Answer) -> bool;
}

/// The thread's whole life: carries orders out until either side goes away.
pub(crate) fn serve(worker: &mut impl Serve, post: &impl Post) {
    while let Some(order) = post.next() {
        match order {
            Order::Ahead(job) => worker.run_ahead(job, &|| post.has_next()),
            Order::Draft(job) if !post.reply(worker.draft(&job)) => break,
            Order::Draft(_) | Order::Rest => {}
            Order::Forget => worker.forget(),
        }
    }
}

/// Gives the orders. The thread is joined on drop.
pub(crate) struct Desk<L: Link> {
    state: State<L>,
    /// Whether the thread may be drafting for nobody yet.
    is_ahead: bool,
}

/// A running thread, or why there is none.
enum State<L> {
    Up(L),
    Down { reason: String },
}

impl<L: Link> Desk<L> {
    /// A desk for the thread behind `link`.
    pub(crate) fn new(link: L) -> Desk<L> {
        Desk { state: State::Up(link), is_ahead: false }
    }

    /// Has the thread draft, and waits for the draft.
    ///
    /// # Errors
    /// What the worker failed with; [`DraftError::Stopped`] when the thread is gone, now and later.
    pub(crate) fn draft(&mut self, job: Job) -> Answer {
        self.is_ahead = false;
        let answer = match &self.state {
            State::Up(link) if link.order(Order::Draft(job)) => link.answer(),
            _ => None,
        };
        answer.unwrap_or_else(|| Err(self.stop()))
    }

    /// Lets the thread draft on until the next order. One that is gone is told of by the next draft.
    pub(crate) fn run_ahead(&mut self, job: Job) {
        self.submit(Order::Ahead(job));
        self.is_ahead = true;
    }

    /// Ends what was begun ahead: at most the token under way is still drafted.
    pub(crate) fn rest(&mut self) {
        if std::mem::take(&mut self.is_ahead) {
            self.submit(Order::Rest);
        }
    }

    /// Makes the worker forget every text.
    pub(crate) fn forget(&mut self) {
        self.is_ahead = false;
        self.submit(Order::Forget);
    }

    fn submit(&self, order: Order) {
        if let State::Up(link) = &self.state {
            link.order(order);
        }
    }

    /// Ends the thread, waiting for a draft in flight, and keeps the reason for later calls.
    fn stop(&mut self) -> DraftError {
        self.rest();
        let down = State::Down { reason: "it was told to end".into() };
        let reason = match std::mem::replace(&mut self.state, down) {
            State::Down { reason } => reason,
            State::Up(link) => {
                link.join().map_or_else(|payload| panic_message(&*payload), |()| "it ended by itself".into())
            }
        };
        self.state = State::Down { reason: reason.clone() };
        DraftError::Stopped { reason }
    }
}

impl<L: Link> Drop for Desk<L> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    format!("it panicked: {}", text.as_deref().unwrap_or("no message"))
}

/// A thread of the operating system.
pub(crate) struct Threaded {
    orders: Sender<Order>,
    answers: Receiver<Answer>,
    thread: JoinHandle<()>,
}

impl Threaded {
    /// Starts a thread that serves with `worker`.
    ///
    /// # Errors
    /// [`DraftError::Spawn`] if the operating system refuses it.
    pub(crate) fn spawn(mut worker: impl Serve + Send + 'static) -> Result<Threaded, DraftError> {
        let (orders, inbox) = bounded(1);
        let (outbox, answers) = bounded(1);
        let work = move || serve(&mut worker, &Channels { inbox, outbox });
        let thread =
            std::thread::Builder::new().name("draft".into()).spawn(work).map_err(DraftError::Spawn)?;
        Ok(Threaded { orders, answers, thread })
    }
}

impl Link for Threaded {
    fn order(&self, order: Order) -> bool {
        self.orders.send(order).is_ok()
    }

    fn answer(&self) -> Option<Answer> {
        self.answers.recv().ok()
    }

    fn join(self) -> std::thread::Result<()> {
        let Threaded { orders, answers, thread } = self;
        drop((orders, answers));
        thread.join()
    }
}

/// The thread's ends of the channels.
struct Channels {
    inbox: Receiver<Order>,
    outbox: Sender<Answer>,
}

impl Post for Channels {
    fn next(&self) -> Option<Order> {
        self.inbox.recv().ok()
    }

    fn has_next(&self) -> bool {
        !self.inbox.is_empty()
    }

    fn reply(&self, answer: Answer) -> bool {
        self.outbox.send(answer).is_ok()
    }
}

#[cfg(all(test, shuttle))]
#[path = "handover_tests.rs"]
mod tests;
