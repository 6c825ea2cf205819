//! `--explain`: why the draft length is what it is, as a small table under the text.
//!
//! Owns the layout alone; the numbers are the controller's.

use drafthorse_runtime::api::{CostTerms, Explanation, LengthReport, Speculation};

/// The table, or the reason why there is none.
pub fn block(speculation: &Speculation) -> String {
    match &speculation.explanation {
        Some(explanation) => [table(explanation), watched(explanation), dropped(speculation)].concat(),
        None => {
            let why = speculation.off_reason.as_deref().unwrap_or("nothing was drafted");
            format!("explain   no draft length to explain: {why}")
        }
    }
}

fn table(explanation: &Explanation) -> String {
    let mut lines = vec![format!("explain   draft length {}: {}", explanation.draft_len, explanation.reason)];
    if let Some(speedup) = explanation.speedup {
        lines.push(format!("          {speedup:.2}x the speed of plain passes so far, by the cost model"));
    }
    lines.push(format!("          a pass takes {}", terms(&explanation.terms)));
    lines.push(
        "          K   passes   T(K) ms predicted  measured   tau predicted  measured   experts   misses"
            .into(),
    );
    lines.extend(explanation.lengths.iter().map(row));
    lines.join("\n")
}

/// A line on drafts that were compared with the text, where there were any.
fn watched(explanation: &Explanation) -> String {
    let Explanation { watched, watched_stood, .. } = explanation;
    if *watched == 0 {
        return String::new();
    }
    format!(
        "\n          beside passes without a draft {watched} were made for comparison: of {watched_stood} the first token would have stood"
    )
}

/// A line on elastic verification, where it did something.
fn dropped(speculation: &Speculation) -> String {
    let Speculation { rows_dropped, proposed, .. } = speculation;
    if *rows_dropped == 0 {
        return String::new();
    }
    let drafted = proposed + rows_dropped;
    format!(
        "\n          {rows_dropped} of {drafted} drafted rows were dropped on the way: their experts cost more than they promised"
    )
}

fn terms(terms: &CostTerms) -> String {
    let CostTerms { dense_s, row_s, expert_s, miss_s } = terms;
    format!(
        "{:.2} ms + {:.2} ms a row + {:.3} ms an expert + {:.3} ms of waiting a miss",
        1e3 * dense_s,
        1e3 * row_s,
        1e3 * expert_s,
        1e3 * miss_s
    )
}

fn row(length: &LengthReport) -> String {
    let predicted = length.predicted_s.map_or("-".to_owned(), |seconds| format!("{:.2}", 1e3 * seconds));
    format!(
        "         {:>2} {:>8} {:>19} {:>9.2} {:>15.2} {:>9.2} {:>9.1} {:>8.1}",
        length.draft_len,
        length.passes,
        predicted,
        1e3 * length.measured_s,
        length.predicted_tokens,
        length.measured_tokens,
        length.experts,
        length.misses,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_has_its_line_under_its_heading() {
        let lengths = [0, 4].map(|draft_len| LengthReport {
            draft_len,
            passes: 7,
            predicted_s: (draft_len > 0).then_some(0.0125),
            measured_s: 0.010,
            measured_tokens: 2.5,
            ..LengthReport::default()
        });
        let explanation = Explanation {
            draft_len: 4,
            reason: "it pays".into(),
            lengths: lengths.to_vec(),
            speedup: Some(1.25),
            ..Explanation::default()
        };
        let speculation = Speculation { explanation: Some(explanation), ..Speculation::default() };
        let text = block(&speculation);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("draft length 4: it pays") && lines[1].contains("1.25x"), "{text}");
        assert_eq!(lines.len(), 6, "{text}");
        assert!(lines[4].contains(" - ") && lines[5].contains("12.50"), "{text}");
        assert!(lines[5].len() <= lines[3].len(), "columns stand under their headings:\n{text}");
        let elastic = block(&Speculation { rows_dropped: 3, proposed: 9, ..speculation.clone() });
        assert!(elastic.starts_with(&text) && elastic.contains("3 of 12 drafted rows"), "{elastic}");
        let explanation =
            Explanation { watched: 5, watched_stood: 2, ..speculation.explanation.unwrap_or_default() };
        let watched = block(&Speculation { explanation: Some(explanation), ..Speculation::default() });
        assert!(watched.starts_with(&text), "{watched}");
        assert!(watched.contains("5 were made for comparison: of 2 the first"), "{watched}");
    }

    #[test]
    fn without_a_drafter_it_says_why_there_is_nothing_to_explain() {
        let speculation =
            Speculation { off_reason: Some("no drafter was asked for".into()), ..Speculation::default() };
        assert!(block(&speculation).contains("no drafter was asked for"));
    }
}
