//! Language models without weights: the logits are a hash of the KV cache's rows.
//!
//! Owns [`HashModel`], whose cache can be watched from outside, and the reference draft-verify loop.
#![expect(dead_code, reason = "each test binary uses a part of it")]

use drafthorse_draft::{Draft, DraftError, Drafter, Features, HeadModel, LanguageModel, LogitRows};
use drafthorse_draft::{ModelError, ParallelHeads, Request, Sampler, SamplerConfig, TokenId};
use std::sync::{Arc, Mutex};

/// The tokens of a model's KV cache, shared with the test that watches it.
pub type Rows = Arc<Mutex<Vec<TokenId>>>;

/// A model whose next-token law depends on *every* row in its cache, so that one stale row shows.
pub struct HashModel {
    pub vocab: usize,
    pub context_len: usize,
    pub seed: u64,
    /// How peaked the law is: logits range from 0 to this.
    pub scale: f32,
    pub rows: Rows,
    /// Forward calls until one fails or panics.
    pub fault: Option<(usize, Fault)>,
}

#[derive(Clone, Copy)]
pub enum Fault {
    Error,
    Panic,
}

impl HashModel {
    pub fn new(vocab: usize, seed: u64) -> HashModel {
        HashModel { vocab, context_len: 512, seed, scale: 6.0, rows: Rows::default(), fault: None }
    }

    /// Logits after a text of these tokens.
    pub fn row_logits(&self, rows: &[TokenId]) -> impl Iterator<Item = f32> + '_ {
        let key = rows.iter().fold(mix(self.seed), |h, t| mix(h ^ u64::from(*t)));
        (0..self.vocab as u64).map(move |token| unit(mix(key ^ token)) as f32 * self.scale)
    }

    #[expect(clippy::panic, reason = "a model that panics is what is being tested")]
    fn trip(&mut self) -> Result<(), ModelError> {
        match &mut self.fault {
            Some((0, Fault::Error)) => {
                self.fault = None;
                Err("a wire came loose".into())
            }
            Some((0, Fault::Panic)) => panic!("out of cheese"),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl LanguageModel for HashModel {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn context_len(&self) -> usize {
        self.context_len
    }

    fn len(&self) -> usize {
        self.rows.lock().unwrap().len()
    }

    fn forward(
        &mut self,
        tokens: &[TokenId],
        which: LogitRows,
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        self.trip()?;
        let shared = self.rows.clone();
        let mut rows = shared.lock().unwrap();
        if rows.len() + tokens.len() > self.context_len {
            return Err("the KV cache is full".into());
        }
        logits.clear();
        for (i, &token) in tokens.iter().enumerate() {
            assert!((token as usize) < self.vocab, "token {token} is outside the vocabulary");
            rows.push(token);
            if which == LogitRows::All || (which == LogitRows::Last && i + 1 == tokens.len()) {
                logits.extend(self.row_logits(&rows));
            }
        }
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        self.rows.lock().unwrap().truncate(len);
    }
}

/// Values of one row of [`features_of`].
pub const FEATURE_WIDTH: usize = 2;

/// Hidden states without a model: those of a position are a hash of the text up to and with it.
pub fn features_of(context: &[TokenId]) -> Vec<f32> {
    let mut key = 17;
    let mut values = Vec::new();
    for token in context {
        key = mix(key ^ u64::from(*token));
        values.extend([unit(key) as f32, unit(mix(key)) as f32]);
    }
    values
}

/// A head whose logits depend on every row it holds: its token and the hidden state it was made of.
pub struct HashHead {
    pub vocab: usize,
    pub context_len: usize,
    /// A hash of each row and those before it.
    pub rows: Vec<u64>,
    /// Calls that append rows until one fails.
    pub fault: Option<usize>,
}

impl HashHead {
    pub fn new(vocab: usize) -> HashHead {
        HashHead { vocab, context_len: 512, rows: Vec::new(), fault: None }
    }

    fn append(&mut self, token: TokenId, features: u64, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        if self.rows.len() == self.context_len {
            return Err("the head is full".into());
        }
        let before = self.rows.last().copied().unwrap_or(3);
        let key = mix(mix(before ^ features) ^ u64::from(token));
        self.rows.push(key);
        logits.clear();
        logits.extend((0..self.vocab as u64).map(|token| unit(mix(key ^ token)) as f32 * 6.0));
        Ok(())
    }

    fn trip(&mut self) -> Result<(), ModelError> {
        match &mut self.fault {
            Some(0) => {
                self.fault = None;
                Err("a wire came loose".into())
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl HeadModel for HashHead {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn context_len(&self) -> usize {
        self.context_len
    }

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn advance(
        &mut self,
        tokens: &[TokenId],
        features: &[f32],
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        self.trip()?;
        assert_eq!(features.len(), tokens.len() * FEATURE_WIDTH);
        for (token, row) in tokens.iter().zip(features.chunks(FEATURE_WIDTH)) {
            let bits = row.iter().fold(0, |hash, value| mix(hash ^ u64::from(value.to_bits())));
            self.append(*token, bits, logits)?;
        }
        Ok(())
    }

    fn step(&mut self, token: TokenId, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        self.trip()?;
        self.append(token, 5, logits)
    }

    fn truncate(&mut self, len: usize) {
        self.rows.truncate(len);
    }
}

/// Parallel heads whose logits are a hash of the hidden state and of which head it is.
pub struct HashHeads {
    pub vocab: usize,
    pub count: usize,
}

impl ParallelHeads for HashHeads {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn count(&self) -> usize {
        self.count
    }

    fn predict(&mut self, features: &[f32], heads: usize, logits: &mut Vec<f32>) -> Result<(), ModelError> {
        assert_eq!(features.len(), FEATURE_WIDTH);
        let key = features.iter().fold(0, |hash, value| mix(hash ^ u64::from(value.to_bits())));
        let rows = (0..heads as u64).flat_map(|head| (0..self.vocab as u64).map(move |token| (head, token)));
        logits.clear();
        logits.extend(rows.map(|(head, token)| unit(mix(mix(key ^ head) ^ token)) as f32 * 6.0));
        Ok(())
    }
}

/// A drafter that agrees with nothing: random tokens, random confidence, random length.
pub struct Adversary {
    pub vocab: usize,
    pub state: u64,
}

impl Drafter for Adversary {
    fn name(&self) -> &'static str {
        "adversary"
    }

    fn propose(&mut self, request: Request<'_>) -> Result<Draft, DraftError> {
        let mut next = || {
            self.state = self.state.wrapping_add(1);
            mix(self.state)
        };
        let len = next() as usize % (request.max_tokens + 1);
        let tokens = (0..len).map(|_| (next() % self.vocab as u64) as TokenId).collect();
        let confidence = (0..len).map(|_| unit(next()) as f32).collect();
        Ok(Draft::new(tokens, confidence))
    }
}

/// Generates `count` tokens after `prompt` the way the engine does: propose, verify, roll back.
/// `draft_len(pass)` is the plan. Returns the tokens and how many drafted ones stood.
pub fn generate(
    target: &mut HashModel,
    drafter: &mut dyn Drafter,
    sampler: &Sampler,
    prompt: &[TokenId],
    (count, draft_len): (usize, &dyn Fn(usize) -> usize),
) -> (Vec<TokenId>, usize) {
    let cut = |_: &mut Draft| {};
    generate_cut(target, drafter, sampler, prompt, Plan { count, draft_len, cut: &cut })
}

/// How long a text and its drafts become.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// Tokens to generate.
    pub count: usize,
    /// Tokens to draft, by pass.
    pub draft_len: &'a dyn Fn(usize) -> usize,
    /// Shortens a draft before it is verified.
    pub cut: &'a dyn Fn(&mut Draft),
}

/// The same with drafts that `cut` shortens before they are verified.
pub fn generate_cut(
    target: &mut HashModel,
    drafter: &mut dyn Drafter,
    sampler: &Sampler,
    prompt: &[TokenId],
    Plan { count, draft_len, cut }: Plan<'_>,
) -> (Vec<TokenId>, usize) {
    let (mut text, mut logits, mut stood) = (prompt.to_vec(), Vec::new(), 0);
    for pass in 0.. {
        if text.len() >= prompt.len() + count {
            break;
        }
        // A pass shows every row but the last committed token's, which is the next one's first.
        let values = features_of(&text[..text.len() - 1]);
        let features = Some(Features { start: 0, width: FEATURE_WIDTH, values: &values });
        let max_tokens = draft_len(pass);
        let request = Request { features, ..Request::new(&text, max_tokens, sampler) };
        let mut draft = drafter.propose(request).unwrap();
        cut(&mut draft);
        let from = target.len();
        let input: Vec<TokenId> = text[from..].iter().chain(&draft.tokens).copied().collect();
        target.forward(&input, LogitRows::All, &mut logits).unwrap();
        let first = input.len() - draft.tokens.len() - 1; // row of the last committed token
        let row = |row: usize| &logits[(first + row) * target.vocab..(first + row + 1) * target.vocab];
        let verdict = sampler.verify(&text, &draft, row);
        stood += verdict.accepted;
        text.extend(&draft.tokens[..verdict.accepted]);
        target.truncate(text.len());
        text.push(verdict.next);
    }
    text.truncate(prompt.len() + count);
    (text[prompt.len()..].to_vec(), stood)
}

pub fn sampler(temperature: f32, seed: u64) -> Sampler {
    Sampler::new(SamplerConfig::plain(temperature, seed))
}

/// SplitMix64.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A number in [0, 1) from 64 bits.
pub fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
