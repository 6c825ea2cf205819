//! The route traces of BigMoeOnEdge (`route_trace v1`): a CSV of one routed expert a line, after
//! comment lines that give the model's shape.
//!
//! ```text
//! # route_trace v1
//! # model=/path/m.gguf arch=qwen3moe n_layer=48 n_expert=128 n_expert_used=6
//! turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
//! 0,0,0,0,0,49,0.221297,0,3059712
//! ```
//! Phase 0 is the prompt of a turn, one window a layer; phase 1 is decoding, a window a step. Hostile
//! input: every number is checked against the shape, and lines and rows have a maximum.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, Read};

use csv::{ReaderBuilder, StringRecord};
use drafthorse_offload::Workload;

/// Bytes of a comment or header line.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// Rows of a trace (0.5 GB in memory).
const ROWS_MAX: usize = 20_000_000;
const LAYERS_MAX: usize = 4096;
const EXPERTS_MAX: usize = 65_536;

/// A line that is not as it should be.
#[derive(Debug, PartialEq, Eq)]
pub struct BadLine {
    /// From 1.
    pub line: u64,
    /// The field and what is wrong with it.
    pub problem: String,
}

/// One routed expert.
struct Row {
    turn: u32,
    phase: u32,
    step: u32,
    layer: usize,
    expert: u32,
}

impl Row {
    /// What is asked for at once: a prompt, or a decoding step. In order of time.
    fn window(&self) -> (u32, u32, u32) {
        (self.turn, self.phase, if self.phase == 0 { 0 } else { self.step })
    }
}

/// Numbers of the `# model=` line.
#[derive(Debug, Default)]
struct Shape {
    layers: usize,
    experts: usize,
    used: usize,
}

/// Columns by name.
struct Columns([usize; 5]);

const COLUMNS: [&str; 5] = ["turn", "phase", "step", "layer", "expert"];

/// Reads a trace, at most its first `tokens` tokens. Layers without a row are no MoE layers.
///
/// # Errors
/// The first line that is malformed, out of the shape, or beyond the limits.
pub fn read(mut input: impl BufRead, tokens: usize) -> Result<Workload, BadLine> {
    let (shape, header, line) = preamble(&mut input)?;
    let columns = Columns::find(&header, line)?;
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(input);
    let mut record = StringRecord::new();
    let (mut rows, mut seen) = (Vec::<Row>::new(), HashSet::new());
    loop {
        let at = line + reader.position().line();
        let more = reader.read_record(&mut record).map_err(|e| bad(at, e.to_string()))?;
        if !more {
            break;
        }
        let row = columns.row(&record, &shape, at)?;
        if rows.last().is_some_and(|last| row.window() < last.window()) {
            return Err(bad(at, "step: turns, phases and decoding steps must not go back".into()));
        }
        let token = (row.turn, row.phase, row.step);
        if seen.len() == tokens && !seen.contains(&token) {
            continue; // a prompt is written layer by layer, so earlier tokens may follow
        }
        seen.insert(token);
        if rows.len() == ROWS_MAX {
            return Err(bad(at, format!("more than {ROWS_MAX} rows")));
        }
        rows.push(row);
    }
    workload(&shape, &rows).ok_or_else(|| bad(line, "there is no row after the header".into()))
}

/// The comment lines and the header line; the line number of the latter.
fn preamble(input: &mut impl BufRead) -> Result<(Shape, String, u64), BadLine> {
    let mut shape = None;
    for number in 1.. {
        let text = line(input, number)?;
        match text.strip_prefix('#') {
            Some(comment) if comment.contains("n_expert=") => shape = Some(Shape::parse(comment, number)?),
            Some(_) => {}
            None => {
                let missing = || bad(number, "no comment line before it gives n_layer and n_expert".into());
                return Ok((shape.ok_or_else(missing)?, text, number));
            }
        }
    }
    Err(bad(0, "no header line".into()))
}

fn line(input: &mut impl BufRead, number: u64) -> Result<String, BadLine> {
    let mut bytes = Vec::new();
    let read = input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes);
    read.map_err(|e| bad(number, e.to_string()))?;
    match bytes.pop() {
        None => Err(bad(number, "the file ends before its header line".into())),
        Some(b'\n') => String::from_utf8(bytes)
            .map(|text| text.trim_end().to_owned())
            .map_err(|e| bad(number, e.to_string())),
        Some(_) => Err(bad(number, format!("no end of line within {LINE_BYTES_MAX} bytes"))),
    }
}

impl Shape {
    fn parse(comment: &str, line: u64) -> Result<Shape, BadLine> {
        let number = |key: &str, max: usize| {
            let value = comment.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            let value = value.ok_or_else(|| bad(line, format!("{key}: missing")))?;
            let parsed = value.parse().ok().filter(|n| (1..=max).contains(n));
            parsed.ok_or_else(|| bad(line, format!("{key}: \"{value}\" is not a number from 1 to {max}")))
        };
        let (layers, experts) = (number("n_layer", LAYERS_MAX)?, number("n_expert", EXPERTS_MAX)?);
        Ok(Shape { layers, experts, used: number("n_expert_used", experts)? })
    }
}

impl Columns {
    fn find(header: &str, line: u64) -> Result<Columns, BadLine> {
        let names: Vec<&str> = header.split(',').map(str::trim).collect();
        let mut columns = [0; COLUMNS.len()];
        for (column, name) in columns.iter_mut().zip(COLUMNS) {
            let at = names.iter().position(|n| *n == name);
            *column = at.ok_or_else(|| bad(line, format!("{name}: no such column in the header")))?;
        }
        Ok(Columns(columns))
    }

    fn row(&self, record: &StringRecord, shape: &Shape, line: u64) -> Result<Row, BadLine> {
        let field = |at: usize, below: usize| -> Result<u32, BadLine> {
            let name = COLUMNS[at];
            let text = record.get(self.0[at]).ok_or_else(|| bad(line, format!("{name}: missing")))?;
            let number = text.trim().parse::<u32>().ok().filter(|n| (*n as usize) < below);
            number.ok_or_else(|| {
                let text: String = text.chars().take(40).collect();
                bad(line, format!("{name}: \"{text}\" is not a number from 0 to {}", below - 1))
            })
        };
        let any = u32::MAX as usize;
        let (turn, phase, step) = (field(0, any)?, field(1, 2)?, field(2, any)?);
        Ok(Row {
            turn,
            phase,
            step,
            layer: field(3, shape.layers)? as usize,
            expert: field(4, shape.experts)?,
        })
    }
}

/// Groups rows into windows: a layer's rows of one prompt, or of one decoding step.
fn workload(shape: &Shape, rows: &[Row]) -> Option<Workload> {
    let mut moe_layers = vec![None; shape.layers];
    rows.iter().for_each(|row| moe_layers[row.layer] = Some(0));
    (0u32..).zip(moe_layers.iter_mut().flatten()).for_each(|(at, layer)| *layer = at);
    let layers = moe_layers.iter().flatten().count();
    let mut workload = Workload::new(vec![shape.experts as u32; layers], shape.used as u32);
    for rows in rows.chunk_by(|a, b| a.window() == b.window()) {
        let mut by_layer: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        rows.iter().for_each(|row| by_layer.entry(row.layer).or_default().push(row.expert));
        for (layer, experts) in by_layer {
            workload.push(moe_layers[layer]?, experts.into_iter()).ok()?;
        }
    }
    (!rows.is_empty()).then_some(workload)
}

fn bad(line: u64, problem: String) -> BadLine {
    BadLine { line, problem }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    const HEAD: &str = "# route_trace v1\n# model=m arch=a n_layer=4 n_expert=8 n_expert_used=2\n\
                        turn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n";

    fn parse(rows: &str) -> Result<Workload, BadLine> {
        read(format!("{HEAD}{rows}").as_bytes(), usize::MAX)
    }

    #[test]
    fn a_prompt_is_one_window_a_layer_and_a_step_is_one_each() {
        let rows = "0,0,0,1,0,5,0.5,0,0\n0,0,0,3,0,2,0.5,0,0\n0,0,1,1,0,6,0.5,0,0\n0,0,1,3,0,2,0.5,0,0\n\
                    0,1,2,1,0,5,0.5,1,0\n0,1,3,1,0,7,0.5,1,0\n";
        let workload = parse(rows).unwrap();
        let windows: Vec<_> = workload.windows().iter().map(|w| (w.layer(), w.experts().to_vec())).collect();
        assert_eq!(windows, [(0, vec![5, 6]), (1, vec![2]), (0, vec![5]), (0, vec![7])]);
        assert_eq!(workload.bank(), 16, "layers 0 and 2 have no routed experts");
        let two = read(format!("{HEAD}{rows}").as_bytes(), 2).unwrap();
        assert_eq!(two.windows().len(), 2);
    }

    #[test]
    fn a_bad_field_is_named_with_its_line() {
        let good = "0,0,0,1,0,5,0.5,0,0\n";
        let cases = [
            ("0,0,0,1,0,8,0,0,0\n", "expert: \"8\" is not a number from 0 to 7"),
            ("0,0,0,4,0,0,0,0,0\n", "layer: \"4\""),
            ("0,2,0,1,0,0,0,0,0\n", "phase: \"2\""),
            ("0,0,-1,1,0,0,0,0,0\n", "step: \"-1\""),
            ("0,0,0,1,0,x,0,0,0\n", "expert: \"x\""),
            ("0,0,0\n", "layer: missing"),
            ("0,0,99999999999999999999,1,0,0,0,0,0\n", "step: "),
        ];
        for (row, problem) in cases {
            let error = parse(&format!("{good}{row}")).unwrap_err();
            assert_eq!(error.line, 5, "{row}");
            assert!(error.problem.contains(problem), "{row}: {}", error.problem);
        }
        assert!(parse("0,1,5,1,0,5,0,0,0\n0,1,4,1,0,5,0,0,0\n").unwrap_err().problem.contains("go back"));
    }

    #[test]
    fn a_bad_preamble_is_refused() {
        let cases = [
            ("", 1, "ends before"),
            ("# x\n", 2, "ends before"),
            ("turn,phase\n", 1, "n_layer"),
            ("# n_expert=8\nturn\n", 1, "n_layer: missing"),
            ("# n_layer=9999999 n_expert=8 n_expert_used=2\n", 1, "n_layer: \"9999999\""),
            ("# n_layer=4 n_expert=8 n_expert_used=9\n", 1, "n_expert_used: \"9\""),
            ("# n_layer=4 n_expert=8 n_expert_used=2\nturn,phase,step,layer\n", 2, "expert: no such column"),
            ("\u{1}\n", 1, "n_layer"),
        ];
        for (text, line, problem) in cases {
            let error = read(text.as_bytes(), usize::MAX).unwrap_err();
            assert!(error.line == line && error.problem.contains(problem), "{text:?}: {error:?}");
        }
        assert!(parse("").unwrap_err().problem.contains("no row"));
        assert!(read(&[0xFF, b'\n'][..], usize::MAX).is_err());
        assert!(read(&vec![b'x'; 100_000][..], usize::MAX).unwrap_err().problem.contains("no end of line"));
    }
}
