//! Every kernel of every format against the portable one (bit by bit), dequantized arithmetic, and
//! itself with other numbers of rows.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::super::format::{Format, Side};
use super::activations::{Activations, X32, X256};
use super::tile::{TILE_ROWS_MAX, Tile};
use super::{Isa, dequantize};

/// Values around 0, the same for the same seed.
pub(crate) fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next() + next() + next()).collect()
}

/// Where a format's f16 scales stand in a block.
fn scales(format: Format) -> &'static [usize] {
    match format {
        Format::F32 | Format::F16 | Format::BF16 | Format::MXFP4 | Format::IQ1M => &[],
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::IQ4NL | Format::IQ4XS => &[0],
        Format::IQ3XXS | Format::IQ3S | Format::IQ2XXS | Format::IQ2XS | Format::IQ2S | Format::IQ1S => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q6K => &[208],
    }
}

/// `count` weights in blocks of random bits with sane scales; floats are made from values, since random
/// bits are not numbers.
pub(crate) fn random_weights(format: Format, count: usize, seed: u64) -> Vec<u8> {
    let values = noise(count, seed);
    match format {
        Format::F32 => return values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Format::F16 => return values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        Format::BF16 => return values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        _ => {}
    }
    let block_type = format.block_type();
    let block_bytes = block_type.block_bytes() as usize;
    let len = block_type.bytes_for(count as u64).unwrap() as usize;
    let mut bytes: Vec<u8> = noise(len, seed).iter().map(|v| (v * 4096.0) as i32 as u8).collect();
    for (block, scale) in bytes.chunks_mut(block_bytes).zip(noise(len / block_bytes, seed + 1)) {
        let bits = half::f16::from_f32(scale / 64.0).to_bits();
        for (i, at) in scales(format).iter().enumerate() {
            // Not the same for scale and minimum.
            let bits = bits ^ (0x155 * i as u16);
            block[*at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
        match format {
            Format::MXFP4 => block[0] = 118 + block[0] % 8,
            // The scale's four nibbles stand above the four 12-bit words behind the codes.
            Format::IQ1M => {
                for part in 0..4 {
                    let high = &mut block[48 + 2 * part + 1];
                    *high = *high & 0x0f | ((bits >> (4 * part) & 15) as u8) << 4;
                }
            }
            _ => {}
        }
    }
    bytes
}

/// Activation rows of `width` values as another processor's memory has them: for `Side::Float` the floats, else
/// blocks of 320 bytes, their padding zero.
#[cfg(feature = "gpu-emulator")]
pub(crate) fn quantized(side: Side, values: &[f32], width: usize) -> Vec<u8> {
    fn bytes<const N: usize, T>(numbers: &[T], of: fn(&T) -> [u8; N]) -> impl Iterator<Item = u8> {
        numbers.iter().flat_map(of)
    }
    fn rows<X: Activations>(values: &[f32], width: usize) -> Vec<X> {
        let mut out = vec![X::ZERO; values.len() / width * width.div_ceil(256)];
        Isa::Portable.quantize(values, width, &mut out);
        out
    }
    let mut out = Vec::new();
    match side {
        Side::Float => out.extend(bytes(values, |v| v.to_le_bytes())),
        Side::X32 => rows::<X32>(values, width).iter().for_each(|x| {
            out.extend(bytes(&x.q, |q| q.to_le_bytes()));
            out.extend(bytes(&x.d, |d| d.to_le_bytes()));
            out.extend(bytes(&x.sums, |sum| sum.to_le_bytes()));
        }),
        Side::X256 => rows::<X256>(values, width).iter().for_each(|x| {
            out.extend(bytes(&x.q, |q| q.to_le_bytes()));
            out.extend(bytes(&x.sums, |sum| sum.to_le_bytes()));
            out.extend(x.d.to_le_bytes());
            out.resize(out.len().next_multiple_of(320), 0);
        }),
    }
    out
}

/// `weights . x` of all rows through the kernel for `R` of them at a time.
fn products(isa: Isa, format: Format, weights: &[u8], x: &[f32], cols: usize, at_a_time: usize) -> Vec<f32> {
    let rows = x.len() / cols;
    let per_row = cols.div_ceil(256);
    let (mut wide, mut narrow) = (vec![X256::ZERO; 0], vec![X32::ZERO; 0]);
    let starts: Vec<*const u8> = match format.side() {
        Side::Float => x.chunks(cols).map(|row| row.as_ptr().cast()).collect(),
        Side::X32 => {
            narrow.resize(rows * per_row, X32::ZERO);
            isa.quantize(x, cols, &mut narrow);
            narrow.chunks(per_row).map(|row| row.as_ptr().cast()).collect()
        }
        Side::X256 => {
            wide.resize(rows * per_row, X256::ZERO);
            isa.quantize(x, cols, &mut wide);
            wide.chunks(per_row).map(|row| row.as_ptr().cast()).collect()
        }
    };
    let row_bytes = format.block_type().bytes_for(cols as u64).unwrap() as usize;
    let out_stride = weights.len() / row_bytes;
    let mut out = vec![f32::NAN; rows * out_stride];
    for (starts, out) in starts.chunks_exact(at_a_time).zip(out.chunks_mut(at_a_time * out_stride)) {
        let mut x = [std::ptr::null(); TILE_ROWS_MAX];
        x[..at_a_time].copy_from_slice(starts);
        let tile = Tile { weights, row_bytes, x, cols, out: out.as_mut_ptr(), out_stride };
        // SAFETY: the instructions are available, and the tile is made of what was just allocated.
        unsafe { isa.kernel(format).0[at_a_time.ilog2() as usize](&tile) };
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Widths with and without a part of 256 behind whole ones.
fn widths(format: Format) -> &'static [usize] {
    match format.side() {
        Side::Float => &[1, 15, 16, 33, 256],
        Side::X32 => &[32, 64, 96, 128, 160, 192, 256, 480, 544],
        Side::X256 => &[256, 768],
    }
}

#[test]
fn every_kernel_gives_the_bits_of_the_portable_one_for_any_number_of_rows() {
    for format in Format::all() {
        for &cols in widths(format) {
            let (weights, x) = (random_weights(format, 5 * cols, 1), noise(8 * cols, 2));
            let expected = products(Isa::Portable, format, &weights, &x, cols, 1);
            assert!(expected.iter().all(|v| v.is_finite()), "{format:?}");
            for isa in Isa::available() {
                for at_a_time in [1, 2, 4, 8] {
                    let got = products(isa, format, &weights, &x, cols, at_a_time);
                    assert_eq!(bits(&got), bits(&expected), "{format:?} {cols} {isa:?} {at_a_time}");
                }
            }
        }
    }
}

#[test]
fn what_stands_behind_a_row_does_not_show_in_it() {
    // Kernels may read on into the next row, whose scales may be infinite.
    for format in Format::all().filter(|format| format.side() == Side::X32) {
        for cols in [32, 128, 352, 480] {
            let (mut weights, x) = (random_weights(format, 4 * cols, 1), noise(8 * cols, 2));
            let row_bytes = weights.len() / 4;
            let alone: Vec<_> = weights
                .chunks(row_bytes)
                .map(|row| products(Isa::Portable, format, row, &x, cols, 1))
                .collect();
            for broken in [1, 3] {
                weights[broken * row_bytes..][..row_bytes].fill(0xff);
            }
            for isa in Isa::available() {
                for at_a_time in [1, 2, 4, 8] {
                    let got = products(isa, format, &weights, &x, cols, at_a_time);
                    let rows: Vec<f32> = got.chunks(4).flat_map(|of_x| [of_x[0], of_x[2]]).collect();
                    let expected: Vec<f32> =
                        alone[0].iter().zip(&alone[2]).flat_map(|(a, b)| [*a, *b]).collect();
                    assert_eq!(bits(&rows), bits(&expected), "{format:?} {cols} {isa:?} {at_a_time}");
                }
            }
        }
    }
}

#[test]
fn thousands_of_random_products_have_the_bits_of_the_portable_kernel() {
    // What happens once in a hundred thousand products happens in a text.
    for format in Format::all() {
        let cols = 768;
        for seed in 0..12 {
            let (weights, x) = (random_weights(format, 64 * cols, 100 + seed), noise(8 * cols, 200 + seed));
            let x: Vec<f32> = x.iter().map(|v| v * 10f32.powi(seed as i32 % 7 - 3)).collect();
            let expected = products(Isa::Portable, format, &weights, &x, cols, 1);
            for isa in Isa::available() {
                for at_a_time in [1, 8] {
                    let got = products(isa, format, &weights, &x, cols, at_a_time);
                    let wrong = got.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
                    let wrong = wrong.map(|at| (at, got[at], expected[at]));
                    assert_eq!(wrong, None, "{format:?} {isa:?} {at_a_time} seed {seed}");
                }
            }
        }
    }
}

#[test]
fn every_kernel_agrees_with_dequantized_arithmetic() {
    for format in Format::all() {
        for &cols in widths(format) {
            let (weights, x) = (random_weights(format, 7 * cols, 3), noise(cols, 4));
            let got = products(Isa::best(), format, &weights, &x, cols, 1);
            for (row, got) in weights.chunks(weights.len() / 7).zip(got) {
                let mut values = vec![0f32; cols];
                dequantize(format, row, &mut values);
                let products = || values.iter().zip(&x).map(|(a, b)| f64::from(*a) * f64::from(*b));
                let exact: f64 = products().sum();
                // 8-bit activations: an error of half a step, 1/254 of the largest, in each product.
                let size = products().map(|p| p * p).sum::<f64>().sqrt();
                let tolerance = if format.side() == Side::Float { 1e-6 } else { 0.03 };
                let error = (f64::from(got) - exact).abs();
                assert!(
                    error <= tolerance * size + 1e-6,
                    "{format:?} {cols}: {got} for {exact}, size {size}"
                );
            }
        }
    }
}

#[test]
fn extreme_integers_do_not_overflow_a_lane() {
    // All bits set and activations of one sign: the largest sums every format can make.
    for format in Format::all().filter(|format| format.side() != Side::Float) {
        for fill in [0u8, 0x7f, 0x80, 0xff] {
            let mut weights = random_weights(format, 512, 5);
            let block_bytes = format.block_type().block_bytes() as usize;
            for block in weights.chunks_mut(block_bytes) {
                let scales: Vec<usize> = scales(format).iter().flat_map(|at| [*at, at + 1]).collect();
                let kept = |i: usize| match format {
                    Format::MXFP4 => i == 0,
                    Format::IQ1M => i >= 48,
                    _ => scales.contains(&i),
                };
                (0..block_bytes).filter(|i| !kept(*i)).for_each(|i| block[i] = fill);
            }
            for x in [vec![1f32; 512], vec![-1f32; 512]] {
                let expected = products(Isa::Portable, format, &weights, &x, 512, 1);
                for isa in Isa::available() {
                    let got = products(isa, format, &weights, &x, 512, 1);
                    assert_eq!(bits(&got), bits(&expected), "{format:?} {fill:#x} {isa:?}");
                }
                let mut values = vec![0f32; 512];
                dequantize(format, &weights, &mut values);
                let exact: f64 = values.iter().map(|v| f64::from(*v) * f64::from(x[0])).sum();
                assert!(
                    (f64::from(expected[0]) - exact).abs() <= 1e-4 * exact.abs() + 1e-3,
                    "{format:?} {fill:#x}"
                );
            }
        }
    }
}

#[test]
fn quantized_activations_are_the_same_on_every_instruction_set() {
    let mut x = noise(3 * 544, 9);
    (x[5], x[700], x[1000]) = (f32::NAN, f32::INFINITY, 1e-40);
    x[256..512].fill(0.0);
    let quantized = |isa: Isa| {
        let (mut wide, mut narrow) = (vec![X256::ZERO; 6], vec![X32::ZERO; 9]);
        isa.quantize(&x[..1536], 512, &mut wide[..6]);
        isa.quantize(&x, 544, &mut narrow);
        format!("{wide:?}{narrow:?}")
    };
    for isa in Isa::available() {
        assert_eq!(quantized(isa), quantized(Isa::Portable), "{isa:?}");
    }
}
