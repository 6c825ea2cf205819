//! From runs to rows: who is paired with whom, what is added up and what is a median.
//!
//! Rates and quotients of times are medians over runs, with 5th and 95th percentiles; counts (acceptance,
//! hits, bytes) are summed over the runs first. Pure but for the traces that `best.rs` replays.

use std::collections::HashMap;
use std::path::Path;

use super::SpeedupError;
use super::best::Bounds;
use super::cell::{Variant, Verify};
use super::journal::Journal;
use super::plan::{Block, Plan, PromptIds};
use super::record::{Measured, Record, sha256};
use super::report::{ALL_TASKS, BytesPerToken, Identity, Row, Text};
use super::stats::{Spread, median, ratio};
use super::work::References;

/// The runs of a sweep, to be summed up.
pub struct Summary<'a> {
    pub plan: &'a Plan,
    pub journal: &'a Journal,
    pub scratch: &'a Path,
}

/// A run beside the one without a draft.
struct Pair<'a> {
    record: &'a Record,
    off: Option<&'a Measured>,
    prompt: usize,
}

/// Hits of other caches, by prompt, temperature (as text) and slots: one replay for every way of drafting.
type Known = HashMap<(usize, String, u64), Bounds>;

impl Summary<'_> {
    /// A row for every task, cache, start, temperature and way of drafting.
    ///
    /// # Errors
    /// A trace that cannot be read.
    pub fn rows(&self) -> Result<Vec<Row>, SpeedupError> {
        let mut known = Known::new();
        let mut rows = Vec::new();
        let variants = || std::iter::once(None).chain((0..self.plan.variants.len()).map(Some));
        let by_task = self.groups(|prompt| prompt.task.as_str());
        let over_all = if self.has_tasks() { self.groups(|_| ALL_TASKS) } else { Vec::new() };
        for (name, blocks) in over_all.iter().chain(&by_task) {
            for variant in variants() {
                rows.push(Row { task: (*name).to_owned(), ..self.row(blocks, variant, &mut known)? });
            }
        }
        Ok(rows)
    }

    /// Whether there is more than one.
    fn has_tasks(&self) -> bool {
        self.plan.prompts.iter().any(|prompt| prompt.task != self.plan.prompts[0].task)
    }

    /// Blocks that differ only in the prompt, by what `name` calls it, in the order of these names.
    fn groups(&self, name: fn(&PromptIds) -> &str) -> Vec<(&str, Vec<&Block>)> {
        let task = |block: &Block| name(&self.plan.prompts[block.prompt]);
        let same = |a: &Block, b: &Block| {
            task(a) == task(b) && a.cache == b.cache && a.start == b.start && a.temperature == b.temperature
        };
        let mut groups: Vec<Vec<&Block>> = Vec::new();
        for block in &self.plan.blocks {
            match groups.iter_mut().find(|group| same(group[0], block)) {
                Some(group) => group.push(block),
                None => groups.push(vec![block]),
            }
        }
        let first = |wanted: &str| self.plan.prompts.iter().position(|prompt| name(prompt) == wanted);
        groups.sort_by_key(|group| first(task(group[0])));
        groups.into_iter().map(|group| (task(group[0]), group)).collect()
    }

    fn row(&self, blocks: &[&Block], variant: Option<usize>, known: &mut Known) -> Result<Row, SpeedupError> {
        let pairs = self.pairs(blocks, variant);
        let first = blocks[0];
        let variant = variant.map(|at| &self.plan.variants[at]);
        let bounds = self.bounds(blocks, known)?;
        let row = named(self.plan, first, variant);
        let row = Row {
            hit_rate_lru: bounds.and_then(|it| ratio(it.lru_hits as f64, it.uses as f64)),
            hit_rate_belady: bounds.and_then(|it| ratio(it.belady_hits as f64, it.uses as f64)),
            ..figures(row, &pairs)
        };
        Ok(self.with_ids(row, &pairs, first.temperature, variant))
    }

    fn pairs(&self, blocks: &[&Block], variant: Option<usize>) -> Vec<Pair<'_>> {
        let mut pairs = Vec::new();
        for block in blocks {
            for (at, turn) in self.plan.turns.iter().enumerate().filter(|(_, turn)| turn.variant == variant) {
                let Some(record) = self.journal.get(&self.plan.key(block, at)) else { continue };
                let off = self.journal.get(&self.plan.key(block, turn.off));
                let off = off.and_then(|record| record.measured.as_ref());
                pairs.push(Pair { record, off, prompt: block.prompt });
            }
        }
        pairs
    }

    /// Hits of LRU and Belady over a row's prompts; None for a dense model.
    fn bounds(&self, blocks: &[&Block], known: &mut Known) -> Result<Option<Bounds>, SpeedupError> {
        let mut sum = Bounds::default();
        for block in blocks {
            let Some(slots) = block.slots else { return Ok(None) };
            let key = (block.prompt, block.temperature.to_string(), slots);
            let bounds = match known.get(&key) {
                Some(bounds) => *bounds,
                None => {
                    let trace = References::new(self.scratch, block.prompt, block.temperature).trace;
                    let prompt = self.plan.prompts[block.prompt].ids.len();
                    Bounds::of(&trace, prompt, usize::try_from(slots).unwrap_or(usize::MAX))?
                }
            };
            known.insert(key, bounds);
            sum.add(bounds);
        }
        Ok(Some(sum))
    }

    fn reference(&self, prompt: usize, temperature: f64) -> Option<&Measured> {
        self.journal.get(&self.plan.reference_key(prompt, temperature))?.measured.as_ref()
    }

    fn with_ids(&self, row: Row, pairs: &[Pair<'_>], temperature: f64, variant: Option<&Variant>) -> Row {
        let mut by_prompt: Vec<(usize, &str)> = Vec::new();
        let mut is_same = true;
        let mut is_steady = true;
        for pair in pairs {
            let Some(measured) = &pair.record.measured else { continue };
            let hash = measured.ids_sha256.as_str();
            is_same &= self.reference(pair.prompt, temperature).is_some_and(|it| it.ids_sha256 == hash);
            match by_prompt.iter().find(|(prompt, _)| *prompt == pair.prompt) {
                Some((_, seen)) => is_steady &= *seen == hash,
                None => by_prompt.push((pair.prompt, hash)),
            }
        }
        let hashes: Vec<&str> = by_prompt.iter().map(|(_, hash)| *hash).collect();
        let ids_sha256 = match hashes.as_slice() {
            _ if !is_steady => String::new(),
            [] => String::new(),
            [one] => (*one).to_owned(),
            several => sha256(several.concat().as_bytes()),
        };
        let keeps_text = variant.is_none_or(|variant| variant.verify.keeps_text(temperature));
        let ids = match (hashes.is_empty(), is_same, keeps_text) {
            (true, ..) => Identity::Unknown,
            (_, true, _) => Identity::Same,
            (_, false, true) => Identity::Differs,
            (_, false, false) => Identity::Varies,
        };
        Row { ids_sha256, ids, ..row }
    }

    /// The verdict for every prompt and temperature.
    pub fn texts(&self) -> Vec<Text> {
        let mut texts = Vec::new();
        for temperature in &self.plan.sweep.temperatures {
            for prompt in 0..self.plan.prompts.len() {
                texts.extend(self.text(prompt, *temperature));
            }
        }
        texts
    }

    fn text(&self, prompt: usize, temperature: f64) -> Option<Text> {
        let wanted = &self.reference(prompt, temperature)?.ids_sha256;
        let (mut runs, mut differing) = (0, Vec::new());
        let blocks = self.plan.blocks.iter();
        for block in blocks.filter(|block| block.prompt == prompt && block.temperature == temperature) {
            for (at, turn) in self.plan.turns.iter().enumerate() {
                let variant = turn.variant.map(|at| &self.plan.variants[at]);
                let key = self.plan.key(block, at);
                let record = self.journal.get(&key).and_then(|record| record.measured.as_ref());
                let must = variant.is_none_or(|variant| variant.verify.keeps_text(temperature));
                let Some(measured) = record.filter(|_| must) else { continue };
                runs += 1;
                if measured.ids_sha256 != *wanted {
                    differing.push(key);
                }
            }
        }
        let id = self.plan.prompts[prompt].id.clone();
        Some(Text { prompt: id, temperature, ids_sha256: wanted.clone(), runs, differing })
    }
}

/// A row with its names and no figures.
fn named(plan: &Plan, block: &Block, variant: Option<&Variant>) -> Row {
    let share = block.slots.and_then(|slots| ratio(slots as f64, plan.bank.experts_total as f64));
    Row {
        cache: if block.slots.is_some() { block.cache.label() } else { "-".to_owned() },
        slots: block.slots,
        share,
        start: block.start.label().to_owned(),
        temperature: block.temperature,
        drafter: variant.map_or_else(|| "none".to_owned(), |variant| variant.drafter.label()),
        script_acceptance: variant.and_then(|variant| variant.drafter.script_acceptance()),
        draft_len: variant.map_or_else(|| "-".to_owned(), |variant| variant.len.label()),
        verify: variant
            .map_or_else(|| Verify::coupled().label().to_owned(), |it| it.verify.label().to_owned()),
        ..Row::default()
    }
}

/// The figures of a row's runs.
fn figures(row: Row, pairs: &[Pair<'_>]) -> Row {
    let done: Vec<(&Measured, &Pair<'_>)> =
        pairs.iter().filter_map(|pair| Some((pair.record.measured.as_ref()?, pair))).collect();
    let failures: Vec<&String> = pairs.iter().filter_map(|pair| pair.record.failure.as_ref()).collect();
    let beside = |figure: fn(&Measured) -> f64| {
        let quotient = move |(run, pair): &(&Measured, &Pair<'_>)| Some(figure(run) / figure(pair.off?));
        done.iter().filter_map(quotient).collect::<Vec<f64>>()
    };
    let sum = |count: fn(&Measured) -> u64| done.iter().map(|(run, _)| count(run)).sum::<u64>() as f64;
    let decoded = sum(Measured::decoded);
    let uses = |hits: f64, misses: f64| ratio(hits, hits + misses);
    let decode = |count: fn(&super::record::DecodeCache) -> u64| {
        let counts: Option<Vec<u64>> = done.iter().map(|(run, _)| run.decode.as_ref().map(count)).collect();
        counts.map(|counts| counts.iter().sum::<u64>() as f64)
    };
    let has_experts = row.slots.is_some();
    Row {
        runs: done.len(),
        failed: failures.len(),
        failure: failures.last().map(|text| (*text).clone()),
        tokens_per_s: Spread::of(done.iter().map(|(run, _)| run.tokens_per_s())),
        speedup: Spread::of(beside(Measured::tokens_per_s)),
        predicted_speedup: median(done.iter().filter_map(|(run, _)| run.predicted_speedup)),
        t_ratio: median(beside(Measured::pass_s)),
        predicted_t_ratio: median(done.iter().filter_map(|(run, _)| run.predicted_t_ratio)),
        tau: ratio(decoded, sum(|run| run.passes)),
        draft_len_mean: ratio(sum(|run| run.proposed), sum(|run| run.passes)),
        acceptance_at: acceptance_at(&done),
        hit_rate: decode(|it| it.hits)
            .zip(decode(|it| it.misses))
            .and_then(|(hits, misses)| uses(hits, misses)),
        hit_rate_with_prompt: uses(sum(|run| run.hits), sum(|run| run.misses)),
        bytes_per_token: bytes(&done).filter(|_| has_experts),
        joules_per_token: joules(&done),
        stall_share: ratio(
            done.iter().map(|(run, _)| run.stall_s).sum(),
            done.iter().map(|(run, _)| run.prefill_s + run.decode_s).sum(),
        )
        .filter(|_| has_experts),
        peak_rss_bytes: done.iter().map(|(run, _)| run.peak_rss_bytes).max().unwrap_or(0),
        off_reason: done.iter().rev().find_map(|(run, _)| run.off_reason.clone()),
        ..row
    }
}

fn acceptance_at(done: &[(&Measured, &Pair<'_>)]) -> Vec<f64> {
    let places = done.iter().map(|(run, _)| run.offered_at.len()).max().unwrap_or(0);
    let at = |counts: fn(&Measured) -> &Vec<u64>, place: usize| {
        done.iter().filter_map(|(run, _)| counts(run).get(place)).sum::<u64>() as f64
    };
    let share = |place| ratio(at(|run| &run.accepted_at, place), at(|run| &run.offered_at, place));
    (0..places).map(|place| share(place).unwrap_or(0.0)).collect()
}

/// The split of what was read after the prompt. Reads that were under way at either end make it off by a
/// few of them.
fn bytes(done: &[(&Measured, &Pair<'_>)]) -> Option<BytesPerToken> {
    let mut sum = [0u64; 4];
    for (run, _) in done {
        let (cache, rejected_only) = (run.decode?, run.rejected_only_bytes?);
        let demand = cache.bytes_read.saturating_sub(cache.prefetch_bytes);
        sum[0] += demand.saturating_sub(rejected_only);
        sum[1] += cache.prefetch_used_bytes.min(cache.prefetch_bytes);
        sum[2] += cache.prefetch_bytes.saturating_sub(cache.prefetch_used_bytes);
        sum[3] += rejected_only.min(demand);
    }
    let decoded = done.iter().map(|(run, _)| run.decoded()).sum::<u64>() as f64;
    let [demand, prefetch_useful, prefetch_wasted, rejected_only] = sum.map(|bytes| bytes as f64 / decoded);
    (decoded > 0.0).then_some(BytesPerToken { demand, prefetch_useful, prefetch_wasted, rejected_only })
}

fn joules(done: &[(&Measured, &Pair<'_>)]) -> Option<f64> {
    let joules: Option<Vec<f64>> = done.iter().map(|(_, pair)| pair.record.energy_j).collect();
    ratio(joules?.iter().sum(), done.iter().map(|(run, _)| run.generated).sum::<u64>() as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::record::DecodeCache;
    use super::*;

    fn record(decode_s: f64, passes: u64, failure: Option<&str>) -> Record {
        let measured = Measured {
            generated: 21,
            decode_s,
            passes,
            proposed: 30,
            accepted: 10,
            offered_at: vec![10, 10, 10],
            accepted_at: vec![6, 3, 1],
            decode: Some(DecodeCache {
                hits: 30,
                misses: 10,
                bytes_read: 1000,
                prefetch_bytes: 400,
                prefetch_used_bytes: 300,
            }),
            rejected_only_bytes: Some(200),
            ..Measured::default()
        };
        Record {
            key: String::new(),
            command: String::new(),
            wall_s: 1.0,
            energy_j: Some(42.0),
            load_before: None,
            round: 0,
            failure: failure.map(str::to_owned),
            measured: failure.is_none().then_some(measured),
            ids: Vec::new(),
        }
    }

    #[test]
    fn a_row_counted_by_hand() {
        // 20 tokens in 2 s and 1 s, beside 4 s both times: speedups 2 and 4.
        let off = record(4.0, 20, None);
        let off = off.measured.as_ref();
        let runs = [record(2.0, 10, None), record(1.0, 10, None), record(1.0, 10, Some("killed"))];
        let pairs: Vec<Pair<'_>> = runs.iter().map(|record| Pair { record, off, prompt: 0 }).collect();
        let row = figures(Row { slots: Some(4), ..Row::default() }, &pairs);
        assert_eq!((row.runs, row.failed, row.failure.as_deref()), (2, 1, Some("killed")));
        assert_eq!(row.tokens_per_s.unwrap().median, 15.0);
        let speedup = row.speedup.unwrap();
        assert!((speedup.median - 3.0).abs() < 1e-12 && (speedup.p5 - 2.1).abs() < 1e-12, "{speedup:?}");
        // A pass took 0.2 s and 0.1 s, without a draft 0.2 s.
        assert_eq!((row.t_ratio, row.tau, row.draft_len_mean), (Some(0.75), Some(2.0), Some(3.0)));
        assert_eq!(row.acceptance_at, [0.6, 0.3, 0.1]);
        assert_eq!(row.hit_rate, Some(0.75));
        // Of 1000 bytes 400 were read ahead, 100 of them for nothing; of 600 others 200 for rejected drafts.
        let bytes = row.bytes_per_token.unwrap();
        let wanted =
            BytesPerToken { demand: 20.0, prefetch_useful: 15.0, prefetch_wasted: 5.0, rejected_only: 10.0 };
        assert_eq!((bytes, bytes.total()), (wanted, 50.0));
        assert_eq!(row.joules_per_token, Some(2.0));
    }

    #[test]
    fn nothing_is_made_up_where_nothing_was_measured() {
        let run = record(1.0, 10, Some("killed"));
        let row = figures(Row::default(), &[Pair { record: &run, off: None, prompt: 0 }]);
        assert_eq!((row.tokens_per_s, row.speedup, row.tau, row.hit_rate), (None, None, None, None));
        let old = Record {
            measured: Some(Measured { decode: None, ..record(1.0, 10, None).measured.unwrap() }),
            energy_j: None,
            ..record(1.0, 10, None)
        };
        let row =
            figures(Row { slots: Some(4), ..Row::default() }, &[Pair { record: &old, off: None, prompt: 0 }]);
        assert_eq!(
            (row.bytes_per_token, row.joules_per_token, row.hit_rate, row.speedup),
            (None, None, None, None)
        );
    }
}
