//! A folder with a sweep and a script that pretends to be `drafthorse`, whose figures are known.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// One layer of four experts, one a token: enough for every replay.
const TRACE: &[u8] =
    b"{\"n_routed_experts\":4,\"top_k\":1,\"n_moe_layers\":1,\"n_tokens\":3,\"seq_lens\":[3]}\n\
    \x00\x01\x00\0\0\0\0\0\0";

/// 4 tokens in 4 s, or in 2 s with a draft. `EXTRA` is what a test adds: it may set any of the names.
const ENGINE: &str = r#"#!/bin/sh
echo "$*" >>'LOG'
draft=none; len=; slots=; temp=; all="$*"
while [ $# -gt 0 ]; do
    case "$1" in
        --draft) draft=$2 ;; --draft-len) len=$2 ;; --slots) slots=$2 ;; --temp) temp=$2 ;;
        --record-trace) cp 'TRACE' "$2" ;; --stats-file) echo counts >>"$2" ;;
    esac
    shift
done
tokens=1,2,3,4,5; passes=4; seconds=4.0; predicted=null; places=; proposed=0; stood=0; wasted=0
if [ "$draft" != none ]; then
    passes=2; seconds=2.0; predicted=1.9; places='{"offered":2,"accepted":2},{"offered":2,"accepted":0}'; proposed=4; stood=2; wasted=100
fi
EXTRA
cat <<END
{"text":"x","tokens":[$tokens],"prompt_tokens":3,"generated":5,"finish_reason":"length",
"timings":{"load_s":0.1,"prefill_s":0.2,"decode_s":$seconds,"prefill_tps":1,"decode_tps":2},
"speculation":{"draft_len_mean":1,"proposed":$proposed,"accepted":$stood,"target_passes":$passes,"accepted_per_pass":1,
"acceptance_by_position":[$places],"off_reason":null,"predicted_speedup":$predicted,"t_ratio":null},
"offload":{"slots":4,"hits":9,"misses":3,"stall_s":0.5,"rejected_only_bytes":$wasted,
"decode":{"hits":6,"misses":2,"hit_rate":0.75,"bytes_read":1000,"prefetch_bytes":400,"prefetch_used_bytes":300}},
"memory":{"peak_rss_bytes":7}}
END
"#;

pub struct Bench {
    folder: TempDir,
}

impl Bench {
    pub fn new() -> Bench {
        let bench = Bench { folder: TempDir::new().unwrap() };
        fs::write(bench.path("trace"), TRACE).unwrap();
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A program that pretends to be `drafthorse`.
    pub fn engine(&self, extra: &str) -> String {
        let script =
            ENGINE.replace("LOG", &self.text("log")).replace("'TRACE'", &format!("'{}'", self.text("trace")));
        fs::write(self.path("engine"), script.replace("EXTRA", extra)).unwrap();
        fs::set_permissions(self.path("engine"), fs::Permissions::from_mode(0o755)).unwrap();
        self.text("engine")
    }

    /// A sweep over one prompt of the demo model with these lines more.
    pub fn sweep(&self, lines: &str) -> String {
        let text = format!("model = \"demo\"\ntasks = [\"code\"]\ntokens = 5\nrepeats = 2\n{lines}\n");
        fs::write(self.path("sweep.toml"), text).unwrap();
        self.text("sweep.toml")
    }

    pub fn command(&self, sweep: &str, program: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drafthorse-eval"));
        command.args(["speedup", sweep, "-o"]).arg(self.path("out")).args(["--program", program]).args(more);
        command
    }

    pub fn run(&self, sweep: &str, program: &str, more: &[&str]) -> Output {
        self.command(sweep, program, more).output().unwrap()
    }

    pub fn out(&self, name: &str) -> String {
        fs::read_to_string(self.path("out").join(name)).unwrap()
    }

    pub fn report(&self) -> Value {
        serde_json::from_str(&self.out("speedup.json")).unwrap()
    }

    /// What the engine was called with, in order.
    pub fn log(&self) -> Vec<String> {
        fs::read_to_string(self.path("log")).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The page with everything in it that can be parsed.
pub fn page(text: &str) -> roxmltree::Document<'_> {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    roxmltree::Document::parse_with_options(text, options).unwrap()
}

/// `drafthorse`, where the whole workspace was built.
pub fn product() -> Option<String> {
    let program = Path::new(env!("CARGO_BIN_EXE_drafthorse-eval")).with_file_name("drafthorse");
    if !program.is_file() {
        eprintln!("skipped: {} is not built (cargo test --workspace builds it)", program.display());
        return None;
    }
    Some(program.display().to_string())
}
