//! I1 and I2 for every way experts come off the disk: reader x policy x prefetch x file layout x draft
//! gives one text and one set of logits, and stays inside the budget it was given.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::{Path, PathBuf};

use common::pairwise::pairwise;
use common::{ask, bits, generate, local, logits_of, open, plain_options, tokens};
use drafthorse_draft::TokenId;
use drafthorse_offload::{POLICIES, READERS, ReaderOptions, open_reader};
use drafthorse_runtime::api::{DraftSource, EngineOptions, Silent};
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::pack::{PackOptions, pack};
use drafthorse_scheduler::{DraftLen, PrefetchMode};

/// Slots of 128 experts: a quarter, of which two are kept for predictions.
const SLOTS: usize = 32;
const GENERATED: usize = 24;
const PREFETCH: [PrefetchMode; 3] = [PrefetchMode::Off, PrefetchMode::On, PrefetchMode::Auto];

struct World {
    plain: PathBuf,
    packed: PathBuf,
    readers: Vec<&'static str>,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let plain = local("demo/target.gguf");
        let packed = folder.path().join("packed.gguf");
        pack(&plain, &packed, &PackOptions::default(), &mut Silent).unwrap();
        let readers = READERS.iter().map(|kind| kind.name).filter(|name| opens(name, &plain)).collect();
        World { plain, packed, readers, _folder: folder }
    }

    /// Files, readers, policies, prefetch modes, drafts.
    fn sizes(&self) -> [usize; 5] {
        [2, self.readers.len(), POLICIES.len(), PREFETCH.len(), 2]
    }

    fn options(&self, index: &[usize]) -> EngineOptions {
        let is_drafted = index[4] == 1;
        EngineOptions {
            model: [&self.plain, &self.packed][index[0]].clone(),
            reader: self.readers[index[1]],
            policy: POLICIES[index[2]].kind,
            prefetch: PREFETCH[index[3]],
            slots: Some(SLOTS),
            draft: if is_drafted { DraftSource::Ngram } else { DraftSource::None },
            draft_len: DraftLen::Fixed(if is_drafted { 3 } else { 0 }),
            threads: 2,
            ..plain_options(&self.plain)
        }
    }
}

/// A system that refuses io_uring is no failure of ours: that reader is left out, and said so.
fn opens(name: &str, model: &Path) -> bool {
    let outcome = open_reader(name, &[model.to_path_buf()], &ReaderOptions::default());
    if let Err(error) = &outcome {
        eprintln!("skipped: reader {name}: {error}");
    }
    outcome.is_ok()
}

fn text(engine: &mut Engine) -> [Vec<TokenId>; 2] {
    let prompt = tokens(3, 12).repeat(2);
    [0.0, 0.8].map(|temperature| generate(engine, &prompt, &ask(GENERATED, temperature)).tokens)
}

#[test]
fn text_and_logits_are_the_same_however_experts_are_read_kept_and_predicted() {
    let world = World::new();
    let mut reference = open(&EngineOptions { threads: 1, ..plain_options(&world.plain) });
    let wanted = (text(&mut reference), logits_of(&mut reference, &tokens(5, 20), true));
    let (mut issued, mut used, mut misses) = (0, 0, 0);
    for index in pairwise(&world.sizes()) {
        let options = world.options(&index);
        let mut engine = open(&options);
        let case = format!(
            "{} {} {:?} {:?}",
            options.model.display(),
            options.reader,
            options.policy,
            options.prefetch
        );
        assert_eq!(text(&mut engine), wanted.0, "{case}");
        let logits = logits_of(&mut engine, &tokens(5, 20), true);
        for (row, wanted) in logits.iter().zip(&wanted.1) {
            assert_eq!(bits(row), bits(wanted), "{case}");
        }
        let report = generate(&mut engine, &tokens(9, 8), &ask(GENERATED, 0.0)).offload;
        misses += report.misses;
        assert!(report.bytes_read > 0 && report.slots == SLOTS as u64);
        match options.prefetch {
            PrefetchMode::On => {
                assert_eq!(report.prefetch_off_reason, None);
                issued += report.prefetch_issued;
                used += report.prefetch_used;
            }
            PrefetchMode::Off => {
                assert_eq!(report.prefetch_issued, 0);
                assert!(report.prefetch_off_reason.is_some());
            }
            PrefetchMode::Auto => {}
        }
    }
    assert!(misses > 0 && used > 0 && used <= issued, "{misses} misses, {used} of {issued} predictions used");
}

#[test]
fn the_time_of_decoding_is_attributed_to_the_last_percent() {
    let world = World::new();
    for index in [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]] {
        let mut engine = open(&world.options(&index));
        let generation = generate(&mut engine, &tokens(9, 8), &ask(96, 0.8));
        let (spans, wall_s) = (generation.attribution.spans, generation.attribution.wall_s);
        assert_eq!(wall_s, generation.timings.decode_s);
        // Not a speed: whatever the machine does, it does it in one of the phases.
        assert!(spans.sum() <= wall_s && spans.sum() >= 0.97 * wall_s, "{spans:?} of {wall_s}");
        assert!(spans.dense_s > 0.0 && spans.experts_s > 0.0 && spans.router_s > 0.0);
    }
}
