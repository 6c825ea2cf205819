//! Norms, activations and sums over rows.

use super::super::grids::{combine_grid, element_grid, head_grid, norm_grid};
use super::*;
use crate::kernels::{add_scaled, rms_norm, silu_mul};
use crate::layers::Rope;
use crate::models::{RopeLayout, RopeScaling, RopeSpec};

/// Numbers of both signs and some range, the same for the same seed.
pub(super) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() * (4.0 * next()).exp2()).collect()
}

/// Compares bits; one NaN is like another, since a card has one only.
#[track_caller]
pub(super) fn assert_same(got: &[u32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let got = f32::from_bits(*got);
        let is_same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(is_same, "{what}: {got} for {want} at {i}");
    }
}

const SPECIAL: [f32; 14] = [
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    0.0,
    -0.0,
    88.9,
    -88.9,
    103.9,
    -103.9,
    1e30,
    -1e30,
    1e-40,
    -1e-40,
    1e-30,
];

#[test]
fn sums_of_rows_are_those_of_plain_additions() {
    for len in [1usize, 255, 256, 257, 1000] {
        let mut card = Card::new();
        let (a, b) = (noise(len, 1), noise(len, 2));
        let (x, y) = (card.upload_floats(&a), card.upload_floats(&b));
        let out = card.upload_floats(&vec![0.0; len]);
        let (grid, n) = (element_grid(len as u32), Arg::U32(len as u32));
        card.run("sum_rows", grid, &[Arg::Ptr(x), Arg::Ptr(y), Arg::Ptr(out), n]);
        let sums: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        assert_same(&card.read_bits(out, len), &sums, "sum_rows");
        card.run("add_rows", grid, &[Arg::Ptr(x), Arg::Ptr(out), n]);
        let sums: Vec<f32> = sums.iter().zip(&a).map(|(sum, a)| sum + a).collect();
        assert_same(&card.read_bits(out, len), &sums, "add_rows");
        let bias = noise(7, 3);
        let at = card.upload_floats(&bias);
        card.run("add_bias", grid, &[Arg::Ptr(at), Arg::Ptr(out), Arg::U32(7), n]);
        let sums: Vec<f32> = sums.iter().enumerate().map(|(i, sum)| sum + bias[i % 7]).collect();
        assert_same(&card.read_bits(out, len), &sums, "add_bias");
    }
}

#[test]
fn gated_activations_have_the_bits_of_the_cpu_over_the_whole_range_of_exp() {
    let mut gate = SPECIAL.to_vec();
    gate.extend(noise(3000, 4).into_iter().map(|value| value * 40.0));
    let up = noise(gate.len(), 5);
    let mut card = Card::new();
    let (x, y) = (card.upload_floats(&gate), card.upload_floats(&up));
    let len = gate.len();
    card.run("silu_mul", element_grid(len as u32), &[Arg::Ptr(x), Arg::Ptr(y), Arg::U32(len as u32)]);
    silu_mul(&mut gate, &up);
    assert_same(&card.read_bits(x, len), &gate, "silu_mul");
}

#[test]
fn rows_are_normed_as_on_the_cpu_in_place_or_apart() {
    for width in [1usize, 5, 64, 256, 577, 2048, 4097] {
        for (x_stride, out_stride) in [(width, width), (width + 3, width + 9)] {
            let (rows, eps) = (3, 1e-5);
            let (x, weight) = (noise(rows * x_stride, 6), noise(width, 7));
            let mut card = Card::new();
            let (at, weight_at) = (card.upload_floats(&x), card.upload_floats(&weight));
            let out = card.upload_floats(&vec![-1.0; rows * out_stride]);
            let mut want = vec![-1.0; rows * out_stride];
            for (x, out) in x.chunks(x_stride).zip(want.chunks_mut(out_stride)) {
                rms_norm(&x[..width], &weight, eps, &mut out[..width]);
            }
            let args = |to, stride| {
                let [w, x_stride, stride] = [width, x_stride, stride].map(|n| Arg::U32(n as u32));
                [Arg::Ptr(at), Arg::Ptr(weight_at), Arg::Ptr(to), w, x_stride, stride, Arg::F32(eps)]
            };
            card.run("rms_norm", norm_grid(rows as u32), &args(out, out_stride));
            assert_same(&card.read_bits(out, want.len()), &want, "rms_norm");
            card.run("rms_norm", norm_grid(rows as u32), &args(at, x_stride));
            let mut in_place = x;
            for (x, normed) in in_place.chunks_mut(x_stride).zip(want.chunks(out_stride)) {
                x[..width].copy_from_slice(&normed[..width]);
            }
            assert_same(&card.read_bits(at, in_place.len()), &in_place, "rms_norm in place");
        }
    }
}

#[test]
fn expert_outputs_are_added_in_rank_order_without_fusing() {
    let (rows, width, used) = (3usize, 300usize, 4usize);
    let routed = noise(rows * used * width, 8);
    let weights = noise(rows * used, 9);
    let place: Vec<u32> = (0..(rows * used) as u32).map(|pick| pick * 5 % (rows * used) as u32).collect();
    let mut branch = noise(rows * width, 10);
    let mut card = Card::new();
    let (routed_at, branch_at) = (card.upload_floats(&routed), card.upload_floats(&branch));
    let place_at = card.upload(&place.iter().flat_map(|place| place.to_le_bytes()).collect::<Vec<u8>>());
    let weights_at = card.upload_floats(&weights);
    let [w, u] = [width, used].map(|n| Arg::U32(n as u32));
    let args = [Arg::Ptr(routed_at), Arg::Ptr(place_at), Arg::Ptr(weights_at), Arg::Ptr(branch_at), w, u];
    card.run("combine", combine_grid(rows as u32, width as u32), &args);
    for (row, out) in branch.chunks_mut(width).enumerate() {
        for pick in row * used..(row + 1) * used {
            let at = place[pick] as usize * width;
            add_scaled(&routed[at..at + width], weights[pick], out);
        }
    }
    assert_same(&card.read_bits(branch_at, branch.len()), &branch, "combine");
}

/// A rotation of heads within wider rows.
#[derive(Clone, Copy, Debug)]
struct Turn {
    heads: usize,
    head_dim: usize,
    x_stride: usize,
    offset: usize,
    half: usize,
    layout: RopeLayout,
    is_normed: bool,
}

#[test]
fn heads_are_normed_and_rotated_as_on_the_cpu() {
    for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
        let whole =
            Turn { heads: 4, head_dim: 128, x_stride: 128, offset: 0, half: 64, layout, is_normed: false };
        check_turn(whole);
        check_turn(Turn { is_normed: true, ..whole });
        check_turn(Turn { heads: 3, head_dim: 80, x_stride: 80, half: 20, is_normed: true, ..whole });
        check_turn(Turn { heads: 1, head_dim: 576, x_stride: 576, offset: 512, half: 32, ..whole });
        check_turn(Turn { heads: 5, head_dim: 192, x_stride: 200, offset: 128, half: 32, ..whole });
        check_turn(Turn { heads: 2, head_dim: 512, x_stride: 512, half: 256, is_normed: true, ..whole });
    }
}

fn check_turn(turn: Turn) {
    let (rows, start, eps) = (3, 17, 1e-6);
    let spec = RopeSpec {
        dim: 2 * turn.half,
        base: 10_000.0,
        layout: turn.layout,
        scaling: RopeScaling::Linear { factor: 2.0 },
    };
    let table = Rope::new(&spec, None).table(start, rows);
    // What a rotation makes of (1, 0) is the angle's cosine and sine.
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for row in 0..rows {
        let is_second = |i: usize| match turn.layout {
            RopeLayout::Interleaved => i % 2 == 1,
            RopeLayout::Halves => i >= turn.half,
        };
        let mut units: Vec<f32> = (0..2 * turn.half).map(|i| if is_second(i) { 0.0 } else { 1.0 }).collect();
        table.rotate(row, &mut units);
        let values = units.into_iter().enumerate();
        let (second, first): (Vec<_>, Vec<_>) = values.partition(|(i, _)| is_second(*i));
        cos.extend(first.into_iter().map(|(_, value)| value));
        sin.extend(second.into_iter().map(|(_, value)| value));
    }
    let mut x = noise(rows * turn.heads * turn.x_stride, 11);
    let norm = noise(turn.head_dim, 12);
    let mut card = Card::new();
    let at = card.upload_floats(&x);
    let tables = [&cos, &sin].map(|table| Arg::Ptr(card.upload_floats(table)));
    let norm_at = card.upload_floats(&norm);
    let sizes = [turn.heads, turn.head_dim, turn.x_stride, turn.offset, turn.half];
    let mut args = vec![Arg::Ptr(at)];
    args.extend(tables);
    args.extend(sizes.map(|size| Arg::U32(size as u32)));
    args.push(Arg::U32(u32::from(turn.layout == RopeLayout::Interleaved)));
    args.push(Arg::Ptr(if turn.is_normed { norm_at } else { 0 }));
    args.push(Arg::F32(eps));
    card.run("rotate", head_grid(rows as u32, turn.heads as u32), &args);
    let mut normed = vec![0f32; turn.head_dim];
    for (index, head) in x.chunks_mut(turn.x_stride).enumerate() {
        if turn.is_normed {
            rms_norm(&head[..turn.head_dim], &norm, eps, &mut normed);
            head[..turn.head_dim].copy_from_slice(&normed);
        }
        table.rotate(index / turn.heads, &mut head[turn.offset..]);
    }
    assert_same(&card.read_bits(at, x.len()), &x, &format!("{turn:?}"));
}
