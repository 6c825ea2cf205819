//! An open engine with everything a command needs around it.

use drafthorse_draft::{SamplerConfig, VerifyRule};
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{EngineOptions, Progress as _};
use drafthorse_runtime::config::{Auto, Config, DraftChoice};
use drafthorse_runtime::engine::Engine;
use drafthorse_runtime::units::format_bytes;
use drafthorse_scheduler::{ElasticMode, MemoryPlan};

use super::interrupt::Interrupt;
use super::output;
use super::progress::Screen;

/// The engine, and what it reports to.
pub struct Session {
    pub engine: Engine,
    pub screen: Screen,
    pub interrupt: Interrupt,
}

impl Session {
    /// Loads the models; prints the memory plan when it is wanted.
    pub fn open(config: &Config) -> Result<Session, Error> {
        if config.run.verbose {
            log_to_stderr();
        }
        let options: EngineOptions = config.engine_options()?;
        tracing::debug!(?options, "opening");
        let interrupt = Interrupt::install()?;
        let mut screen = Screen::new();
        let engine = Engine::open(&options, &mut screen)?;
        screen.end();
        idle_settings(config).iter().for_each(|line| screen.notice(line));
        if config.run.verbose {
            output::note(&format!("memory plan\n{}", engine.memory_plan()));
        } else if config.run.stats && !config.run.json {
            output::note(&plan_line(engine.memory_plan()));
        }
        Ok(Session { engine, screen, interrupt })
    }
}

/// Settings that were given and change nothing as things stand (DESIGN I5), one line each.
fn idle_settings(config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    let sampling = &config.sampling;
    if sampling.temperature == 0.0 && (sampling.top_k != 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0) {
        lines.push("temperature 0 takes the likeliest token: top-k, top-p and min-p change nothing".into());
    }
    lines.extend(idle_penalties(config).map(str::to_owned));
    lines.extend(about_blocks(config).map(str::to_owned));
    lines.extend(idle_elastic(config).map(str::to_owned));
    if config.draft.source == DraftChoice::None && matches!(config.scheduler.draft_len, Auto::Value(1..)) {
        lines.push("a draft length was given without a drafter: nothing is drafted (--draft)".into());
    }
    lines
}

/// A window without penalties, or penalties without a window. The default window is no setting.
fn idle_penalties(config: &Config) -> Option<&'static str> {
    let sampler = config.generate_options().sampler;
    let default = SamplerConfig::plain(0.0, 0);
    let is_neutral = !SamplerConfig { repeat_last_n: 1, ..sampler }.has_penalties();
    match (sampler.repeat_last_n, is_neutral) {
        (0, false) => Some("repeat-last-n 0 looks at no token: the penalties change nothing"),
        (last_n, true) if last_n != default.repeat_last_n => {
            Some("no penalty is set: repeat-last-n changes nothing")
        }
        _ => None,
    }
}

/// Where block verification is asked for and is the same as coupled, or gives up more than its name says.
fn about_blocks(config: &Config) -> Option<&'static str> {
    if config.sampling.verify != VerifyRule::Block {
        None
    } else if config.sampling.temperature == 0.0 {
        Some("temperature 0 takes the likeliest token: block verification changes nothing")
    } else if config.draft.source == DraftChoice::None {
        Some("nothing is drafted (--draft): block verification changes nothing")
    } else if config.scheduler.draft_len == Auto::Auto {
        Some(
            "block verification with a measured draft length: one seed may give different texts (--draft-len N fixes it)",
        )
    } else {
        None
    }
}

/// Elastic verification where there is nothing to drop, or where dropping would bend the law.
fn idle_elastic(config: &Config) -> Option<&'static str> {
    if config.scheduler.elastic == ElasticMode::Off {
        None
    } else if !config.generate_options().sampler.stands_by_equality() {
        Some("block verification needs all that was drafted: elastic verification is off")
    } else if config.draft.source == DraftChoice::None {
        Some("nothing is drafted (--draft): elastic verification changes nothing")
    } else {
        None
    }
}

/// The plan on one line, parts that take nothing left out.
fn plan_line(plan: &MemoryPlan) -> String {
    let part = |line: &drafthorse_scheduler::PlanLine| match line.name {
        "expert slots" => format!("{} x {} expert slots", plan.slots, format_bytes(plan.slot_bytes)),
        name => format!("{} {name}", format_bytes(line.bytes)),
    };
    let parts: Vec<String> = plan.lines.iter().filter(|line| line.bytes > 0).map(part).collect();
    format!("memory    {} budget: {}", format_bytes(plan.budget_bytes), parts.join(" + "))
}

/// Shows what the libraries log. A second subscriber cannot be installed, and none is.
pub fn log_to_stderr() {
    let subscriber =
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::DEBUG);
    let _ = subscriber.try_init();
}

#[cfg(test)]
mod tests {
    use drafthorse_scheduler::PlanLine;

    use super::*;

    #[test]
    fn the_plan_is_one_line_without_empty_parts() {
        let lines = vec![
            PlanLine { name: "dense weights", bytes: 3 << 20 },
            PlanLine { name: "draft", bytes: 0 },
            PlanLine { name: "expert slots", bytes: 8 << 20 },
        ];
        let plan = MemoryPlan {
            lines,
            slots: 4,
            slot_bytes: 2 << 20,
            planned_bytes: 11 << 20,
            budget_bytes: 12 << 20,
        };
        let expected = "memory    12.0 MiB budget: 3.0 MiB dense weights + 4 x 2.0 MiB expert slots";
        assert_eq!(plan_line(&plan), expected);
    }
}
