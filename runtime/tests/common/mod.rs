//! What the integration tests share: opening models and the way to data that may be absent.

#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests; each test binary uses its own part")]

use std::path::{Path, PathBuf};

use drafthorse_offload::reader::PreadReader;
use drafthorse_offload::{PolicyConfig, PolicyKind, Reader};
use drafthorse_runtime::gguf::Gguf;
use drafthorse_runtime::models::{Blueprint, Model, ModelOptions, Overrides};

/// How a test runs a model.
#[derive(Clone, Copy)]
pub struct Setup {
    pub slots: usize,
    pub policy: PolicyKind,
    pub threads: usize,
    pub rows_max: usize,
    pub context_len: usize,
}

/// Everything resident, one thread, long passes.
pub const PLAIN: Setup =
    Setup { slots: usize::MAX, policy: PolicyKind::Lru, threads: 1, rows_max: 64, context_len: 128 };

pub fn load(path: &Path, setup: Setup) -> Model {
    let gguf = Gguf::open(path).unwrap();
    let reader = PreadReader::open(&gguf.files, 2).unwrap();
    load_with(&gguf, setup, Box::new(reader))
}

pub fn load_with(gguf: &Gguf, setup: Setup, reader: Box<dyn Reader>) -> Model {
    let blueprint = Blueprint::new(gguf, &Overrides::default()).unwrap();
    let options = ModelOptions {
        context_len: setup.context_len,
        rows_max: setup.rows_max,
        threads: setup.threads,
        thread_name: "test",
    };
    let experts = blueprint.experts.as_ref().map(|layers| {
        let slots = setup.slots.min(layers.index.experts_total());
        let used = blueprint.spec.moe.unwrap().used as u32;
        (slots, setup.policy.build(&PolicyConfig::new(&layers.index, slots, used)))
    });
    Model::load(blueprint, options, reader, experts, &mut |_| {}).unwrap()
}

/// A file of this crate.
pub fn local(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// A file of the data beside the checkout; prints why the test is skipped when it is absent.
pub fn shared(relative: &str) -> Option<PathBuf> {
    let path = local("../../shared/data").join(relative);
    if !path.exists() {
        eprintln!("skipped: {} is not here", path.display());
        return None;
    }
    Some(path)
}
