//! Heads on the target's hidden states: which file they are in, whether they fit the target, what they
//! take of the memory plan, and their loading.
//!
//! Owns the way from options to a [`HeadPart`]. What a head computes is its model file's business
//! (`models/mtp.rs` and its neighbours).

use std::path::PathBuf;

use drafthorse_draft::{DrafterKind, HeadPart};
use drafthorse_scheduler::DraftLen;

use crate::Error;
use crate::api::{EngineOptions, Progress};
use crate::gguf::Gguf;
use crate::models::{
    Blueprint, EAGLE3, FeatureTape, HeadBlueprint, HeadOptions, HeadReaders, MEDUSA, MedusaBlueprint, Model,
    StreamedTable, eagle3_head, medusa_heads, mtp_head,
};
use crate::open::{EXPERT_BYTES, SAMPLER_BYTES_PER_TOKEN, kv_shape, reader_of};

/// Rows of a head's pass at most: it reads its weights once for all of them.
const ROWS_MAX: usize = 256;

/// What bounds a head's passes.
#[derive(Clone, Copy)]
pub struct HeadShape {
    /// Positions of the target's cache.
    pub context_len: usize,
    /// Compute threads.
    pub threads: usize,
}

/// A head whose header has been read and checked against its target, but not its weights.
pub struct OpenedHead {
    kind: DrafterKind,
    files: Vec<PathBuf>,
    target_files: Vec<PathBuf>,
    threads: usize,
    blueprint: Plan,
}

/// By how it guesses.
enum Plan {
    Chained(Box<HeadBlueprint>, HeadOptions),
    Parallel(MedusaBlueprint),
}

impl OpenedHead {
    /// The head in `file`, `None` where that is no head's; without a file, the one in the target's own.
    ///
    /// # Errors
    /// A file that is no head for this target, by what is wrong with it.
    pub fn open(
        options: &EngineOptions,
        (gguf, target): (&Gguf, &Blueprint),
        file: Option<&Gguf>,
        shape: HeadShape,
    ) -> Result<Option<OpenedHead>, Error> {
        let chained = |own: &Gguf, blueprint: HeadBlueprint| -> Result<Plan, Error> {
            let kv = kv_shape(options.kv_type, own, &blueprint.spec)?;
            let HeadShape { context_len, threads } = shape;
            let options = HeadOptions { context_len, rows_max: ROWS_MAX.min(context_len), kv, threads };
            Ok(Plan::Chained(Box::new(blueprint), options))
        };
        let architecture = file.map(|file| file.metadata.require_str("general.architecture")).transpose()?;
        let (kind, own, blueprint) = match (file, architecture) {
            (None, _) => (DrafterKind::Mtp, gguf, chained(gguf, mtp_head(gguf, &target.spec)?)?),
            (Some(own), Some(EAGLE3)) => {
                (DrafterKind::Eagle3, own, chained(own, eagle3_head(own, &target.spec)?)?)
            }
            (Some(own), Some(MEDUSA)) => {
                (DrafterKind::Medusa, own, Plan::Parallel(medusa_heads(own, &target.spec)?))
            }
            _ => return Ok(None),
        };
        let (files, target_files) = (own.files.clone(), gguf.files.clone());
        Ok(Some(OpenedHead { kind, files, target_files, threads: shape.threads, blueprint }))
    }

    /// The drafter it belongs to.
    pub fn kind(&self) -> DrafterKind {
        self.kind
    }

    /// Compute threads it starts.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// As [`HeadBlueprint::stream_embedding`].
    pub fn stream_embedding(&mut self) {
        if let Plan::Chained(blueprint, _) = &mut self.blueprint {
            blueprint.stream_embedding();
        }
    }

    /// Bytes of the head and of the hidden states that `target`, whose passes have up to `rows_max` rows,
    /// keeps for it.
    pub fn resident_bytes(&self, target: &Blueprint, rows_max: usize) -> u64 {
        let vocab = target.spec.vocab;
        let table = target.streamed_embedding.as_ref();
        let table = table.map_or(0, |info| StreamedTable::bytes(info.bytes as usize / vocab));
        let own = match &self.blueprint {
            Plan::Chained(head, options) => {
                head.resident_bytes(options) + head.experts_total() as u64 * EXPERT_BYTES + table
            }
            Plan::Parallel(heads) => heads.resident_bytes(),
        };
        own + FeatureTape::bytes(self.taps().len(), target.spec.width, rows_max + 1)
            + vocab as u64 * SAMPLER_BYTES_PER_TOKEN
    }

    fn taps(&self) -> &[usize] {
        match &self.blueprint {
            Plan::Chained(head, _) => &head.taps,
            Plan::Parallel(heads) => &heads.taps,
        }
    }

    /// Reads the weights, and makes `target` keep the hidden states the head takes.
    ///
    /// # Errors
    /// A read that fails, no memory, no thread.
    pub fn load(
        self,
        options: &EngineOptions,
        target: &mut Model,
        progress: &mut dyn Progress,
    ) -> Result<HeadPart, Error> {
        let how = (options.reader, &options.io, options.simulate_disk.as_ref());
        let readers = HeadReaders {
            own: &|| reader_of(&self.files, how),
            target: &|| reader_of(&self.target_files, how),
        };
        // A draft length of 0 is plain decoding: nothing is recorded for nobody.
        if options.draft_len != DraftLen::Fixed(0) {
            target.record_features(self.taps());
        }
        let shared = target.shared();
        match self.blueprint {
            Plan::Chained(head, with) => {
                progress.begin("loading head", head.dense.bytes());
                let head = head.load(with, shared, &readers, &mut |bytes| progress.advance(bytes))?;
                progress.end();
                Ok(HeadPart::Chained(Box::new(head)))
            }
            Plan::Parallel(heads) => {
                progress.begin("loading heads", heads.dense.bytes());
                let reader = (readers.own)()?;
                let heads =
                    heads.load(self.threads, &shared, reader, &mut |bytes| progress.advance(bytes))?;
                progress.end();
                Ok(HeadPart::Parallel(Box::new(heads)))
            }
        }
    }
}
