//! Randomness without state: every draw is a hash of what it is for.
//!
//! Owns the Gumbel noise that draft and target share, keyed by (seed, position, token), and the
//! uniform draws of block verification. It must not know logits or laws.

use crate::TokenId;

/// What a uniform draw decides. Draws for different purposes are independent of each other and of the
/// Gumbel noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Which token the drafter guesses.
    Guess = 1,
    /// Whether a drafted prefix stands.
    Stand = 2,
    /// Which token replaces the first rejected guess.
    Residual = 3,
}

/// A draw in [0, 1) for row `row` of the pass over a text of `committed` tokens.
///
/// Keyed by the pass, not by the absolute position of the row alone: whether a prefix stands depends
/// on the guesses behind it, so a later pass that drew the same numbers again for the same positions
/// would not be independent of what it follows, and the text's law would be off.
pub(crate) fn uniform(seed: u64, purpose: Purpose, (committed, row): (usize, usize)) -> f64 {
    let own_seed = mix(seed ^ (purpose as u64).wrapping_mul(GAMMA));
    let bits = mix(noise_key(own_seed, committed).wrapping_add((row as u64 + 1).wrapping_mul(GAMMA)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// SplitMix64's finaliser (Stafford's variant 13): every input bit reaches every output bit.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// SplitMix64's increment, 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Where the noise stream of one position starts.
pub(crate) fn noise_key(seed: u64, position: usize) -> u64 {
    mix(mix(seed.wrapping_add(GAMMA)).wrapping_add((position as u64).wrapping_mul(GAMMA)))
}

/// Output number `token` of the SplitMix64 generator seeded with `key`.
pub(crate) fn noise_bits(key: u64, token: TokenId) -> u64 {
    mix(key.wrapping_add((u64::from(token) + 1).wrapping_mul(GAMMA)))
}

/// Standard Gumbel noise, `-ln(-ln u)`, from the upper 52 bits as u in (0, 1), both ends excluded.
pub(crate) fn gumbel(bits: u64) -> f64 {
    const STEP: f64 = 1.0 / (1u64 << 52) as f64;
    let uniform = ((bits >> 12) as f64 + 0.5) * STEP;
    -(-uniform.ln()).ln()
}

/// An upper bound of [`gumbel`] without logarithms: m leading ones mean 1 - u >= 2^-(m+1), and
/// -ln(-ln u) <= -ln(1 - u). The slack covers rounding.
pub(crate) fn gumbel_bound(bits: u64) -> f64 {
    const SLACK: f64 = 1e-9;
    f64::from(bits.leading_ones().min(52) + 1) * std::f64::consts::LN_2 + SLACK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_never_skips_a_winner() {
        let extremes = [0, 1, u64::MAX, u64::MAX << 12, u64::MAX - (1 << 12), 1 << 63, !(1 << 63)];
        for bits in extremes.into_iter().chain((0..100_000).map(|i| noise_bits(i, 7))) {
            let noise = gumbel(bits);
            assert!(noise.is_finite() && noise <= gumbel_bound(bits), "{bits:#x}: {noise}");
        }
    }

    #[test]
    fn draws_of_neighbouring_keys_are_uniform_and_uncorrelated() {
        let purposes = [Purpose::Guess, Purpose::Stand, Purpose::Residual];
        let keys =
            |i: u64| (i % 50, purposes[(i / 50 % 3) as usize], (i as usize / 150 % 40, i as usize / 6000));
        let draws: Vec<f64> =
            (0..48_000).map(keys).map(|(seed, purpose, at)| uniform(seed, purpose, at)).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / draws.len() as f64;
        assert!((mean(&mut draws.iter().copied()) - 0.5).abs() < 0.006, "4.5 standard errors");
        for lag in [1, 50, 150, 6000] {
            let pairs = draws.iter().zip(draws.iter().cycle().skip(lag));
            let covariance = mean(&mut pairs.map(|(a, b)| (a - 0.5) * (b - 0.5)));
            assert!(covariance.abs() < 0.0018, "lag {lag}: {covariance}"); // 4.5 standard errors of 1/12
        }
    }
}
