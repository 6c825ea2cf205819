//! The block formats that have a kernel, and what each wants of the activations.
//!
//! Owns the map from [`BlockType`] to a format. Must not know how blocks are decoded (`cpu`).

use crate::gguf::BlockType;

use super::cpu;

/// Declares [`Format`] and its table at once: a format without a line is refused at load.
macro_rules! formats {
    ($($(#[$doc:meta])* $format:ident = $block_type:ident, $side:ident;)*) => {
        /// A block format with a kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Format {
            $($(#[$doc])* $format,)*
        }

        const FORMATS: &[(BlockType, Format, Side)] =
            &[$((BlockType::$block_type, Format::$format, Side::$side),)*];

        impl Format {
            /// As its variant is called.
            pub fn name(self) -> &'static str {
                match self {
                    $(Format::$format => stringify!($format),)*
                }
            }
        }
    };
}

formats! {
    /// 32-bit floats.
    F32 = F32, Float;
    /// IEEE half floats.
    F16 = F16, Float;
    /// Brain floats.
    BF16 = BF16, Float;
    /// 4 bits, 32 weights, scale.
    Q4_0 = Q4_0, X32;
    /// 4 bits, 32 weights, scale and minimum.
    Q4_1 = Q4_1, X32;
    /// 5 bits, 32 weights, scale.
    Q5_0 = Q5_0, X32;
    /// 5 bits, 32 weights, scale and minimum.
    Q5_1 = Q5_1, X32;
    /// 8 bits, 32 weights, scale.
    Q8_0 = Q8_0, X32;
    /// 2-bit K-quant.
    Q2K = Q2_K, X256;
    /// 3-bit K-quant.
    Q3K = Q3_K, X256;
    /// 4-bit K-quant.
    Q4K = Q4_K, X256;
    /// 5-bit K-quant.
    Q5K = Q5_K, X256;
    /// 6-bit K-quant.
    Q6K = Q6_K, X256;
    /// 4 bits as an index into 16 levels, 32 weights, scale.
    IQ4NL = IQ4_NL, X32;
    /// The same levels, 256 weights with scales of 6 bits.
    IQ4XS = IQ4_XS, X256;
    /// Codebook of 256 fours, 3.06 bits a weight.
    IQ3XXS = IQ3_XXS, X256;
    /// Codebook of 512 fours, 3.44 bits.
    IQ3S = IQ3_S, X256;
    /// Codebook of 256 eights, 2.06 bits.
    IQ2XXS = IQ2_XXS, X256;
    /// Codebook of 512 eights, 2.31 bits.
    IQ2XS = IQ2_XS, X256;
    /// Codebook of 1024 eights, 2.56 bits.
    IQ2S = IQ2_S, X256;
    /// Codebook of 2048 ternary eights, 1.56 bits.
    IQ1S = IQ1_S, X256;
    /// The same with finer scales, 1.75 bits.
    IQ1M = IQ1_M, X256;
    /// Floats of 4 bits (E2M1), 32 weights, a power of two as scale.
    MXFP4 = MXFP4, X32;
}

/// What a format's dot product multiplies with: the activation row as it is, or quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// As it is.
    Float,
    /// In 8 bits, with a scale for every 32.
    X32,
    /// In 8 bits, with a scale for every 256.
    X256,
}

/// Whether weights of this type can be computed with.
pub fn is_supported(block_type: BlockType) -> bool {
    Format::of(block_type).is_some()
}

/// The names of all supported types, for messages.
pub fn supported_names() -> String {
    FORMATS.iter().map(|(block_type, ..)| block_type.name()).collect::<Vec<_>>().join(", ")
}

impl Format {
    /// The kernel for a block type, if there is one.
    pub fn of(block_type: BlockType) -> Option<Format> {
        FORMATS.iter().find(|(known, ..)| *known == block_type).map(|(_, format, _)| *format)
    }

    /// All formats.
    pub fn all() -> impl Iterator<Item = Format> {
        FORMATS.iter().map(|(_, format, _)| *format)
    }

    /// The block type it computes with.
    pub fn block_type(self) -> BlockType {
        self.entry().0
    }

    /// What it multiplies with.
    pub fn side(self) -> Side {
        self.entry().2
    }

    fn entry(self) -> &'static (BlockType, Format, Side) {
        FORMATS.iter().find(|(_, format, _)| *format == self).expect("invariant: every format has a line")
    }

    /// Writes a weight row's values to `out` (embedding look-up, one-time transformations).
    pub fn dequantize(self, row: &[u8], out: &mut [f32]) {
        cpu::dequantize(self, row, out);
    }
}
