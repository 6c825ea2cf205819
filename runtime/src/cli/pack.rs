//! `pack`: a model rewritten for the disk, and the check of one that was.

use drafthorse_runtime::Error;
use drafthorse_runtime::pack::{Checked, PackError, PackOptions, Packed, check, pack};
use drafthorse_runtime::units::format_bytes;

use super::args::PackArgs;
use super::output;
use super::progress::Screen;

/// The command.
pub fn run(args: &PackArgs) -> Result<(), Error> {
    match &args.output {
        Some(out) => {
            let options = PackOptions { alignment: args.align.bytes(), ..PackOptions::default() };
            let packed = pack(&args.model, out, &options, &mut Screen::of_bytes())?;
            if args.json { output::print_json(&packed) } else { output::print(&packed_line(&packed)) }
        }
        None => checked(args),
    }
}

fn checked(args: &PackArgs) -> Result<(), Error> {
    let checked = check(&args.model, &mut Screen::of_bytes())?;
    if args.json {
        output::print_json(&checked)?;
    } else {
        output::print(&checked_page(&checked))?;
    }
    let (damaged, pieces) = (checked.mismatches.len(), checked.pieces);
    match damaged {
        0 => Ok(()),
        _ => Err(PackError::Damaged { path: checked.file, damaged, pieces }.into()),
    }
}

fn packed_line(packed: &Packed) -> String {
    let Packed { layers, experts, bytes, source_bytes, pack_s, .. } = packed;
    format!(
        "{}: {}, {layers} layers x {experts} experts at {} (the model had {}), in {pack_s:.1} s at {}\n",
        packed.output.display(),
        format_bytes(*bytes),
        format_bytes(packed.alignment),
        format_bytes(*source_bytes),
        rate(bytes.saturating_sub(packed.resumed_bytes), *pack_s),
    )
}

fn checked_page(checked: &Checked) -> String {
    let Checked { mismatches, pieces, bytes, check_s, .. } = checked;
    let lines: String = mismatches.iter().map(|mismatch| format!("{mismatch}\n")).collect();
    let (size, rate) = (format_bytes(*bytes), rate(*bytes, *check_s));
    let file = checked.file.display();
    let found =
        if mismatches.is_empty() { "all as packed".into() } else { format!("{} damaged", mismatches.len()) };
    format!("{lines}{file}: {pieces} parts, {size} in {check_s:.1} s at {rate}: {found}\n")
}

fn rate(bytes: u64, seconds: f64) -> String {
    format!("{:.0} MB/s", bytes as f64 / 1e6 / seconds.max(1e-3))
}
