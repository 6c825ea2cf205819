//! The page `inspect` prints for people.

use std::fmt;

use drafthorse_runtime::units::format_bytes;

use super::Inspection;
use super::contents::{Contents, Experts, Packing};
use super::outlook::{Outlook, Prediction};

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let contents = &self.contents;
        write_head(f, contents)?;
        for (key, value) in &contents.hyperparameters {
            writeln!(f, "  {:<34} {value}", key.escape_debug().to_string())?;
        }
        write_tensors(f, contents)?;
        if let Some(experts) = &contents.experts {
            write_experts(f, experts)?;
        }
        if let Some(Packing { alignment, checksum, padding_bytes }) = &contents.packed {
            let [alignment, padding] = [*alignment, *padding_bytes].map(format_bytes);
            writeln!(f, "packed          parts at {alignment}, {checksum} checksums, {padding} of padding")?;
        }
        writeln!(f, "active weights  {} a token", format_bytes(contents.active_bytes_per_token))?;
        write_outlook(f, &self.outlook)
    }
}

fn write_head(f: &mut fmt::Formatter<'_>, contents: &Contents) -> fmt::Result {
    for file in &contents.files {
        writeln!(f, "file            {}", file.display())?;
    }
    if let Some(name) = &contents.name {
        writeln!(f, "name            {}", name.escape_debug())?;
    }
    let support = if contents.architecture_is_supported { "" } else { "  (not supported by this build)" };
    writeln!(f, "architecture    {}{support}", contents.architecture.escape_debug())
}

fn write_tensors(f: &mut fmt::Formatter<'_>, contents: &Contents) -> fmt::Result {
    let tensors = &contents.tensors;
    writeln!(f, "tensors         {}, {}", tensors.count, format_bytes(tensors.bytes))?;
    for row in &tensors.by_type {
        let support = if row.is_supported { "" } else { "  (not supported by this build)" };
        writeln!(f, "  {:<8} {:>6} tensors {:>12}{support}", row.name, row.count, format_bytes(row.bytes))?;
    }
    Ok(())
}

fn write_experts(f: &mut fmt::Formatter<'_>, experts: &Experts) -> fmt::Result {
    let Experts { layers, experts: count, used, .. } = experts;
    let [each, all, cycle] = [experts.expert_bytes, experts.bytes, experts.cycle_bytes].map(format_bytes);
    writeln!(f, "experts         {layers} layers x {count} of {each}, {all} in all")?;
    writeln!(f, "one token       {used} a layer, {cycle} if none is in memory")
}

fn write_outlook(f: &mut fmt::Formatter<'_>, outlook: &Outlook) -> fmt::Result {
    if let Some(plan) = &outlook.plan {
        writeln!(f, "memory plan\n{plan}")?;
    }
    if let Some(refusal) = &outlook.refusal {
        writeln!(f, "does not run    {refusal}")?;
    }
    outlook.prediction.map_or(Ok(()), |prediction| write_prediction(f, &prediction))
}

fn write_prediction(f: &mut fmt::Formatter<'_>, prediction: &Prediction) -> fmt::Result {
    let Prediction { tokens_per_s, hit_rate, disk_gb_per_s, memory_gb_per_s, .. } = prediction;
    let source = if prediction.disk_is_measured { "measured" } else { "assumed" };
    writeln!(f, "prediction      {tokens_per_s:.1} tok/s of plain decoding")?;
    writeln!(
        f,
        "  rests on      {} a token from disk at {disk_gb_per_s:.2} GB/s ({source}), hit rate {:.0} % (experts used \
         equally often), weights at {memory_gb_per_s:.0} GB/s (assumed)",
        format_bytes(prediction.disk_bytes_per_token),
        100.0 * hit_rate,
    )
}
