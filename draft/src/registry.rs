//! The list of drafters: one line each, from which the command line and the tests work.
//!
//! Owns names, one-line docs and constructors. Adding a drafter is one file and one line here. It
//! must not know how a drafter drafts.

use crate::{
    DraftError, Drafter, HeadDrafter, HeadModel, LanguageModel, MedusaDrafter, ModelDrafter, NgramConfig,
    NgramDrafter, ParallelHeads, Script, ScriptedDrafter, SharedVocabulary, SuffixConfig, SuffixDrafter,
};

/// Which drafter to use; spelled as in [`DRAFTERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrafterKind {
    /// A small language model on its own thread.
    Model,
    /// Prompt lookup.
    Ngram,
    /// Lookup in everything said so far.
    Suffix,
    /// The prediction head in the target's own file.
    Mtp,
    /// An EAGLE-3 head.
    Eagle3,
    /// Medusa heads.
    Medusa,
    /// A known answer with errors, for measurements.
    Script,
}

/// A head on the target's hidden states, by how it guesses.
pub enum HeadPart {
    /// Token after token (MTP, EAGLE-3).
    Chained(Box<dyn HeadModel>),
    /// All tokens at once (Medusa).
    Parallel(Box<dyn ParallelHeads>),
}

/// What a drafter may be built from.
pub struct DrafterParts {
    /// The draft model, for the drafters that need one.
    pub model: Option<Box<dyn LanguageModel>>,
    /// Which ids draft model and target share; None: all of them.
    pub vocabulary: Option<SharedVocabulary>,
    /// The head, for the drafters that need one.
    pub head: Option<HeadPart>,
    /// Settings of the n-gram drafter.
    pub ngram: NgramConfig,
    /// Settings of the suffix drafter.
    pub suffix: SuffixConfig,
    /// The answer, for the scripted drafter.
    pub script: Option<Script>,
}

impl DrafterParts {
    /// Settings without a model or a script.
    pub fn new(ngram: NgramConfig, suffix: SuffixConfig) -> DrafterParts {
        DrafterParts { model: None, vocabulary: None, head: None, ngram, suffix, script: None }
    }
}

/// One line of the registry.
pub struct DrafterEntry {
    /// The kind.
    pub kind: DrafterKind,
    /// The name used on the command line, in configuration and in reports.
    pub name: &'static str,
    /// One line for the user.
    pub doc: &'static str,
    build: fn(DrafterParts) -> Result<Box<dyn Drafter>, DraftError>,
}

/// Every drafter.
pub const DRAFTERS: &[DrafterEntry] = &[
    DrafterEntry {
        kind: DrafterKind::Model,
        name: "model",
        doc: "a small model with the target's vocabulary, on CPU threads of its own",
        build: build_model,
    },
    DrafterEntry {
        kind: DrafterKind::Ngram,
        name: "ngram",
        doc: "what followed the last time the text ended like this; needs no model",
        build: build_ngram,
    },
    DrafterEntry {
        kind: DrafterKind::Suffix,
        name: "suffix",
        doc: "what most often followed the longest match of the text's end, earlier texts included; needs no model",
        build: build_suffix,
    },
    DrafterEntry {
        kind: DrafterKind::Mtp,
        name: "mtp",
        doc: "the multi-token prediction head in the target's own file (DeepSeek-V3)",
        build: |parts| build_chained("mtp", parts),
    },
    DrafterEntry {
        kind: DrafterKind::Eagle3,
        name: "eagle3",
        doc: "an EAGLE-3 head trained for the target, in a file of its own",
        build: |parts| build_chained("eagle3", parts),
    },
    DrafterEntry {
        kind: DrafterKind::Medusa,
        name: "medusa",
        doc: "Medusa heads trained for the target, in a file of their own",
        build: build_medusa,
    },
    DrafterEntry {
        kind: DrafterKind::Script,
        name: "script",
        doc: "for measurements only: a known answer, right as often as told",
        build: build_script,
    },
];

impl DrafterKind {
    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<DrafterKind> {
        DRAFTERS.iter().find(|entry| entry.name == name).map(|entry| entry.kind)
    }

    /// This kind's line of the registry.
    pub fn entry(self) -> &'static DrafterEntry {
        DRAFTERS.iter().find(|entry| entry.kind == self).expect("invariant: every kind has its line")
    }

    /// Builds a drafter of this kind.
    ///
    /// # Errors
    /// A missing or superfluous draft model or head, a setting outside its limits, or a refused thread.
    pub fn build(self, parts: DrafterParts) -> Result<Box<dyn Drafter>, DraftError> {
        (self.entry().build)(parts)
    }
}

fn build_chained(drafter: &'static str, parts: DrafterParts) -> Result<Box<dyn Drafter>, DraftError> {
    refuse_model(drafter, &parts)?;
    match parts.head {
        Some(HeadPart::Chained(head)) => Ok(Box::new(HeadDrafter::new(drafter, head))),
        _ => Err(DraftError::HeadMissing { drafter }),
    }
}

fn build_medusa(parts: DrafterParts) -> Result<Box<dyn Drafter>, DraftError> {
    let drafter = "medusa";
    refuse_model(drafter, &parts)?;
    match parts.head {
        Some(HeadPart::Parallel(heads)) => Ok(Box::new(MedusaDrafter::new(heads))),
        _ => Err(DraftError::HeadMissing { drafter }),
    }
}

fn refuse_model(drafter: &'static str, parts: &DrafterParts) -> Result<(), DraftError> {
    if parts.model.is_some() { Err(DraftError::ModelUnused { drafter }) } else { Ok(()) }
}

fn refuse_head(drafter: &'static str, parts: &DrafterParts) -> Result<(), DraftError> {
    if parts.head.is_some() { Err(DraftError::HeadUnused { drafter }) } else { Ok(()) }
}

fn build_model(parts: DrafterParts) -> Result<Box<dyn Drafter>, DraftError> {
    refuse_head("model", &parts)?;
    let model = parts.model.ok_or(DraftError::ModelMissing { drafter: "model" })?;
    Ok(Box::new(ModelDrafter::spawn_sharing(model, parts.vocabulary)?))
}

fn build_ngram(parts: DrafterParts) -> Result<Box<dyn Drafter>, DraftError> {
    refuse_model("ngram", &parts)?;
    refuse_head("ngram", &parts)?;
    parts.ngram.validate()?;
    Ok(Box::new(NgramDrafter::new(parts.ngram)))
}

fn build_suffix(parts: DrafterParts) -> Result<Box<dyn Drafter>, DraftError> {
    refuse_model("suffix", &parts)?;
    refuse_head("suffix", &parts)?;
    parts.suffix.validate()?;
    Ok(Box::new(SuffixDrafter::new(parts.suffix)))
}

fn build_script(parts: DrafterParts) -> Result<Box<dyn Drafter>, DraftError> {
    refuse_model("script", &parts)?;
    refuse_head("script", &parts)?;
    let script = parts.script.ok_or(DraftError::ScriptMissing { drafter: "script" })?;
    script.config.validate()?;
    Ok(Box::new(ScriptedDrafter::new(script)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_line_and_its_name_finds_it() {
        for kind in DRAFTERS.iter().map(|entry| entry.kind) {
            assert_eq!(DRAFTERS.iter().filter(|entry| entry.kind == kind).count(), 1);
            assert_eq!(DrafterKind::from_name(kind.entry().name), Some(kind));
        }
        assert_eq!(DrafterKind::from_name("oracle"), None);
    }

    #[test]
    fn a_draft_model_is_neither_missed_nor_ignored() {
        let (ngram, suffix) =
            (NgramConfig { min_match: 2, max_match: 8 }, SuffixConfig { min_match: 5, tokens_max: 1024 });
        let missing = DrafterKind::Model.build(DrafterParts::new(ngram, suffix)).err();
        assert!(matches!(missing, Some(DraftError::ModelMissing { drafter: "model" })));
        let missing = DrafterKind::Script.build(DrafterParts::new(ngram, suffix)).err();
        assert!(matches!(missing, Some(DraftError::ScriptMissing { drafter: "script" })));
        let bad = NgramConfig { min_match: 0, max_match: 8 };
        let refused = DrafterKind::Ngram.build(DrafterParts::new(bad, suffix)).err();
        assert!(matches!(refused, Some(DraftError::Setting { field: "min_match", .. })));
        let bad = SuffixConfig { min_match: 0, ..suffix };
        let refused = DrafterKind::Suffix.build(DrafterParts::new(ngram, bad)).err();
        assert!(matches!(refused, Some(DraftError::Setting { field: "suffix_min_match", .. })));
    }
}
