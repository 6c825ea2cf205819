//! Where the counts and times go that the crates emit through the `metrics` facade.
//!
//! Owns the recorder a binary may install, and the snapshot and text made of it. Values are atomics: a
//! lock is taken when a handle is asked for, never when it is used. Units are read off names, as in
//! Prometheus: `_seconds`, `_bytes`, `_total`. Libraries emit and never install; without a recorder
//! emitting does nothing. It must not know what is measured.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use metrics::atomics::AtomicU64;
use metrics::{
    Counter, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use parking_lot::Mutex;
use serde::Serialize;

use crate::units::format_bytes;

/// The process has a recorder already: there is one for all.
#[derive(Debug, thiserror::Error)]
#[error("a metrics recorder is already installed in this process")]
pub struct InstallError;

/// Makes a recorder the process's own. For binaries, once, before any work.
///
/// # Errors
/// [`InstallError`] when there is one already.
pub fn install() -> Result<Handle, InstallError> {
    let handle = Handle::default();
    let recorder = Telemetry { registry: Arc::clone(&handle.registry) };
    metrics::set_global_recorder(recorder).map_err(|_| InstallError)?;
    Ok(handle)
}

/// Reads what was recorded.
#[derive(Clone, Debug, Default)]
pub struct Handle {
    registry: Arc<Registry>,
}

impl Handle {
    /// Everything recorded so far. What is being recorded meanwhile may be in it or not.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            counters: self.registry.counters.read(|value| value.load(Ordering::Acquire)),
            gauges: self.registry.gauges.read(|value| f64::from_bits(value.load(Ordering::Acquire))),
            histograms: self.registry.histograms.read(Buckets::summary),
        }
    }
}

/// Values at one moment, by name and labels: `drafthorse_expert_hits_total{tier="ram"}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// What only grows.
    pub counters: BTreeMap<String, u64>,
    /// What is set.
    pub gauges: BTreeMap<String, f64>,
    /// Distributions.
    pub histograms: BTreeMap<String, Summary>,
}

/// A distribution in a few numbers, in the unit of its name; all 0 without values. Quantiles are
/// at most 1/32 below the true ones, and exact for whole numbers to 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Summary {
    pub count: u64,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

/// The recorder.
struct Telemetry {
    registry: Arc<Registry>,
}

impl Recorder for Telemetry {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.registry.counters.get(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.registry.gauges.get(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.registry.histograms.get(key))
    }
}

/// All that was ever registered.
#[derive(Debug, Default)]
struct Registry {
    counters: Family<AtomicU64>,
    /// Bits of an `f64`.
    gauges: Family<AtomicU64>,
    histograms: Family<Buckets>,
}

/// The metrics of one kind.
#[derive(Debug, Default)]
struct Family<T>(Mutex<HashMap<Key, Arc<T>>>);

impl<T: Default> Family<T> {
    /// The metric of that name and those labels, made at first.
    fn get(&self, key: &Key) -> Arc<T> {
        Arc::clone(self.0.lock().entry(key.clone()).or_default())
    }

    fn read<V>(&self, value: impl Fn(&T) -> V) -> BTreeMap<String, V> {
        self.0.lock().iter().map(|(key, metric)| (name(key), value(metric))).collect()
    }
}

/// A name with its labels, as Prometheus writes them.
fn name(key: &Key) -> String {
    let labels: Vec<String> =
        key.labels().map(|label| format!("{}={:?}", label.key(), label.value())).collect();
    if labels.is_empty() { key.name().to_owned() } else { format!("{}{{{}}}", key.name(), labels.join(",")) }
}

/// Bits of an `f64` that do not count: all but sign, exponent and the five highest of the mantissa, so
/// that an octave has 32 buckets.
const SHIFT: u32 = 47;
/// The least value told from 0: below a nanosecond.
const LEAST: f64 = 1.0 / (1u64 << 30) as f64;
/// What lies beyond the last bucket.
const BEYOND: f64 = (1u64 << 40) as f64;
/// Buckets from `LEAST` on, and one before for what is smaller.
const BUCKETS: usize = (bucket_bits(BEYOND) - bucket_bits(LEAST)) as usize + 1;

const fn bucket_bits(value: f64) -> u64 {
    value.to_bits() >> SHIFT
}

/// A histogram: counts by size.
#[derive(Debug)]
struct Buckets {
    counts: Box<[AtomicU64]>,
    /// Bits of an `f64`, as are the next two; not below 0, so they compare as their bits do.
    sum: AtomicU64,
    min: AtomicU64,
    max: AtomicU64,
}

impl Default for Buckets {
    fn default() -> Buckets {
        Buckets {
            counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0f64.to_bits()),
            min: AtomicU64::new(f64::INFINITY.to_bits()),
            max: AtomicU64::new(0f64.to_bits()),
        }
    }
}

impl HistogramFn for Buckets {
    /// Negative values count as 0; NaN does not count.
    fn record(&self, value: f64) {
        if value.is_nan() {
            return;
        }
        let value = value.max(0.0);
        let above = bucket_bits(value).saturating_sub(bucket_bits(LEAST) - 1) as usize;
        self.counts[above.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
        GaugeFn::increment(&self.sum, value);
        self.min.fetch_min(value.to_bits(), Ordering::Relaxed);
        self.max.fetch_max(value.to_bits(), Ordering::Relaxed);
    }
}

impl Buckets {
    fn summary(&self) -> Summary {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Acquire)).collect();
        let count = counts.iter().sum();
        if count == 0 {
            return Summary::default();
        }
        let value = |bits: &AtomicU64| f64::from_bits(bits.load(Ordering::Acquire));
        let (min, max) = (value(&self.min), value(&self.max));
        let quantile = |share: f64| {
            let rank = ((share * count as f64).ceil() as u64).max(1);
            let mut seen = 0;
            let bucket = counts.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            lower_end(bucket.unwrap_or(BUCKETS - 1)).max(min).min(max)
        };
        let sum = value(&self.sum);
        Summary { count, sum, min, max, p50: quantile(0.5), p90: quantile(0.9), p99: quantile(0.99) }
    }
}

/// The least value of a bucket.
fn lower_end(bucket: usize) -> f64 {
    let Some(above) = bucket.checked_sub(1) else { return 0.0 };
    f64::from_bits((bucket_bits(LEAST) + above as u64) << SHIFT)
}

/// A snapshot as lines for people, one a metric.
pub fn format_block(snapshot: &Snapshot) -> String {
    let counters = snapshot.counters.iter().map(|(name, value)| (name, in_unit(name, *value as f64)));
    let gauges = snapshot.gauges.iter().map(|(name, value)| (name, in_unit(name, *value)));
    let histograms = snapshot.histograms.iter().map(|(name, summary)| (name, distribution(name, summary)));
    let lines: Vec<(&String, String)> = counters.chain(gauges).chain(histograms).collect();
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut block = String::new();
    for (index, (name, text)) in lines.iter().enumerate() {
        let end = if index == 0 { "" } else { "\n" };
        write!(block, "{end}{name:width$}  {text}").expect("invariant: a String takes any text");
    }
    block
}

fn distribution(name: &str, summary: &Summary) -> String {
    if summary.count == 0 {
        return "no values".to_owned();
    }
    let unit = |value| in_unit(name, value);
    format!(
        "{} values, mean {}, p50 {}, p90 {}, p99 {}, max {}",
        summary.count,
        unit(summary.sum / summary.count as f64),
        unit(summary.p50),
        unit(summary.p90),
        unit(summary.p99),
        unit(summary.max),
    )
}

/// A value in the unit of its metric's name.
fn in_unit(name: &str, value: f64) -> String {
    let name = name.split('{').next().unwrap_or(name);
    let base = name.strip_suffix("_total").unwrap_or(name);
    if base.ends_with("_bytes") {
        format_bytes(value as u64)
    } else if base.ends_with("_seconds") {
        format_seconds(value)
    } else if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

fn format_seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use metrics::{counter, gauge, histogram, with_local_recorder};

    /// What `emit` leaves behind.
    fn recorded(emit: impl FnOnce()) -> Snapshot {
        let handle = Handle::default();
        with_local_recorder(&Telemetry { registry: Arc::clone(&handle.registry) }, emit);
        handle.snapshot()
    }

    #[test]
    fn counters_with_other_labels_are_other_counters() {
        let snapshot = recorded(|| {
            counter!("hits_total", "tier" => "ram").increment(2);
            counter!("hits_total", "tier" => "ram").increment(3);
            counter!("hits_total", "tier" => "vram").increment(1);
            counter!("hits_total").absolute(7);
            gauge!("slots").set(4.5);
            gauge!("slots").decrement(0.5);
        });
        let expected =
            [("hits_total", 7), (r#"hits_total{tier="ram"}"#, 5), (r#"hits_total{tier="vram"}"#, 1)];
        assert_eq!(snapshot.counters, expected.map(|(name, value)| (name.to_owned(), value)).into());
        assert_eq!(snapshot.gauges["slots"], 4.0);
    }

    #[test]
    fn handles_keep_counting_and_agree_across_threads() {
        let snapshot = recorded(|| {
            let (counter, histogram) = (counter!("n_total"), histogram!("t_seconds"));
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for i in 0..1000 {
                            counter.increment(1);
                            histogram.record(f64::from(i) * 1e-6);
                        }
                    });
                }
            });
        });
        let summary = snapshot.histograms["t_seconds"];
        assert_eq!((snapshot.counters["n_total"], summary.count), (4000, 4000));
        assert!((summary.sum - 4.0 * 499_500.0 * 1e-6).abs() < 1e-9, "{summary:?}");
    }

    #[test]
    fn quantiles_are_at_most_a_thirty_second_below_the_true_ones() {
        for scale in [1e-8, 1e-4, 0.3, 1.0, 1e7] {
            let summary = recorded(|| (1..=1000).for_each(|i| histogram!("x").record(f64::from(i) * scale)))
                .histograms["x"];
            let near =
                |got: f64, exact: f64| (1.0 - 1.0 / 32.0..=1.0 + 1e-12).contains(&(got / (exact * scale)));
            assert!(near(summary.p50, 500.0) && near(summary.p90, 900.0) && near(summary.p99, 990.0));
            assert_eq!((summary.min, summary.max), (scale, 1000.0 * scale));
        }
        for depth in 1..=64 {
            let record = || [1, depth, 64].iter().for_each(|n| histogram!("x").record(f64::from(*n)));
            assert_eq!(recorded(record).histograms["x"].p50, f64::from(depth));
        }
    }

    #[test]
    fn values_beyond_the_buckets_are_counted_at_their_ends() {
        let values = [0.0, -1.0, 1e-300, f64::MIN_POSITIVE, LEAST, BEYOND, 1e300, f64::INFINITY, f64::NAN];
        let summary = recorded(|| values.iter().for_each(|v| histogram!("x").record(*v))).histograms["x"];
        assert_eq!((summary.count, summary.min, summary.max), (8, 0.0, f64::INFINITY));
        let same = recorded(|| (0..9).for_each(|_| histogram!("x").record(3e-4))).histograms["x"];
        assert_eq!((same.p50, same.p99), (3e-4, 3e-4), "never outside of what was recorded");
    }

    #[test]
    fn a_second_recorder_is_an_error() {
        let first = install();
        assert!(install().is_err());
        if let Ok(handle) = first {
            counter!("installed_total").increment(1);
            assert_eq!(handle.snapshot().counters["installed_total"], 1);
        }
    }

    #[test]
    fn the_block_shows_units_by_name_and_aligns() {
        let block = format_block(&recorded(|| {
            counter!("read_bytes_total", "tier" => "ram").increment(3 << 20);
            counter!("hits_total").increment(12);
            gauge!("share").set(0.25);
            histogram!("read_seconds").record(250e-6);
            histogram!("stall_seconds").record(2.5);
            [1.0, 5.0, 32.0].iter().for_each(|n| histogram!("in_flight").record(*n));
            let _unused = histogram!("idle_seconds");
        }));
        for line in [
            r#"hits_total                    12"#,
            r#"read_bytes_total{tier="ram"}  3.0 MiB"#,
            r#"share                         0.2"#,
            r#"idle_seconds                  no values"#,
            r#"in_flight                     3 values, mean 12.7, p50 5, p90 32, p99 32, max 32"#,
            r#"read_seconds                  1 values, mean 250 us, p50 250 us, p90 250 us, p99 250 us, max 250 us"#,
        ] {
            assert!(block.lines().any(|shown| shown == line), "{line} in:\n{block}");
        }
        assert!(block.contains("max 2.50 s") && !block.ends_with('\n'));
        assert_eq!(format_block(&Snapshot::default()), "");
    }

    #[test]
    fn a_snapshot_is_an_object_of_names() {
        let snapshot = recorded(|| {
            counter!("hits_total", "tier" => "ram").increment(2);
            histogram!("t_seconds").record(0.5);
        });
        let json = serde_json::to_value(&snapshot).unwrap();
        assert_eq!(json["counters"][r#"hits_total{tier="ram"}"#], 2);
        assert_eq!(json["histograms"]["t_seconds"]["p99"], 0.5);
        assert!(json["gauges"].as_object().unwrap().is_empty());
    }
}
