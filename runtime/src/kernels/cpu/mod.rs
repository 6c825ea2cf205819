//! Kernels for the CPU: one arithmetic, written once in plain Rust and again with vector instructions.
//!
//! Owns the formats' layouts, the quantized activations, the tile kernels and the choice of
//! instructions. All kernels of a format give the same bits (`portable` defines them), so neither the
//! processor nor the number of rows in a tile shows in a result (DESIGN I2). Must not know threads or
//! matrices.

pub(super) mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(super) mod blocks;
mod codebooks;
mod i_quants;
mod k_quants;
mod legacy;
pub(super) mod lookup;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
pub(super) mod tests;
pub(super) mod tile;
#[cfg(test)]
mod unpack_tests;

use super::format::Format;
use activations::Activations;
use blocks::{dequantize32, dequantize256};
use i_quants::{Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Iq4Xs};
use k_quants::{Q2K, Q3K, Q4K, Q5K, Q6K};
use legacy::{Iq4Nl, Mxfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use portable::{BF16, F16, F32, dequantize_float};
use tile::Kernel;

/// Vector instructions that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Whatever the compiler makes of plain Rust.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Those and AVX-VNNI (from Alder Lake on).
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX-512 F, BW, VL and DQ (from Skylake-X on).
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Those and AVX-512 VNNI (from Ice Lake and Zen 4 on).
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// NEON, which every aarch64 has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// NEON with SDOT.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

/// A kernel function for 1, 2, 4 and 8 rows.
macro_rules! rows {
    ($kernel:ident <$($type:ty),+>) => {
        Kernel([
            $kernel::<$($type),+, 1>,
            $kernel::<$($type),+, 2>,
            $kernel::<$($type),+, 4>,
            $kernel::<$($type),+, 8>,
        ])
    };
}

impl Isa {
    /// The best this processor has (the standard library looks once).
    #[must_use]
    pub fn best() -> Isa {
        let best = Isa::ALL.iter().rev().find(|isa| isa.is_available());
        *best.expect("invariant: plain Rust runs anywhere")
    }

    /// All that this processor has, the best last.
    #[cfg(test)]
    pub(super) fn available() -> Vec<Isa> {
        Isa::ALL.iter().copied().filter(|isa| isa.is_available()).collect()
    }

    /// All on this kind of processor, better ones behind.
    const ALL: &[Isa] = &[
        Isa::Portable,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon,
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot,
    ];

    /// Whether this processor has the instructions.
    fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let avx2 = || {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        };
        #[cfg(target_arch = "x86_64")]
        let avx512 = || {
            avx2()
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
        };
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2(),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => avx2() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => avx512() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
        }
    }

    /// Its name, for reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => "neon-dotprod",
        }
    }

    /// The kernel of a format. May run where this instruction set is available, and only there.
    pub(super) fn kernel(self, format: Format) -> Kernel {
        match self {
            Isa::Portable => portable_kernel(format),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2_kernel(format),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => avx_vnni_kernel(format),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512_kernel(format),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => avx512_vnni_kernel(format),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon_kernel::<neon::Widening>(format),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => neon_kernel::<neon::DotProd>(format),
        }
    }

    /// Quantizes rows of `width` values, each row to whole blocks of its own.
    pub(super) fn quantize<X: Activations>(self, values: &[f32], width: usize, out: &mut [X]) {
        match self {
            Isa::Portable => activations::quantize_rows(values, width, out),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: whoever has this value has seen that the instructions are there; all have AVX2.
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 | Isa::Avx512Vnni => unsafe {
                avx2::quantize_rows(values, width, out)
            },
            // Compilers have NEON in plain code.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDot => activations::quantize_rows(values, width, out),
        }
    }
}

fn portable_kernel(format: Format) -> Kernel {
    use portable::{tile_float, tile32, tile256};
    match format {
        Format::F32 => rows!(tile_float<F32>),
        Format::F16 => rows!(tile_float<F16>),
        Format::BF16 => rows!(tile_float<BF16>),
        Format::Q4_0 => rows!(tile32<Q4_0>),
        Format::Q4_1 => rows!(tile32<Q4_1>),
        Format::Q5_0 => rows!(tile32<Q5_0>),
        Format::Q5_1 => rows!(tile32<Q5_1>),
        Format::Q8_0 => rows!(tile32<Q8_0>),
        Format::IQ4NL => rows!(tile32<Iq4Nl>),
        Format::MXFP4 => rows!(tile32<Mxfp4>),
        Format::Q2K => rows!(tile256<Q2K>),
        Format::Q3K => rows!(tile256<Q3K>),
        Format::Q4K => rows!(tile256<Q4K>),
        Format::Q5K => rows!(tile256<Q5K>),
        Format::Q6K => rows!(tile256<Q6K>),
        Format::IQ4XS => rows!(tile256<Iq4Xs>),
        Format::IQ3XXS => rows!(tile256<Iq3Xxs>),
        Format::IQ3S => rows!(tile256<Iq3S>),
        Format::IQ2XXS => rows!(tile256<Iq2Xxs>),
        Format::IQ2XS => rows!(tile256<Iq2Xs>),
        Format::IQ2S => rows!(tile256<Iq2S>),
        Format::IQ1S => rows!(tile256<Iq1S>),
        Format::IQ1M => rows!(tile256<Iq1M>),
    }
}

/// The kernel of a format out of the functions `tile_float`, `tile32` and `tile256` in scope, which take
/// formats in registers, some of them as `Buffered`.
#[cfg(target_arch = "x86_64")]
macro_rules! vector_kernel {
    ($format:expr) => {
        match $format {
            Format::F32 => rows!(tile_float<F32>),
            Format::F16 => rows!(tile_float<F16>),
            Format::BF16 => rows!(tile_float<BF16>),
            Format::Q4_0 => rows!(tile32<avx2::WideQ4_0>),
            Format::Q4_1 => rows!(tile32<avx2::WideQ4_1>),
            Format::Q5_0 => rows!(tile32<avx2::WideQ5_0>),
            Format::Q5_1 => rows!(tile32<avx2::WideQ5_1>),
            Format::Q8_0 => rows!(tile32<avx2::WideQ8_0>),
            Format::IQ4NL => rows!(tile32<avx2::WideIq4Nl>),
            Format::MXFP4 => rows!(tile32<avx2::WideMxfp4>),
            Format::Q2K => rows!(tile256<avx2::WideQ2K>),
            Format::Q3K => rows!(tile256<avx2::WideQ3K>),
            Format::Q4K => rows!(tile256<avx2::WideQ4K>),
            Format::Q5K => rows!(tile256<avx2::WideQ5K>),
            Format::Q6K => rows!(tile256<avx2::WideQ6K>),
            Format::IQ4XS => rows!(tile256<avx2::WideIq4Xs>),
            Format::IQ3XXS => rows!(tile256<Buffered<Iq3Xxs>>),
            Format::IQ3S => rows!(tile256<Buffered<Iq3S>>),
            Format::IQ2XXS => rows!(tile256<Buffered<Iq2Xxs>>),
            Format::IQ2XS => rows!(tile256<Buffered<Iq2Xs>>),
            Format::IQ2S => rows!(tile256<Buffered<Iq2S>>),
            Format::IQ1S => rows!(tile256<Buffered<Iq1S>>),
            Format::IQ1M => rows!(tile256<Buffered<Iq1M>>),
        }
    };
}

#[cfg(target_arch = "x86_64")]
fn avx2_kernel(format: Format) -> Kernel {
    use avx2::{Buffered, tile_float, tile32, tile256};
    vector_kernel!(format)
}

#[cfg(target_arch = "x86_64")]
fn avx_vnni_kernel(format: Format) -> Kernel {
    use avx2::{Buffered, tile_float, tile32_vnni as tile32, tile256_vnni as tile256};
    vector_kernel!(format)
}

#[cfg(target_arch = "x86_64")]
fn avx512_kernel(format: Format) -> Kernel {
    use avx2::tile32;
    use avx512::{Buffered, tile_float, tile256};
    vector_kernel!(format)
}

#[cfg(target_arch = "x86_64")]
fn avx512_vnni_kernel(format: Format) -> Kernel {
    use avx512::{Buffered, tile_float, tile32, tile256_vnni as tile256};
    vector_kernel!(format)
}

#[cfg(target_arch = "aarch64")]
fn neon_kernel<D: neon::Dot>(format: Format) -> Kernel {
    use neon::{
        Buffered, WideIq4Nl, WideIq4Xs, WideMxfp4, WideQ2K, WideQ3K, WideQ4_0, WideQ4_1, WideQ4K, WideQ5_0,
        WideQ5_1, WideQ5K, WideQ6K, WideQ8_0, tile_float, tile32, tile256,
    };
    match format {
        Format::F32 => rows!(tile_float<F32>),
        Format::F16 => rows!(tile_float<F16>),
        Format::BF16 => rows!(tile_float<BF16>),
        Format::Q4_0 => rows!(tile32<D, WideQ4_0>),
        Format::Q4_1 => rows!(tile32<D, WideQ4_1>),
        Format::Q5_0 => rows!(tile32<D, WideQ5_0>),
        Format::Q5_1 => rows!(tile32<D, WideQ5_1>),
        Format::Q8_0 => rows!(tile32<D, WideQ8_0>),
        Format::IQ4NL => rows!(tile32<D, WideIq4Nl>),
        Format::MXFP4 => rows!(tile32<D, WideMxfp4>),
        Format::Q2K => rows!(tile256<D, WideQ2K>),
        Format::Q3K => rows!(tile256<D, WideQ3K>),
        Format::Q4K => rows!(tile256<D, WideQ4K>),
        Format::Q5K => rows!(tile256<D, WideQ5K>),
        Format::Q6K => rows!(tile256<D, WideQ6K>),
        Format::IQ4XS => rows!(tile256<D, WideIq4Xs>),
        Format::IQ3XXS => rows!(tile256<D, Buffered<Iq3Xxs>>),
        Format::IQ3S => rows!(tile256<D, Buffered<Iq3S>>),
        Format::IQ2XXS => rows!(tile256<D, Buffered<Iq2Xxs>>),
        Format::IQ2XS => rows!(tile256<D, Buffered<Iq2Xs>>),
        Format::IQ2S => rows!(tile256<D, Buffered<Iq2S>>),
        Format::IQ1S => rows!(tile256<D, Buffered<Iq1S>>),
        Format::IQ1M => rows!(tile256<D, Buffered<Iq1M>>),
    }
}

/// Writes a weight row's values.
pub(super) fn dequantize(format: Format, row: &[u8], out: &mut [f32]) {
    match format {
        Format::F32 => dequantize_float::<F32>(row, out),
        Format::F16 => dequantize_float::<F16>(row, out),
        Format::BF16 => dequantize_float::<BF16>(row, out),
        Format::Q4_0 => dequantize32::<Q4_0>(row, out),
        Format::Q4_1 => dequantize32::<Q4_1>(row, out),
        Format::Q5_0 => dequantize32::<Q5_0>(row, out),
        Format::Q5_1 => dequantize32::<Q5_1>(row, out),
        Format::Q8_0 => dequantize32::<Q8_0>(row, out),
        Format::IQ4NL => dequantize32::<Iq4Nl>(row, out),
        Format::MXFP4 => dequantize32::<Mxfp4>(row, out),
        Format::Q2K => dequantize256::<Q2K>(row, out),
        Format::Q3K => dequantize256::<Q3K>(row, out),
        Format::Q4K => dequantize256::<Q4K>(row, out),
        Format::Q5K => dequantize256::<Q5K>(row, out),
        Format::Q6K => dequantize256::<Q6K>(row, out),
        Format::IQ4XS => dequantize256::<Iq4Xs>(row, out),
        Format::IQ3XXS => dequantize256::<Iq3Xxs>(row, out),
        Format::IQ3S => dequantize256::<Iq3S>(row, out),
        Format::IQ2XXS => dequantize256::<Iq2Xxs>(row, out),
        Format::IQ2XS => dequantize256::<Iq2Xs>(row, out),
        Format::IQ2S => dequantize256::<Iq2S>(row, out),
        Format::IQ1S => dequantize256::<Iq1S>(row, out),
        Format::IQ1M => dequantize256::<Iq1M>(row, out),
    }
}
