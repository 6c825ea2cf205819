//! Least squares that forgets, of a sum of terms none of which can be negative.
//!
//! Owns the normal equations and their solution. It must not know what the terms stand for.

/// Terms of the sum.
pub(crate) const TERMS: usize = 3;
/// Weight that each sample leaves to those before it.
const KEEP: f64 = 1.0 - 1.0 / 64.0;
/// Pull of every term towards 0, as a share of the samples' own weight: shares what the samples cannot
/// tell apart evenly, and is invisible where they can.
const RIDGE: f64 = 1e-5;

type Matrix = [[f64; TERMS]; TERMS];

/// `y = sum of term * x`, fitted to the latest samples.
#[derive(Clone, Debug)]
pub(crate) struct Fit {
    xx: Matrix,
    xy: [f64; TERMS],
    terms: [f64; TERMS],
}

impl Fit {
    pub(crate) fn new() -> Fit {
        Fit { xx: [[0.0; TERMS]; TERMS], xy: [0.0; TERMS], terms: [0.0; TERMS] }
    }

    pub(crate) fn terms(&self) -> [f64; TERMS] {
        self.terms
    }

    pub(crate) fn predict(&self, x: [f64; TERMS]) -> f64 {
        x.iter().zip(&self.terms).map(|(x, term)| x * term).sum()
    }

    pub(crate) fn add(&mut self, x: [f64; TERMS], y: f64) {
        for i in 0..TERMS {
            for j in 0..TERMS {
                self.xx[i][j] = KEEP * self.xx[i][j] + x[i] * x[j];
            }
            self.xy[i] = KEEP * self.xy[i] + x[i] * y;
        }
        self.terms = self.solve();
    }

    /// The best of all choices of which terms are 0: with so few terms, each can be tried.
    fn solve(&self) -> [f64; TERMS] {
        let ridge = RIDGE * (0..TERMS).map(|i| self.xx[i][i]).fold(f64::MIN_POSITIVE, f64::max);
        let mut best = ([0.0; TERMS], 0.0);
        for free in 1..1u32 << TERMS {
            let terms = self.solve_for(free, ridge);
            if terms.iter().any(|term| !term.is_finite() || *term < 0.0) {
                continue;
            }
            let error = self.error(&terms, ridge);
            if error < best.1 {
                best = (terms, error);
            }
        }
        best.0
    }

    /// Sum of squared errors, less that of all terms 0.
    fn error(&self, terms: &[f64; TERMS], ridge: f64) -> f64 {
        let row = |i: usize| (0..TERMS).map(|j| self.xx[i][j] * terms[j]).sum::<f64>() + ridge * terms[i];
        (0..TERMS).map(|i| terms[i] * (row(i) - 2.0 * self.xy[i])).sum()
    }

    /// The solution in which the terms outside the set `free` (bits) are 0. Gauss with pivots.
    fn solve_for(&self, free: u32, ridge: f64) -> [f64; TERMS] {
        let (mut index, mut n) = ([0; TERMS], 0);
        for i in (0..TERMS).filter(|i| free >> i & 1 == 1) {
            (index[n], n) = (i, n + 1);
        }
        let index = &index[..n];
        // Gauss and Jordan, the right side last.
        let mut rows = [[0.0; TERMS + 1]; TERMS];
        for (row, &i) in rows.iter_mut().zip(index) {
            for (entry, &j) in row.iter_mut().zip(index) {
                *entry = self.xx[i][j] + if i == j { ridge } else { 0.0 };
            }
            row[n] = self.xy[i];
        }
        let rows = &mut rows[..n];
        for at in 0..n {
            let pivot =
                (at..n).max_by(|a, b| rows[*a][at].abs().total_cmp(&rows[*b][at].abs())).unwrap_or(at);
            rows.swap(at, pivot);
            let pivot_row = rows[at];
            for (_, row) in rows.iter_mut().enumerate().filter(|(r, _)| *r != at) {
                let factor = row[at] / pivot_row[at];
                row.iter_mut().zip(&pivot_row).for_each(|(value, pivot)| *value -= factor * pivot);
            }
        }
        let mut terms = [0.0; TERMS];
        index.iter().enumerate().for_each(|(at, &i)| terms[i] = rows[at][n] / rows[at][at]);
        terms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(samples: &[([f64; TERMS], f64)]) -> Fit {
        let mut fit = Fit::new();
        (0..50).for_each(|_| samples.iter().for_each(|(x, y)| fit.add(*x, *y)));
        fit
    }

    #[test]
    fn terms_that_samples_tell_apart_are_found() {
        let y = |x: [f64; TERMS]| 5.0 + 2.0 * x[1] + 0.5 * x[2];
        let fit =
            fitted(&[[1.0, 1.0, 1.0], [1.0, 2.0, 1.5], [1.0, 4.0, 2.0], [1.0, 8.0, 2.4]].map(|x| (x, y(x))));
        assert!((fit.predict([1.0, 6.0, 2.2]) - y([1.0, 6.0, 2.2])).abs() < 0.05, "{:?}", fit.terms());
    }

    #[test]
    fn what_samples_cannot_tell_apart_is_shared_evenly() {
        let [a, b, c] = fitted(&[([1.0; TERMS], 3.0)]).terms();
        assert!([a, b, c].iter().all(|term| (term - 1.0).abs() < 1e-3), "{a} {b} {c}");
    }

    #[test]
    fn no_term_is_negative_and_the_rest_makes_up_for_it() {
        // Falls with the second feature: the best nonnegative answer is the mean.
        let fit = fitted(&[([1.0, 1.0, 0.0], 2.0), ([1.0, 2.0, 0.0], 1.0)]);
        assert!(fit.terms().iter().all(|term| *term >= 0.0));
        assert!((fit.predict([1.0, 1.5, 0.0]) - 1.5).abs() < 0.05, "{:?}", fit.terms());
    }

    #[test]
    fn old_samples_are_forgotten() {
        let mut fit = fitted(&[([1.0, 1.0, 1.0], 10.0)]);
        (0..1000).for_each(|_| fit.add([1.0; TERMS], 1.0));
        assert!((fit.predict([1.0; TERMS]) - 1.0).abs() < 1e-3);
    }
}
