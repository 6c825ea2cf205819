//! Norms, activations and sums over rows.

use super::super::grids::{combine_grid, element_grid, heads_grid, norm_grid, silu_grid};
use super::super::shapes::{HeadsJob, heads_jobs, picks, side_number};
use super::*;
use crate::kernels::{Side, add_scaled, quantized, rms_norm, silu_mul};
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
    let [width, rows] = [len, 1].map(|n| Arg::U32(n as u32));
    let args = [Arg::Ptr(x), Arg::Ptr(y), Arg::Ptr(0), Arg::U32(0), width, rows];
    card.run("silu_mul", silu_grid(1, len as u32), &args);
    silu_mul(&mut gate, &up);
    assert_same(&card.read_bits(x, len), &gate, "silu_mul");
}

/// Layouts that results are quantized to, with widths that come whole in them.
const PACKED: [(Side, usize); 7] = [
    (Side::X256, 256),
    (Side::X256, 1536),
    (Side::X256, 8448),
    (Side::X32, 32),
    (Side::X32, 288),
    (Side::X32, 1376),
    (Side::X32, 2048),
];

#[test]
fn activations_are_quantized_besides_as_on_the_cpu() {
    for (side, width) in PACKED {
        for rows in [1usize, 3, 9] {
            let (mut gate, up) = (noise(rows * width, 13), noise(rows * width, 14));
            let mut card = Card::new();
            let (x, y) = (card.upload_floats(&gate), card.upload_floats(&up));
            silu_mul(&mut gate, &up);
            let packed = quantized(side, &gate, width);
            let to = card.upload(&vec![0; packed.len()]);
            let [w, n] = [width, rows].map(|n| Arg::U32(n as u32));
            let args = [Arg::Ptr(x), Arg::Ptr(y), Arg::Ptr(to), Arg::U32(side_number(side)), w, n];
            card.run("silu_mul", silu_grid(rows as u32, width as u32), &args);
            assert_same(&card.read_bits(x, gate.len()), &gate, "silu_mul");
            assert!(card.read(to, packed.len()) == packed, "{side:?}, {rows} rows of {width}");
        }
    }
}

const EPS: f32 = 1e-5;

/// Of `rms_norm`: rows, what is added to them, weight and result; where it is quantized, and how; width and strides.
fn norm_args(
    (x, add, weight, out): (DevicePtr, DevicePtr, DevicePtr, DevicePtr),
    (packed, side): (DevicePtr, Side),
    (width, x_stride, out_stride): (usize, usize, usize),
) -> [Arg<'static>; 10] {
    let [width, x_stride, out_stride] = [width, x_stride, out_stride].map(|n| Arg::U32(n as u32));
    let [x, add, weight, out, packed] = [x, add, weight, out, packed].map(Arg::Ptr);
    let side = Arg::U32(side_number(side));
    [x, add, weight, out, packed, side, width, x_stride, out_stride, Arg::F32(EPS)]
}

#[test]
fn a_norm_adds_before_and_quantizes_behind_as_on_the_cpu() {
    for (side, width) in PACKED {
        for is_added in [false, true] {
            let rows = 3;
            let (mut x, more, weight) = (noise(rows * width, 15), noise(rows * width, 16), noise(width, 17));
            let mut card = Card::new();
            let [at, more_at, weight_at] = [&x, &more, &weight].map(|values| card.upload_floats(values));
            let mut out = vec![0.0; rows * width];
            let (out_at, add) = (card.upload_floats(&out), if is_added { more_at } else { 0 });
            if is_added {
                add_scaled(&more, 1.0, &mut x);
            }
            for (x, out) in x.chunks(width).zip(out.chunks_mut(width)) {
                rms_norm(x, &weight, EPS, out);
            }
            let packed = quantized(side, &out, width);
            let to = card.upload(&vec![0; packed.len()]);
            let args = norm_args((at, add, weight_at, out_at), (to, side), (width, width, width));
            card.run("rms_norm", norm_grid(rows as u32), &args);
            assert_same(&card.read_bits(at, x.len()), &x, "what was added to");
            assert_same(&card.read_bits(out_at, out.len()), &out, "rms_norm");
            assert!(card.read(to, packed.len()) == packed, "{side:?}, {width} values, added: {is_added}");
        }
    }
}

#[test]
fn rows_are_normed_as_on_the_cpu_in_place_or_apart() {
    for width in [1usize, 5, 64, 256, 577, 2048, 4097, 8192, 8197] {
        for (x_stride, out_stride) in [(width, width), (width + 3, width + 9)] {
            let rows = 3;
            let (x, weight) = (noise(rows * x_stride, 6), noise(width, 7));
            let mut card = Card::new();
            let (at, weight_at) = (card.upload_floats(&x), card.upload_floats(&weight));
            let out = card.upload_floats(&vec![-1.0; rows * out_stride]);
            let mut want = vec![-1.0; rows * out_stride];
            for (x, out) in x.chunks(x_stride).zip(want.chunks_mut(out_stride)) {
                rms_norm(&x[..width], &weight, EPS, &mut out[..width]);
            }
            let args =
                |to, stride| norm_args((at, 0, weight_at, to), (0, Side::Float), (width, x_stride, stride));
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
    let before = card.upload_floats(&branch);
    card.run("combine", combine_grid(rows as u32, width as u32), &args);
    let few = picks(&place, &weights);
    let args = [Arg::Ptr(routed_at), Arg::Struct(&few), Arg::Ptr(before), w, u];
    card.run("combine_few", combine_grid(rows as u32, width as u32), &args);
    for (row, out) in branch.chunks_mut(width).enumerate() {
        for pick in row * used..(row + 1) * used {
            let at = place[pick] as usize * width;
            add_scaled(&routed[at..at + width], weights[pick], out);
        }
    }
    assert_same(&card.read_bits(branch_at, branch.len()), &branch, "combine");
    assert_same(&card.read_bits(before, branch.len()), &branch, "combine_few");
}

/// A rotation of heads.
#[derive(Clone, Copy, Debug)]
struct Turn {
    heads: usize,
    len: usize,
    offset: usize,
    half: usize,
    layout: RopeLayout,
    /// Values of a head that are normed before.
    norm_len: usize,
    /// Whether the rotated part goes elsewhere.
    is_moved: bool,
}

#[test]
fn heads_are_normed_and_rotated_as_on_the_cpu() {
    for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
        let whole = Turn { heads: 4, len: 128, offset: 0, half: 64, layout, norm_len: 0, is_moved: false };
        check_turn(whole);
        check_turn(Turn { norm_len: 128, ..whole });
        check_turn(Turn { heads: 3, len: 80, half: 20, norm_len: 80, ..whole });
        check_turn(Turn { heads: 1, len: 576, offset: 512, half: 32, norm_len: 512, ..whole });
        check_turn(Turn { heads: 5, len: 192, offset: 128, half: 32, is_moved: true, ..whole });
        check_turn(Turn { heads: 5, len: 200, offset: 128, half: 32, is_moved: true, ..whole });
        check_turn(Turn { heads: 2, len: 512, half: 256, norm_len: 512, ..whole });
    }
}

fn check_turn(turn: Turn) {
    let (rows, start, eps) = (3, 17, 1e-6);
    let Turn { heads, len, offset, half, norm_len, .. } = turn;
    let spec = RopeSpec {
        dim: 2 * half,
        base: 10_000.0,
        layout: turn.layout,
        scaling: RopeScaling::Linear { factor: 2.0 },
    };
    let table = Rope::new(&spec, None).table(start, rows);
    let mut x = noise(rows * heads * len, 11);
    let norm = noise(norm_len.max(1), 12);
    // Rotated parts lie behind 7 others.
    let (to_stride, to_at) = (len - offset + 9, 7);
    let mut moved = vec![0.25; rows * heads * to_stride];
    let mut card = Card::new();
    let (at, norm_at, to) = (card.upload_floats(&x), card.upload_floats(&norm), card.upload_floats(&moved));
    let (cos, sin) = table.angles();
    let tables = [cos, sin].map(|table| Arg::Ptr(card.upload_floats(table)));
    let job = HeadsJob {
        x: at,
        norm: if norm_len > 0 { norm_at } else { 0 },
        to: if turn.is_moved { to } else { 0 },
        eps,
        heads,
        len,
        offset,
        norm_len,
        to_stride,
        to_at,
        ..HeadsJob::default()
    };
    // The same heads are not to be touched as keys or values.
    let jobs = heads_jobs([job, HeadsJob::default(), HeadsJob::default()]);
    let is_interleaved = u32::from(turn.layout == RopeLayout::Interleaved);
    let mut args = vec![Arg::Struct(&jobs)];
    args.extend(tables);
    args.extend([half as u32, is_interleaved, 64, start as u32, rows as u32].map(Arg::U32));
    card.run("place_heads", heads_grid(rows as u32, heads as u32), &args);
    let mut normed = vec![0f32; norm_len];
    for (index, (head, to)) in x.chunks_mut(len).zip(moved.chunks_mut(to_stride)).enumerate() {
        if norm_len > 0 {
            rms_norm(&head[..norm_len], &norm, eps, &mut normed);
            head[..norm_len].copy_from_slice(&normed);
        }
        let part = if turn.is_moved {
            let part = &mut to[to_at..to_at + len - offset];
            part.copy_from_slice(&head[offset..]);
            part
        } else {
            &mut head[offset..]
        };
        table.rotate(index / heads, part);
    }
    assert_same(&card.read_bits(at, x.len()), &x, &format!("{turn:?}"));
    assert_same(&card.read_bits(to, moved.len()), &moved, &format!("{turn:?}"));
}
