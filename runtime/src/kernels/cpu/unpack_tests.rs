//! The unpackers against python's `gguf` package, and against bytes that no quantizer writes.

use std::ops::RangeInclusive;

use super::blocks::{Block32, Block256, Unpacked256, dequantize32, dequantize256};
use super::i_quants::{Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Iq4Xs};
use super::k_quants::{Q2K, Q3K, Q4K, Q5K, Q6K};
use super::legacy::{Iq4Nl, Mxfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, half_e8m0};

/// A format with its vectors, and what its integers may be: both ends of a range are reached.
struct Case {
    name: &'static str,
    block_bytes: usize,
    block_len: usize,
    /// `scripts/fixtures/block_vectors.py`: bytes of blocks, then their values as f32.
    vectors: &'static [u8],
    dequantize: fn(&[u8], &mut [f32]),
    integers: fn(&[u8]) -> Integers,
    q: RangeInclusive<i8>,
    scales: RangeInclusive<i16>,
    mins: RangeInclusive<i16>,
}

/// Weights, scales and minima of a block.
type Integers = (Vec<i8>, Vec<i16>, Vec<i16>);

macro_rules! cases {
    ($($name:literal $format:ty: $case:ident $q:expr, $scales:expr, $mins:expr;)*) => {
        vec![$($case::<$format>(
            $name,
            include_bytes!(concat!("../../../tests/fixtures/blocks/", $name, ".bin")),
            ($q, $scales, $mins),
        )),*]
    };
}

fn cases() -> Vec<Case> {
    cases! {
        "q4_0" Q4_0: case32 0..=15, 1..=1, 0..=0;
        "q4_1" Q4_1: case32 0..=15, 1..=1, 0..=0;
        "q5_0" Q5_0: case32 0..=31, 1..=1, 0..=0;
        "q5_1" Q5_1: case32 0..=31, 1..=1, 0..=0;
        "q8_0" Q8_0: case32 -128..=127, 1..=1, 0..=0;
        "iq4_nl" Iq4Nl: case32 -127..=113, 1..=1, 0..=0;
        "mxfp4" Mxfp4: case32 -12..=12, 1..=1, 0..=0;
        "q2_k" Q2K: case256 0..=3, 0..=15, 0..=15;
        "q3_k" Q3K: case256 0..=7, -32..=31, 0..=0;
        "q4_k" Q4K: case256 0..=15, 0..=63, 0..=63;
        "q5_k" Q5K: case256 0..=31, 0..=63, 0..=63;
        "q6_k" Q6K: case256 0..=63, -128..=127, 0..=0;
        "iq4_xs" Iq4Xs: case256 -127..=113, -32..=31, 0..=0;
        "iq3_xxs" Iq3Xxs: case256 -62..=62, 1..=31, 0..=0;
        "iq3_s" Iq3S: case256 -15..=15, 1..=31, 0..=0;
        "iq2_xxs" Iq2Xxs: case256 -43..=43, 1..=31, 0..=0;
        "iq2_xs" Iq2Xs: case256 -43..=43, 1..=31, 0..=0;
        "iq2_s" Iq2S: case256 -43..=43, 1..=31, 0..=0;
        "iq1_s" Iq1S: case256 -9..=9, 1..=15, 0..=0;
        "iq1_m" Iq1M: case256 -9..=9, 1..=15, 0..=0;
    }
}

type Ranges = (RangeInclusive<i8>, RangeInclusive<i16>, RangeInclusive<i16>);

fn case256<B: Block256>(name: &'static str, vectors: &'static [u8], (q, scales, mins): Ranges) -> Case {
    assert_eq!((B::IS_SIGNED, B::HAS_MINS), (*q.start() < 0, *mins.end() > 0), "{name}");
    let (dequantize, integers) = (dequantize256::<B>, integers256::<B>);
    Case { name, block_bytes: B::BYTES, block_len: 256, vectors, dequantize, integers, q, scales, mins }
}

fn case32<B: Block32>(name: &'static str, vectors: &'static [u8], (q, scales, mins): Ranges) -> Case {
    assert_eq!(B::IS_SIGNED, *q.start() < 0, "{name}");
    let (dequantize, integers) = (dequantize32::<B>, integers32::<B>);
    Case { name, block_bytes: B::BYTES, block_len: 32, vectors, dequantize, integers, q, scales, mins }
}

fn integers256<B: Block256>(block: &[u8]) -> Integers {
    // What an earlier block may have left.
    let mut out = Unpacked256 { q: [99; 256], scales: [999; 16], mins: [999; 16], d: 9.0, d_min: 9.0 };
    B::unpack(block, &mut out);
    assert!(B::HAS_MINS || out.d_min == 0.0);
    (out.q.to_vec(), out.scales.to_vec(), out.mins.to_vec())
}

fn integers32<B: Block32>(block: &[u8]) -> Integers {
    let mut q = [99; 32];
    let (_, m) = B::unpack(block, &mut q);
    assert!(B::HAS_MIN || m == 0.0);
    (q.to_vec(), vec![1], vec![0])
}

/// Products of an f16 scale, an integer scale and a weight are exact in f32, so at most one operation
/// rounds, and in both programs the same one: every bit agrees.
#[test]
fn every_format_dequantizes_as_the_gguf_package_does() {
    for case in cases() {
        let bytes_each = case.block_bytes + 4 * case.block_len;
        let num_blocks = case.vectors.len() / bytes_each;
        assert!(num_blocks >= 8 && case.vectors.len() % bytes_each == 0, "{}", case.name);
        let (row, values) = case.vectors.split_at(num_blocks * case.block_bytes);
        let mut ours = vec![f32::NAN; num_blocks * case.block_len];
        (case.dequantize)(row, &mut ours);
        for (i, (ours, theirs)) in ours.iter().zip(values.as_chunks().0).enumerate() {
            let theirs = f32::from_le_bytes(*theirs);
            assert_eq!(
                ours.to_bits(),
                theirs.to_bits(),
                "{} weight {i}: {ours} instead of {theirs}",
                case.name
            );
        }
    }
}

#[test]
fn no_bytes_lead_out_of_the_bounds() {
    for case in cases() {
        let mut values = vec![0.0; case.block_len];
        let (mut q, mut scales, mut mins) = (None, None, None);
        for block in hostile_blocks(case.block_bytes) {
            (case.dequantize)(&block, &mut values);
            let integers = (case.integers)(&block);
            widen(&mut q, integers.0);
            widen(&mut scales, integers.1);
            widen(&mut mins, integers.2);
        }
        assert_eq!(q, Some(case.q), "{}", case.name);
        assert_eq!(scales, Some(case.scales), "{}", case.name);
        assert_eq!(mins, Some(case.mins), "{}", case.name);
    }
}

/// Blocks of one byte repeated, then of random bytes.
fn hostile_blocks(block_bytes: usize) -> Vec<Vec<u8>> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut blocks: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte; block_bytes]).collect();
    blocks.extend((0..2000).map(|_| (0..block_bytes).map(|_| random()).collect()));
    blocks
}

/// The least and the greatest so far.
fn widen<T: Copy + Ord>(range: &mut Option<RangeInclusive<T>>, more: Vec<T>) {
    for value in more {
        let (least, greatest) = range.take().unwrap_or(value..=value).into_inner();
        *range = Some(least.min(value)..=greatest.max(value));
    }
}

#[test]
fn powers_of_mxfp4_are_right_below_the_normal_range_too() {
    for e in 0..=255 {
        assert_eq!(f64::from(half_e8m0(e)), 2f64.powi(i32::from(e) - 128), "{e}");
    }
}
