//! What a disk can do, and how people write it: `3.5GiB/s,80us`.
//!
//! Owns [`DiskSpec`], its text and its limits. It must not know how such a disk is simulated.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::OffloadError;

/// Units of a rate; the first that gives a short number is the one it is shown in.
const RATES: [(&str, f64); 6] = [
    ("GiB/s", (1u64 << 30) as f64),
    ("GB/s", 1e9),
    ("MiB/s", (1u64 << 20) as f64),
    ("MB/s", 1e6),
    ("KiB/s", 1024.0),
    ("KB/s", 1e3),
];
/// Units of a latency, in nanoseconds.
const TIMES: [(&str, f64); 4] = [("us", 1e3), ("ms", 1e6), ("ns", 1.0), ("s", 1e9)];
/// Slower than any disk that could serve a model; faster than any memory.
const RATE_LIMITS: (f64, f64) = (1e6, 1e12);
/// Longer than any disk takes to answer, asleep or not.
const LATENCY_MAX: Duration = Duration::from_secs(1);

/// What a disk can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// Bytes a second of all reads together, at least 1. What a read transfers is whole pages.
    pub bytes_per_s: u64,
    /// From the begin of a read to its first byte; reads at the disk together wait it out together.
    pub latency: Duration,
}

impl FromStr for DiskSpec {
    type Err = OffloadError;

    /// Reads a rate and a latency with their units and a comma in between; upper and lower case are one.
    fn from_str(text: &str) -> Result<DiskSpec, OffloadError> {
        let refused = |problem: String| OffloadError::DiskSpec { text: text.into(), problem };
        let (rate, latency) =
            text.split_once(',').ok_or_else(|| refused("there is no comma between the two".into()))?;
        let rate = quantity(rate, &RATES).map_err(|problem| refused(format!("rate: {problem}")))?;
        let nanoseconds =
            quantity(latency, &TIMES).map_err(|problem| refused(format!("latency: {problem}")))?;
        if !(RATE_LIMITS.0..=RATE_LIMITS.1).contains(&rate) {
            return Err(refused("the rate must be 1 MB/s to 1000 GB/s".into()));
        }
        if nanoseconds > LATENCY_MAX.as_nanos() as f64 {
            return Err(refused("the latency must be at most 1 s".into()));
        }
        let latency = Duration::from_nanos(nanoseconds.round() as u64);
        Ok(DiskSpec { bytes_per_s: rate.round() as u64, latency })
    }
}

/// A number with one of `units`, as a multiple of that unit's worth.
fn quantity(text: &str, units: &[(&str, f64)]) -> Result<f64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim_start());
    let names = || units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let number: f64 = number.parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    let known = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
    let worth = known.ok_or_else(|| format!("{text:?} needs one of the units {}", names()))?.1;
    Ok(number * worth)
}

/// `3.5 GiB/s, 80 us`, which reads back as the same.
impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.bytes_per_s as f64;
        let is_short = |worth: f64| rate >= worth && (rate / worth * 1e3).fract() == 0.0;
        let short = RATES.iter().find(|(_, worth)| is_short(*worth));
        let (unit, worth) = short.copied().unwrap_or(RATES[5]);
        let microseconds = self.latency.as_nanos() as f64 / 1e3;
        write!(f, "{} {unit}, {microseconds} us", rate / worth)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_and_latencies_are_read_with_their_units() {
        for (text, bytes_per_s, ns) in [
            ("3.5GiB/s,80us", 7 << 29, 80_000),
            (" 7 gb/s , 0.1 MS ", 7_000_000_000, 100_000),
            ("550MB/s,0us", 550_000_000, 0),
            ("64MiB/s,250ns", 64 << 20, 250),
            ("1000KB/s,1s", 1_000_000, 1_000_000_000),
        ] {
            let spec = DiskSpec { bytes_per_s, latency: Duration::from_nanos(ns) };
            assert_eq!(text.parse::<DiskSpec>().unwrap(), spec, "{text}");
        }
    }

    #[test]
    fn what_is_no_disk_is_told_why() {
        for (text, part) in [
            ("", "no comma"),
            ("fast", "no comma"),
            ("3.5GiB/s", "no comma"),
            ("3.5GiB,80us", "rate: \"3.5GiB\" needs one of the units GiB/s, GB/s"),
            ("GiB/s,80us", "rate: \"GiB/s\" does not begin with a number"),
            ("-1GB/s,80us", "rate: \"-1GB/s\" does not begin"),
            ("1.2.3GB/s,80us", "does not begin with a number"),
            ("1GB/s,80", "latency: \"80\" needs one of the units us, ms, ns, s"),
            ("1GB/s,80us,1", "latency: \"80us,1\" needs one"),
            ("0GB/s,80us", "1 MB/s to 1000 GB/s"),
            ("2TB/s,80us", "needs one of the units"),
            ("9999GB/s,80us", "1 MB/s to 1000 GB/s"),
            ("1GB/s,1001ms", "at most 1 s"),
        ] {
            let error = text.parse::<DiskSpec>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("3.5GiB/s,80us"), "{text}: {error}");
        }
    }

    #[test]
    fn it_is_shown_in_the_shortest_unit() {
        for (text, shown) in [
            ("3.5GiB/s,80us", "3.5 GiB/s, 80 us"),
            ("3500MB/s,0.1ms", "3.5 GB/s, 100 us"),
            ("550MB/s,12.5us", "550 MB/s, 12.5 us"),
            ("1024MiB/s,1s", "1 GiB/s, 1000000 us"),
        ] {
            assert_eq!(text.parse::<DiskSpec>().unwrap().to_string(), shown);
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(bytes_per_s in 1_000_000u64..1_000_000_000_000, ns in 0u64..1_000_000_000) {
            let spec = DiskSpec { bytes_per_s, latency: Duration::from_nanos(ns) };
            prop_assert_eq!(spec.to_string().parse::<DiskSpec>().unwrap(), spec);
        }

        #[test]
        fn no_text_is_a_panic(text in "[0-9.,a-zA-Z/ -]{0,24}") {
            let _ = text.parse::<DiskSpec>();
        }
    }
}
