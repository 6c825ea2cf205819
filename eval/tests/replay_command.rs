//! `drafthorse-eval replay` as a user runs it, and against the published curves of a real trace.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use tempfile::TempDir;

/// One layer of four experts, one a token: 0 1 0 2 0 1.
const MOETRACE: &[u8] =
    b"{\"n_routed_experts\":4,\"top_k\":1,\"n_moe_layers\":1,\"n_tokens\":6,\"seq_lens\":[6]}\n\
    \x00\x01\x00\x02\x00\x01\0\0\0\0\0\0\0\0\0\0\0\0";
const CSV: &str = "# route_trace v1\n# model=m arch=a n_layer=1 n_expert=4 n_expert_used=1\n\
    turn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n\
    0,1,0,0,0,0,1,0,1\n0,1,1,0,0,1,1,0,1\n0,1,2,0,0,0,1,0,1\n\
    0,1,3,0,0,2,1,0,1\n0,1,4,0,0,0,1,0,1\n0,1,5,0,0,1,1,0,1\n";

fn replay(trace: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drafthorse-eval")).arg("replay").arg(trace).args(args).output().unwrap()
}

fn json(trace: &Path, args: &[&str]) -> Value {
    let output = replay(trace, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn file(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn both_layouts_gzipped_or_not_give_the_hits_counted_by_hand() {
    let folder = TempDir::new().unwrap();
    let contents = [MOETRACE.to_vec(), gzip(MOETRACE), CSV.as_bytes().to_vec(), gzip(CSV.as_bytes())];
    for (n, bytes) in contents.iter().enumerate() {
        let trace = file(&folder, &format!("trace-{n}"), bytes);
        let report = json(&trace, &["--policies", "lru,belady", "--shares", "0.5,0.75"]);
        assert_eq!((&report["bank"], &report["trace"]), (&4.into(), &trace.to_str().unwrap().into()));
        let rows = report["rows"].as_array().unwrap();
        let row = |r: &Value| {
            (
                r["policy"].as_str().unwrap().to_owned(),
                r["slots"].as_u64().unwrap(),
                r["hits"].as_u64().unwrap(),
            )
        };
        let rows: Vec<_> = rows.iter().map(row).collect();
        let wanted = [("lru", 2, 2), ("lru", 3, 3), ("belady", 2, 2), ("belady", 3, 3)];
        assert_eq!(rows, wanted.map(|(p, slots, hits)| (p.to_owned(), slots, hits)), "trace {n}");
    }
}

#[test]
fn a_row_of_the_json_has_share_accesses_and_rate() {
    let folder = TempDir::new().unwrap();
    let trace = file(&folder, "t", MOETRACE);
    let report = json(&trace, &["--policies", "gating", "--shares", "1", "--max-tokens", "4"]);
    let wanted = serde_json::json!({
        "trace": trace.to_str().unwrap(), "bank": 4,
        "rows": [{"policy": "gating", "share": 1.0, "slots": 4, "hits": 1, "accesses": 4, "hit_rate": 0.25}],
    });
    assert_eq!(report, wanted);
}

#[test]
fn the_table_and_the_plot_name_every_policy() {
    let folder = TempDir::new().unwrap();
    let (trace, plot) = (file(&folder, "t", MOETRACE), folder.path().join("p.svg"));
    let output = replay(&trace, &["--svg", plot.to_str().unwrap()]);
    assert!(output.status.success());
    let (table, svg) = (String::from_utf8(output.stdout).unwrap(), fs::read_to_string(plot).unwrap());
    for policy in ["lru", "lfu", "decayed-lfu", "gating", "belady"] {
        assert!(table.lines().any(|line| line.starts_with(&format!("{policy} "))), "{table}");
        assert!(svg.contains(policy), "no {policy} in the plot");
    }
}

#[test]
fn bad_arguments_are_a_usage_error_that_names_what_there_is() {
    let folder = TempDir::new().unwrap();
    let trace = file(&folder, "t", MOETRACE);
    for (args, wanted) in [
        (["--policies", "lru,mru"], "not one of lru, lfu, decayed-lfu, gating, belady"),
        (["--shares", "0.1,0"], "above 0"),
        (["--shares", "NaN"], "above 0"),
        (["--max-tokens", "0"], "--max-tokens"),
    ] {
        let output = replay(&trace, &args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(wanted), "{args:?}");
    }
}

#[test]
fn a_damaged_trace_is_a_run_time_error_that_names_file_line_and_field() {
    let folder = TempDir::new().unwrap();
    let csv = CSV.replace("0,1,3,0,0,2,", "0,1,3,0,0,two,");
    for (name, bytes, wanted) in [
        ("short.moetrace", &MOETRACE[..MOETRACE.len() - 1], "wanted 18 bytes"),
        ("bad.csv", csv.as_bytes(), "line 7: expert: \"two\""),
        ("empty", b"", "line 1"),
        ("cut.gz", &gzip(CSV.as_bytes())[..40], "cut.gz"),
    ] {
        let output = replay(&file(&folder, name, bytes), &[]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{name}: {error}");
        assert!(error.contains(name) && error.contains(wanted), "{name}: {error}");
    }
    assert_eq!(replay(&folder.path().join("absent"), &[]).status.code(), Some(1));
}

/// Their simulator counts bytes (Q4_K_M experts come in two sizes) where we count slots of the mean size.
#[test]
fn the_published_curves_are_met_within_half_a_point() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/traces");
    let (trace, curve) = (folder.join("qwen.route.csv.gz"), folder.join("qwen-curve.csv"));
    let Ok(curve) = fs::read_to_string(&curve) else {
        return eprintln!("skipped: {}: cannot be read", curve.display());
    };
    let (expert_bytes, bank) = (2_856_960.0, 6144.0);
    let slots = |mib: f64| (mib * 1_048_576.0 / expert_bytes).floor();
    for policy in ["lru", "lfu", "belady"] {
        let published = curve.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let published = published.filter(|fields| fields[1] == policy);
        let (shares, rates): (Vec<String>, Vec<f64>) = published
            .map(|fields| {
                let share = (slots(fields[0].parse().unwrap()) + 0.5) / bank;
                (share.to_string(), fields[2].parse::<f64>().unwrap())
            })
            .unzip();
        assert_eq!(shares.len(), 11, "{policy}");
        let report = json(&trace, &["--policies", policy, "--shares", &shares.join(",")]);
        for (row, published) in report["rows"].as_array().unwrap().iter().zip(rates) {
            let ours = row["hit_rate"].as_f64().unwrap() * 100.0;
            assert!((ours - published).abs() < 0.5, "{policy}, {} slots: {ours} {published}", row["slots"]);
        }
    }
}
