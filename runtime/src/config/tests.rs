//! The contract of settings: files and struct agree, layers merge, errors name what is wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::{Table, Value};

use super::*;

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

/// The settings of one text over the defaults.
fn with(text: &str) -> Result<Config, ConfigError> {
    let mut settings = Settings::defaults()?;
    settings.apply(&Layer::text("my.toml", text)?)?;
    settings.finish()
}

fn refusal(text: &str) -> String {
    with(text).unwrap_err().to_string()
}

#[test]
fn every_file_in_configs_loads() {
    let mut loaded = 0;
    for entry in std::fs::read_dir(configs()).unwrap() {
        let path = entry.unwrap().path();
        let mut settings = Settings::defaults().unwrap();
        settings.apply(&Layer::file(&path).unwrap()).unwrap_or_else(|error| unreachable!("{error}"));
        settings.finish().unwrap_or_else(|error| unreachable!("{}: {error}", path.display()));
        loaded += 1;
    }
    assert!(loaded >= 4, "{loaded} files in configs/");
}

#[test]
fn every_file_in_configs_says_where_its_values_come_from() {
    for entry in std::fs::read_dir(configs()).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let origin = text.split("# Origin: ").nth(1).unwrap_or_else(|| unreachable!("{}", path.display()));
        let paragraph = origin.split("\n#\n").next().unwrap();
        let is_dated =
            paragraph.contains("measured") && paragraph.contains("machine") && paragraph.contains("20");
        let is_estimate = paragraph.contains("not measured") && paragraph.contains("estimate");
        assert!(is_dated || is_estimate, "{}: {paragraph}", path.display());
        assert!(paragraph.lines().skip(1).all(|line| line.starts_with("# ")), "{}", path.display());
    }
}

#[test]
fn a_disk_to_simulate_is_read_and_refused_by_name() {
    let config = with("[offload]\nsimulate_disk = \"3.5GiB/s, 80us\"").unwrap();
    let spec = config.offload.simulate_disk.0.unwrap();
    assert_eq!((spec.bytes_per_s, spec.latency.as_micros()), (7 << 29, 80));
    assert!(config.engine_options().unwrap().simulate_disk.is_some_and(|disk| disk.spec() == spec));
    assert!(with("[offload]\nsimulate_disk = \"none\"").unwrap().offload.simulate_disk.0.is_none());
    for text in ["3.5GiB/s", "fast,80us", "0MB/s,1us"] {
        let message = refusal(&format!("[offload]\nsimulate_disk = \"{text}\""));
        let parts = ["my.toml: offload.simulate_disk", text, "such as 3.5GiB/s,80us", "or none"];
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}

#[test]
fn whether_a_gpu_reads_experts_in_place_is_automatic_or_as_told_and_asks_for_a_gpu() {
    let unified = |text: &str| with(text).unwrap().engine_options().unwrap().gpu.unwrap().unified;
    assert_eq!(unified("[gpu]\nvram = \"auto\""), None);
    for (value, wanted) in [("true", Some(true)), ("false", Some(false)), ("\"auto\"", None)] {
        assert_eq!(unified(&format!("[gpu]\nvram = \"auto\"\nunified = {value}")), wanted);
        let alone = with(&format!("[gpu]\nunified = {value}"));
        assert_eq!(alone.is_err(), wanted.is_some(), "{value}");
    }
    let message = refusal("[gpu]\nvram = \"auto\"\nunified = \"often\"");
    assert!(message.contains("gpu.unified") && message.contains("or \"auto\""), "{message}");
}

#[test]
fn differences_of_settings_are_the_keys_that_changed() {
    let base = Settings::defaults().unwrap();
    let mut changed = base.clone();
    assert!(changed.differences(&base).is_empty());
    let text = "[offload]\nslots = 7\npolicy = \"gating\"\n[memory]\nbudget = \"1GiB\"";
    changed.apply(&Layer::text("my.toml", text).unwrap()).unwrap();
    let keys: Vec<String> = changed
        .differences(&base)
        .iter()
        .map(|(section, key, value)| format!("{section}.{key}={value}"))
        .collect();
    assert_eq!(keys, ["memory.budget=\"1GiB\"", "offload.slots=7"]);
    assert_eq!(changed.get("offload", "slots"), Some(&Value::Integer(7)));
    assert_eq!(changed.get("offload", "nothing"), None);
}

#[test]
fn default_toml_and_config_have_the_same_keys() {
    let table: Table = DEFAULT_TOML.parse().unwrap();
    assert!(Config::deserialize(table.clone()).is_ok());
    for (section, keys) in &table {
        for key in keys.as_table().unwrap().keys() {
            let mut without = table.clone();
            without[section].as_table_mut().unwrap().remove(key);
            assert!(Config::deserialize(without).is_err(), "{section}.{key} is in default.toml only");
        }
        let mut more = table.clone();
        more[section].as_table_mut().unwrap().insert("no_such_key".to_owned(), Value::Integer(1));
        assert!(Config::deserialize(more).is_err(), "[{section}] takes unknown keys");
    }
}

#[test]
fn every_key_of_default_toml_stands_under_a_comment() {
    let mut above = "";
    for line in DEFAULT_TOML.lines() {
        let is_key = !line.is_empty() && !line.starts_with(['#', '[']);
        assert!(!is_key || !(above.is_empty() || above.starts_with('[')), "no comment above: {line}");
        above = line;
    }
}

#[test]
fn by_default_the_models_own_law_is_followed() {
    let options = Settings::defaults().unwrap().finish().unwrap().generate_options();
    assert_eq!(options.sampler, drafthorse_draft::SamplerConfig::plain(0.0, 0));
}

#[test]
fn a_later_layer_wins_and_the_rest_stays() {
    let mut settings = Settings::defaults().unwrap();
    let file = "[memory]\nbudget = \"16GiB\"\n[offload]\nslots = 7\npolicy = \"lru\"";
    settings.apply(&Layer::text("my.toml", file).unwrap()).unwrap();
    let mut flags = Layer::command_line();
    flags.flag("--slots", ("offload", "slots"), Some(9));
    flags.flag("--policy", ("offload", "policy"), None::<String>);
    settings.apply(&flags).unwrap();
    let config = settings.finish().unwrap();
    assert_eq!(config.memory.budget.value().unwrap().bytes(), 16 << 30);
    assert_eq!(config.offload.slots, Auto::Value(9));
    assert_eq!(config.offload.policy, PolicyKind::Lru);
    assert_eq!(config.model, Settings::defaults().unwrap().finish().unwrap().model);
}

#[test]
fn unknown_keys_name_the_file_and_the_nearest_key() {
    for (text, expected) in [
        ("[draft]\nsorce = \"ngram\"", "my.toml: unknown key draft.sorce; did you mean draft.source?"),
        (
            "[offload]\niothreads = 2",
            "my.toml: unknown key offload.iothreads; did you mean offload.io_threads?",
        ),
        (
            "[memory]\ndraft_len = 2",
            "my.toml: unknown key memory.draft_len; did you mean scheduler.draft_len?",
        ),
        ("[drafts]\nthreads = 2", "my.toml: unknown section [drafts]; did you mean draft?"),
        ("temperature = 1", "my.toml: unknown key temperature; did you mean sampling.temperature?"),
        ("[offload]\nzzz = 2", "my.toml: unknown key offload.zzz"),
        ("[serve]\n", "my.toml: unknown section [serve]"),
    ] {
        assert_eq!(refusal(text), expected);
    }
}

#[test]
fn values_out_of_range_name_key_value_and_limits() {
    for (text, expected) in [
        ("[sampling]\ntop_p = 0.0", "my.toml: sampling.top_p = 0.0: must be above 0, at most 1"),
        ("[sampling]\ntemperature = nan", "my.toml: sampling.temperature = nan: must be 0 to 100"),
        ("[offload]\nio_threads = 0", "my.toml: offload.io_threads = 0: must be 1 to 256"),
        ("[scheduler]\ndraft_len = 65", "my.toml: scheduler.draft_len = 65: must be 0 to 64, or \"auto\""),
        ("[tune]\nminutes = 0", "my.toml: tune.minutes = 0: must be 0.05 to 1440"),
        ("[memory]\nshare = 1.5", "my.toml: memory.share = 1.5: must be 0.05 to 0.95"),
    ] {
        assert_eq!(refusal(text), expected);
    }
}

#[test]
fn values_of_the_wrong_kind_say_what_is_expected() {
    for (text, parts) in [
        ("[memory]\nbudget = \"16G\"", ["memory.budget = \"16G\"", "is not a size"]),
        ("[memory]\nbudget = 0", ["memory.budget = 0", "zero bytes"]),
        ("[memory]\nbudget = -5", ["memory.budget = -5", "not negative"]),
        ("[model]\nthreads = \"many\"", ["model.threads = \"many\"", "or \"auto\""]),
        ("[model]\nthreads = -1", ["model.threads = -1", "or \"auto\""]),
        ("[model]\nkv_type = \"q4_0\"", ["model.kv_type = \"q4_0\"", "`q8_0`"]),
        ("[offload]\npolicy = \"mru\"", ["offload.policy = \"mru\"", "`gating`"]),
        ("[sampling]\nseed = -1", ["sampling.seed = -1", "my.toml"]),
        ("[run]\njson = \"yes\"", ["run.json = \"yes\"", "a boolean"]),
        ("[run]\njson = { a = 1 }", ["run.json", "my.toml"]),
    ] {
        let message = refusal(text);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn a_flag_is_named_as_it_was_typed() {
    let mut flags = Layer::command_line();
    flags.flag("--memory", ("memory", "budget"), Some("12 parsecs"));
    let message = Settings::defaults().unwrap().apply(&flags).unwrap_err().to_string();
    assert!(message.starts_with("--memory = \"12 parsecs\": "), "{message}");
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    assert!(refusal("[draft]\nngram_min_match = 9").contains("more than draft.ngram_max_match = 8"));
    assert!(with("[draft]\nngram_min_match = 9\nngram_max_match = 12").is_ok());
    assert!(refusal("[model]\nexpert_groups = 8").contains("set together"));
    assert!(
        refusal("[model]\nexpert_groups = 2\nexpert_groups_used = 3")
            .contains("more than model.expert_groups")
    );
    assert!(with("[model]\nexpert_groups = 8\nexpert_groups_used = 3").is_ok());
}

#[test]
fn broken_toml_is_one_line_with_its_place() {
    let message = refusal("[draft]\nsource = \"ngram\n[offload]");
    assert!(message.starts_with("my.toml: line 2: "), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(refusal("[a]\n[a]\n").contains("my.toml: line 2"));
}

#[test]
fn files_that_are_missing_too_large_or_not_text_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    let message = |path: &Path| Layer::file(path).unwrap_err().to_string();
    assert!(message(&path).starts_with(&format!("config file {}: ", path.display())));
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(message(&path).contains("more than 1048576 bytes"));
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(message(&path).contains("UTF-8"));
}

/// The settings a command runs with: flags over a file over the demo's over the defaults.
fn loaded(file: Option<&str>, flags: &Layer) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(&path, file.unwrap_or_default()).unwrap();
    Config::load(file.map(|_| path.as_path()), flags).unwrap()
}

#[test]
fn the_demo_brings_its_settings_and_a_model_of_ones_own_does_not() {
    let none = Layer::command_line();
    let demo = loaded(None, &none);
    assert_eq!((demo.model.path.clone(), demo.draft.source.clone()), (ModelChoice::Demo, DraftChoice::Demo));
    assert!(!demo.run.prompt.is_empty());

    let mut flags = Layer::command_line();
    flags.flag("MODEL", ("model", "path"), Some("m.gguf"));
    let own = loaded(None, &flags);
    assert_eq!((own.draft.source.clone(), own.run.prompt.as_str()), (DraftChoice::None, ""));
    assert_eq!(own, loaded(Some("[model]\npath = \"m.gguf\""), &none));

    let file = loaded(Some("[memory]\nbudget = \"1GiB\""), &none);
    assert_eq!(file.memory.budget.value().unwrap().bytes(), 1 << 30, "the user's file is above the demo's");
}

#[test]
fn settings_become_engine_options() {
    let mut flags = Layer::command_line();
    flags.flag("MODEL", ("model", "path"), Some("m.gguf"));
    flags.flag("--draft", ("draft", "source"), Some("d.gguf"));
    flags.flag("--draft-len", ("scheduler", "draft_len"), Some(4));
    flags.flag("--memory", ("memory", "budget"), Some("2GiB"));
    flags.flag("--record-trace", ("offload", "record_trace"), Some("t.moetrace"));
    flags.flag("--ignore-eos", ("run", "ignore_eos"), Some(true));
    let config = loaded(None, &flags);
    let options = config.engine_options().unwrap();
    assert_eq!(options.draft, crate::api::DraftSource::Model("d.gguf".into()));
    assert_eq!(options.draft_len, drafthorse_scheduler::DraftLen::Fixed(4));
    assert_eq!((options.memory_bytes, options.slots, options.threads), (Some(2 << 30), None, 0));
    assert_eq!(options.record_trace, Some("t.moetrace".into()));
    assert!(!config.generate_options().stop_at_end);
}
