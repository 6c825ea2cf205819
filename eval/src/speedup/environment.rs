//! Where a table comes from: machine, program, commit, and how cold a cold run is.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::run::Runner;
use crate::compare::{Device, Machine, load};

/// The block above a table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Environment {
    pub machine: Machine,
    /// Of the source this harness was built in, where that is still there.
    pub commit: String,
    pub program: String,
    /// What was done before a run called cold.
    pub cold: String,
    /// What a run called warm began with.
    pub warm: String,
    /// "RAPL", or "not available".
    pub energy: String,
    /// The disk that the figures are for, where it is a simulated one.
    pub simulated_disk: Option<String>,
    pub load_before: Option<f64>,
}

impl Environment {
    /// Looks.
    pub fn look(runner: &Runner) -> Environment {
        let device = Device::of(&runner.model).ok().flatten();
        let cold = if runner.drop_caches {
            "sync, then /proc/sys/vm/drop_caches: nothing of any file in the page cache".to_owned()
        } else {
            "posix_fadvise(DONTNEED) on the models' files: nothing of them in the page cache unless another process maps them"
                .to_owned()
        };
        let energy = match runner.energy.read() {
            Some(_) => "RAPL, all packages, everything that ran meanwhile included".to_owned(),
            None => "not available".to_owned(),
        };
        Environment {
            machine: Machine::look(device.as_ref()),
            commit: commit(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap_or_else(|| "unknown".to_owned()),
            program: runner.program.display().to_string(),
            cold,
            warm: "--stats-file of one earlier run of the same prompt, without a draft; of one more with that \
                   drafter, length auto, and that cache, from which costs and what reading ahead gains are remembered; page \
                   cache as it was"
                .to_owned(),
            energy,
            simulated_disk: runner.sweep.simulate_disk.clone(),
            load_before: load(),
        }
    }
}

/// The commit of a checkout, marked where files differ from it.
fn commit(folder: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { format!("{commit} with changes") })
}
