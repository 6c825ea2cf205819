//! What is read and set on the machine: the block device, its read-ahead, page cache, description.
//!
//! Read-ahead is a setting of the whole machine: [`Guardian`] puts it back however this process ends,
//! and [`Device`] only sets it. Linux alone; where a file of /proc or /sys is missing, a typed error or
//! a number left out.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

use super::CompareError;

/// Bytes of a sector in the kernel's counters, whatever the device's own.
const SECTOR_BYTES: u64 = 512;

/// The block device under a file.
pub struct Device {
    folder: PathBuf,
    read_ahead: Option<PathBuf>,
}

impl Device {
    /// The device that holds `file`; None for a file system without one.
    pub fn of(file: &Path) -> io::Result<Option<Device>> {
        let device = fs::metadata(file)?.dev();
        // Linux' encoding of a device number (`gnu_dev_major`, `gnu_dev_minor`).
        let major = ((device >> 8) & 0xFFF) | ((device >> 32) & !0xFFF);
        let minor = (device & 0xFF) | ((device >> 12) & !0xFF);
        let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        if !folder.join("stat").exists() {
            return Ok(None);
        }
        let own = folder.join("queue/read_ahead_kb");
        // A partition has its disk's.
        let disk = folder.join("../queue/read_ahead_kb");
        let read_ahead = [own, disk].into_iter().find(|file| file.exists());
        Ok(Some(Device { folder, read_ahead }))
    }

    /// The kernel's name for it, such as `vda`.
    pub fn name(&self) -> String {
        let folder = fs::canonicalize(&self.folder).unwrap_or_else(|_| self.folder.clone());
        folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Bytes read from it so far, by everybody.
    pub fn bytes_read(&self) -> Option<u64> {
        let text = fs::read_to_string(self.folder.join("stat")).ok()?;
        text.split_whitespace().nth(2)?.parse::<u64>().ok()?.checked_mul(SECTOR_BYTES)
    }

    /// The file of its read-ahead, in KiB.
    pub fn read_ahead_file(&self) -> Option<&Path> {
        self.read_ahead.as_deref()
    }
}

/// Reads a number of a file of /sys.
pub fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Writes a number to a file of /sys or a cgroup.
pub fn set_number(file: &Path, value: u64) -> Result<(), CompareError> {
    fs::write(file, value.to_string())
        .map_err(|source| CompareError::Machine { what: format!("cannot set {}", file.display()), source })
}

/// Writes dirty pages out and forgets clean ones, as a reboot would.
pub fn drop_caches() -> Result<(), CompareError> {
    let failed = |source| CompareError::Machine {
        what: "cannot drop the page cache (--drop-caches needs root)".to_owned(),
        source,
    };
    Command::new("sync").status().map_err(failed)?;
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(failed)
}

/// What the guardian clears up.
#[derive(Default)]
pub struct Cleanup {
    /// The read-ahead file and the value it had.
    pub read_ahead: Option<(PathBuf, u64)>,
    /// The cgroup whose processes are killed and which is removed.
    pub cgroup: Option<PathBuf>,
    /// A file of ours to remove.
    pub file: Option<PathBuf>,
}

/// A small shell that waits for this process to end, in whatever way (a pipe's end tells it, Ctrl-C and
/// SIGKILL included), and then clears up.
pub struct Guardian {
    shell: Child,
    restored: Option<(PathBuf, u64)>,
}

/// $1 and $2: read-ahead file and value; $3: cgroup; $4: file. Empty ones are left out.
const GUARDIAN: &str = r#"
trap "" INT TERM HUP
echo ready
cat >/dev/null
[ -z "$1" ] || echo "$2" >"$1"
if [ -n "$3" ] && [ -d "$3" ]; then
    for pid in $(cat "$3/cgroup.procs"); do kill -9 "$pid"; done
    for second in 1 2 3 4 5; do rmdir "$3" 2>/dev/null && break; sleep 1; done
fi
[ -z "$4" ] || rm -f "$4"
"#;

impl Guardian {
    /// Starts it, before anything is changed.
    pub fn start(cleanup: Cleanup) -> Result<Guardian, CompareError> {
        let text = |path: &Option<PathBuf>| path.as_deref().unwrap_or(Path::new("")).to_owned();
        let (file, value) = cleanup.read_ahead.clone().unzip();
        let failed =
            |source| CompareError::Machine { what: "cannot start the guardian's sh".to_owned(), source };
        let mut shell = Command::new("sh")
            .args(["-c", GUARDIAN, "guardian"])
            .arg(text(&file))
            .arg(value.unwrap_or_default().to_string())
            .args([text(&cleanup.cgroup), text(&cleanup.file)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        // From this line on it no longer heeds Ctrl-C.
        let mut ready = [0; 6];
        shell.stdout.take().map_or(Ok(()), |mut out| out.read_exact(&mut ready)).map_err(failed)?;
        Ok(Guardian { shell, restored: cleanup.read_ahead })
    }

    /// Clears up now.
    ///
    /// # Errors
    /// The read-ahead is not what it was.
    pub fn finish(mut self) -> Result<(), CompareError> {
        self.end();
        match &self.restored {
            Some((file, value)) if number(file) != Some(*value) => Err(CompareError::Machine {
                what: format!("{} is not back at {value}: set it by hand", file.display()),
                source: io::Error::other("the value did not take"),
            }),
            _ => Ok(()),
        }
    }

    fn end(&mut self) {
        // There is nothing to send: closing the pipe is the message.
        drop(self.shell.stdin.take());
        // A second call finds it waited for; a failure to wait leaves the shell to itself.
        let _ = self.shell.wait();
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.end();
    }
}

/// The machine a table was made on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_bytes: u64,
    pub kernel: String,
    pub device: Option<String>,
    /// As it was found; what ours and runs without a setting had.
    pub read_ahead_kb: Option<u64>,
}

impl Machine {
    /// Looks.
    pub fn look(device: Option<&Device>) -> Machine {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?.split_once(':')?;
            Some(line.1.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kib = memory.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        Machine {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown CPU".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kib.unwrap_or_default() * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            device: device.map(Device::name),
            read_ahead_kb: device.and_then(Device::read_ahead_file).and_then(number),
        }
    }
}

/// Processes that wanted to run, averaged over the last minute.
pub fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_guardian_puts_the_value_back_and_removes_what_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let [read_ahead, ids, cgroup] =
            ["read_ahead_kb", "ids", "cgroup"].map(|name| folder.path().join(name));
        for (clean_end, value) in [(true, 8192), (false, 256)] {
            fs::write(&read_ahead, value.to_string()).unwrap();
            fs::write(&ids, "1 2").unwrap();
            let cleanup = Cleanup {
                read_ahead: Some((read_ahead.clone(), value)),
                cgroup: Some(cgroup.clone()),
                file: Some(ids.clone()),
            };
            let guardian = Guardian::start(cleanup).unwrap();
            set_number(&read_ahead, 128).unwrap();
            if clean_end {
                guardian.finish().unwrap();
            } else {
                drop(guardian); // as an error on the way does
            }
            assert_eq!(number(&read_ahead), Some(value));
            assert!(!ids.exists());
        }
    }

    #[test]
    fn a_guardian_that_is_interrupted_still_clears_up() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("read_ahead_kb");
        fs::write(&file, "8192").unwrap();
        let cleanup = Cleanup { read_ahead: Some((file.clone(), 8192)), ..Cleanup::default() };
        let guardian = Guardian::start(cleanup).unwrap();
        set_number(&file, 128).unwrap();
        // Ctrl-C reaches every process of the terminal.
        let kill = |signal: &str| {
            Command::new("kill").args([signal, &guardian.shell.id().to_string()]).status().unwrap()
        };
        assert!(kill("-INT").success() && kill("-TERM").success());
        guardian.finish().unwrap();
        assert_eq!(number(&file), Some(8192));
    }

    #[test]
    fn a_value_that_does_not_come_back_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gone/read_ahead_kb");
        let cleanup = Cleanup { read_ahead: Some((file, 8192)), ..Cleanup::default() };
        assert!(Guardian::start(cleanup).unwrap().finish().is_err());
    }
}
