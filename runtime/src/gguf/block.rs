//! Every ggml block type: its id in a file, its name, and the size of one block.
//!
//! Owns the closed list of ids; must not know how a block is decoded (`quantize.rs`, `kernels/`).
//! Sizes are facts of the format (ggml's `ggml-common.h`; `tests/fixtures/block_sizes.txt` is the
//! table of python's `gguf` package, compared in `tests/gguf_reader.rs`).

use std::fmt;

/// A ggml tensor type. The discriminant is the id that stands in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
#[expect(non_camel_case_types, missing_docs, reason = "the field's names, explained by their own spelling")]
pub enum BlockType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

use BlockType::{
    BF16, F16, F32, F64, I8, I16, I32, I64, IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, IQ4_NL,
    IQ4_XS, MXFP4, NVFP4, Q1_0, Q2_0, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, Q8_1, Q8_K,
    TQ1_0, TQ2_0,
};

impl BlockType {
    /// All types, in id order.
    pub const ALL: &'static [BlockType] = &[
        F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ2_XXS, IQ2_XS,
        IQ3_XXS, IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, I8, I16, I32, I64, F64, IQ1_M, BF16, TQ1_0, TQ2_0,
        MXFP4, NVFP4, Q1_0, Q2_0,
    ];

    /// The type with this id in a file, `None` for an id outside the list.
    pub fn from_id(id: u32) -> Option<BlockType> {
        Self::ALL.iter().copied().find(|block_type| block_type.id() == id)
    }

    /// The type with this name, in any letter case (`q4_k`, `Q4_K`).
    pub fn from_name(name: &str) -> Option<BlockType> {
        Self::ALL.iter().copied().find(|block_type| block_type.name().eq_ignore_ascii_case(name))
    }

    /// The id that stands in a file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// ggml's name, upper case.
    pub const fn name(self) -> &'static str {
        self.spec().0
    }

    /// Elements in one block (1 for the plain types).
    pub const fn block_len(self) -> u64 {
        self.spec().1
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> u64 {
        self.spec().2
    }

    /// Bytes of `elements` values: `None` when they are not whole blocks or the size overflows.
    pub const fn bytes_for(self, elements: u64) -> Option<u64> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }

    /// (name, elements per block, bytes per block)
    const fn spec(self) -> (&'static str, u64, u64) {
        match self {
            F32 => ("F32", 1, 4),
            F16 => ("F16", 1, 2),
            BF16 => ("BF16", 1, 2),
            F64 => ("F64", 1, 8),
            I8 => ("I8", 1, 1),
            I16 => ("I16", 1, 2),
            I32 => ("I32", 1, 4),
            I64 => ("I64", 1, 8),
            Q4_0 => ("Q4_0", 32, 18),
            Q4_1 => ("Q4_1", 32, 20),
            Q5_0 => ("Q5_0", 32, 22),
            Q5_1 => ("Q5_1", 32, 24),
            Q8_0 => ("Q8_0", 32, 34),
            Q8_1 => ("Q8_1", 32, 36),
            Q2_K => ("Q2_K", 256, 84),
            Q3_K => ("Q3_K", 256, 110),
            Q4_K => ("Q4_K", 256, 144),
            Q5_K => ("Q5_K", 256, 176),
            Q6_K => ("Q6_K", 256, 210),
            Q8_K => ("Q8_K", 256, 292),
            IQ1_S => ("IQ1_S", 256, 50),
            IQ1_M => ("IQ1_M", 256, 56),
            IQ2_XXS => ("IQ2_XXS", 256, 66),
            IQ2_XS => ("IQ2_XS", 256, 74),
            IQ2_S => ("IQ2_S", 256, 82),
            IQ3_XXS => ("IQ3_XXS", 256, 98),
            IQ3_S => ("IQ3_S", 256, 110),
            IQ4_NL => ("IQ4_NL", 32, 18),
            IQ4_XS => ("IQ4_XS", 256, 136),
            TQ1_0 => ("TQ1_0", 256, 54),
            TQ2_0 => ("TQ2_0", 256, 66),
            MXFP4 => ("MXFP4", 32, 17),
            NVFP4 => ("NVFP4", 64, 36),
            Q1_0 => ("Q1_0", 128, 18),
            Q2_0 => ("Q2_0", 64, 18),
        }
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a user can do about an id that ggml has given up, for the error message.
pub(super) fn retired_name(id: u32) -> Option<&'static str> {
    match id {
        4 | 5 => Some("Q4_2/Q4_3, removed from ggml in 2023"),
        31..=33 => Some("Q4_0 repacked for ARM, removed from ggml: use the plain Q4_0 file"),
        36..=38 => Some("IQ4_NL repacked for ARM, removed from ggml: use the plain IQ4_NL file"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn ids_and_names_lead_back_to_their_type() {
        for &block_type in BlockType::ALL {
            assert_eq!(BlockType::from_id(block_type.id()), Some(block_type));
            assert_eq!(BlockType::from_name(&block_type.name().to_lowercase()), Some(block_type));
        }
        assert_eq!(BlockType::ALL.len(), 35);
        assert_eq!(BlockType::from_id(43), None);
        assert_eq!(BlockType::from_id(u32::MAX), None);
    }

    #[test]
    fn a_part_of_a_block_and_an_overflow_have_no_size() {
        assert_eq!(Q4_K.bytes_for(512), Some(288));
        assert_eq!(Q4_K.bytes_for(0), Some(0));
        assert_eq!(Q4_K.bytes_for(255), None);
        assert_eq!(F64.bytes_for(u64::MAX / 4), None);
        assert_eq!(Q8_0.bytes_for(u64::MAX - 31), None);
    }
}
