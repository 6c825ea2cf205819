//! The tables that unpackers look weights up in, as bytes, for kernels that run on another processor.
//!
//! Owns their names and order. Must not know where they go.

use super::i_quants::{IQ1_ROWS, IQ2_S_ROWS, IQ2_XS_ROWS, IQ2_XXS_ROWS, IQ3_S_ROWS, IQ3_XXS_ROWS};
use super::legacy::{DOUBLED_E2M1, NONLINEAR};

/// Every table with its name; numbers are little-endian.
pub(crate) fn lookup_tables() -> [(&'static str, Vec<u8>); 8] {
    let levels = |levels: &[i8; 16]| levels.map(i8::cast_unsigned).to_vec();
    let fours = |rows: &[u32]| rows.iter().flat_map(|row| row.to_le_bytes()).collect();
    let eights = |rows: &[u64]| rows.iter().flat_map(|row| row.to_le_bytes()).collect();
    [
        ("NONLINEAR", levels(&NONLINEAR)),
        ("E2M1", levels(&DOUBLED_E2M1)),
        ("IQ3_XXS", fours(&IQ3_XXS_ROWS)),
        ("IQ3_S", fours(&IQ3_S_ROWS)),
        ("IQ2_XXS", eights(&IQ2_XXS_ROWS)),
        ("IQ2_XS", eights(&IQ2_XS_ROWS)),
        ("IQ2_S", eights(&IQ2_S_ROWS)),
        ("IQ1", eights(&IQ1_ROWS)),
    ]
}
