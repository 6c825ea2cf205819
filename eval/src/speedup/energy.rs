//! Joules from the processor's own counters (RAPL), where they can be read.
//!
//! Owns the reading of /sys/class/powercap; on a machine without it, in a guest, or without the right to
//! read it, there is nothing, and the tables say so. The counters are the whole package's: everything that
//! runs meanwhile is in them.

use std::fs;
use std::path::{Path, PathBuf};

const POWERCAP: &str = "/sys/class/powercap";

/// The packages' counters.
pub struct Energy {
    packages: Vec<Package>,
}

struct Package {
    counter: PathBuf,
    /// Where the counter starts again from 0, in microjoules.
    range: u64,
}

/// A reading of all packages, in microjoules.
pub struct Reading(Vec<u64>);

impl Energy {
    /// The counters of this machine.
    pub fn find() -> Energy {
        Energy::under(Path::new(POWERCAP))
    }

    fn under(folder: &Path) -> Energy {
        let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        let mut folders: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(|path| is_package(path)).collect();
        folders.sort();
        let packages = folders.iter().filter_map(|folder| {
            let counter = folder.join("energy_uj");
            number(&counter)?;
            Some(Package { counter, range: number(&folder.join("max_energy_range_uj"))? })
        });
        Energy { packages: packages.collect() }
    }

    /// Now; None where there is no counter to be read.
    pub fn read(&self) -> Option<Reading> {
        if self.packages.is_empty() {
            return None;
        }
        self.packages.iter().map(|package| number(&package.counter)).collect::<Option<Vec<_>>>().map(Reading)
    }

    /// Joules since `before`. A counter may have started again once.
    pub fn since(&self, before: Option<Reading>) -> Option<f64> {
        let (before, after) = (before?.0, self.read()?.0);
        let spent = self.packages.iter().zip(before.iter().zip(&after)).map(|(package, (before, after))| {
            after.checked_sub(*before).unwrap_or_else(|| package.range.saturating_sub(*before) + after)
        });
        Some(spent.sum::<u64>() as f64 / 1e6)
    }
}

/// `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it; AMD's go by the same names.
fn is_package(folder: &Path) -> bool {
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.strip_prefix("intel-rapl:").is_some_and(|number| number.parse::<u32>().is_ok())
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn packages_are_added_and_a_counter_may_start_again() {
        let folder = tempfile::tempdir().unwrap();
        let set = |name: &str, value: u64| {
            let zone = folder.path().join(name);
            fs::create_dir_all(&zone).unwrap();
            fs::write(zone.join("energy_uj"), format!("{value}\n")).unwrap();
            fs::write(zone.join("max_energy_range_uj"), "10000000\n").unwrap();
        };
        set("intel-rapl:0", 1_000_000);
        set("intel-rapl:0:0", 0);
        set("intel-rapl:1", 9_000_000);
        set("intel-rapl", 5);
        let energy = Energy::under(folder.path());
        let before = energy.read();
        set("intel-rapl:0", 3_000_000);
        set("intel-rapl:0:0", 7_000_000);
        set("intel-rapl:1", 500_000); // 1 000 000 to its end, then 500 000
        assert_eq!(energy.since(before), Some(3.5));
    }

    #[test]
    fn without_counters_there_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let energy = Energy::under(folder.path());
        assert!(energy.read().is_none());
        assert_eq!(energy.since(energy.read()), None);
    }
}
