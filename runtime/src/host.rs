//! What the operating system says about memory.
//!
//! Owns the reading of `/proc` and of the cgroup's limit. It must not know models or budgets: the
//! numbers go into the plan elsewhere. Where a file is missing (another system) the answer is None.

use std::fs;
use std::path::{Path, PathBuf};

use crate::units::format_bytes;

/// Bytes a new process may take without pushing others out: the kernel's `MemAvailable`, or what the
/// process's cgroup still allows if that is less.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    let machine = kib_field(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    Some(cgroup_available_bytes().map_or(machine, |cgroup| cgroup.min(machine)))
}

/// `share` of [`available_bytes`]: the budget when the user named none.
#[must_use]
pub fn default_budget_bytes(share: f64) -> Option<u64> {
    available_bytes().map(|bytes| (bytes as f64 * share) as u64)
}

/// Highest resident set of this process so far (`VmHWM`); 0 where the system does not tell.
#[must_use]
pub fn peak_rss_bytes() -> u64 {
    fs::read_to_string("/proc/self/status").ok().and_then(|text| kib_field(&text, "VmHWM:")).unwrap_or(0)
}

/// Makes [`peak_rss_bytes`] start again at what is resident now; false where the system cannot.
#[must_use]
pub fn reset_peak_rss() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Pages of this process so far that had to come from a disk (swap, or files mapped into memory); 0 where the
/// system does not tell. Many of them while experts are in slots mean that memory is short.
#[must_use]
pub fn major_faults() -> u64 {
    fs::read_to_string("/proc/self/stat").ok().and_then(|text| major_faults_field(&text)).unwrap_or(0)
}

/// The twelfth field of `/proc/self/stat`; the second may hold spaces and brackets.
fn major_faults_field(text: &str) -> Option<u64> {
    text.rsplit_once(')')?.1.split_whitespace().nth(9)?.parse().ok()
}

/// Processor, CPUs this process may use, memory and system in one line, for reports.
#[must_use]
pub fn description() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (cpuinfo, meminfo) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processor = model.map_or(std::env::consts::ARCH, |(_, name)| name);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = kib_field(&meminfo, "MemTotal:").map_or_else(|| "unknown".to_owned(), format_bytes);
    let release = read("/proc/sys/kernel/osrelease");
    format!("{processor}, {cpus} CPUs, {memory} of memory, {} {}", std::env::consts::OS, release.trim())
}

/// The value of a `Name:   123 kB` line in bytes.
fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What the tightest memory cgroup above this process still allows; None without a limit.
fn cgroup_available_bytes() -> Option<u64> {
    let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
    membership.lines().filter_map(cgroup_folder).flat_map(|(root, path)| levels(&root, &path)).min()
}

/// A line of `/proc/self/cgroup` -> the mount and the path below it: `0::/a/b` is version 2,
/// `4:memory:/a/b` version 1.
fn cgroup_folder(line: &str) -> Option<(PathBuf, String)> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let root = match controllers {
        "" => "/sys/fs/cgroup",
        _ if controllers.split(',').any(|name| name == "memory") => "/sys/fs/cgroup/memory",
        _ => return None,
    };
    Some((PathBuf::from(root), path.trim_start_matches('/').to_owned()))
}

/// What each cgroup from `path` up to `root` still allows.
fn levels(root: &Path, path: &str) -> Vec<u64> {
    root.join(path)
        .ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(folder_allows)
        .collect()
}

/// Limit less use of one cgroup, in either version's file names; None when it sets no limit.
fn folder_allows(folder: &Path) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    // Page cache counts as use but goes when it is needed, as in MemAvailable.
    let cache = fs::read_to_string(folder.join("memory.stat")).ok().and_then(|text| stat_field(&text));
    Some(limit.saturating_sub(used.saturating_sub(cache.unwrap_or(0))))
}

/// Bytes of inactive page cache in a `memory.stat`.
fn stat_field(text: &str) -> Option<u64> {
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    value("total_inactive_file ").or_else(|| value("inactive_file "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_proc_line_is_read_in_bytes() {
        let text = "MemTotal:       24684096 kB\nMemAvailable:   21439504 kB\n";
        assert_eq!(kib_field(text, "MemAvailable:"), Some(21_439_504 * 1024));
        assert_eq!(kib_field(text, "MemFree:"), None);
        assert_eq!(kib_field("VmHWM:\t-3 kB", "VmHWM:"), None);
    }

    #[test]
    fn major_faults_are_found_behind_any_name() {
        let text = "42 (a) b) c) S 1 2 3 4 5 6 70 8 9 10 11\n";
        assert_eq!(major_faults_field(text), Some(9));
        assert_eq!(major_faults_field("42 (a) S 1"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_peak_can_be_forgotten() {
        let large = vec![1u8; 256 << 20];
        assert!(large.iter().map(|byte| usize::from(*byte)).sum::<usize>() == large.len());
        let peak = peak_rss_bytes();
        assert!(peak >= 256 << 20);
        drop(large);
        if !reset_peak_rss() {
            eprintln!("skipped: this system does not let a peak be reset");
            return;
        }
        assert!(peak_rss_bytes() < peak - (64 << 20), "other tests take less than the rest");
    }

    #[test]
    fn the_machine_is_one_line() {
        let line = description();
        assert!(line.contains(" CPUs, ") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn both_cgroup_versions_are_found() {
        let version2 = cgroup_folder("0::/user.slice/a").unwrap();
        assert_eq!(version2, (PathBuf::from("/sys/fs/cgroup"), "user.slice/a".to_owned()));
        let version1 = cgroup_folder("4:cpu,memory:/b").unwrap();
        assert_eq!(version1, (PathBuf::from("/sys/fs/cgroup/memory"), "b".to_owned()));
        assert_eq!(cgroup_folder("5:pids:/b"), None);
    }

    #[test]
    fn the_tightest_level_counts_and_page_cache_is_free() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        let write = |folder: &Path, name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        write(&inner, "memory.max", "max\n");
        write(&inner, "memory.current", "10\n");
        write(&root.path().join("a"), "memory.max", "1000\n");
        write(&root.path().join("a"), "memory.current", "900\n");
        write(&root.path().join("a"), "memory.stat", "anon 1\ninactive_file 300\n");
        assert_eq!(levels(root.path(), "a/b"), vec![400]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_a_peak_and_memory_left() {
        assert!(peak_rss_bytes() > 0);
        assert!(available_bytes().unwrap() > 0);
        assert!(default_budget_bytes(0.5).unwrap() < available_bytes().unwrap().max(1 << 20) * 2);
    }
}
