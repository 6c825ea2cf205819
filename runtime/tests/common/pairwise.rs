//! Combinations of settings such that any two values of any two axes meet in at least one of them.
//!
//! A covering array of strength 2, built greedily from the full product: small products only.

use std::collections::BTreeSet;

/// Rows of value indices, one per axis; `sizes[a]` is the number of values of axis `a`.
pub fn pairwise(sizes: &[usize]) -> Vec<Vec<usize>> {
    let product: Vec<Vec<usize>> = product(sizes);
    let mut open: BTreeSet<_> = product.iter().flat_map(|row| pairs(row)).collect();
    let mut rows = Vec::new();
    while !open.is_empty() {
        let gain = |row: &Vec<usize>| pairs(row).filter(|pair| open.contains(pair)).count();
        let best = product.iter().rev().max_by_key(|row| gain(row)).unwrap();
        for pair in pairs(best) {
            open.remove(&pair);
        }
        rows.push(best.clone());
    }
    rows
}

/// ((axis, value), (axis, value)) of every two axes of a row.
fn pairs(row: &[usize]) -> impl Iterator<Item = ((usize, usize), (usize, usize))> {
    (0..row.len()).flat_map(move |a| (a + 1..row.len()).map(move |b| ((a, row[a]), (b, row[b]))))
}

fn product(sizes: &[usize]) -> Vec<Vec<usize>> {
    sizes.iter().fold(vec![Vec::new()], |rows, size| {
        let extended = |row: &Vec<usize>| {
            let row = row.clone();
            (0..*size).map(move |value| [&row[..], &[value]].concat())
        };
        rows.iter().flat_map(extended).collect()
    })
}
