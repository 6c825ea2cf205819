//! The lookup tables that kernels of matrix products read.
//!
//! Owns their place in the device's memory: one after another, in the order of [`lookup_tables`], where
//! `kernels/tables.cuh` has them too. It must not know what they mean.

use crate::kernels::lookup_tables;

/// All tables, to be uploaded once, at a multiple of 16 bytes.
#[must_use]
pub fn tables() -> Vec<u8> {
    lookup_tables().into_iter().flat_map(|(_, bytes)| bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_look_for_every_table_where_it_stands() {
        let header = include_str!("kernels/tables.cuh");
        let in_header: Vec<&str> = header.lines().filter(|line| line.starts_with("#define")).collect();
        let mut at = 0;
        let mut here = Vec::new();
        for (name, bytes) in lookup_tables() {
            assert!(at % 16 == 0, "{name} is read 16 bytes at a time");
            here.push(format!("#define TABLE_{name} {at}"));
            at += bytes.len();
        }
        assert_eq!(in_header, here);
        assert_eq!(tables().len(), at);
    }
}
