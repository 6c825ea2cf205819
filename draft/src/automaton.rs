//! A suffix automaton over several texts that grow at their ends, with counts.
//!
//! Owns [`Automaton`]: every substring of every text is a path from the root, a state is the class of the
//! substrings that end at the same places, and a state's suffix link leads to the longest suffix of its
//! substrings that ends at more places (Blumer et al., The smallest automaton recognizing the subwords of a
//! text, 1985; for several texts, Complete inverted files, 1987). A text begins at the root, so that no
//! substring reaches over from one into the next. It must not know drafts, nor which texts there are.
//!
//! How often a substring of at most `counted_max` tokens occurs is kept as well: an append adds one to the
//! states of the new suffixes up to that length, which is the only work here that is not O(1) amortised.

use crate::TokenId;

/// The state of the empty substring.
const ROOT: u32 = 0;
/// No state, no edge.
const NONE: u32 = u32::MAX;
/// Limits of Blumer et al. for texts of n tokens together: 2n states and 3n edges.
const STATES_PER_TOKEN: usize = 2;
const EDGES_PER_TOKEN: usize = 3;

/// A class of substrings.
#[derive(Clone, Copy)]
struct State {
    /// Tokens of its longest substring; its shortest has one more than the link's longest.
    len: u32,
    link: u32,
    /// The first of its edges, [`NONE`] if there are none.
    first_edge: u32,
    /// Places where its substrings end; kept while the shortest has at most `counted_max` tokens.
    count: u32,
    /// The latest of these places, as the number of tokens appended before; kept like `count`.
    seen: u32,
}

/// What a state's substrings go on with.
#[derive(Clone, Copy)]
struct Edge {
    from: u32,
    token: TokenId,
    to: u32,
    /// The next edge of the same state, or [`NONE`].
    next: u32,
}

/// A substring: the last `len` tokens of those its state stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    state: u32,
    /// Tokens of the substring.
    pub(crate) len: usize,
}

/// One way in which a substring goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Continuation {
    /// The token that follows.
    pub(crate) token: TokenId,
    /// How often it does.
    pub(crate) count: u32,
    /// When it last did; later is greater.
    pub(crate) seen: u32,
}

/// The automaton; see the module. Holds texts of `tokens_max` tokens together.
pub(crate) struct Automaton {
    states: Vec<State>,
    edges: Vec<Edge>,
    /// Open addressing over (state, token): an edge's index plus one, 0 where free.
    table: Vec<u32>,
    counted_max: usize,
    appended: u32,
    /// The state whose longest substring is the present text.
    last: u32,
    /// The present text's last tokens, at most `counted_max`.
    end: Place,
}

impl Automaton {
    /// An empty automaton with room for `tokens_max` tokens. Substrings of up to `counted_max` tokens are
    /// counted. Memory is reserved here and touched as texts grow.
    pub(crate) fn new(tokens_max: usize, counted_max: usize) -> Automaton {
        let mut automaton = Automaton {
            states: Vec::with_capacity(STATES_PER_TOKEN * tokens_max + 1),
            edges: Vec::with_capacity(EDGES_PER_TOKEN * tokens_max),
            table: vec![0; table_len(tokens_max)],
            counted_max,
            appended: 0,
            last: ROOT,
            end: Place { state: ROOT, len: 0 },
        };
        automaton.add_state(State { len: 0, link: NONE, first_edge: NONE, count: 0, seen: 0 });
        automaton
    }

    /// Bytes of an automaton with room for `tokens_max` tokens.
    pub(crate) fn bytes(tokens_max: usize) -> u64 {
        let states = (STATES_PER_TOKEN * tokens_max + 1) * size_of::<State>();
        let edges = EDGES_PER_TOKEN * tokens_max * size_of::<Edge>();
        (states + edges + table_len(tokens_max) * size_of::<u32>()) as u64
    }

    /// Forgets all texts.
    pub(crate) fn clear(&mut self) {
        self.states.truncate(1);
        self.states[ROOT as usize].first_edge = NONE;
        self.edges.clear();
        self.table.fill(0);
        self.appended = 0;
        self.begin_text();
    }

    /// What is appended from now on is a new text.
    pub(crate) fn begin_text(&mut self) {
        self.last = ROOT;
        self.end = Place { state: ROOT, len: 0 };
    }

    /// Appends a token to the present text.
    pub(crate) fn push(&mut self, token: TokenId) {
        self.last = self.extend(self.last, token);
        self.appended += 1;
        // The substring may have moved to a new state of shorter ones.
        let end = self.owner(self.end);
        let next = self.next(end.state, token).expect("invariant: the end is a suffix of the text");
        let len = (end.len + 1).min(self.counted_max);
        self.end = self.owner(Place { state: next, len });
        let mut at = self.end.state;
        while at != ROOT {
            let state = &mut self.states[at as usize];
            (state.count, state.seen) = (state.count + 1, self.appended);
            at = state.link;
        }
    }

    /// The longest suffix of the present text, of fewer than `counted_max` tokens, that is followed by
    /// something somewhere.
    pub(crate) fn end(&self) -> Option<Place> {
        let len = self.end.len.min(self.counted_max - 1);
        self.followed(Place { len, ..self.end })
    }

    /// The longest suffix of a substring that is followed by something; none if only the empty one is.
    fn followed(&self, place: Place) -> Option<Place> {
        let Place { mut state, mut len } = self.owner(place);
        while state != ROOT && self.states[state as usize].first_edge == NONE {
            state = self.states[state as usize].link;
            len = self.states[state as usize].len as usize;
        }
        (state != ROOT).then_some(Place { state, len })
    }

    /// What follows a substring of fewer than `counted_max` tokens, in no particular order.
    pub(crate) fn continuations(&self, place: Place) -> impl Iterator<Item = Continuation> + '_ {
        let edge = |index: u32| self.edges.get(index as usize);
        let first = edge(self.states[place.state as usize].first_edge);
        std::iter::successors(first, move |at| edge(at.next)).map(|edge| {
            let State { count, seen, .. } = self.states[edge.to as usize];
            Continuation { token: edge.token, count, seen }
        })
    }

    /// The longest suffix of `place` and `token` together, of fewer than `counted_max` tokens, that is
    /// followed by something.
    pub(crate) fn advance(&self, place: Place, token: TokenId) -> Option<Place> {
        let state = self.next(place.state, token)?;
        self.followed(Place { state, len: (place.len + 1).min(self.counted_max - 1) })
    }

    /// The same substring with the state that stands for it, which may be found behind links.
    fn owner(&self, Place { mut state, len }: Place) -> Place {
        while let Some(link) = self.link(state).filter(|link| self.states[*link as usize].len as usize >= len)
        {
            state = link;
        }
        Place { state, len }
    }

    /// The state of the present text and `token`, made if it is new.
    fn extend(&mut self, last: u32, token: TokenId) -> u32 {
        if let Some(known) = self.next(last, token) {
            return self.exactly(last, token, known);
        }
        let len = self.states[last as usize].len + 1;
        let new = self.add_state(State { len, link: ROOT, first_edge: NONE, count: 0, seen: 0 });
        let mut at = Some(last);
        while let Some(state) = at {
            if let Some(known) = self.next(state, token) {
                self.states[new as usize].link = self.exactly(state, token, known);
                break;
            }
            self.add_edge(state, token, new);
            at = self.link(state);
        }
        new
    }

    /// The state whose longest substring is that of `from` and `token`: `known`, or split off from it where
    /// `known` stands for longer ones too.
    fn exactly(&mut self, from: u32, token: TokenId, known: u32) -> u32 {
        let len = self.states[from as usize].len + 1;
        if self.states[known as usize].len == len {
            return known;
        }
        let short = self.add_state(State { len, first_edge: NONE, ..self.states[known as usize] });
        let mut edge = self.states[known as usize].first_edge;
        while edge != NONE {
            let Edge { token, to, next, .. } = self.edges[edge as usize];
            self.add_edge(short, token, to);
            edge = next;
        }
        self.states[known as usize].link = short;
        let mut at = Some(from);
        while let Some(state) = at {
            match self.edge(state, token) {
                Some(edge) if self.edges[edge].to == known => self.edges[edge].to = short,
                _ => break,
            }
            at = self.link(state);
        }
        short
    }

    fn link(&self, state: u32) -> Option<u32> {
        Some(self.states[state as usize].link).filter(|link| *link != NONE)
    }

    fn next(&self, state: u32, token: TokenId) -> Option<u32> {
        self.edge(state, token).map(|edge| self.edges[edge].to)
    }

    fn edge(&self, state: u32, token: TokenId) -> Option<usize> {
        self.probe(state, token).ok()
    }

    /// The edge, or the free place in the table where it belongs.
    fn probe(&self, state: u32, token: TokenId) -> Result<usize, usize> {
        let mask = self.table.len() - 1;
        let mut slot = hash(state, token) as usize & mask;
        while let Some(edge) = (self.table[slot] as usize).checked_sub(1) {
            if (self.edges[edge].from, self.edges[edge].token) == (state, token) {
                return Ok(edge);
            }
            slot = (slot + 1) & mask;
        }
        Err(slot)
    }

    fn add_state(&mut self, state: State) -> u32 {
        debug_assert!(self.states.len() < self.states.capacity(), "more states than the theorem allows");
        self.states.push(state);
        (self.states.len() - 1) as u32
    }

    fn add_edge(&mut self, from: u32, token: TokenId, to: u32) {
        debug_assert!(self.edges.len() < self.edges.capacity(), "more edges than the theorem allows");
        let Err(slot) = self.probe(from, token) else { return };
        let next = std::mem::replace(&mut self.states[from as usize].first_edge, self.edges.len() as u32);
        self.edges.push(Edge { from, token, to, next });
        self.table[slot] = self.edges.len() as u32;
    }
}

/// Slots of the table: a power of two, at most three quarters of it filled.
fn table_len(tokens_max: usize) -> usize {
    ((EDGES_PER_TOKEN + 1) * tokens_max).next_power_of_two()
}

/// Mixes a state and a token (the finalizer of SplitMix64).
fn hash(state: u32, token: TokenId) -> u64 {
    let key = (u64::from(state) << 32 | u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let key = (key ^ (key >> 32)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    key ^ (key >> 29)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may stop at what it does not expect")]
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const COUNTED: usize = 6;

    fn built(texts: &[Vec<TokenId>]) -> Automaton {
        let mut automaton = Automaton::new(texts.iter().map(Vec::len).sum::<usize>().max(1), COUNTED);
        for text in texts {
            automaton.begin_text();
            text.iter().for_each(|token| automaton.push(*token));
        }
        automaton
    }

    /// The state of a substring, found by walking from the root.
    fn walk(automaton: &Automaton, substring: &[TokenId]) -> Option<u32> {
        substring.iter().try_fold(ROOT, |state, token| automaton.next(state, *token))
    }

    proptest! {
        #[test]
        fn counts_are_those_of_counting_by_hand(
            texts in prop::collection::vec(prop::collection::vec(0..3 as TokenId, 0..40), 1..5),
        ) {
            let automaton = built(&texts);
            let mut by_hand: HashMap<&[TokenId], u32> = HashMap::new();
            for text in &texts {
                for from in 0..text.len() {
                    for to in from + 1..=text.len().min(from + COUNTED) {
                        *by_hand.entry(&text[from..to]).or_default() += 1;
                    }
                }
            }
            for (substring, count) in &by_hand {
                let state = walk(&automaton, substring).unwrap();
                prop_assert_eq!(automaton.states[state as usize].count, *count, "{:?}", substring);
            }
            // Every substring of three symbols up to that length, also those that occur nowhere.
            for len in 1..=4u32 {
                for code in 0..3u32.pow(len) {
                    let substring: Vec<TokenId> = (0..len).map(|i| code / 3u32.pow(i) % 3).collect();
                    prop_assert_eq!(
                        walk(&automaton, &substring).is_some(),
                        by_hand.contains_key(&substring[..]),
                        "{:?}", substring
                    );
                }
            }
        }

        #[test]
        fn states_and_edges_stay_within_what_is_reserved(
            texts in prop::collection::vec(prop::collection::vec(0..2 as TokenId, 1..60), 1..6),
        ) {
            let tokens: usize = texts.iter().map(Vec::len).sum();
            let automaton = built(&texts);
            prop_assert!(automaton.states.len() <= STATES_PER_TOKEN * tokens + 1);
            prop_assert!(automaton.edges.len() <= EDGES_PER_TOKEN * tokens);
        }
    }

    #[test]
    fn no_substring_reaches_from_one_text_into_the_next() {
        let automaton = built(&[vec![1, 2], vec![3, 4]]);
        assert!(walk(&automaton, &[1, 2]).is_some() && walk(&automaton, &[3, 4]).is_some());
        assert!(walk(&automaton, &[2, 3]).is_none());
    }

    #[test]
    fn cleared_it_is_as_new() {
        let mut automaton = built(&[vec![1, 2, 1, 2, 3]]);
        automaton.clear();
        assert_eq!(automaton.end(), None);
        assert!(walk(&automaton, &[1]).is_none());
        [7, 8, 7].iter().for_each(|token| automaton.push(*token));
        let end = automaton.end().unwrap();
        let after: Vec<_> = automaton.continuations(end).map(|c| (c.token, c.count)).collect();
        assert_eq!((end.len, after), (1, vec![(8, 1)]));
    }
}
