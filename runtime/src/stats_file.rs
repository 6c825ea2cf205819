//! What the policy learned, kept between runs (`--stats-file`).
//!
//! Owns the file's name and the model's fingerprint in it, and what happens when either is not as
//! expected: a file that is not there yet is a first run, one of another model or a damaged one is said
//! so and written anew. It must not know what is in the file.

use std::path::PathBuf;

use drafthorse_offload::{OffloadError, PolicyKind, WarmStats, checksum};

use crate::Error;
use crate::api::Progress;
use crate::gguf::Gguf;
use crate::models::{ExpertLayers, Model};

/// A file of counts for one model.
pub struct StatsFile {
    path: PathBuf,
    fingerprint: String,
}

impl StatsFile {
    /// The file at `path`, for the model in `gguf`.
    ///
    /// # Errors
    /// A model without routed experts, a policy that learns nothing, a place that cannot be written to.
    pub fn new(path: PathBuf, gguf: &Gguf, (experts, policy): (bool, PolicyKind)) -> Result<Self, Error> {
        if !experts {
            return Err(Error::Usage("--stats-file: the model has no routed experts".into()));
        }
        if policy == PolicyKind::Lru {
            return Err(Error::Usage(format!("--stats-file: the policy {} keeps no counts", policy.name())));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::io("write into", folder, missing));
        }
        Ok(StatsFile { path, fingerprint: fingerprint(gguf) })
    }

    /// Counts of earlier runs, if they can be used; the user hears why not.
    pub fn load(&self, layers: &ExpertLayers, used: u32, progress: &mut dyn Progress) -> Option<WarmStats> {
        match WarmStats::load(&self.path, &self.fingerprint, &layers.experts(), used) {
            Ok(stats) => Some(stats),
            Err(OffloadError::WarmStatsIo { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                None
            }
            Err(error) => {
                progress.notice(&format!("{error}; starting without it"));
                None
            }
        }
    }

    /// Keeps what the model's policy has learned.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, model: &Model) -> Result<(), Error> {
        match model.warm_stats() {
            Some(stats) => Ok(stats.save(&self.path, &self.fingerprint)?),
            None => Ok(()),
        }
    }
}

/// Identifies a model by its tensor table: names, types, sizes and places. Two quantizations differ; a
/// renamed or moved file does not.
fn fingerprint(gguf: &Gguf) -> String {
    let mut table = String::new();
    for tensor in &gguf.tensors {
        table.push_str(&format!("{} {:?} {:?}\n", tensor.name, tensor.dims, tensor.block_type));
    }
    format!("{:016x}", checksum(table.as_bytes()))
}
