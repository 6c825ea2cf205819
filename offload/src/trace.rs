//! Routing traces in the `.moetrace` layout: one JSON header line, then u8 expert ids
//! `[token][layer][k]`, then u16-LE gate weights x 10000 in the same order.
//!
//! Owns reading (hostile input: lengths checked before allocation, ids in range), writing and
//! recording. It must not know what a token says or where experts lie.

use std::io::Write;

use serde::{Deserialize, Serialize};

use crate::error::OffloadError;

/// Value of `format` in the header.
const FORMAT: &str = "moe-trace-v1";
/// Ids are bytes, so a layer may have this many experts.
const EXPERTS_MAX: usize = 256;
/// Gate weights are stored as multiples of 1 / this.
const WEIGHT_SCALE: f32 = 10_000.0;

/// The header line. Unknown keys are ignored when reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceHeader {
    /// Layout name and version.
    #[serde(default)]
    pub format: String,
    /// The model the trace was taken from.
    #[serde(default)]
    pub model: String,
    /// Experts a layer routes among, at most 256.
    pub n_routed_experts: usize,
    /// Experts the router picks for a token in a layer.
    pub top_k: usize,
    /// MoE layers.
    pub n_moe_layers: usize,
    /// Tokens in all sequences.
    pub n_tokens: usize,
    /// Tokens of each sequence, in order; their sum is `n_tokens`.
    pub seq_lens: Vec<usize>,
}

/// A whole trace in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    header: TraceHeader,
    ids: Vec<u8>,      // (n_tokens, n_moe_layers, top_k)
    weights: Vec<u16>, // same shape, x 10000
}

impl Trace {
    /// Parses a trace file.
    ///
    /// # Errors
    /// A malformed or inconsistent header, fewer or more bytes than it promises, an id out of range.
    pub fn parse(bytes: &[u8]) -> Result<Trace, OffloadError> {
        let line = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| bad("no header line".into()))?;
        let header: TraceHeader =
            serde_json::from_slice(&bytes[..line]).map_err(|e| bad(format!("header: {e}")))?;
        let picks = header.check()?;
        let body = &bytes[line + 1..];
        let wanted = picks.checked_mul(3).ok_or_else(|| bad(format!("{picks} picks overflow")))?;
        if body.len() != wanted {
            return Err(bad(format!("wanted {wanted} bytes after the header, got {}", body.len())));
        }
        let (ids, weights) = body.split_at(picks);
        if let Some(at) = ids.iter().position(|id| usize::from(*id) >= header.n_routed_experts) {
            let experts = header.n_routed_experts;
            return Err(bad(format!("pick {at} names expert {} of {experts}", ids[at])));
        }
        let weights = weights.chunks_exact(2).map(|w| u16::from_le_bytes([w[0], w[1]])).collect();
        Ok(Trace { header, ids: ids.to_vec(), weights })
    }

    /// Writes the file [`Trace::parse`] reads.
    pub fn write(&self, out: &mut impl Write) -> Result<(), OffloadError> {
        let header = serde_json::to_string(&self.header).map_err(|e| bad(format!("header: {e}")))?;
        writeln!(out, "{header}")?;
        out.write_all(&self.ids)?;
        let weights: Vec<u8> = self.weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        out.write_all(&weights)?;
        Ok(())
    }

    /// The header.
    pub fn header(&self) -> &TraceHeader {
        &self.header
    }

    /// The `top_k` experts one token was routed to in one layer; `None` out of range.
    pub fn picks(&self, token: usize, layer: usize) -> Option<&[u8]> {
        self.range(token, layer).and_then(|range| self.ids.get(range))
    }

    /// The gate weights (x 10000) that belong to [`Trace::picks`].
    pub fn weights(&self, token: usize, layer: usize) -> Option<&[u16]> {
        self.range(token, layer).and_then(|range| self.weights.get(range))
    }

    fn range(&self, token: usize, layer: usize) -> Option<std::ops::Range<usize>> {
        let TraceHeader { n_moe_layers, top_k, .. } = self.header;
        if layer >= n_moe_layers {
            return None;
        }
        let start = token.checked_mul(n_moe_layers)?.checked_add(layer)?.checked_mul(top_k)?;
        Some(start..start.checked_add(top_k)?)
    }
}

impl TraceHeader {
    /// Checks the header against itself; returns the number of picks in the trace.
    fn check(&self) -> Result<usize, OffloadError> {
        let TraceHeader { n_routed_experts, top_k, n_moe_layers, n_tokens, .. } = *self;
        if n_routed_experts > EXPERTS_MAX {
            return Err(bad(format!("{n_routed_experts} experts a layer, the format holds {EXPERTS_MAX}")));
        }
        if n_moe_layers == 0 || top_k == 0 || top_k > n_routed_experts {
            return Err(bad(format!("{top_k} of {n_routed_experts} experts in {n_moe_layers} layers")));
        }
        let sum = self.seq_lens.iter().try_fold(0usize, |sum, len| sum.checked_add(*len));
        if sum != Some(n_tokens) {
            return Err(bad(format!("sequence lengths do not add up to {n_tokens} tokens")));
        }
        let picks = n_tokens.checked_mul(n_moe_layers).and_then(|n| n.checked_mul(top_k));
        picks.ok_or_else(|| bad(format!("{n_tokens} tokens of {n_moe_layers} x {top_k} picks overflow")))
    }
}

/// Collects a trace while a model runs: layer by layer for a window of rows, of which a prefix is kept.
#[derive(Clone, Debug)]
pub struct TraceRecorder {
    trace: Trace,
    window: Vec<Picks>, // (n_moe_layers): rows of the window not committed yet
    sequence: usize,    // tokens of the running sequence
}

#[derive(Clone, Debug, Default)]
struct Picks {
    ids: Vec<u8>,      // (rows, top_k)
    weights: Vec<u16>, // (rows, top_k)
}

impl TraceRecorder {
    /// An empty trace of a model with `layers` MoE layers that pick `top_k` of `experts`.
    ///
    /// # Errors
    /// A shape the format cannot hold: more than 256 experts, `top_k` of 0 or beyond the experts.
    pub fn new(model: &str, layers: usize, experts: usize, top_k: usize) -> Result<Self, OffloadError> {
        let header = TraceHeader {
            format: FORMAT.into(),
            model: model.into(),
            n_routed_experts: experts,
            top_k,
            n_moe_layers: layers,
            n_tokens: 0,
            seq_lens: Vec::new(),
        };
        header.check()?;
        let trace = Trace { header, ids: Vec::new(), weights: Vec::new() };
        Ok(TraceRecorder { trace, window: vec![Picks::default(); layers], sequence: 0 })
    }

    /// Adds rows of the current window to `layer`: `experts` and gate `weights` are (rows, top_k).
    ///
    /// # Errors
    /// An unknown layer or expert, or slices that are not whole rows of equal number. Nothing is added.
    pub fn record(&mut self, layer: u32, experts: &[u32], weights: &[f32]) -> Result<(), OffloadError> {
        let TraceHeader { n_routed_experts, top_k, n_moe_layers, .. } = self.trace.header;
        let picks = self
            .window
            .get_mut(layer as usize)
            .ok_or_else(|| bad(format!("layer {layer} of {n_moe_layers}")))?;
        if experts.len() != weights.len() || !experts.len().is_multiple_of(top_k) {
            let (ids, gates) = (experts.len(), weights.len());
            return Err(bad(format!("{ids} experts and {gates} weights are not rows of {top_k}")));
        }
        if let Some(expert) = experts.iter().find(|expert| **expert as usize >= n_routed_experts) {
            return Err(bad(format!("expert {expert} of {n_routed_experts}")));
        }
        picks.ids.extend(experts.iter().map(|expert| *expert as u8));
        // The cast saturates: negative and NaN gates become 0, gates above 6.5535 become that.
        picks.weights.extend(weights.iter().map(|weight| (weight * WEIGHT_SCALE).round() as u16));
        Ok(())
    }

    /// Ends a window: the first `rows` rows join the trace, the rest (rejected drafts) are dropped.
    ///
    /// # Errors
    /// A layer that has recorded fewer rows.
    pub fn commit(&mut self, rows: usize) -> Result<(), OffloadError> {
        let top_k = self.trace.header.top_k;
        if let Some(layer) = self.window.iter().position(|picks| picks.ids.len() / top_k < rows) {
            return Err(bad(format!("layer {layer} has recorded fewer than {rows} rows")));
        }
        for range in (0..rows).map(|row| row * top_k..(row + 1) * top_k) {
            for picks in &self.window {
                self.trace.ids.extend_from_slice(&picks.ids[range.clone()]);
                self.trace.weights.extend_from_slice(&picks.weights[range.clone()]);
            }
        }
        self.window.iter_mut().for_each(|picks| *picks = Picks::default());
        self.sequence += rows;
        Ok(())
    }

    /// Ends a sequence; what follows belongs to the next. An empty sequence is not recorded.
    pub fn end_sequence(&mut self) {
        if self.sequence > 0 {
            self.trace.header.seq_lens.push(self.sequence);
            self.trace.header.n_tokens += self.sequence;
            self.sequence = 0;
        }
    }

    /// The trace of everything committed; rows of an open window are dropped.
    pub fn finish(mut self) -> Trace {
        self.end_sequence();
        self.trace
    }
}

fn bad(what: String) -> OffloadError {
    OffloadError::Trace { what }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;

    fn sample() -> Trace {
        let mut recorder = TraceRecorder::new("toy", 2, 4, 2).unwrap();
        for layer in 0..2 {
            recorder.record(layer, &[0, 1, 2, 3, 1, 0], &[0.5, 0.25, 0.1, 0.2, 1.0, 0.0]).unwrap();
        }
        recorder.commit(2).unwrap();
        recorder.end_sequence();
        recorder.record(0, &[3, 2], &[0.75, 0.125]).unwrap();
        recorder.record(1, &[2, 1], &[0.3, 0.7]).unwrap();
        recorder.commit(1).unwrap();
        recorder.finish()
    }

    fn parse_error(bytes: &[u8]) -> String {
        Trace::parse(bytes).unwrap_err().to_string()
    }

    #[test]
    fn a_recorded_trace_survives_writing_and_parsing() {
        let trace = sample();
        let mut bytes = Vec::new();
        trace.write(&mut bytes).unwrap();
        assert_eq!(Trace::parse(&bytes).unwrap(), trace);
        assert_eq!(trace.header().seq_lens, [2, 1]);
        assert_eq!(trace.picks(1, 0), Some(&[2, 3][..]));
        assert_eq!(trace.picks(2, 1), Some(&[2, 1][..]));
        assert_eq!(trace.weights(2, 0), Some(&[7500, 1250][..]));
        assert_eq!((trace.picks(3, 0), trace.picks(0, 2), trace.weights(usize::MAX, 0)), (None, None, None));
    }

    #[test]
    fn rows_of_rejected_drafts_leave_no_trace() {
        let trace = sample();
        assert_eq!(trace.header().n_tokens, 3);
        assert_eq!(trace.picks(2, 0), Some(&[3, 2][..]), "the third row of the first window was dropped");
    }

    #[test]
    fn truncated_and_padded_traces_are_refused_with_the_numbers() {
        let mut bytes = Vec::new();
        sample().write(&mut bytes).unwrap();
        let body = 3 * 2 * 2 * 3;
        let short = parse_error(&bytes[..bytes.len() - 1]);
        assert!(
            short.contains(&format!("wanted {body} bytes")) && short.contains(&format!("got {}", body - 1))
        );
        bytes.push(0);
        assert!(parse_error(&bytes).contains(&format!("got {}", body + 1)));
        (0..bytes.len() - 1).for_each(|cut| assert!(Trace::parse(&bytes[..cut]).is_err(), "cut at {cut}"));
    }

    #[test]
    fn an_expert_out_of_range_is_refused() {
        let mut bytes = Vec::new();
        sample().write(&mut bytes).unwrap();
        let body = bytes.len() - 36;
        bytes[body + 7] = 4;
        assert!(parse_error(&bytes).contains("pick 7 names expert 4 of 4"));
    }

    #[test]
    fn hostile_headers_are_refused_before_anything_is_allocated() {
        let header = |experts: &str, k: &str, layers: &str, tokens: &str, lens: &str| {
            format!(
                "{{\"n_routed_experts\":{experts},\"top_k\":{k},\"n_moe_layers\":{layers},\
                 \"n_tokens\":{tokens},\"seq_lens\":{lens}}}\n"
            )
        };
        let max = usize::MAX.to_string();
        let cases = [
            (header("257", "2", "1", "0", "[]"), "257 experts"),
            (header("4", "5", "1", "0", "[]"), "5 of 4"),
            (header("4", "0", "1", "0", "[]"), "0 of 4"),
            (header("4", "2", "0", "0", "[]"), "0 layers"),
            (header("4", "2", "1", "3", "[1,1]"), "do not add up"),
            (header("4", "2", "1", "1", &format!("[{max},2]")), "do not add up"),
            (header("4", "2", "8", &max, &format!("[{max}]")), "overflow"),
            (header("4", "1", "1", &max, &format!("[{max}]")), "overflow"),
            (header("-4", "2", "1", "0", "[]"), "header"),
            ("{}\n".into(), "header"),
            ("not json\n".into(), "header"),
            (String::new(), "no header line"),
        ];
        for (bytes, reason) in cases {
            let error = parse_error(bytes.as_bytes());
            assert!(error.contains(reason), "{bytes}: {error}");
        }
    }

    #[test]
    fn more_experts_than_a_byte_can_name_cannot_be_recorded() {
        assert!(TraceRecorder::new("v3", 58, 256, 8).is_ok());
        let error = TraceRecorder::new("kimi", 60, 384, 8).unwrap_err();
        assert!(matches!(&error, OffloadError::Trace { what } if what.contains("384 experts")), "{error}");
    }

    #[test]
    fn picks_that_do_not_fit_the_shape_are_refused() {
        let mut recorder = TraceRecorder::new("toy", 1, 4, 2).unwrap();
        assert!(recorder.record(1, &[0, 1], &[0.5, 0.5]).is_err());
        assert!(recorder.record(0, &[0, 4], &[0.5, 0.5]).is_err());
        assert!(recorder.record(0, &[0, 1, 2], &[0.5; 3]).is_err());
        assert!(recorder.record(0, &[0, 1], &[0.5]).is_err());
        assert!(recorder.commit(1).is_err(), "nothing was recorded");
        recorder.record(0, &[0, 1], &[f32::NAN, -3.0]).unwrap();
        recorder.commit(1).unwrap();
        assert_eq!(recorder.finish().weights(0, 0), Some(&[0, 0][..]));
    }
}
