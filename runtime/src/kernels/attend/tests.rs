//! Attention against f64 arithmetic, and bit by bit against itself in every company.

use super::super::kv_rows::RowLayout;
use super::*;

/// Cached rows and the queries that look at them.
struct Case {
    key: RowLayout,
    value: Option<RowLayout>,
    value_dim: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
    queries: Vec<Vec<f32>>,
}

const fn halves(dim: usize) -> RowLayout {
    RowLayout { quantized: 0, halves: dim }
}

const fn blocks(dim: usize) -> RowLayout {
    RowLayout { quantized: dim, halves: 0 }
}

/// Layouts of key and value (`None`: the front of the key), and the value's width.
const SHAPES: [(RowLayout, Option<RowLayout>, usize); 7] = [
    (halves(128), Some(halves(128)), 128),
    (halves(576), None, 512),
    (halves(20), Some(halves(13)), 13),
    (halves(1), Some(halves(1)), 1),
    (blocks(128), Some(blocks(96)), 96),
    (blocks(576), None, 512),
    (RowLayout { quantized: 64, halves: 16 }, None, 64),
];

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn packed(layout: RowLayout, positions: usize, seed: u64) -> Vec<u8> {
    let values = noise(positions * layout.dim(), seed);
    let mut rows = vec![0; positions * layout.bytes()];
    for (values, row) in values.chunks(layout.dim()).zip(rows.chunks_mut(layout.bytes())) {
        layout.pack(values, row);
    }
    rows
}

fn unpacked(layout: RowLayout, rows: &[u8]) -> Vec<Vec<f64>> {
    let floats = |row| {
        let mut out = vec![0f32; layout.dim()];
        layout.unpack::<Plain>(row, &mut out);
        out.into_iter().map(f64::from).collect()
    };
    rows.chunks(layout.bytes()).map(floats).collect()
}

impl Case {
    fn new(
        (key, value, value_dim): (RowLayout, Option<RowLayout>, usize),
        positions: usize,
        queries: usize,
    ) -> Case {
        let scale = 4.0 / (key.dim() as f32).sqrt();
        let query = |seed| noise(key.dim(), 100 + seed as u64).into_iter().map(|v| v * scale).collect();
        Case {
            key,
            value,
            value_dim,
            keys: packed(key, positions, 1),
            values: value.map_or_else(Vec::new, |layout| packed(layout, positions, 2)),
            queries: (0..queries).map(query).collect(),
        }
    }

    fn view(&self) -> KvView<'_> {
        let values = self.value.map(|layout| KvRows { bytes: &self.values, layout });
        KvView { keys: KvRows { bytes: &self.keys, layout: self.key }, values }
    }

    /// Attends queries (by number, with what each sees) together.
    fn attend(&self, asked: &[(usize, usize)], run: impl Fn(&mut AttendSpace, &KvView<'_>)) -> Vec<Vec<u32>> {
        let mut space = AttendSpace::new(self.key.dim(), self.value_dim, self.value.is_none());
        for (query, limit) in asked {
            space.push(*limit).copy_from_slice(&self.queries[*query]);
        }
        run(&mut space, &self.view());
        let bits = |index| space.output(index).iter().map(|value| value.to_bits()).collect();
        (0..asked.len()).map(bits).collect()
    }

    fn exact(&self, query: usize, limit: usize) -> Vec<f64> {
        let keys = unpacked(self.key, &self.keys);
        let values = self.value.map_or_else(|| keys.clone(), |layout| unpacked(layout, &self.values));
        let query = &self.queries[query];
        let score = |key: &Vec<f64>| key.iter().zip(query).map(|(k, q)| k * f64::from(*q)).sum::<f64>();
        let scores: Vec<f64> = keys[..limit].iter().map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let column = |d: usize| values.iter().zip(&weights).map(|(v, w)| v[d] * w).sum::<f64>() / sum;
        (0..self.value_dim).map(column).collect()
    }
}

#[test]
fn attention_agrees_with_f64_at_every_shape_and_length() {
    for shape in SHAPES {
        let case = Case::new(shape, 161, 5);
        for limit in [1, 2, TILE - 1, TILE, TILE + 1, 2 * TILE - 1, 2 * TILE, 2 * TILE + 1, 161] {
            let asked: Vec<_> = (0..5).map(|query| (query, limit)).collect();
            for ((query, _), got) in asked.iter().zip(case.attend(&asked, AttendSpace::run)) {
                for (got, exact) in got.iter().zip(case.exact(*query, limit)) {
                    let got = f64::from(f32::from_bits(*got));
                    assert!((got - exact).abs() < 3e-6, "{shape:?} {limit}: {got} for {exact}");
                }
            }
        }
    }
}

#[test]
fn a_query_gets_the_same_bits_alone_and_in_any_company() {
    for shape in SHAPES {
        let case = Case::new(shape, 131, 12);
        let limits = [131, 130, 129, 128, 127, 97, 96, 95, 33, 32, 31, 1];
        let asked: Vec<_> = limits.into_iter().enumerate().collect();
        let alone: Vec<_> =
            asked.iter().map(|one| case.attend(&[*one], AttendSpace::run).remove(0)).collect();
        for size in 2..=asked.len() {
            for group in asked.windows(size) {
                let want = &alone[group[0].0..][..size];
                assert!(case.attend(group, AttendSpace::run) == want, "{shape:?} {group:?}");
            }
        }
        let reversed: Vec<_> = asked.iter().rev().copied().collect();
        let want: Vec<_> = alone.iter().rev().cloned().collect();
        assert!(case.attend(&reversed, AttendSpace::run) == want, "{shape:?} in reverse");
    }
}

#[test]
fn plain_code_gives_the_bits_of_the_code_for_this_cpu() {
    for shape in SHAPES {
        let case = Case::new(shape, 70, 7);
        for limits in [[70; 7], [64, 65, 66, 67, 68, 69, 70], [1, 2, 3, 31, 32, 33, 34]] {
            let asked: Vec<_> = limits.into_iter().enumerate().collect();
            let plain = case.attend(&asked, |space, kv| space.run_with::<Plain>(kv));
            assert!(case.attend(&asked, AttendSpace::run) == plain, "{shape:?} {limits:?}");
        }
    }
}

#[test]
fn positions_that_a_query_does_not_see_change_nothing() {
    for shape in SHAPES {
        let mut case = Case::new(shape, 40, 3);
        let asked = [(0, 37), (1, 34), (2, 30)];
        let before = case.attend(&asked, AttendSpace::run);
        // What lies behind is not even a number.
        case.keys[37 * case.key.bytes()..].fill(u8::MAX);
        if let Some(layout) = case.value {
            case.values[37 * layout.bytes()..].fill(u8::MAX);
        }
        assert!(case.attend(&asked, AttendSpace::run) == before, "{shape:?}");
    }
}

#[test]
fn a_space_is_as_large_as_planned_and_forgets_what_it_did() {
    for (key, value, value_dim) in SHAPES {
        let mut space = AttendSpace::new(key.dim(), value_dim, value.is_none());
        let progress = space.progress.capacity() * size_of::<Progress>() / size_of::<f32>();
        let floats = [&space.queries, &space.outputs, &space.weights, &space.keys, &space.values];
        let total = floats.into_iter().map(Vec::len).sum::<usize>() + progress;
        assert_eq!(AttendSpace::floats(key.dim(), value_dim, value.is_none()), total);
        let case = Case::new((key, value, value_dim), 50, 2);
        let mut once = |query: usize| {
            space.clear();
            space.push(50).copy_from_slice(&case.queries[query]);
            space.run(&case.view());
            space.output(0).to_vec()
        };
        let first = once(0);
        assert!(once(1) != first && once(0) == first);
    }
}
