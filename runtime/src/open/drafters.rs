//! From options to drafters: the files they need, the memory they take, and their order.
//!
//! Owns which kind of drafter each [`DraftSource`] is. It must not know how the target is opened.

use drafthorse_draft::{
    ChainDrafter, Drafter, DrafterKind, DrafterParts, LanguageModel, Script, SharedVocabulary, TokenId,
    UNREAD_MAX,
};
use drafthorse_offload::PolicyKind;
use drafthorse_scheduler::DraftEffort;

use super::{CacheChoice, ModelShape, Opened, context_notice, kv_shape, threads_or_default};
use crate::Error;
use crate::api::{DraftSource, EngineOptions, Progress};
use crate::gguf::Gguf;
use crate::heads::{HeadShape, OpenedHead};
use crate::ids::read_ids;
use crate::models::{Blueprint, Model, Overrides};
use crate::shared_vocabulary::{check_head_tokens, shared_vocabulary};

/// What was read for the drafters.
#[derive(Default)]
pub struct DraftFiles {
    /// The draft model, if there is one.
    pub(super) model: Option<Opened>,
    /// The head, if one drafts.
    pub(super) head: Option<OpenedHead>,
    /// Which ids it shares with the target, if not all.
    vocabulary: Option<SharedVocabulary>,
    /// Ids of the scripted drafter.
    script: Option<Vec<TokenId>>,
}

/// Opens what the drafters are made from; adds to `notices`.
pub(super) fn draft_files(
    options: &EngineOptions,
    target: (&Gguf, &Blueprint),
    shape: ModelShape,
    notices: &mut Vec<String>,
) -> Result<DraftFiles, Error> {
    let mut files = DraftFiles::default();
    let threads = threads_or_default(options.draft_threads);
    let head_shape = HeadShape { context_len: shape.context_len, threads };
    for member in options.draft.members() {
        match member {
            DraftSource::Model(_) | DraftSource::Mtp if files.model.is_some() || files.head.is_some() => {
                return Err(Error::Usage("at most one drafter is a model or a head".into()));
            }
            DraftSource::Mtp => files.head = OpenedHead::open(options, target, None, head_shape)?,
            DraftSource::Model(path) => {
                let gguf = Gguf::open(path)?;
                files.head = OpenedHead::open(options, target, Some(&gguf), head_shape)?;
                if files.head.is_some() {
                    check_head_tokens(target.0, &gguf)?;
                    continue;
                }
                let blueprint = Blueprint::new(&gguf, &Overrides::default())?;
                let shared = shared_vocabulary(target, (&gguf, &blueprint))?;
                if let Some((vocabulary, line)) = shared {
                    files.vocabulary = Some(vocabulary);
                    notices.push(line);
                }
                notices.extend(blueprint.spec.notices.iter().map(|line| format!("draft: {line}")));
                notices.extend(context_notice("draft: ", shape.context_len, &blueprint));
                let kv = kv_shape(options.kv_type, &gguf, &blueprint.spec)?;
                files.model = Some(Opened::new(&gguf, blueprint, shape.options(threads, "draft", kv)));
            }
            DraftSource::Script(script) => {
                let ids = read_ids(&script.path)?;
                let vocab = target.1.spec.vocab;
                if let Some(&token) = ids.iter().find(|token| **token as usize >= vocab) {
                    return Err(Error::TokenOutOfVocabulary { token, vocab });
                }
                files.script = Some(ids);
            }
            DraftSource::Ngram | DraftSource::Suffix | DraftSource::None | DraftSource::Chain(_) => {}
        }
    }
    Ok(files)
}

/// What the suffix drafter remembers, at most.
pub(super) fn suffix_bytes(options: &EngineOptions) -> u64 {
    let is_used = options.draft.members().contains(&DraftSource::Suffix);
    if is_used { options.suffix.memory_bytes() } else { 0 }
}

impl DraftFiles {
    /// A drafter's effort: a drafted token's share of the time of a pass of `target` that waits for nothing is that of
    /// the bytes both multiply with; 0 for drafters that take next to nothing, and for chains, which ask them first. A
    /// head reads the hidden states of every token.
    pub fn effort(&self, options: &EngineOptions, target: &Model) -> DraftEffort {
        let token_share = match (&self.model, options.draft.members()) {
            (Some(model), [_]) => {
                let bytes = |blueprint: &Blueprint| blueprint.active_bytes_per_token().max(1) as f64;
                bytes(model.blueprint()) / bytes(target.blueprint())
            }
            _ => 0.0,
        };
        let is_lookup = |member: &DraftSource| matches!(member, DraftSource::Ngram | DraftSource::Suffix);
        DraftEffort {
            token_share,
            unread_max: if self.head.is_some() { usize::MAX } else { UNREAD_MAX },
            is_lookup: options.draft.members().iter().all(is_lookup),
        }
    }
}

/// Builds the drafter that the options ask for. A head makes `target` keep what it must be shown.
///
/// # Errors
/// A draft model or head that cannot be loaded; a thread that cannot be started.
pub fn drafter(
    options: &EngineOptions,
    mut files: DraftFiles,
    target: &mut Model,
    progress: &mut dyn Progress,
) -> Result<Option<Box<dyn Drafter>>, Error> {
    let mut drafters = Vec::new();
    for member in options.draft.members() {
        let parts = DrafterParts::new(options.ngram, options.suffix);
        drafters.push(match member {
            DraftSource::None | DraftSource::Chain(_) => continue,
            DraftSource::Ngram => DrafterKind::Ngram.build(parts)?,
            DraftSource::Suffix => DrafterKind::Suffix.build(parts)?,
            DraftSource::Script(script) => {
                let script = files.script.take().map(|tokens| Script { tokens, config: script.config });
                DrafterKind::Script.build(DrafterParts { script, ..parts })?
            }
            DraftSource::Mtp | DraftSource::Model(_) if files.head.is_some() => {
                let head = files.head.take().expect("invariant: looked at just now");
                let kind = head.kind();
                kind.build(DrafterParts { head: Some(head.load(options, target, progress)?), ..parts })?
            }
            DraftSource::Mtp => DrafterKind::Mtp.build(parts)?,
            DraftSource::Model(_) => {
                let model = files.model.take().map(|opened| draft_model(options, opened, progress));
                let vocabulary = files.vocabulary.take();
                DrafterKind::Model.build(DrafterParts { model: model.transpose()?, vocabulary, ..parts })?
            }
        });
    }
    // One alone needs no chain.
    let single = (drafters.len() == 1).then(|| drafters.pop()).flatten();
    Ok(single.or_else(|| (!drafters.is_empty()).then(|| Box::new(ChainDrafter::new(drafters)) as Box<_>)))
}

fn draft_model(
    options: &EngineOptions,
    opened: Opened,
    progress: &mut dyn Progress,
) -> Result<Box<dyn LanguageModel>, Error> {
    let slots = opened.experts_total();
    let cache = CacheChoice { slots, policy: PolicyKind::Lru, ..CacheChoice::of(options) };
    Ok(Box::new(opened.load(cache, None, progress)?))
}
