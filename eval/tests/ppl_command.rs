//! `drafthorse-eval ppl` as a user runs it: figures counted by hand, runs compared with themselves and
//! with others, files that do not belong together refused.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use drafthorse_runtime::engine::ids_hash;
use serde_json::Value;
use tempfile::TempDir;

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { folder: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn model(&self, name: &str, args: &[&str]) {
        let output = eval().arg("synth").args(args).arg("-o").arg(self.path(name)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// 70 ids of a vocabulary of 512, the first file of every test.
    fn ids(&self) -> Vec<u32> {
        let ids: Vec<u32> = (0..70).map(|index| (index * 197 + 31) % 512).collect();
        let words: Vec<String> = ids.iter().map(u32::to_string).collect();
        fs::write(self.path("ids"), words.join(" ")).unwrap();
        ids
    }

    /// A file of logits as another engine writes it.
    fn logits(&self, name: &str, (vocab, context): (usize, usize), ids: &[u32], rows: &[f32]) {
        let header = format!(
            "{{\"format\":\"drafthorse-logits-1\",\"vocab\":{vocab},\"context\":{context},\"windows\":{},\
             \"ids_hash\":\"{}\",\"engine\":\"by hand\",\"settings\":{{\"threads\":2}}}}\n",
            ids.len() / context,
            ids_hash(ids)
        );
        let rows = rows.iter().flat_map(|value| value.to_le_bytes());
        fs::write(self.path(name), header.into_bytes().into_iter().chain(rows).collect::<Vec<_>>()).unwrap();
    }

    /// Runs in the folder.
    fn ppl(&self, args: &[&str]) -> Output {
        eval().arg("ppl").args(args).current_dir(self.folder.path()).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.ppl(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refusal(&self, args: &[&str]) -> (i32, String) {
        let output = self.ppl(args);
        assert!(output.stdout.is_empty());
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

fn eval() -> Command {
    Command::new(env!("CARGO_BIN_EXE_drafthorse-eval"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn files_of_logits_give_the_figures_counted_by_hand() {
    let bench = Bench::new();
    fs::write(bench.path("ids"), "0 1 0 1, 1 0 1 0").unwrap();
    let ids = [0, 1, 0, 1, 1, 0, 1, 0];
    // One scored row a window: position 2 predicts token 3, which is 1 and then 0.
    let ln = |p: f64| p.ln() as f32;
    bench.logits("a", (2, 4), &ids, &[ln(0.75), ln(0.25), ln(0.25), ln(0.75)]);
    bench.logits("b", (2, 4), &ids, &[0.0, 0.0, ln(0.25), ln(0.75)]);
    let report = bench.json(&["--logits", "a", "--ids", "ids", "--context", "4", "--kl-base", "b"]);
    assert_eq!((&report["engine"], &report["positions"]), (&"by hand".into(), &2.into()));
    assert!((number(&report["ppl"]) - 4.0).abs() < 1e-6);
    let kl = &report["kl"];
    // 1/2 ln(1/2 / 3/4) + 1/2 ln(1/2 / 1/4) = ln(4/3) / 2.
    let by_hand = (4f64 / 3.0).ln() / 2.0;
    assert!(
        (number(&kl["max"]) - by_hand).abs() < 1e-6 && (number(&kl["mean"]) - by_hand / 2.0).abs() < 1e-6
    );
    assert_eq!(number(&kl["top1_agreement"]), 1.0);
    assert!((number(&kl["base_ppl"]) - 8f64.sqrt()).abs() < 1e-6);
}

#[test]
fn a_run_is_not_away_from_itself_and_another_model_is_far() {
    let bench = Bench::new();
    bench.ids();
    bench.model("m.gguf", &["--shape", "tiny-mixtral", "--quant", "f32"]);
    bench.model("other.gguf", &["--shape", "tiny-mixtral", "--quant", "f32", "--seed", "2"]);
    let common = ["--ids", "ids", "--context", "16", "--chunks", "3", "--memory", "2GiB"];
    let first = bench.json(&[&["m.gguf", "--logits-out", "base"], &common[..]].concat());
    assert_eq!((&first["positions"], &first["windows"]), (&21.into(), &3.into()));
    assert!(first["kl"].is_null() && number(&first["ppl"]) > 1.0);
    // The same, replacing its own base, with another number of threads.
    let again = ["m.gguf", "--kl-base", "base", "--logits-out", "base", "--threads", "1"];
    let again = bench.json(&[&again[..], &common[..]].concat());
    assert_eq!(number(&again["kl"]["max"]), 0.0);
    assert_eq!(number(&again["kl"]["top1_agreement"]), 1.0);
    assert_eq!((&again["ppl"], &again["kl"]["base_ppl"]), (&first["ppl"], &first["ppl"]));
    let other = bench.json(&[&["other.gguf", "--kl-base", "base"], &common[..]].concat());
    // Logits of deviation 2 that know nothing of each other: about 2 x 2^2 / 2 nats.
    assert!((2.0..8.0).contains(&number(&other["kl"]["mean"])), "{other}");
    assert!(number(&other["kl"]["top1_agreement"]) < 0.2, "{other}");
}

#[test]
fn the_ids_of_a_text_give_the_same_figures_as_the_text() {
    let bench = Bench::new();
    bench.model("m.gguf", &["--shape", "tiny-mixtral", "--quant", "q8_0"]);
    fs::write(bench.path("text"), "many words of some text, ".repeat(12)).unwrap();
    let common = ["m.gguf", "--context", "32", "--memory", "2GiB"];
    let text = bench.json(&[&common[..], &["--text", "text", "--ids-out", "ids"]].concat());
    let ids = bench.json(&[&common[..], &["--ids", "ids"]].concat());
    assert_eq!(text, ids);
    // Each window begins with the vocabulary's first token.
    let written = fs::read_to_string(bench.path("ids")).unwrap();
    let firsts: Vec<&str> = written.split_whitespace().step_by(32).collect();
    assert!(firsts.len() > 1 && firsts.iter().all(|id| *id == "1"), "{firsts:?}");
}

#[test]
fn what_does_not_belong_together_is_refused_by_name() {
    let bench = Bench::new();
    let ids = bench.ids();
    bench.model("m.gguf", &["--shape", "tiny-mixtral", "--quant", "q8_0"]);
    let rows = |count: usize| vec![0.0; count * 512];
    bench.logits("vocabulary", (8, 16), &ids[..32], &vec![0.0; 14 * 8]);
    bench.logits("windows", (512, 16), &ids[..16], &rows(7));
    bench.logits("ids-differ", (512, 16), &ids[1..33], &rows(14));
    bench.logits("nan", (512, 16), &ids[..32], &vec![f32::NAN; 14 * 512]);
    bench.logits("cut", (512, 16), &ids[..32], &rows(13));
    let base = |file| ["m.gguf", "--ids", "ids", "--context", "16", "--chunks", "2", "--kl-base", file];
    for (file, code, reason) in [
        ("vocabulary", 3, "vocabulary of 8 tokens, not 512"),
        ("windows", 3, "1 windows of 16 tokens, not 2 of 16"),
        ("ids-differ", 3, "other ids"),
        ("cut", 3, "its header says"),
        ("m.gguf", 3, "no header of a file of logits"),
        ("nan", 1, "row 0 has a logit that is not finite"),
        ("missing", 1, "cannot read missing"),
    ] {
        let (got, message) = bench.refusal(&base(file));
        assert_eq!(got, code, "{message}");
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn commands_that_make_no_sense_are_refused() {
    let bench = Bench::new();
    let ids = bench.ids();
    bench.model("m.gguf", &["--shape", "tiny-mixtral", "--quant", "q8_0"]);
    bench.logits("logits", (512, 16), &ids[..64], &vec![0.0; 28 * 512]);
    fs::write(bench.path("outside"), "1 2 3 4 512").unwrap();
    for (args, reason) in [
        (&["m.gguf", "--ids", "ids"][..], "70 tokens do not fill a window of 512"),
        (&["m.gguf", "--ids", "outside", "--context", "4"], "token id 512"),
        (&["m.gguf", "--context", "16"], "--text"),
        (&["--ids", "ids"], "--logits"),
        (&["m.gguf", "--logits", "logits", "--ids", "ids"], "cannot be used with"),
        (&["--logits", "logits", "--text", "ids"], "cannot be used with"),
        (&["m.gguf", "--ids", "ids", "--context", "3"], "from 4"),
    ] {
        let (code, message) = bench.refusal(args);
        assert_eq!(code, 2, "{message}");
        assert!(message.contains(reason), "{message}");
    }
}
