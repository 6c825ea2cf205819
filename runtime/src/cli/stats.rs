//! What a generation cost: the JSON object of `run --json`, and the block under a text.

use drafthorse_draft::TokenId;
use drafthorse_runtime::api::{
    Attribution, FinishReason, Generation, GpuReport, GpuStats, Memory, Offload, Speculation, Timings,
};
use drafthorse_runtime::telemetry::Snapshot;
use drafthorse_runtime::units::format_bytes;
use serde::Serialize;

/// The object of `run --json`; its names are stable (DESIGN.md).
#[derive(Debug, Serialize)]
pub struct RunReport<'a> {
    text: &'a str,
    tokens: &'a [TokenId],
    prompt_tokens: usize,
    generated: usize,
    finish_reason: FinishReason,
    timings: &'a Timings,
    attribution: &'a Attribution,
    speculation: &'a Speculation,
    offload: &'a Offload,
    memory: &'a Memory,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<&'a GpuReport>,
    /// Everything counted through the `metrics` facade since the start, loading included.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<&'a Snapshot>,
}

impl<'a> RunReport<'a> {
    /// The report of a generation and its text.
    pub fn new(generation: &'a Generation, text: &'a str, metrics: Option<&'a Snapshot>) -> RunReport<'a> {
        RunReport {
            text,
            tokens: &generation.tokens,
            prompt_tokens: generation.prompt_tokens,
            generated: generation.tokens.len(),
            finish_reason: generation.finish_reason,
            timings: &generation.timings,
            attribution: &generation.attribution,
            speculation: &generation.speculation,
            offload: &generation.offload,
            memory: &generation.memory,
            gpu: generation.gpu.as_ref(),
            metrics,
        }
    }
}

/// The statistics as a few lines for people.
pub fn block(generation: &Generation) -> String {
    let offload = &generation.offload;
    let mut lines = vec![speed_line(generation), time_line(&generation.attribution)];
    lines.push(draft_line(&generation.speculation));
    if offload.experts_total > 0 {
        lines.push(expert_line(offload));
        lines.push(read_line(offload));
    }
    lines.push(memory_line(&generation.memory));
    lines.extend(generation.gpu.as_ref().map(gpu_line));
    lines.join("\n")
}

fn speed_line(generation: &Generation) -> String {
    let timings = &generation.timings;
    let ended = match generation.finish_reason {
        FinishReason::Stop => "the model ended the text",
        FinishReason::Length => "-n reached",
        FinishReason::Context => "context full",
        FinishReason::Interrupted => "interrupted",
    };
    format!(
        "speed     prompt {} tokens at {:.1} tok/s, {} generated at {:.1} tok/s, loaded in {:.1} s, {ended}",
        generation.prompt_tokens,
        timings.prefill_tps,
        generation.tokens.len(),
        timings.decode_tps,
        timings.load_s,
    )
}

/// Shares of the decoding time; nothing where nothing was decoded.
fn time_line(attribution: &Attribution) -> String {
    let Attribution { spans, wall_s } = attribution;
    let share = |seconds: f64| if *wall_s > 0.0 { 100.0 * seconds / wall_s } else { 0.0 };
    format!(
        "time      {:.0} % dense and attention, {:.0} % experts, {:.0} % waiting for the disk, {:.0} % router, {:.0} % draft, {:.0} % sampling",
        share(spans.dense_s),
        share(spans.experts_s),
        share(spans.stall_s),
        share(spans.router_s),
        share(spans.draft_s),
        share(spans.sampling_s),
    )
}

fn draft_line(speculation: &Speculation) -> String {
    let off = speculation.off_reason.as_ref().map(|why| format!("off: {why}"));
    if speculation.proposed == 0 {
        return format!("draft     {}", off.unwrap_or_else(|| "nothing drafted".to_owned()));
    }
    let mut line = format!(
        "draft     {} drafted, {} accepted ({}), {:.2} a pass over {} passes",
        speculation.proposed,
        speculation.accepted,
        percent(speculation.accepted, speculation.proposed),
        speculation.accepted_per_pass,
        speculation.target_passes,
    );
    if speculation.rows_dropped > 0 {
        line.push_str(&format!(", {} more dropped on the way", speculation.rows_dropped));
    }
    if let Some(off) = off {
        line.push_str(&format!("; now {off}"));
    }
    line
}

fn expert_line(offload: &Offload) -> String {
    let uses = offload.hits.saturating_add(offload.misses);
    let mut line = format!(
        "experts   hit rate {} ({} of {uses} uses), {} of {} experts in slots of {}",
        percent(offload.hits, uses),
        offload.hits,
        offload.slots,
        offload.experts_total,
        format_bytes(offload.slot_bytes),
    );
    if offload.prefetch_issued > 0 {
        line.push_str(&format!(", {} of {} read ahead used", offload.prefetch_used, offload.prefetch_issued));
    }
    if let Some(why) = &offload.prefetch_off_reason {
        line.push_str(&format!("; reading ahead is off: {why}"));
    }
    line
}

fn read_line(offload: &Offload) -> String {
    let mut line =
        format!("disk      {} read, stalled {:.2} s", format_bytes(offload.bytes_read), offload.stall_s);
    if let Some(label) = offload.disk_label() {
        line.push_str(&format!("; {label}"));
    }
    line
}

fn gpu_line(gpu: &GpuReport) -> String {
    let name = &gpu.name;
    let GpuStats { slots, hits, misses, host_experts, .. } = gpu.stats;
    let planned = format_bytes(gpu.planned_bytes);
    let limit = format_bytes(gpu.vram_bytes);
    let copied = format_bytes(gpu.stats.upload_bytes);
    let experts = match slots {
        0 if gpu.unified => "; experts are read where they lie in memory".to_owned(),
        0 => String::new(),
        slots => format!(
            "; {slots} experts there, {hits} uses found, {misses} not: {copied} copied in {:.2} s, {host_experts} \
             computed by the processor",
            gpu.stats.upload_s
        ),
    };
    format!("gpu       {name}: {planned} planned of {limit}{experts}")
}

fn memory_line(memory: &Memory) -> String {
    format!(
        "memory    {} budget, {} planned, {} peak",
        format_bytes(memory.budget_bytes),
        format_bytes(memory.planned_bytes),
        format_bytes(memory.peak_rss_bytes),
    )
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.1} %", 100.0 * part as f64 / whole as f64) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use drafthorse_draft::PositionAcceptance;

    use super::*;

    fn generation() -> Generation {
        Generation {
            tokens: vec![5, 6],
            prompt_tokens: 3,
            finish_reason: FinishReason::Length,
            timings: Timings::default(),
            attribution: Attribution::default(),
            speculation: Speculation {
                proposed: 4,
                accepted: 1,
                target_passes: 1,
                acceptance_by_position: vec![PositionAcceptance { offered: 1, accepted: 1 }],
                ..Speculation::default()
            },
            offload: Offload {
                experts_total: 8,
                hits: 3,
                misses: 1,
                bytes_read: 1 << 20,
                ..Offload::default()
            },
            memory: Memory { budget_bytes: 1 << 30, planned_bytes: 1 << 20, peak_rss_bytes: 1 << 10 },
            gpu: None,
        }
    }

    #[test]
    fn the_json_object_has_the_names_of_the_design_in_order() {
        let report =
            serde_json::to_value(RunReport::new(&generation(), "hi", Some(&Snapshot::default()))).unwrap();
        let keys = |value: &serde_json::Value| {
            value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            keys(&report),
            "text tokens prompt_tokens generated finish_reason timings attribution speculation offload memory metrics"
        );
        assert_eq!(keys(&report["timings"]), "load_s prefill_s decode_s prefill_tps decode_tps");
        assert_eq!(
            keys(&report["speculation"]),
            "draft_len_mean proposed accepted target_passes accepted_per_pass off_reason predicted_speedup t_ratio explanation rows_dropped acceptance_by_position"
        );
        assert_eq!(
            report["speculation"]["acceptance_by_position"],
            serde_json::json!([{ "offered": 1, "accepted": 1 }])
        );
        assert_eq!(
            keys(&report["offload"]),
            "experts_total slots slot_bytes hits misses hit_rate bytes_read read_s stall_s prefetch_issued prefetch_used prefetch_bytes rejected_only_bytes decode prefetch_off_reason simulated_disk simulated_late_reads"
        );
        assert_eq!(keys(&report["memory"]), "budget_bytes planned_bytes peak_rss_bytes");
        assert_eq!(
            (report["generated"].as_u64(), report["finish_reason"].as_str()),
            (Some(2), Some("length"))
        );
    }

    #[test]
    fn the_block_says_what_was_drafted_hit_and_read() {
        let text = block(&generation());
        for part in [
            "4 drafted, 1 accepted (25.0 %)",
            "hit rate 75.0 % (3 of 4 uses)",
            "1.0 MiB read",
            "1.0 GiB budget",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }

    #[test]
    fn a_simulated_disk_is_named_and_told_when_the_real_one_was_slower() {
        let mut generation = generation();
        assert!(!block(&generation).contains("simulated"));
        generation.offload.simulated_disk = Some("3.5 GiB/s, 80 us".to_owned());
        assert!(block(&generation).contains("stalled 0.00 s; simulated disk 3.5 GiB/s, 80 us\n"));
        generation.offload.simulated_late_reads = 7;
        let said = "simulated disk 3.5 GiB/s, 80 us (7 reads were slower on the real one)\n";
        assert!(block(&generation).contains(said));
    }

    #[test]
    fn a_dense_model_without_a_draft_has_no_lines_about_either() {
        let mut generation = generation();
        generation.offload = Offload::default();
        generation.speculation =
            Speculation { off_reason: Some("no draft was given".to_owned()), ..Speculation::default() };
        let text = block(&generation);
        assert!(!text.contains("experts   ") && !text.contains("disk      "), "{text}");
        assert!(text.contains("draft     off: no draft was given"), "{text}");
    }
}
