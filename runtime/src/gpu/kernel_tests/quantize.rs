//! The quantizers.

use super::super::shapes::quantize_grid;
use super::{Arg, Card};
use crate::kernels::{Side, noise, quantized};

/// Rows of noise, some of them what no model should give.
fn rows(width: usize) -> Vec<f32> {
    let mut x = noise(9 * width, 5);
    for (row, x) in x.chunks_mut(width).enumerate() {
        let scale = [1.0, 1e-29, 0.0, 1e30, 1.0, 1.0, 1e-40, 3e-30, 1e-3][row];
        x.iter_mut().for_each(|x| *x *= scale);
    }
    (x[4 * width + 3], x[5 * width + width / 2]) = (f32::NAN, f32::NEG_INFINITY);
    // Halves between two steps.
    for (i, x) in x[8 * width..].iter_mut().enumerate() {
        *x = if i % 32 == 0 { 127.0 } else { (i % 254) as f32 / 2.0 - 60.0 };
    }
    x
}

fn check(side: Side, kernel: &str, width: usize) {
    let x = rows(width);
    let num_rows = x.len() / width;
    for gap in [0, 5] {
        let mut apart = Vec::new();
        for row in x.chunks(width) {
            apart.extend_from_slice(row);
            apart.extend_from_slice(&vec![9e9; gap]);
        }
        let expected = quantized(side, &x, width);
        let mut card = Card::new();
        let x = card.upload_floats(&apart);
        let out = card.upload(&vec![if side == Side::X32 { 0xa5 } else { 0 }; expected.len()]);
        // One block too many: the kernel knows the number of rows.
        let mut grid = quantize_grid(num_rows as u32, width as u32);
        grid.blocks[0] += 1;
        let args = [
            Arg::Ptr(x),
            Arg::Ptr(out),
            Arg::U32(width as u32),
            Arg::U32((width + gap) as u32),
            Arg::U32(num_rows as u32),
        ];
        card.run(kernel, grid, &args);
        assert!(card.read(out, expected.len()) == expected, "{side:?} {width} values, {gap} between rows");
    }
}

#[test]
fn quantized_rows_have_the_bits_of_the_cpu() {
    for width in [256, 512, 1280] {
        check(Side::X256, "quantize_x256", width);
    }
    for width in [32, 96, 256, 272, 544, 1280] {
        check(Side::X32, "quantize_x32", width);
    }
}
