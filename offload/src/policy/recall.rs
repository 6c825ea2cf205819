//! What happened the last times routing looked like now: a memory of recent passes over the layers.
//!
//! Each pass is kept as a set of experts per layer. When somebody asks, every remembered pass is rated
//! by how many experts it shares with the running one so far (and, fading, with the passes before it that
//! somebody asked about); the most alike vote, with what they did in the layers to come and in the passes after, on what will be
//! picked next. A token seen before, or a phrase, is so recognised by its routing alone. It must not
//! know residency, nor token ids.
//!
//! This is attention over routing history (a kernel-weighted nearest-neighbour estimate); nothing is
//! trained. `eval/LOG.md` has the experiments behind the constants.

use super::warm::{PASSES_MAX, words};

/// Passes remembered.
const PASSES: usize = PASSES_MAX;
/// Passes that vote.
const VOTERS: usize = 16;
/// A layer with the same experts multiplies a pass's vote by e to this.
const SHARPNESS: f32 = 1.2;
/// How much of the likeness of the previous passes carries over into this one.
const CARRY: f32 = 0.2;
/// Passes ahead that are looked at.
const AHEAD: usize = 8;
/// Wider windows are prefill: they select nearly everything, which is no likeness to anything.
const ROWS_MAX: f64 = 16.0;
/// Full forecasts made while a pass runs.
const FORECASTS: usize = 8;

/// Windows of a pass that wait for somebody to ask, for each layer: more than one where they come in pieces.
const UNRATED_MAX: usize = 4;

/// Remembered passes, their likeness to the running one, and the forecast that follows.
pub(super) struct Recall {
    shape: Shape,
    sets: Vec<u64>,       // (layers, words, PASSES): experts of a pass in a layer
    shares: Vec<f32>,     // (layers, PASSES): what one of them is of all; 1 for none
    begun: usize,         // passes begun, the running one included
    layer: Option<usize>, // layer the running pass is at
    unrated: Vec<Window>, // of the running pass, that `alike` has not heard of
    is_rated: bool,       // whether `alike` has heard of any of it
    alike: Vec<f32>,      // (PASSES): layers shared with the running pass, in parts
    election_due: bool,
    voters: Vec<Voter>,
    forecast: Vec<f32>, // (layers, experts): share of votes for the layer's next visits
}

#[derive(Clone, Copy)]
struct Shape {
    layers: usize,
    experts: usize, // of the widest layer
    words: usize,
}

/// What a window of the running pass selected.
struct Window {
    layer: usize,
    asked: Vec<u64>, // (words)
    count: usize,
}

#[derive(Clone, Copy)]
struct Voter {
    pass: usize,
    weight: f32,
}

impl Recall {
    /// Bytes of a memory for `experts[layer]` experts a layer.
    pub(super) fn bytes(experts: &[u32]) -> u64 {
        let per_layer = PASSES * (words(experts) * size_of::<u64>() + size_of::<f32>());
        let forecast = experts.iter().max().map_or(0, |widest| *widest as usize) * size_of::<f32>();
        let window = size_of::<Window>() + words(experts) * size_of::<u64>();
        // Likenesses, twice while a pass begins, what is shared while one is rated, and who may vote.
        let of_passes = PASSES * (2 * size_of::<f32>() + size_of::<u32>() + size_of::<Voter>());
        (experts.len() * (per_layer + forecast + UNRATED_MAX * window) + of_passes) as u64
    }

    /// Remembers `passes` (passes, layers, words) of an earlier run, of the same shape, the oldest first.
    pub(super) fn new(experts: &[u32], passes: &[u64]) -> Recall {
        let (layers, widest) = (experts.len(), experts.iter().max().map_or(0, |n| *n as usize));
        let shape = Shape { layers, experts: widest, words: words(experts) };
        let mut recall = Recall {
            shape,
            sets: vec![0; layers * PASSES * shape.words],
            shares: vec![1.0; layers * PASSES],
            begun: 0,
            layer: None,
            unrated: Vec::new(),
            is_rated: false,
            alike: vec![0.0; PASSES],
            election_due: false,
            voters: Vec::new(),
            forecast: vec![0.0; layers * widest],
        };
        passes.chunks_exact((layers * shape.words).max(1)).for_each(|pass| recall.restore(pass));
        recall
    }

    /// Sets of the passes before the running one, the oldest first; without those of wide windows.
    pub(super) fn remembered(&self) -> Vec<u64> {
        let Shape { layers, words, .. } = self.shape;
        let known = self.begun.saturating_sub(PASSES)..self.begun.saturating_sub(1);
        let pass = |pass: usize| {
            let word = move |row: usize| self.sets[row * PASSES + pass % PASSES];
            (0..layers * words).map(word).collect::<Vec<u64>>()
        };
        known.map(pass).filter(|pass| pass.iter().any(|word| *word != 0)).flatten().collect()
    }

    fn restore(&mut self, pass: &[u64]) {
        self.begin();
        for (layer, set) in pass.chunks_exact(self.shape.words).enumerate() {
            self.remember(layer, set);
        }
    }

    /// Adds experts of a layer to the running pass.
    fn remember(&mut self, layer: usize, asked: &[u64]) {
        let slot = (self.begun - 1) % PASSES;
        let sets = self.sets[layer * self.shape.words * PASSES..].chunks_exact_mut(PASSES);
        let mut size = 0;
        for (sets, asked) in sets.zip(asked) {
            sets[slot] |= asked;
            size += sets[slot].count_ones();
        }
        self.shares[layer * PASSES + slot] = 1.0 / size.max(1) as f32;
    }

    /// A window of `layer` selected `experts`. Returns the layers whose forecast is no longer true.
    pub(super) fn observe(&mut self, layer: u32, experts: &[u32], rows: f64) -> std::ops::Range<usize> {
        let layer = layer as usize;
        if layer >= self.shape.layers {
            return 0..0;
        }
        if self.layer.is_none_or(|at| layer < at || self.shape.layers == 1) {
            self.begin();
        }
        let entered = self.layer.replace(layer);
        // A window that asks for nothing is like none, and like no less.
        if rows <= ROWS_MAX && !experts.is_empty() {
            let asked = self.asked(experts);
            self.remember(layer, &asked);
            self.unrated.push(Window { layer, asked, count: experts.len() });
            if self.unrated.len() > UNRATED_MAX * self.shape.layers {
                self.rate();
            }
        }
        let stride = self.shape.layers.div_ceil(FORECASTS);
        let due = entered.is_none_or(|at| layer / stride != at / stride) || layer + 1 == self.shape.layers;
        self.election_due |= due;
        if due { 0..self.shape.layers } else { layer..layer + 1 }
    }

    /// Lets those vote who are most alike by now, on the next visits of `layer`. `fade` (0..1) weighs each
    /// pass ahead against the one before it. Whatever [`Recall::observe`] returned is to be forecast
    /// anew before it is used; when nobody asks, nothing is computed.
    pub(super) fn update(&mut self, layer: usize, fade: f32) {
        if std::mem::take(&mut self.election_due) {
            self.rate();
            self.elect();
        }
        self.vote(layer, fade);
    }

    /// Share of votes for each expert of a layer.
    pub(super) fn forecast(&self, layer: usize) -> &[f32] {
        &self.forecast[layer * self.shape.experts..][..self.shape.experts]
    }

    /// Whether anything is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.voters.is_empty()
    }

    fn begin(&mut self) {
        // Nobody asked about a pass of which nothing is rated: what is carried over is of those before it.
        if self.is_rated {
            self.rate();
        }
        self.unrated.clear();
        self.is_rated = false;
        let Recall { alike, begun, .. } = self;
        // A pass is as alike as it shows itself, and a little as its predecessor was to ours.
        let before: Vec<f32> = alike.clone();
        for pass in begun.saturating_sub(PASSES - 1)..*begun {
            let previous = pass.checked_sub(1).map_or(0.0, |previous| before[previous % PASSES]);
            alike[pass % PASSES] = CARRY * previous;
        }
        let slot = *begun % PASSES;
        alike[slot] = 0.0;
        *begun += 1;
        self.sets[slot..].iter_mut().step_by(PASSES).for_each(|word| *word = 0);
        self.shares[slot..].iter_mut().step_by(PASSES).for_each(|share| *share = 1.0);
    }

    /// Experts as the bits of words; those out of range are none.
    fn asked(&self, experts: &[u32]) -> Vec<u64> {
        let mut asked = vec![0u64; self.shape.words];
        for expert in experts.iter().filter(|expert| (**expert as usize) < self.shape.experts) {
            asked[*expert as usize / 64] |= 1 << (expert % 64);
        }
        asked
    }

    /// Rates the other passes by what this one has selected since the last time. Here and not when it selects: while
    /// nobody asks for a forecast this would be work for nobody, and it is the most work there is.
    fn rate(&mut self) {
        let Recall { shape, sets, shares, unrated, alike, .. } = self;
        let mut shared = vec![0u32; PASSES];
        for Window { layer, asked, count } in unrated.drain(..) {
            shared.fill(0);
            let sets = sets[layer * shape.words * PASSES..].chunks_exact(PASSES);
            for (sets, asked) in sets.zip(&asked).filter(|(_, asked)| **asked != 0) {
                shared.iter_mut().zip(sets).for_each(|(shared, set)| *shared += (set & asked).count_ones());
            }
            // A window of several rows holds more experts, but is not more alike for that.
            let most = 1.0 / count as f32;
            let shares = &shares[layer * PASSES..][..PASSES];
            for ((alike, shared), share) in alike.iter_mut().zip(&shared).zip(shares) {
                *alike += *shared as f32 * share.min(most);
            }
        }
        self.is_rated = true;
    }

    /// Chooses who votes: the passes most alike, the younger on ties.
    fn elect(&mut self) {
        let Recall { alike, begun, voters, .. } = self;
        let running = *begun - 1;
        let known = running.saturating_sub(PASSES - 1)..running;
        let likeness = |voter: &Voter| alike[voter.pass % PASSES];
        voters.clear();
        voters.extend(known.map(|pass| Voter { pass, weight: 0.0 }));
        let best_first = |a: &Voter, b: &Voter| likeness(b).total_cmp(&likeness(a)).then(b.pass.cmp(&a.pass));
        if voters.len() > VOTERS {
            voters.select_nth_unstable_by(VOTERS, best_first);
            voters.truncate(VOTERS);
        }
        voters.sort_unstable_by(best_first);
        let best = voters.first().map_or(0.0, likeness);
        voters.iter_mut().for_each(|voter| voter.weight = (SHARPNESS * (likeness(voter) - best)).exp());
        let all: f32 = voters.iter().map(|voter| voter.weight).sum();
        voters.iter_mut().for_each(|voter| voter.weight /= all);
    }

    /// The voters' forecast for the next visits of `layer`.
    fn vote(&mut self, layer: usize, fade: f32) {
        let Recall { shape, sets, begun, forecast, voters, .. } = self;
        let Some(running) = begun.checked_sub(1) else { return };
        let past = self.layer.is_some_and(|at| layer <= at); // its next visit is in the next pass
        let forecast = &mut forecast[layer * shape.experts..][..shape.experts];
        forecast.fill(0.0);
        let sets = &sets[layer * PASSES * shape.words..][..PASSES * shape.words];
        for Voter { pass, weight } in voters {
            let first = *pass + usize::from(past);
            let passes = (first..first + AHEAD).take_while(|pass| *pass < running + usize::from(past));
            let all: f32 = (0..passes.clone().count() as i32).map(|ahead| fade.powi(ahead)).sum();
            for (ahead, pass) in passes.enumerate() {
                let share = *weight * fade.powi(ahead as i32) / all;
                for (word, sets) in sets.chunks_exact(PASSES).enumerate() {
                    let mut set = sets[pass % PASSES];
                    while set != 0 {
                        forecast[word * 64 + set.trailing_zeros() as usize] += share;
                        set &= set - 1;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FADE: f32 = 0.1;

    /// Layers 2, experts 70 (two words), one used.
    fn recall() -> Recall {
        Recall::new(&[70, 70], &[])
    }

    fn observe(recall: &mut Recall, layer: u32, experts: &[u32], rows: f64) {
        recall.observe(layer, experts, rows).for_each(|layer| recall.update(layer, FADE));
    }

    fn pass(recall: &mut Recall, experts: [u32; 2]) {
        (0..2).for_each(|layer| observe(recall, layer, &[experts[layer as usize]], 1.0));
    }

    fn likeliest(recall: &Recall, layer: usize) -> usize {
        let votes = recall.forecast(layer).iter().zip(0..);
        votes.max_by(|a, b| a.0.total_cmp(b.0)).map_or(0, |(_, expert)| expert)
    }

    #[test]
    fn the_passes_most_alike_foretell_this_one_and_the_next() {
        let mut recall = recall();
        for _ in 0..40 {
            pass(&mut recall, [1, 69]);
            pass(&mut recall, [2, 5]);
            pass(&mut recall, [3, 64]);
        }
        observe(&mut recall, 0, &[1], 1.0);
        assert_eq!((likeliest(&recall, 1), likeliest(&recall, 0)), (69, 2));
        observe(&mut recall, 1, &[69], 1.0);
        assert_eq!((likeliest(&recall, 1), likeliest(&recall, 0)), (5, 2));
    }

    #[test]
    fn votes_are_shares_and_an_empty_memory_has_none() {
        let mut recall = recall();
        pass(&mut recall, [0, 1]);
        assert!(recall.is_empty(), "the running pass is no memory");
        (0..100).for_each(|n| pass(&mut recall, [n % 7, n % 5]));
        for layer in 0..2 {
            let all: f32 = recall.forecast(layer).iter().sum();
            assert!((all - 1.0).abs() < 0.05, "one expert a pass: {all}");
        }
    }

    #[test]
    fn memory_is_a_ring_of_the_latest_passes() {
        let mut recall = recall();
        (0..PASSES as u32 + 10).for_each(|n| pass(&mut recall, [n % 60, n % 50]));
        let kept = recall.remembered();
        assert_eq!(kept.len(), (PASSES - 1) * 4);
        assert_eq!(kept[..4], [1 << 10, 0, 1 << 10, 0], "pass 10 is the oldest");
        let again = Recall::new(&[70, 70], &kept);
        assert_eq!(again.begun, PASSES - 1);
        assert_eq!([again.sets[1], again.sets[PASSES + 1]], [1 << 11, 0], "pass 11 in layer 0");
    }

    #[test]
    fn a_prompt_leaves_no_set_behind_and_pieces_of_a_window_make_one() {
        let mut recall = recall();
        (0..2).for_each(|layer| observe(&mut recall, layer, &[1, 2, 3], 400.0));
        for layer in 0..2 {
            observe(&mut recall, layer, &[1], 1.0);
            observe(&mut recall, layer, &[2], 1.0);
        }
        pass(&mut recall, [0, 0]);
        assert_eq!(recall.remembered(), [0b110, 0, 0b110, 0]);
    }

    #[test]
    fn it_does_not_show_in_a_rating_how_often_somebody_asks_during_a_pass() {
        let (mut often, mut once) = (recall(), recall());
        for n in 0..60 {
            for layer in 0..2 {
                let experts = [(n * 7 + layer * 3) % 11, (n * 5 + layer) % 13 + 30];
                observe(&mut often, layer, &experts, 1.0);
                once.observe(layer, &experts, 1.0);
            }
            once.update(0, FADE);
            // The running pass's likeness to itself is nobody's.
            let running = often.begun - 1;
            let others = |recall: &Recall| -> Vec<f32> {
                let ratings = recall.alike.iter().enumerate();
                ratings.filter(|(pass, _)| *pass != running).map(|(_, alike)| *alike).collect()
            };
            assert_eq!(others(&often), others(&once), "pass {n}");
        }
        assert!(often.alike.iter().any(|alike| *alike > 1.0), "passes are alike");
    }

    #[test]
    fn a_pass_that_nobody_asked_about_is_remembered_and_adds_nothing_to_what_is_carried_over() {
        let mut recall = recall();
        (0..20).for_each(|n| pass(&mut recall, [n % 3, n % 5]));
        let carried = recall.alike.iter().copied().fold(0.0, f32::max);
        for layer in 0..2 {
            recall.observe(layer, &[1], 1.0);
        }
        recall.observe(0, &[2], 1.0);
        assert_eq!(recall.unrated.len(), 1, "the next pass begins with nothing to rate");
        let likeliest = recall.alike.iter().copied().fold(0.0, f32::max);
        assert!(likeliest <= CARRY * CARRY * carried * 1.001, "{likeliest} of {carried}");
        assert_eq!(recall.remembered().chunks(4).last(), Some(&[1 << 1, 0, 1 << 1, 0][..]));
    }

    #[test]
    fn experts_and_layers_out_of_range_are_ignored() {
        let mut recall = recall();
        assert!(recall.observe(2, &[0], 1.0).is_empty());
        observe(&mut recall, 0, &[128, 70, 7], 1.0);
        observe(&mut recall, 1, &[0], 1.0);
        pass(&mut recall, [1, 1]);
        assert_eq!(recall.remembered()[0], 1 << 7);
    }
}
