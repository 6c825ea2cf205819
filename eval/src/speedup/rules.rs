//! What the two rules of verification accept of the same drafts: the price of a text that does not depend on
//! what was drafted, by temperature.
//!
//! Pure. A sweep with one rule alone has nothing to say here. "auto" is left out: its lengths are other ones
//! under each rule.

use super::report::{ALL_TASKS, Row};
use super::side_table::SideTable;

const HEADS: [&str; 6] = ["temp", "drafter", "length", "coupled", "block", "block / coupled"];
const TITLE: &str = "Accepted a pass: coupled and block verification";
const LINE: &str = "Drafted tokens that stood in a pass of the target, the mean over cache sizes, starts and tasks. \
     Coupled verification gives one text for a seed, whatever is drafted; block verification accepts at least \
     as much of a draft in the mean, and its text depends on the draft.";

/// The same drafts under both rules.
#[derive(Debug, PartialEq)]
struct Pair<'a> {
    temperature: f64,
    drafter: &'a str,
    draft_len: &'a str,
    /// Accepted a pass.
    coupled: f64,
    block: f64,
}

impl Pair<'_> {
    fn cells(&self) -> Vec<String> {
        let ratio =
            if self.coupled > 0.0 { format!("{:.2}", self.block / self.coupled) } else { "-".to_owned() };
        vec![
            self.temperature.to_string(),
            self.drafter.to_owned(),
            self.draft_len.to_owned(),
            format!("{:.2}", self.coupled),
            format!("{:.2}", self.block),
            ratio,
        ]
    }
}

/// The table of both rules; `None` where no setting was run under both.
pub fn table(rows: &[Row]) -> Option<SideTable> {
    let pairs = pairs(rows);
    (!pairs.is_empty()).then(|| SideTable {
        title: TITLE,
        line: LINE.to_owned(),
        heads: HEADS.to_vec(),
        rows: pairs.iter().map(Pair::cells).collect(),
    })
}

/// By temperature, drafter and length, in the order of the rows.
fn pairs(rows: &[Row]) -> Vec<Pair<'_>> {
    let has_all = rows.iter().any(|row| row.task == ALL_TASKS);
    let rows: Vec<&Row> =
        rows.iter().filter(|row| row.draft_len != "auto" && (!has_all || row.task == ALL_TASKS)).collect();
    let mut pairs: Vec<Pair<'_>> = Vec::new();
    for row in &rows {
        let is_same = |other: &&&Row| {
            other.temperature == row.temperature
                && (&other.drafter, &other.draft_len) == (&row.drafter, &row.draft_len)
        };
        let accepted = |verify: &str| {
            let taus = rows.iter().filter(is_same).filter(|other| other.verify == verify);
            mean(taus.filter_map(|other| other.tau).map(|tau| tau - 1.0))
        };
        let is_known = pairs.iter().any(|pair| {
            pair.temperature == row.temperature
                && (pair.drafter, pair.draft_len) == (row.drafter.as_str(), row.draft_len.as_str())
        });
        if let (false, Some(coupled), Some(block)) = (is_known, accepted("coupled"), accepted("block")) {
            let (drafter, draft_len) = (row.drafter.as_str(), row.draft_len.as_str());
            pairs.push(Pair { temperature: row.temperature, drafter, draft_len, coupled, block });
        }
    }
    pairs.sort_by(|a, b| a.temperature.total_cmp(&b.temperature));
    pairs
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn row(task: &str, (temperature, verify): (f64, &str), len: &str, tau: f64) -> Row {
        Row {
            task: task.into(),
            temperature,
            drafter: "demo".into(),
            draft_len: len.into(),
            verify: verify.into(),
            tau: Some(tau),
            ..Row::default()
        }
    }

    #[test]
    fn both_rules_stand_side_by_side_for_each_temperature() {
        let mut rows = vec![
            row("a", (0.8, "coupled"), "4", 2.0),
            row("a", (0.8, "block"), "4", 2.5),
            row("a", (0.4, "coupled"), "4", 1.0),
            row("a", (0.4, "block"), "4", 1.25),
            row("a", (0.8, "coupled"), "2", 1.5),
            row("a", (0.8, "coupled"), "auto", 3.0),
            row("a", (0.8, "block"), "auto", 4.0),
        ];
        // Another cache size: the mean of both.
        rows.push(Row { cache: "8".into(), ..row("a", (0.8, "coupled"), "4", 3.0) });
        rows.push(Row { cache: "8".into(), ..row("a", (0.8, "block"), "4", 4.5) });
        let table = table(&rows).unwrap();
        let expected =
            [["0.4", "demo", "4", "0.00", "0.25", "-"], ["0.8", "demo", "4", "1.50", "2.50", "1.67"]];
        assert_eq!(table.rows, expected);
        assert!(table.rows.iter().all(|cells| cells.len() == table.heads.len()));
    }

    #[test]
    fn rows_over_all_tasks_stand_for_theirs_and_one_rule_alone_says_nothing() {
        let all = [
            row("all", (0.8, "coupled"), "4", 2.0),
            row("all", (0.8, "block"), "4", 2.5),
            row("a", (0.8, "coupled"), "4", 9.0),
        ];
        assert_eq!(pairs(&all)[0].coupled, 1.0);
        assert!(table(&all[..1]).is_none() && table(&[]).is_none());
        let failed = Row { tau: None, ..row("all", (0.8, "block"), "4", 1.0) };
        assert!(table(&[all[0].clone(), failed]).is_none());
    }
}
