//! A memory cgroup for one process: its limit, and what the kernel counted.
//!
//! Version 1 (a `memory` hierarchy) and version 2 (one hierarchy, `memory.max`). Page cache that the
//! process brings in is charged to it, which is what makes a limit on a memory-mapped model mean
//! something. A process moves itself in before it becomes the engine, so nothing escapes the count.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::CompareError;
use super::machine::set_number;

/// Which kind of memory cgroup a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum CageKind {
    /// Separate hierarchies.
    #[serde(rename = "v1")]
    V1,
    /// One hierarchy.
    #[serde(rename = "v2")]
    V2,
}

impl CageKind {
    /// What this machine has.
    ///
    /// # Errors
    /// Neither.
    pub fn find() -> Result<CageKind, CompareError> {
        if Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
            return Ok(CageKind::V1);
        }
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        if controllers.split_whitespace().any(|name| name == "memory") {
            return Ok(CageKind::V2);
        }
        Err(CompareError::Usage("this machine has no memory cgroups: --no-cgroup runs without limits".into()))
    }

    /// Where this process's cage is.
    pub fn folder(self) -> PathBuf {
        let root = match self {
            CageKind::V1 => "/sys/fs/cgroup/memory",
            CageKind::V2 => "/sys/fs/cgroup",
        };
        Path::new(root).join(format!("drafthorse-compare-{}", std::process::id()))
    }

    fn peak_file(self) -> &'static str {
        match self {
            CageKind::V1 => "memory.max_usage_in_bytes",
            CageKind::V2 => "memory.peak",
        }
    }

    fn events_file(self) -> &'static str {
        match self {
            CageKind::V1 => "memory.oom_control",
            CageKind::V2 => "memory.events",
        }
    }
}

/// An empty cgroup with a limit, removed when dropped.
pub struct Cage {
    kind: CageKind,
    folder: PathBuf,
}

impl Cage {
    /// Makes it.
    ///
    /// # Errors
    /// Not root, or a kernel that refuses the limit.
    pub fn new(kind: CageKind, limit_bytes: u64) -> Result<Cage, CompareError> {
        let folder = kind.folder();
        if kind == CageKind::V2 {
            // Already on where a service manager runs; where this fails, setting the limit says so.
            let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
        }
        fs::create_dir(&folder).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => CompareError::Usage(
                "a memory limit needs root (a cgroup is made for each run); --no-cgroup runs without limits"
                    .to_owned(),
            ),
            _ => CompareError::Machine { what: format!("cannot make {}", folder.display()), source },
        })?;
        let cage = Cage { kind, folder };
        match kind {
            CageKind::V1 => {
                set_number(&cage.file("memory.limit_in_bytes"), limit_bytes)?;
                // Absent where swap is not accounted.
                let _ = set_number(&cage.file("memory.memsw.limit_in_bytes"), limit_bytes);
            }
            CageKind::V2 => {
                set_number(&cage.file("memory.max"), limit_bytes)?;
                let _ = set_number(&cage.file("memory.swap.max"), 0);
            }
        }
        Ok(cage)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where a process writes its id to move in.
    pub fn procs_file(&self) -> PathBuf {
        self.file("cgroup.procs")
    }

    /// The most memory it ever held, page cache included; None where the kernel does not tell.
    pub fn peak_bytes(&self) -> Option<u64> {
        super::machine::number(&self.file(self.kind.peak_file()))
    }

    /// Processes the kernel killed in it for want of memory.
    pub fn oom_kills(&self) -> Option<u64> {
        oom_kills(&fs::read_to_string(self.file(self.kind.events_file())).ok()?)
    }
}

fn oom_kills(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

impl Drop for Cage {
    fn drop(&mut self) {
        // Version 1 keeps charged pages in a group that goes; both steps may fail without harm, and the
        // guardian tries again at the end.
        let _ = fs::write(self.file("memory.force_empty"), "0");
        let _ = fs::remove_dir(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_read_from_either_versions_file() {
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), Some(2));
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(oom_kills("oom_kill_disable 0\n"), None);
    }
}
