//! Penalties and the two verification rules on the demo pair: what stays the same, what may differ, and
//! what the user is told.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::process::Command;

use common::{generate, local, open, plain_options};
use drafthorse_draft::{PositionAcceptance, SamplerConfig, TokenId, VerifyRule};
use drafthorse_runtime::api::{DraftSource, EngineOptions, GenerateOptions, Generation};
use drafthorse_scheduler::DraftLen;

const GENERATED: usize = 40;

fn ask(sampler: SamplerConfig) -> GenerateOptions {
    GenerateOptions { max_tokens: GENERATED, sampler, stop_at_end: false }
}

fn penalised(temperature: f32) -> SamplerConfig {
    SamplerConfig {
        repeat_penalty: 1.3,
        presence_penalty: 0.4,
        frequency_penalty: 0.2,
        repeat_last_n: 24,
        top_k: 60,
        top_p: 0.98,
        ..SamplerConfig::plain(temperature, 7)
    }
}

fn block(temperature: f32, seed: u64) -> SamplerConfig {
    SamplerConfig { verify: VerifyRule::Block, ..SamplerConfig::plain(temperature, seed) }
}

fn options(draft: DraftSource, draft_len: usize) -> EngineOptions {
    let target = local("demo/target.gguf");
    EngineOptions { draft, draft_len: DraftLen::Fixed(draft_len), ..plain_options(&target) }
}

fn demo_draft() -> DraftSource {
    DraftSource::Model(local("demo/draft.gguf"))
}

/// A prompt that says everything twice, so that there is something to look up and to penalise.
fn prompt() -> Vec<TokenId> {
    (20..32).chain(20..32).collect()
}

fn run(options: &EngineOptions, sampler: SamplerConfig) -> Generation {
    generate(&mut open(options), &prompt(), &ask(sampler))
}

#[test]
fn with_penalties_the_text_is_the_same_whatever_is_drafted() {
    for temperature in [0.0, 0.8] {
        let config = penalised(temperature);
        let expected = run(&options(DraftSource::None, 0), config).tokens;
        let unpenalised = SamplerConfig { repeat_last_n: 0, ..config };
        assert_ne!(run(&options(DraftSource::None, 0), unpenalised).tokens, expected, "they do something");
        for draft in [demo_draft(), DraftSource::Ngram] {
            let mut accepted = 0;
            for draft_len in [1, 4, 8] {
                let drafted = run(&options(draft.clone(), draft_len), config);
                assert_eq!(drafted.tokens, expected, "{draft:?}, {draft_len}, temperature {temperature}");
                accepted += drafted.speculation.accepted;
            }
            assert!(draft == DraftSource::Ngram || accepted > 0, "the draft model sees the penalties, too");
        }
    }
}

#[test]
fn block_verification_is_reproducible_for_one_setting() {
    for draft in [demo_draft(), DraftSource::Ngram] {
        let options = options(draft, 4);
        let mut engine = open(&options);
        let first = generate(&mut engine, &prompt(), &ask(block(0.8, 7)));
        assert_eq!(first.tokens.len(), GENERATED);
        assert!(first.speculation.proposed > 0);
        assert_eq!(generate(&mut engine, &prompt(), &ask(block(0.8, 7))).tokens, first.tokens);
        assert_eq!(run(&options, block(0.8, 7)).tokens, first.tokens, "a new engine");
        assert_ne!(generate(&mut engine, &prompt(), &ask(block(0.8, 8))).tokens, first.tokens);
    }
}

#[test]
fn block_verification_is_the_coupled_rule_where_nothing_is_drawn() {
    let coupled = |temperature| SamplerConfig::plain(temperature, 7);
    let plain = options(DraftSource::None, 0);
    assert_eq!(run(&plain, block(0.8, 7)).tokens, run(&plain, coupled(0.8)).tokens, "without a draft");
    let drafted = run(&options(demo_draft(), 4), block(0.0, 7));
    assert_eq!(drafted.tokens, run(&plain, coupled(0.0)).tokens, "greedy");
    assert!(drafted.speculation.accepted > 0);
}

#[test]
fn block_verification_adapts_its_draft_length_and_reports_acceptance_by_position() {
    let auto = EngineOptions { draft_len: DraftLen::Auto, ..options(demo_draft(), 0) };
    for options in [options(demo_draft(), 4), auto] {
        let config = SamplerConfig { verify: VerifyRule::Block, ..penalised(0.8) };
        let generation = run(&options, config);
        assert_eq!(generation.tokens.len(), GENERATED);
        let speculation = generation.speculation;
        let sum = |of: fn(&PositionAcceptance) -> u64| -> u64 {
            speculation.acceptance_by_position.iter().map(of).sum()
        };
        // A text this short may not be worth it to have a draft model read its prompt.
        assert!(speculation.proposed > 0 || options.draft_len == DraftLen::Auto);
        assert_eq!(sum(|at| at.offered), speculation.proposed);
        assert_eq!(sum(|at| at.accepted), speculation.accepted);
        let offered: Vec<u64> = speculation.acceptance_by_position.iter().map(|at| at.offered).collect();
        assert!(offered.is_sorted_by(|a, b| a >= b), "{offered:?}");
    }
}

/// stdout, stderr and the exit code of a short run on the demo target.
fn program(arguments: &[&str]) -> (String, String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_drafthorse"))
        .args(["run", local("demo/target.gguf").to_str().unwrap(), "-p", "The", "-n", "12", "--json"])
        .args(["--memory", "1GiB", "--context", "64", "--threads", "1", "--ignore-eos"])
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code())
}

#[test]
fn settings_that_change_nothing_or_more_than_they_say_are_pointed_out() {
    let draft = local("demo/draft.gguf");
    let drafted = ["--draft", draft.to_str().unwrap(), "--verify", "block", "--temp", "0.8"];
    for (arguments, notice) in [
        (&["--verify", "block", "--temp", "0.8"][..], "nothing is drafted (--draft): block verification"),
        (&drafted[..4], "temperature 0 takes the likeliest token: block"),
        (&drafted, "one seed may give different texts"),
        (&[&drafted[..], &["--elastic", "auto"]].concat(), "elastic verification is off"),
        (&["--elastic", "auto"], "nothing is drafted (--draft): elastic verification"),
        (&["--repeat-last-n", "9"], "no penalty is set: repeat-last-n changes nothing"),
        (&["--repeat-last-n", "0", "--presence-penalty", "-0.5"], "looks at no token"),
    ] {
        let (stdout, stderr, code) = program(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {stderr}");
        assert!(stderr.contains(notice), "{arguments:?}: {stderr}");
        assert!(serde_json::from_str::<serde_json::Value>(&stdout).is_ok(), "{stdout}");
    }
    let quiet = [&drafted[..], &["--draft-len", "3"]].concat();
    let (stdout, stderr, _) = program(&quiet);
    assert!(!stderr.contains("verification"), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(report["speculation"]["acceptance_by_position"][0]["offered"].as_u64() > Some(0), "{report}");
}

#[test]
fn values_beyond_the_limits_are_refused_by_name() {
    for (arguments, message) in [
        (&["--repeat-penalty", "0"][..], "--repeat-penalty = 0.0: must be 0.1 to 10"),
        (&["--presence-penalty", "-11"], "--presence-penalty = -11.0: must be -10 to 10"),
        (&["--frequency-penalty", "11"], "--frequency-penalty = 11.0: must be -10 to 10"),
        (&["--repeat-last-n", "9999999"], "--repeat-last-n = 9999999: must be 0 to 2097152"),
        (&["--elastic", "on"], "--elastic = \"on\": unknown variant"),
        (&["--verify", "typical"], "--verify = \"typical\": unknown variant"),
    ] {
        let (stdout, stderr, code) = program(arguments);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
    }
}
