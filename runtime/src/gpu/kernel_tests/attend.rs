//! Attention over the cache, from scores to values.

use super::super::grids::{scores_grid, values_grid};
use super::vector::{assert_same, noise};
use super::*;
use crate::kernels::{AttendSpace, KvRows, KvView, RowLayout};

const fn halves(dim: usize) -> RowLayout {
    RowLayout { quantized: 0, halves: dim }
}

const fn blocks(dim: usize) -> RowLayout {
    RowLayout { quantized: dim, halves: 0 }
}

/// Heads and rows of one layer.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    key: RowLayout,
    /// `None`: the front of the key.
    value: Option<RowLayout>,
    value_dim: usize,
}

const SHAPES: [Shape; 8] = [
    Shape { heads: 4, kv_heads: 2, key: halves(128), value: Some(halves(128)), value_dim: 128 },
    Shape { heads: 3, kv_heads: 1, key: blocks(128), value: Some(blocks(128)), value_dim: 128 },
    Shape { heads: 2, kv_heads: 2, key: halves(80), value: Some(halves(72)), value_dim: 72 },
    Shape { heads: 2, kv_heads: 1, key: halves(13), value: Some(halves(7)), value_dim: 7 },
    Shape { heads: 4, kv_heads: 2, key: blocks(64), value: Some(halves(33)), value_dim: 33 },
    Shape { heads: 3, kv_heads: 1, key: halves(576), value: None, value_dim: 512 },
    Shape { heads: 2, kv_heads: 1, key: blocks(576), value: None, value_dim: 512 },
    Shape { heads: 2, kv_heads: 1, key: RowLayout { quantized: 96, halves: 16 }, value: None, value_dim: 99 },
];

/// A cache, the queries behind it, and how they are scaled.
struct Case {
    shape: Shape,
    rows: usize,
    start: usize,
    context_len: usize,
    scale: f32,
    q: Vec<f32>,
    keys: Vec<u8>,
    values: Vec<u8>,
}

/// Rows of `kv_heads`; positions from `filled` on are not even numbers.
fn cache(layout: RowLayout, kv_heads: usize, (context_len, filled): (usize, usize), seed: u64) -> Vec<u8> {
    let mut rows = vec![0xff; kv_heads * context_len * layout.bytes()];
    let values = noise(kv_heads * context_len * layout.dim(), seed);
    let each = rows.chunks_mut(layout.bytes()).zip(values.chunks(layout.dim()));
    for (index, (row, values)) in each.enumerate() {
        if index % context_len < filled {
            // Later keys are longer now and then, so that the largest score changes.
            let growth = 1.0 + (index % context_len) as f32 / 64.0;
            layout.pack(&values.iter().map(|value| value * growth).collect::<Vec<_>>(), row);
        }
    }
    rows
}

impl Case {
    fn new(shape: Shape, rows: usize, start: usize) -> Case {
        let sizes = (start + rows + 5, start + rows);
        Case {
            shape,
            rows,
            start,
            context_len: sizes.0,
            scale: 0.7 / (shape.key.dim() as f32).sqrt(),
            q: noise(rows * shape.heads * shape.key.dim(), 31),
            keys: cache(shape.key, shape.kv_heads, sizes, 32),
            values: shape.value.map_or_else(Vec::new, |layout| cache(layout, shape.kv_heads, sizes, 33)),
        }
    }

    /// `[rows, heads, value_dim]`, by the CPU.
    fn by_cpu(&self) -> Vec<f32> {
        let Shape { heads, kv_heads, key, value, value_dim } = self.shape;
        let mut space = AttendSpace::new(key.dim(), value_dim, value.is_none());
        let mut out = Vec::with_capacity(self.rows * heads * value_dim);
        for (index, q) in self.q.chunks(key.dim()).enumerate() {
            let (row, kv_head) = (index / heads, index % heads * kv_heads / heads);
            let of_head = |bytes: &'_ [u8], layout: RowLayout| {
                let len = self.context_len * layout.bytes();
                bytes[kv_head * len..(kv_head + 1) * len].to_vec()
            };
            let keys = of_head(&self.keys, key);
            let values = value.map(|layout| (of_head(&self.values, layout), layout));
            space.clear();
            let place = space.push(self.start + row + 1);
            place.iter_mut().zip(q).for_each(|(place, q)| *place = q * self.scale);
            space.run(&KvView {
                keys: KvRows { bytes: &keys, layout: key },
                values: values.as_ref().map(|(bytes, layout)| KvRows { bytes, layout: *layout }),
            });
            out.extend_from_slice(space.output(0));
        }
        out
    }

    /// The same by the kernels, so many rows a block of values.
    fn by_card(&self, rows_each: u32) -> Vec<u32> {
        let Shape { heads, kv_heads, key, value, value_dim } = self.shape;
        let mut card = Card::new();
        let (q, keys) = (card.upload_floats(&self.q), card.upload(&self.keys));
        let (values, layout) = match value {
            Some(layout) => (card.upload(&self.values), layout),
            None => (keys, key),
        };
        let stride = self.start + self.rows + 3;
        let scores = card.upload(&vec![0xff; 4 * self.rows * heads * stride]);
        let out_len = self.rows * heads * value_dim;
        let out = card.upload(&vec![0xff; 4 * out_len]);
        let [rows, start, stride] = [self.rows, self.start, stride].map(|n| n as u32);
        let [heads, kv_heads, value_dim] = [heads, kv_heads, value_dim].map(|n| n as u32);
        let context_len = Arg::U32(self.context_len as u32);
        let cells = |layout: RowLayout| [layout.quantized, layout.halves].map(|n| Arg::U32(n as u32));
        let mut args =
            vec![Arg::Ptr(q), Arg::Ptr(keys), Arg::Ptr(scores), Arg::U32(heads), Arg::U32(kv_heads)];
        args.extend(cells(key));
        args.extend([context_len, Arg::U32(start), Arg::F32(self.scale), Arg::U32(stride), Arg::U32(rows)]);
        card.run("attend_scores", scores_grid(rows, heads, start), &args);
        let mut args = vec![Arg::Ptr(scores), Arg::Ptr(values), Arg::Ptr(out), Arg::U32(heads)];
        args.extend([Arg::U32(kv_heads), Arg::U32(value_dim)]);
        args.extend(cells(layout));
        args.extend([context_len, Arg::U32(start), Arg::U32(stride), Arg::U32(rows), Arg::U32(rows_each)]);
        card.run("attend_values", values_grid(rows, heads, value_dim, rows_each), &args);
        card.read_bits(out, out_len)
    }

    fn check(&self) {
        let wanted = self.by_cpu();
        for rows_each in [1, 2, 4] {
            let what =
                format!("{:?}, {} rows behind {}, {rows_each} a block", self.shape, self.rows, self.start);
            assert_same(&self.by_card(rows_each), &wanted, &what);
        }
    }
}

#[test]
fn attention_has_the_bits_of_the_cpu_at_every_shape_and_length() {
    for shape in SHAPES {
        for (rows, start) in [(1, 0), (3, 0), (2, 30), (1, 31), (4, 31), (1, 32), (8, 90), (2, 255), (1, 256)]
        {
            Case::new(shape, rows, start).check();
        }
    }
}

#[test]
fn attention_over_a_long_context_has_the_bits_of_the_cpu() {
    for shape in [SHAPES[0], SHAPES[1], SHAPES[5], SHAPES[6]] {
        Case::new(Shape { heads: shape.kv_heads, ..shape }, 2, 1500).check();
    }
    Case::new(Shape { heads: 1, kv_heads: 1, ..SHAPES[4] }, 1, 9000).check();
}

#[test]
fn broken_numbers_in_the_cache_show_where_they_do_on_the_cpu() {
    for shape in SHAPES {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut case = Case::new(shape, 3, 40);
            let mut key = noise(shape.key.dim(), 34);
            key[3] = broken;
            // The second row of the pass sees it, the first does not.
            shape.key.pack(&key, &mut case.keys[41 * shape.key.bytes()..][..shape.key.bytes()]);
            if let Some(layout) = shape.value {
                let mut value = noise(layout.dim(), 35);
                value[2] = broken;
                layout.pack(&value, &mut case.values[9 * layout.bytes()..][..layout.bytes()]);
            }
            case.check();
        }
    }
}

#[test]
fn scores_that_are_all_the_same_or_far_apart_weigh_as_on_the_cpu() {
    for shape in SHAPES {
        for scale in [0.0, 1e-20, 30.0, 1e4, f32::INFINITY] {
            let mut case = Case::new(shape, 2, 70);
            case.scale = scale;
            case.check();
        }
    }
}
