//! Rows on their way into the cache.

use super::super::grids::heads_grid;
use super::super::shapes::{HeadsJob, heads_jobs};
use super::vector::noise;
use super::*;
use crate::kernels::RowLayout;

/// Layouts of the rows in a cache: f16, Q8_0, both, and widths that end within a word.
const LAYOUTS: [RowLayout; 8] = [
    RowLayout { quantized: 0, halves: 128 },
    RowLayout { quantized: 0, halves: 80 },
    RowLayout { quantized: 0, halves: 13 },
    RowLayout { quantized: 0, halves: 576 },
    RowLayout { quantized: 128, halves: 0 },
    RowLayout { quantized: 576, halves: 0 },
    RowLayout { quantized: 64, halves: 16 },
    RowLayout { quantized: 32, halves: 1 },
];

/// Stores heads of `x` (`[rows, heads, len]`) and compares the whole cache with what `pack` makes of it.
fn check(layout: RowLayout, (rows, heads, len): (usize, usize, usize), x: &[f32]) {
    let (context_len, start) = (rows + 7, 4);
    let mut cache = vec![0x3b; heads * context_len * layout.bytes()];
    let mut card = Card::new();
    let (x_at, cache_at) = (card.upload_floats(x), card.upload(&cache));
    let values = HeadsJob {
        x: x_at,
        cache: cache_at,
        heads,
        len,
        offset: len,
        quantized: layout.quantized,
        halves: layout.halves,
        ..HeadsJob::default()
    };
    let jobs = heads_jobs([HeadsJob::default(), HeadsJob::default(), values]);
    let mut args = vec![Arg::Struct(&jobs), Arg::Ptr(0), Arg::Ptr(0)];
    args.extend([0, 0, context_len, start, rows].map(|size| Arg::U32(size as u32)));
    card.run("place_heads", heads_grid(rows as u32, heads as u32), &args);
    for (index, values) in x.chunks(len).enumerate() {
        let position = index % heads * context_len + start + index / heads;
        let row = &mut cache[position * layout.bytes()..][..layout.bytes()];
        layout.pack(&values[..layout.dim()], row);
    }
    assert_eq!(card.read(cache_at, cache.len()), cache, "{layout:?}");
}

#[test]
fn rows_are_packed_as_on_the_cpu_and_nothing_else_is_touched() {
    for layout in LAYOUTS {
        for (rows, heads, more) in [(1, 1, 0), (5, 3, 0), (8, 2, 9)] {
            let len = layout.dim() + more;
            for scale in [1e-9, 1e-5, 1.0, 3e4, 1e8] {
                let x: Vec<f32> = noise(rows * heads * len, 21).iter().map(|x| x * scale).collect();
                check(layout, (rows, heads, len), &x);
            }
        }
    }
}

#[test]
fn broken_and_extreme_values_are_packed_as_on_the_cpu() {
    let special = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0, -0.0, 1e-40]
        .into_iter()
        .chain(
            [0x7f80_0001u32, 0xffc1_2345, 0x477f_efff, 0x477f_f000, 0x3880_0000, 0x387f_ffff]
                .map(f32::from_bits),
        )
        .chain([0x3300_0000u32, 0x3300_0001, 0x3380_0000, 0x33c0_0000, 0x32ff_ffff].map(f32::from_bits));
    for layout in LAYOUTS {
        for special in special.clone() {
            let mut x = noise(2 * layout.dim(), 22);
            x[0] = special;
            x[layout.dim() - 1] = special;
            check(layout, (2, 1, layout.dim()), &x);
            check(layout, (2, 1, layout.dim()), &vec![special; 2 * layout.dim()]);
        }
    }
}

#[test]
fn every_kind_of_float_becomes_the_half_that_the_cpu_makes_of_it() {
    // Every exponent of both signs, with mantissas around the places where rounding turns.
    let mantissas = (0..64u32).map(|i| i * 0x1_fff1 % 0x80_0000);
    let ties = (0..32u32).map(|i| (i * 0x4_3000 + 0x1000) % 0x80_0000);
    let mantissas: Vec<u32> = mantissas.chain(ties).collect();
    let x: Vec<f32> = (0..512u32)
        .flat_map(|front| mantissas.iter().map(move |mantissa| f32::from_bits(front << 23 | mantissa)))
        .collect();
    let layout = RowLayout { quantized: 0, halves: 512 };
    check(layout, (x.len() / 512, 1, 512), &x);
}
