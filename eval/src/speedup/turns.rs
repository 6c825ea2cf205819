//! The order of runs within a block: A B B A, so that a machine that drifts hits both alike; or side by side, in slices,
//! so that one that is uneven does, too.
//!
//! Pure. A block is one cache, start, temperature and prompt; A is its run without a draft, B each way of
//! drafting. Two neighbouring turns share the A between them: A B B A C C A. Runs that go on in slices have one A for
//! all ways of a drafter: (A B C) (A D E).

use std::ops::Range;

/// A run in its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Which way of drafting; None is the run without a draft.
    pub variant: Option<usize>,
    /// Place in the block of the run without a draft that stands next to it; its own for such a run.
    pub off: usize,
}

/// The turns of a block with so many ways of drafting, `repeats` of each.
pub fn turns(variants: usize, repeats: usize) -> Vec<Turn> {
    let mut drafted = Vec::with_capacity(variants * repeats);
    for pair in 0..repeats.div_ceil(2) {
        let times = (repeats - 2 * pair).min(2);
        // Every second pair goes backwards, so that no way of drafting is always early.
        let order: Vec<usize> =
            if pair % 2 == 0 { (0..variants).collect() } else { (0..variants).rev().collect() };
        drafted.extend(order.into_iter().flat_map(|variant| std::iter::repeat_n(variant, times)));
    }
    let mut turns = vec![Turn { variant: None, off: 0 }];
    for pair in drafted.chunks(2) {
        let first = turns.len() - 1;
        turns.push(Turn { variant: Some(pair[0]), off: first });
        if let Some(second) = pair.get(1) {
            turns.push(Turn { variant: Some(*second), off: first + 3 });
            turns.push(Turn { variant: None, off: first + 3 });
        }
    }
    // Nothing but plain runs: so many as were asked for.
    let plain = if variants == 0 { repeats.saturating_sub(1) } else { 0 };
    turns.extend((0..plain).map(|at| Turn { variant: None, off: at + 1 }));
    turns
}

/// The turns of a block whose runs go on in slices: `repeats` times, for each drafter, the run without a draft and that
/// drafter's ways, which `drafters` gives the numbers of.
pub fn sliced_turns(drafters: &[Range<usize>], repeats: usize) -> Vec<Turn> {
    let mut turns = Vec::new();
    for _ in 0..repeats {
        for ways in drafters.iter().cloned() {
            let off = turns.len();
            turns.push(Turn { variant: None, off });
            turns.extend(ways.map(|variant| Turn { variant: Some(variant), off }));
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(variants: usize, repeats: usize) -> String {
        let letter = |turn: &Turn| turn.variant.map_or('.', |variant| (b'a' + variant as u8) as char);
        turns(variants, repeats).iter().map(letter).collect()
    }

    #[test]
    fn drafted_runs_stand_between_plain_ones() {
        assert_eq!(shown(1, 2), ".aa.");
        assert_eq!(shown(2, 2), ".aa.bb.");
        assert_eq!(shown(2, 4), ".aa.bb.bb.aa.");
        assert_eq!(shown(2, 3), ".aa.bb.ba.");
        assert_eq!(shown(3, 1), ".ab.c");
        assert_eq!(shown(0, 3), "...");
    }

    #[test]
    fn the_ways_of_a_drafter_go_on_beside_one_plain_run() {
        let turns = sliced_turns(&[0..2, 2..3], 2);
        let shown: Vec<(Option<usize>, usize)> = turns.iter().map(|turn| (turn.variant, turn.off)).collect();
        let once = [(None, 0), (Some(0), 0), (Some(1), 0), (None, 3), (Some(2), 3)];
        let twice = once.map(|(variant, off)| (variant, off + 5));
        assert_eq!(shown, [once, twice].concat());
        assert_eq!(sliced_turns(&[Range::default()], 3).len(), 3, "nothing but plain runs");
    }

    #[test]
    fn sliced_turns_of_fewer_repeats_are_the_beginning_of_those_of_more() {
        for variants in [0, 1, 3] {
            let ways = [0..variants, variants..variants + 2];
            assert!(sliced_turns(&ways, 8).starts_with(&sliced_turns(&ways, 3)));
        }
    }

    #[test]
    fn every_drafted_run_is_paired_with_its_neighbour() {
        for (variants, repeats) in [(1, 1), (1, 2), (3, 1), (5, 4), (4, 3), (0, 2)] {
            let turns = turns(variants, repeats);
            for (at, turn) in turns.iter().enumerate() {
                assert_eq!(turns[turn.off].variant, None, "{variants} {repeats} {at}");
                let distance = if turn.variant.is_some() { 1 } else { 0 };
                assert_eq!(at.abs_diff(turn.off), distance, "{variants} {repeats} {at}");
            }
            for variant in 0..variants {
                let count = turns.iter().filter(|turn| turn.variant == Some(variant)).count();
                assert_eq!(count, repeats);
            }
        }
    }
}
