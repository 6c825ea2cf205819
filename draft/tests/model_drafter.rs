//! The drafter on its own thread: what happens to it when its model fails, and to its KV cache when
//! drafts are rejected.
#![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]

mod common;

use common::{Fault, HashModel, mix, sampler};
use drafthorse_draft::{
    ChainDrafter, DraftError, Drafter, History, LanguageModel, LogitRows, ModelDrafter, ModelError, Request,
    Sampler, SharedVocabulary, StopRule, TokenId, UNREAD_MAX,
};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const VOCAB: usize = 16;

fn propose(
    drafter: &mut ModelDrafter,
    context: &[TokenId],
    max_tokens: usize,
) -> Result<Vec<TokenId>, DraftError> {
    let sampler = sampler(0.8, 4);
    drafter.propose(Request::new(context, max_tokens, &sampler)).map(|draft| draft.tokens)
}

/// Fails the test, instead of the whole run, when `work` hangs.
fn within_a_minute(work: impl FnOnce() + Send + 'static) {
    let (done, wait) = crossbeam_channel::bounded(1);
    let thread = std::thread::spawn(move || {
        work();
        done.send(()).unwrap();
    });
    wait.recv_timeout(Duration::from_secs(60)).expect("no hang and no panic");
    thread.join().unwrap();
}

#[test]
fn an_error_on_the_thread_is_returned_and_the_drafter_goes_on() {
    let model = HashModel { fault: Some((2, Fault::Error)), ..HashModel::new(VOCAB, 1) };
    let mut drafter = ModelDrafter::spawn(Box::new(model)).unwrap();
    let error = propose(&mut drafter, &[1, 2, 3], 8).unwrap_err();
    assert!(
        matches!(error, DraftError::Model(_)) && error.to_string().contains("a wire came loose"),
        "{error}"
    );
    let mut healthy = ModelDrafter::spawn(Box::new(HashModel::new(VOCAB, 1))).unwrap();
    let context = [1, 2, 3, 4];
    assert_eq!(propose(&mut drafter, &context, 8).unwrap(), propose(&mut healthy, &context, 8).unwrap());
}

#[test]
fn a_panic_on_the_thread_is_an_error_now_and_later() {
    within_a_minute(|| {
        let model = HashModel { fault: Some((1, Fault::Panic)), ..HashModel::new(VOCAB, 1) };
        let mut drafter = ModelDrafter::spawn(Box::new(model)).unwrap();
        for _ in 0..3 {
            let error = propose(&mut drafter, &[1, 2, 3], 8).unwrap_err();
            assert!(matches!(error, DraftError::Stopped { .. }), "{error:?}");
            assert!(error.to_string().contains("out of cheese"), "{error}");
        }
    });
}

#[test]
fn a_thread_that_panics_while_it_drafts_ahead_is_told_of_when_it_is_next_asked() {
    within_a_minute(|| {
        let model = HashModel { fault: Some((2, Fault::Panic)), ..HashModel::new(VOCAB, 1) };
        let mut drafter = ModelDrafter::spawn(Box::new(model)).unwrap();
        let (context, sampler) = ([1, 2, 3], sampler(0.8, 4));
        let request = Request::new(&context, 2, &sampler);
        let draft = drafter.propose(request).unwrap();
        for _ in 0..3 {
            // The first lets it panic; nothing here waits for a thread that is gone.
            drafter.run_ahead(request, &draft);
            drafter.rest();
            drafter.forget();
        }
        let error = propose(&mut drafter, &context, 2).unwrap_err();
        assert!(error.to_string().contains("out of cheese"), "{error}");
    });
}

#[test]
fn a_chain_goes_on_without_a_member_whose_thread_panicked() {
    within_a_minute(|| {
        let model = HashModel { fault: Some((3, Fault::Panic)), ..HashModel::new(VOCAB, 1) };
        let dies = Box::new(ModelDrafter::spawn(Box::new(model)).unwrap());
        let lives = Box::new(ModelDrafter::spawn(Box::new(HashModel::new(VOCAB, 1))).unwrap());
        let mut chain = ChainDrafter::new(vec![dies, lives]);
        let sampler = sampler(0.8, 4);
        let mut notices = Vec::new();
        for len in 2..8 {
            let context: Vec<TokenId> = (0..len).collect();
            let stop = StopRule::NEVER;
            let request = Request { stop, ..Request::new(&context, 2, &sampler) };
            let draft = chain.propose(request).unwrap();
            assert_eq!(draft.tokens.len(), 2, "somebody drafts");
            chain.run_ahead(request, &draft);
            notices.extend(chain.notices());
        }
        let [line] = &notices[..] else { unreachable!("one line: {notices:?}") };
        for words in ["the model drafter failed and was put away, the others go on", "out of cheese"] {
            assert!(line.contains(words) && !line.contains('\n'), "{line}");
        }
    });
}

#[test]
fn an_idle_drafter_ends_its_thread_and_frees_the_model() {
    within_a_minute(|| {
        let model = HashModel::new(VOCAB, 1);
        let rows = model.rows.clone();
        let mut drafter = ModelDrafter::spawn(Box::new(model)).unwrap();
        propose(&mut drafter, &[1, 2, 3], 2).unwrap();
        drop(drafter);
        assert_eq!(Arc::strong_count(&rows), 1, "the thread was joined, the model dropped");
    });
}

#[test]
fn a_full_draft_context_shortens_the_draft_and_then_abstains() {
    let model = HashModel { context_len: 6, ..HashModel::new(VOCAB, 1) };
    let mut drafter = ModelDrafter::spawn(Box::new(model)).unwrap();
    let context = [1, 2, 3, 4, 5, 6, 7];
    let drafted: Vec<usize> =
        (4..=7).map(|n| propose(&mut drafter, &context[..n], 8).unwrap().len()).collect();
    assert_eq!(drafted, [3, 2, 1, 0], "the last drafted token needs no row of its own");
}

#[test]
fn a_token_the_draft_does_not_have_is_named() {
    let mut drafter = ModelDrafter::spawn(Box::new(HashModel::new(VOCAB, 1))).unwrap();
    let error = propose(&mut drafter, &[1, 99, 3], 2).unwrap_err();
    assert!(matches!(error, DraftError::TokenOutOfVocabulary { token: 99, vocab: VOCAB }), "{error}");
    assert_eq!(propose(&mut drafter, &[1, 2], 2).unwrap().len(), 2);
}

#[test]
fn rejected_tokens_leave_no_rows() {
    let model = HashModel::new(VOCAB, 3);
    let rows = model.rows.clone();
    let mut drafter = ModelDrafter::spawn(Box::new(model)).unwrap();
    let mut context: Vec<TokenId> = vec![5, 6, 7];
    for step in 0..200u64 {
        let drafted = propose(&mut drafter, &context, 4).unwrap();
        let expected: Vec<TokenId> = context.iter().chain(&drafted[..3]).copied().collect();
        assert_eq!(
            *rows.lock().unwrap(),
            expected,
            "the cache holds the context and what was fed of the draft"
        );
        // Accept a prefix, then go on with a token of the target's that may differ from the draft.
        context.extend(&drafted[..mix(step) as usize % 5]);
        context.push((mix(step + 500) % VOCAB as u64) as TokenId);
        if context.len() > 100 {
            context.truncate(mix(step + 900) as usize % 50 + 1);
        }
    }
}

#[test]
fn only_what_changed_is_computed_again() {
    let fed = Arc::new(Mutex::new(Vec::new()));
    let model = Counting { inner: HashModel::new(VOCAB, 3), fed: fed.clone() };
    let mut drafter = ModelDrafter::spawn(Box::new(model)).unwrap();
    let mut context: Vec<TokenId> = (0..10).collect();
    let drafted = propose(&mut drafter, &context, 3).unwrap();
    context.extend(&drafted); // all accepted, and one more from the target
    context.push(1);
    propose(&mut drafter, &context, 1).unwrap();
    context.truncate(12); // the second drafted token and what followed it are gone
    context.push((drafted[2] + 1) % VOCAB as TokenId);
    propose(&mut drafter, &context, 1).unwrap();
    assert_eq!(*fed.lock().unwrap(), [10, 1, 1, 2, 1]);
}

#[test]
fn of_what_was_written_without_a_draft_the_end_alone_is_read() {
    let model = HashModel::new(VOCAB, 3);
    let rows = model.rows.clone();
    let mut drafter = ModelDrafter::spawn(Box::new(model)).unwrap();
    let text: Vec<TokenId> = (0..400u64).map(|i| (mix(i) % VOCAB as u64) as TokenId).collect();
    let (prompt_len, sampler) = (20, sampler(0.8, 4));
    let mut read = |len: usize, prompt_len: usize| {
        let context = &text[..len];
        let request = Request { prompt_len, ..Request::new(context, 1, &sampler) };
        drafter.propose(request).unwrap();
        rows.lock().unwrap().clone()
    };
    assert_eq!(read(24, prompt_len), text[..24]);
    assert_eq!(read(24 + UNREAD_MAX, prompt_len), text[..24 + UNREAD_MAX], "too few to skip");
    let at = 24 + UNREAD_MAX;
    let with_gap = |to: usize| [&text[..at], &text[200 - UNREAD_MAX..to]].concat();
    assert_eq!(read(200, prompt_len), with_gap(200));
    assert_eq!(read(202, prompt_len), with_gap(202), "the gap stays");
    let twice = [with_gap(202), text[300 - UNREAD_MAX..300].to_vec()].concat();
    assert_eq!(read(300, prompt_len), twice, "there may be more than one");
    assert_eq!(read(301, 301), [twice, vec![text[300]]].concat(), "another turn keeps what was read");
    assert_eq!(
        read(150, 150),
        text[..150],
        "a text that ends in a gap has none there, and a prompt is read whole"
    );
}

#[test]
fn a_model_that_returns_too_few_logits_is_caught() {
    let mut drafter = ModelDrafter::spawn(Box::new(Mute)).unwrap();
    let error = propose(&mut drafter, &[0], 1).unwrap_err();
    assert!(matches!(error, DraftError::LogitCount { got: 0, want: 4 }), "{error}");
}

/// Notes how many tokens each forward pass is given.
struct Counting {
    inner: HashModel,
    fed: Arc<Mutex<Vec<usize>>>,
}

impl LanguageModel for Counting {
    fn vocab(&self) -> usize {
        self.inner.vocab()
    }
    fn context_len(&self) -> usize {
        self.inner.context_len()
    }
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn forward(
        &mut self,
        tokens: &[TokenId],
        which: LogitRows,
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        self.fed.lock().unwrap().push(tokens.len());
        self.inner.forward(tokens, which, logits)
    }
    fn truncate(&mut self, len: usize) {
        self.inner.truncate(len);
    }
}

/// Claims success and returns nothing.
struct Mute;

impl LanguageModel for Mute {
    fn vocab(&self) -> usize {
        4
    }
    fn context_len(&self) -> usize {
        8
    }
    fn len(&self) -> usize {
        0
    }
    fn forward(&mut self, _: &[TokenId], _: LogitRows, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        logits.clear();
        Ok(())
    }
    fn truncate(&mut self, _: usize) {}
}

/// A model whose every row has the same logits.
struct Row(Vec<f32>, Arc<Mutex<Vec<TokenId>>>);

impl LanguageModel for Row {
    fn vocab(&self) -> usize {
        self.0.len()
    }
    fn context_len(&self) -> usize {
        64
    }
    fn len(&self) -> usize {
        self.1.lock().unwrap().len()
    }
    fn forward(&mut self, tokens: &[TokenId], _: LogitRows, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        self.1.lock().unwrap().extend(tokens);
        logits.clone_from(&self.0);
        Ok(())
    }
    fn truncate(&mut self, len: usize) {
        self.1.lock().unwrap().truncate(len);
    }
}

/// What is drafted by a model with these logits whose ids below 4 but 1 are those of a target of 6.
fn foreign(logits: &[f32], context: &[TokenId]) -> (Vec<TokenId>, Vec<TokenId>) {
    let vocabulary = SharedVocabulary { target: 6, shared: 4, except: vec![1] };
    let rows = Arc::default();
    let model = Row(logits.to_vec(), Arc::clone(&rows));
    let mut drafter = ModelDrafter::spawn_sharing(Box::new(model), Some(vocabulary)).unwrap();
    let sampler = sampler(0.0, 0);
    let draft = drafter.propose(Request::new(context, 2, &sampler)).unwrap();
    let read = rows.lock().unwrap().clone();
    (draft.tokens, read)
}

#[test]
fn only_shared_tokens_are_proposed_and_a_draft_ends_where_another_is_likelier() {
    assert_eq!(foreign(&[0.0, 1.0, 9.0, 2.0, 3.0], &[0]).0, [2, 2]);
    assert_eq!(foreign(&[0.0, 1.0, 8.0, 2.0, 9.0], &[0]).0, [0; 0], "4 is the draft model's own");
    assert_eq!(foreign(&[0.0, 9.0, 8.0, 2.0, 1.0], &[0]).0, [0; 0], "1 means something else to the target");
    assert_eq!(foreign(&[0.0, 1.0, 2.0, 9.0], &[0]).0, [3, 3], "a smaller vocabulary");
}

#[test]
fn tokens_the_draft_model_does_not_know_are_left_out_of_what_it_reads() {
    let logits = [0.0, 1.0, 9.0, 2.0, 3.0];
    assert_eq!(foreign(&logits, &[3, 5, 0, 1, 4, 2]), (vec![2, 2], vec![3, 0, 2, 2]));
    assert_eq!(foreign(&logits, &[3, 0, 5]), (vec![], vec![]), "right behind one it abstains");
    assert_eq!(foreign(&logits, &[5, 4]), (vec![], vec![]));
}

#[test]
fn what_is_skipped_is_counted_without_the_tokens_the_draft_model_does_not_know() {
    let (row, rows) = (vec![1.0; 5], Arc::default());
    let vocabulary = SharedVocabulary { target: 5, shared: 5, except: vec![4] };
    let model = Box::new(Row(row, Arc::clone(&rows)));
    let mut drafter = ModelDrafter::spawn_sharing(model, Some(vocabulary)).unwrap();
    // Every third token is unknown.
    let text: Vec<TokenId> = (0..150).map(|i| if i % 3 == 0 { 4 } else { 1 + i / 3 % 3 }).collect();
    let known = |tokens: &[TokenId]| tokens.iter().copied().filter(|token| *token != 4).collect::<Vec<_>>();
    let sampler = sampler(0.0, 1);
    for (len, prompt_len) in [(30, 30), (150, 30)] {
        let request = Request {
            context: &text[..len],
            prompt_len,
            max_tokens: 1,
            sampler: &sampler,
            stop: StopRule::NEVER,
            features: None,
        };
        drafter.propose(request).unwrap();
    }
    let all = known(&text);
    let read = [known(&text[..30]), all[all.len() - UNREAD_MAX..].to_vec()].concat();
    assert_eq!(*rows.lock().unwrap(), read);
}

#[test]
fn noise_is_keyed_by_the_position_in_the_sequence_whatever_was_left_out() {
    let flat = vec![1.0; 5];
    let vocabulary = SharedVocabulary { target: 5, shared: 5, except: vec![4] };
    let sampler = sampler(1.0, 9);
    let mut drafter =
        ModelDrafter::spawn_sharing(Box::new(Row(flat.clone(), Arc::default())), Some(vocabulary)).unwrap();
    let context = [4, 0, 4, 1];
    let draft = drafter.propose(Request::new(&context, 8, &sampler)).unwrap();
    let known = [1.0, 1.0, 1.0, 1.0, f32::NEG_INFINITY];
    let expected: Vec<TokenId> =
        (4..12).map(|len| sampler.choose(&known, History::of(&vec![0; len])).token).collect();
    assert_eq!(draft.tokens, expected);
}

/// Passes of a model, counted.
struct Counted(HashModel, Arc<Mutex<usize>>);

impl LanguageModel for Counted {
    fn vocab(&self) -> usize {
        self.0.vocab()
    }
    fn context_len(&self) -> usize {
        self.0.context_len()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn forward(
        &mut self,
        tokens: &[TokenId],
        which: LogitRows,
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        *self.1.lock().unwrap() += 1;
        self.0.forward(tokens, which, logits)
    }
    fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }
}

#[test]
fn drafting_ahead_changes_no_draft_whether_its_branch_comes_true_or_not() {
    for temperature in [0.0, 0.9] {
        let sampler = sampler(temperature, 5);
        let run = |ahead: bool| {
            let passes = Arc::new(Mutex::new(0));
            let model = HashModel { context_len: 2000, ..HashModel::new(VOCAB, 3) };
            let mut drafter = ModelDrafter::spawn(Box::new(Counted(model, Arc::clone(&passes)))).unwrap();
            let (mut text, mut drafts): (Vec<TokenId>, _) = (vec![1, 2, 3], Vec::new());
            for step in 0..60u64 {
                let max_tokens = 1 + mix(step) as usize % 5;
                let context = text.clone();
                let request = Request { prompt_len: 3, ..Request::new(&context, max_tokens, &sampler) };
                let draft = drafter.propose(request).unwrap();
                if ahead {
                    drafter.run_ahead(request, &draft);
                    // Sometimes there is time to draft on, sometimes not.
                    std::thread::sleep(Duration::from_micros(mix(step ^ 99) % 300));
                }
                // Now and then the target, which here mostly says what the draft would, rejects a token.
                let stands = if step % 3 == 0 { draft.tokens.len() / 2 } else { draft.tokens.len() };
                text.extend(&draft.tokens[..stands]);
                let other = HashModel { context_len: 2000, ..HashModel::new(VOCAB, 3) };
                text.push(next_of(other, &text, &sampler, step % 3 == 0));
                // And goes on without a draft, for longer than what is then read.
                let alone = if step % 7 == 0 { mix(step) as usize % (3 * UNREAD_MAX) } else { 0 };
                text.extend((0..alone as u64).map(|i| (mix(i ^ step) % VOCAB as u64) as TokenId));
                drafts.push(draft);
            }
            drop(drafter);
            let passes = *passes.lock().unwrap();
            (text, drafts, passes)
        };
        let (plain, piped) = (run(false), run(true));
        assert_eq!(plain.0, piped.0);
        assert_eq!(plain.1, piped.1);
        assert!(piped.2 > 0 && plain.2 > 0);
    }
}

/// What the model says next, or another token.
fn next_of(mut model: HashModel, text: &[TokenId], sampler: &Sampler, otherwise: bool) -> TokenId {
    let mut logits = Vec::new();
    model.forward(text, LogitRows::Last, &mut logits).unwrap();
    let token = sampler.choose(&logits, History::of(text)).token;
    if otherwise { (token + 1) % VOCAB as TokenId } else { token }
}
