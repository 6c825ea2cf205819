//! `bench`: prefill and decode throughput, cold and warm.
//!
//! One repeat is: drop the experts, prefill; drop them again, decode; forget the KV cache, prefill
//! once more; decode. The first two are the cold rows, the last two the warm ones. Prefill is timed
//! as a generation of one token, decode as the continuation of what it left in the KV cache. At the end
//! passes of 1 to 8 rows are timed in turns: what verifying drafts costs against a plain step.

use std::ops::ControlFlow;

use drafthorse_draft::TokenId;
use drafthorse_runtime::Error;
use drafthorse_runtime::api::{GenerateOptions, Generation};
use drafthorse_runtime::config::Config;
use drafthorse_runtime::kernels::Isa;
use drafthorse_runtime::tokenizer::AddSpecial;

use super::args::BenchArgs;
use super::bench_report::{BenchReport, Cache, PassSample, Phase, Sample, Setup};
use super::output;
use super::session::Session;

/// Ordinary prose, so that routing and drafts meet what they meet in use.
pub const TEXT: &str = include_str!("bench_text.txt");

/// Widths of the passes that show what verification costs.
const PASS_ROWS: [usize; 4] = [1, 2, 4, 8];
/// Passes of each width.
const PASS_ROUNDS: usize = 7;

/// The command.
pub fn run(args: &BenchArgs) -> Result<(), Error> {
    let config = args.config()?;
    if let Some(file) = &args.ids {
        return super::bench_ids::run(&config, file, args.passes);
    }
    let mut session = Session::open(&config)?;
    let setup = Setup {
        prompt_tokens: config.bench.prompt_tokens,
        generate_tokens: config.bench.generate_tokens,
        repeat: config.bench.repeat,
        active_bytes_per_token: session.engine.active_bytes_per_token(),
        kernels: Isa::best().name(),
    };
    let prompt = prompt(&session, &config)?;
    let mut samples = Vec::new();
    let mut last = None;
    for _ in 0..config.bench.repeat {
        last = Some(measure(&mut session, &config, &prompt, &mut samples)?);
    }
    let passes = time_passes(&mut session, &prompt)?;
    let (memory, disk, gpu) =
        last.map(|last| (last.memory, last.offload.simulated_disk, last.gpu)).unwrap_or_default();
    let report =
        BenchReport::new(setup, memory, &samples, &passes).of_prompt(prompt).on_disk(disk).on_gpu(gpu);
    if config.run.json { output::print_json(&report) } else { output::print(&report.to_string()) }
}

/// Times passes of several widths in turns behind what the last repeat left in the KV cache, each on other
/// tokens of the prompt; widths that one pass, or the context, has no room for are left out.
fn time_passes(session: &mut Session, prompt: &[TokenId]) -> Result<Vec<PassSample>, Error> {
    let mut samples = Vec::new();
    for round in 0..PASS_ROUNDS {
        for rows in PASS_ROWS {
            let tokens: Vec<TokenId> = prompt.iter().cycle().skip(round * rows).take(rows).copied().collect();
            match session.engine.time_pass(&tokens) {
                Ok(Some(seconds)) => samples.push(PassSample { rows, seconds }),
                Ok(None) | Err(Error::PromptTooLong { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(samples)
}

/// The prompt: prose, repeated to length; counting ids for a model without a vocabulary.
fn prompt(session: &Session, config: &Config) -> Result<Vec<TokenId>, Error> {
    let len = config.bench.prompt_tokens;
    let needed = len.saturating_add(config.bench.generate_tokens);
    if needed > session.engine.context_len() {
        return Err(Error::PromptTooLong { prompt: needed, context: session.engine.context_len() });
    }
    let tokens = match session.engine.tokenizer() {
        Some(tokenizer) => tokenizer.encode(TEXT, AddSpecial::Yes)?,
        None => (0..session.engine.vocab() as TokenId).collect(),
    };
    Ok(tokens.into_iter().cycle().take(len).collect())
}

/// One repeat: all four measurements, or the warm two for a model without experts to drop.
fn measure(
    session: &mut Session,
    config: &Config,
    prompt: &[TokenId],
    samples: &mut Vec<Sample>,
) -> Result<Generation, Error> {
    let has_experts = session.engine.memory_plan().slots > 0;
    if has_experts {
        pass(session, config, prompt, (Cache::Cold, samples))?;
    }
    pass(session, config, prompt, (Cache::Warm, samples))
}

/// Prefill and decode with a cold or a warm cache.
fn pass(
    session: &mut Session,
    config: &Config,
    prompt: &[TokenId],
    (cache, samples): (Cache, &mut Vec<Sample>),
) -> Result<Generation, Error> {
    // A drafter that remembers texts would know the answer of the pass before.
    session.engine.forget_texts();
    chill(session, cache)?;
    let prefill = generate(session, config, prompt, 1)?;
    samples.push(Sample::new(Phase::Prefill, cache, &prefill));
    chill(session, cache)?;
    let continued: Vec<TokenId> = prompt.iter().chain(&prefill.tokens).copied().collect();
    let decode = generate(session, config, &continued, config.bench.generate_tokens)?;
    samples.push(Sample::new(Phase::Decode, cache, &decode));
    Ok(decode)
}

fn chill(session: &mut Session, cache: Cache) -> Result<(), Error> {
    if cache == Cache::Cold { session.engine.drop_experts() } else { Ok(()) }
}

fn generate(
    session: &mut Session,
    config: &Config,
    prompt: &[TokenId],
    max_tokens: usize,
) -> Result<Generation, Error> {
    let options = GenerateOptions { max_tokens, stop_at_end: false, ..config.generate_options() };
    session.engine.generate(prompt, &options, &mut session.screen, &mut |_| ControlFlow::Continue(()))
}
