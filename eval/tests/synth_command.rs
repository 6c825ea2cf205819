//! `drafthorse-eval synth` as a user runs it: the files load and run, route as skewed as asked, and say
//! what they are.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use drafthorse_offload::Trace;
use drafthorse_runtime::api::Silent;
use drafthorse_runtime::config::{Config, Layer};
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::gguf::{BlockType, Gguf};
use drafthorse_runtime::tokenizer::AddSpecial;
use tempfile::TempDir;

const TINY: [&str; 5] = ["tiny-deepseek2", "tiny-qwen3moe", "tiny-mixtral", "tiny-llama", "tiny-qwen3"];

fn synth(args: &[&str], output: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drafthorse-eval"));
    command.arg("synth").args(args).arg("-o").arg(output).output().unwrap()
}

/// A model in a folder that goes with the test.
fn made(args: &[&str]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    let output = synth(args, &path);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (folder, path)
}

fn open(model: &Path, trace: Option<&Path>) -> Engine {
    let mut flags = Layer::command_line();
    flags.flag("MODEL", ("model", "path"), model.to_str());
    flags.flag("--draft", ("draft", "source"), Some("none"));
    flags.flag("--threads", ("model", "threads"), Some(2));
    flags.flag("--memory", ("memory", "budget"), Some("2GiB"));
    flags.flag("--record-trace", ("offload", "record_trace"), trace.and_then(Path::to_str));
    let options = Config::load(None, &flags).unwrap().engine_options().unwrap();
    Engine::open(&options, &mut Silent).unwrap()
}

/// Ids of a made-up vocabulary of 512, none twice in a row.
fn ids(len: u32) -> Vec<u32> {
    (0..len).map(|index| (index * 197 + 31) % 512).collect()
}

fn deviation(row: &[f32]) -> f32 {
    let mean = row.iter().sum::<f32>() / row.len() as f32;
    (row.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / row.len() as f32).sqrt()
}

#[test]
fn every_architecture_runs_with_sane_logits_in_fine_and_coarse_types() {
    for shape in TINY {
        for quant in ["f32", "q8_0", "q4_k", "q2_k"] {
            let (_folder, model) = made(&["--shape", shape, "--quant", quant]);
            let mut engine = open(&model, None);
            let mut deviations = Vec::new();
            engine
                .logits(&ids(40), true, &mut |row| {
                    deviations.push(deviation(row));
                    Ok(())
                })
                .unwrap();
            // NaN and infinities fail this, too.
            assert!(deviations.iter().all(|it| (1.0..3.0).contains(it)), "{shape} {quant}: {deviations:?}");
        }
    }
}

#[test]
fn text_has_tokens_in_the_made_up_vocabulary() {
    let (_folder, model) = made(&["--shape", "tiny-mixtral", "--quant", "q4_0"]);
    let engine = open(&model, None);
    let ids = engine.encode("hi, wörld", AddSpecial::No).unwrap().unwrap();
    assert_eq!(engine.tokenizer().unwrap().decode(&ids), "hi, wörld");
}

#[test]
fn an_experts_odd_rows_take_the_substitute_type() {
    let (_folder, model) = made(&["--shape", "tiny-deepseek2", "--quant", "q4_k"]);
    let gguf = Gguf::open(&model).unwrap();
    let type_of = |name: &str| gguf.tensor(name).unwrap().block_type;
    assert_eq!(type_of("blk.1.ffn_gate_exps.weight"), BlockType::Q4_K);
    assert_eq!(type_of("blk.1.ffn_down_exps.weight"), BlockType::Q5_0); // rows of 352
    assert_eq!(type_of("blk.1.ffn_gate_inp.weight"), BlockType::F32);
    assert_eq!(type_of("output.weight"), BlockType::Q6_K);
    assert_eq!(gguf.tensor("blk.1.ffn_down_exps.weight").unwrap().dims, [352, 256, 20]);
}

/// Share of a recorded trace's choices that fall on each layer's most popular fifth.
fn top_fifth(model: &Path) -> f64 {
    let trace = model.with_extension("moetrace");
    open(model, Some(&trace)).replay_ids(&ids(200), &mut Silent).unwrap();
    let trace = Trace::parse(&fs::read(trace).unwrap()).unwrap();
    let (mut top, mut all) = (0, 0);
    for layer in 0..trace.header().n_moe_layers {
        let mut counts: BTreeMap<u8, usize> = BTreeMap::new();
        for token in 0..trace.header().n_tokens {
            trace.picks(token, layer).unwrap().iter().for_each(|e| *counts.entry(*e).or_default() += 1);
        }
        let mut counts: Vec<usize> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        top += counts[..trace.header().n_routed_experts / 5].iter().sum::<usize>();
        all += counts.iter().sum::<usize>();
    }
    top as f64 / all as f64
}

#[test]
fn the_skew_of_the_routing_is_the_knobs() {
    let share = |zipf| {
        let (_folder, model) = made(&["--shape", "tiny-qwen3moe", "--quant", "q8_0", "--zipf", zipf]);
        top_fifth(&model)
    };
    let (even, skewed, steep) = (share("0"), share("0.8"), share("1.6"));
    // 20 experts, 4 used: the simulation says 20 %, 46 % and 72 %; the most popular of a sample are more.
    assert!((0.2..0.34).contains(&even), "{even}");
    assert!((0.4..0.56).contains(&skewed), "{skewed}");
    assert!(steep > skewed + 0.1, "{steep}");
}

#[test]
fn the_file_says_that_it_is_synthetic_and_what_was_cut() {
    let args =
        ["--shape", "tiny-qwen3moe", "--quant", "q4_k", "--layers", "2", "--experts", "6", "--seed", "9"];
    let (_folder, model) = made(&args);
    let metadata = Gguf::open(&model).unwrap().metadata;
    let name = "synthetic tiny-qwen3moe, 2 of 4 layers, 6 of 20 experts";
    assert_eq!(metadata.str("general.name").unwrap(), Some(name));
    let recipe = format!("random weights: {name}, Q4_K, zipf 0.8, seed 9");
    assert_eq!(metadata.str("drafthorse.synthetic").unwrap(), Some(recipe.as_str()));
    assert_eq!(metadata.u64("qwen3moe.expert_count").unwrap(), Some(6));
}

#[test]
fn a_dense_shape_has_no_experts_and_says_no_routing() {
    let (_folder, model) = made(&["--shape", "tiny-qwen3", "--quant", "q4_k", "--layers", "2"]);
    let gguf = Gguf::open(&model).unwrap();
    let recipe = "random weights: synthetic tiny-qwen3, 2 of 4 layers, Q4_K, seed 1";
    assert_eq!(gguf.metadata.str("drafthorse.synthetic").unwrap(), Some(recipe));
    assert_eq!(gguf.metadata.u64("qwen3.expert_count").unwrap(), None);
    assert_eq!(gguf.tensor("blk.1.ffn_down.weight").unwrap().dims, [512, 256]);
    assert_eq!(gguf.tensor("blk.1.attn_k_norm.weight").unwrap().dims, [32]);
    assert!(gguf.tensor("blk.1.ffn_gate_inp.weight").is_none());
}

#[test]
fn a_seed_fixes_the_bytes_and_another_changes_them() {
    let bytes = |seed| {
        let (_folder, model) = made(&["--shape", "tiny-mixtral", "--quant", "q3_k", "--seed", seed]);
        fs::read(model).unwrap()
    };
    let first = bytes("1");
    assert!(first == bytes("1"));
    assert!(first != bytes("2"));
}

#[test]
fn a_tokenizer_is_copied_with_its_size() {
    let (_folder, source) = made(&["--shape", "tiny-mixtral", "--quant", "q8_0"]);
    let args = ["--shape", "tiny-deepseek2", "--quant", "q8_0", "--vocab", source.to_str().unwrap()];
    let (_folder, model) = made(&args);
    let [from, to] = [&source, &model].map(|path| Gguf::open(path).unwrap());
    let key = "tokenizer.ggml.tokens";
    assert_eq!(from.metadata.strs(key).unwrap(), to.metadata.strs(key).unwrap());
    assert_eq!(to.tensor("token_embd.weight").unwrap().dims, [256, 512]);
}

#[test]
fn what_cannot_be_made_is_refused_in_one_line_and_leaves_no_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    let refusal = |args: &[&str]| {
        let output = synth(args, &path);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{args:?}");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    // 943 GB: no disk this test runs on has the room.
    let (code, message) = refusal(&["--shape", "deepseek-v2", "--quant", "f32"]);
    assert_eq!(code, 1, "{message}");
    assert!(message.contains("needs 8") && message.contains("are free"), "{message}");
    for (args, reason) in [
        (&["--shape", "tiny-mixtral", "--quant", "q4_k", "--experts", "1"][..], "--experts 1"),
        (&["--shape", "tiny-mixtral", "--quant", "q4_k", "--layers", "9"], "--layers 9"),
        (&["--shape", "tiny-mixtral", "--quant", "q4_k", "--zipf", "nan"], "--zipf"),
        (&["--shape", "tiny-llama", "--quant", "q4_k", "--experts", "8"], "no experts"),
        (&["--shape", "tiny-llama", "--quant", "q4_k", "--zipf", "0.4"], "routes to no experts"),
        (&["--shape", "gpt-5", "--quant", "q4_k"], "gpt-5"),
        (&["--shape", "tiny-mixtral", "--quant", "iq2_s"], "iq2_s"),
    ] {
        let (code, message) = refusal(args);
        assert_eq!(code, 2, "{message}");
        assert!(message.contains(reason), "{message}");
    }
    let (code, message) =
        refusal(&["--shape", "tiny-mixtral", "--quant", "q4_k", "--vocab", "no-such-file.gguf"]);
    assert_eq!(code, 1, "{message}");
}

#[test]
fn a_shape_that_llama_cpp_cannot_read_is_said() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    let args =
        ["--shape", "deepseek-v2-lite", "--quant", "q2_k", "--layers", "2", "--experts", "6", "--vocab"];
    let (_vocab, vocab) = made(&["--shape", "tiny-mixtral", "--quant", "q8_0"]);
    let output = synth(&[&args[..], &[vocab.to_str().unwrap()]].concat(), &path);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && message.contains("26 or 27 layers"), "{message}");
}
