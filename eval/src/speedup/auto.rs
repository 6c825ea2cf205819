//! Whether the scheduler's own draft length holds what it promises: against no draft, against the best length
//! one could have fixed (0 among them), and against what it predicted itself.
//!
//! Pure. A sweep without "auto", or without a length to hold it against, has nothing to say here.

use super::report::{ALL_TASKS, Row};
use super::side_table::SideTable;

/// Of the speed without a draft that "auto" may cost (DESIGN I4, and the speed targets there).
const OFF_MIN: f64 = 0.98;
/// Of the best fixed length's speedup that it is to reach.
const BEST_MIN: f64 = 0.95;
/// How far a measured speedup may be from the predicted one.
const PREDICTED_WITHIN: f64 = 0.10;

/// Names of the columns.
const HEADS: [&str; 11] = [
    "task",
    "cache",
    "start",
    "temp",
    "drafter",
    "auto",
    "best fixed length",
    "its speedup",
    "auto / best",
    "predicted",
    "measured / predicted",
];

/// "auto" at one setting.
struct Auto<'a> {
    row: &'a Row,
    speedup: f64,
    /// Name and speedup of the best fixed length.
    best: (&'a str, f64),
}

impl Auto<'_> {
    fn of_best(&self) -> f64 {
        self.speedup / self.best.1
    }

    fn of_predicted(&self) -> Option<f64> {
        self.row
            .predicted_speedup
            .filter(|predicted| *predicted > 0.0)
            .map(|predicted| self.speedup / predicted)
    }

    /// A cell for each head.
    fn cells(&self) -> Vec<String> {
        let row = self.row;
        let maybe =
            |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |number| format!("{number:.2}"));
        vec![
            row.task.clone(),
            row.cache.clone(),
            row.start.clone(),
            row.temperature.to_string(),
            row.who(),
            maybe(Some(self.speedup)),
            self.best.0.to_owned(),
            maybe(Some(self.best.1)),
            maybe(Some(self.of_best())),
            maybe(row.predicted_speedup),
            maybe(self.of_predicted()),
        ]
    }
}

/// The table of "auto" against fixed lengths; `None` where the sweep has not both.
pub fn table(rows: &[Row]) -> Option<SideTable> {
    let autos = autos(rows);
    (!autos.is_empty()).then(|| SideTable {
        title: "auto against fixed lengths",
        line: summary(&autos),
        heads: HEADS.to_vec(),
        rows: autos.iter().map(Auto::cells).collect(),
    })
}

/// Every setting with "auto" and its fixed lengths: over all tasks, where there are several.
fn autos(rows: &[Row]) -> Vec<Auto<'_>> {
    let has_all = rows.iter().any(|row| row.task == ALL_TASKS);
    let rows = || rows.iter().filter(move |row| !has_all || row.task == ALL_TASKS);
    let median = |row: &Row| row.speedup.map(|spread| spread.median);
    let mut autos = Vec::new();
    for row in rows().filter(|row| row.draft_len == "auto") {
        let fixed = rows().filter(|other| other.draft_len != "auto" && is_same(row, other));
        let fixed: Vec<(&str, f64)> =
            fixed.filter_map(|other| Some((other.draft_len.as_str(), median(other)?))).collect();
        let Some(speedup) = median(row).filter(|_| !fixed.is_empty()) else { continue };
        let best = fixed.into_iter().fold(("0", 1.0), |best, one| if one.1 > best.1 { one } else { best });
        autos.push(Auto { row, speedup, best });
    }
    autos
}

/// The same but for the length.
fn is_same(a: &Row, b: &Row) -> bool {
    let names = |row: &Row| [&row.task, &row.cache, &row.start, &row.drafter, &row.verify].map(String::clone);
    names(a) == names(b) && a.temperature == b.temperature
}

/// How often it holds, in one line.
fn summary(autos: &[Auto<'_>]) -> String {
    let all = autos.len();
    let count = |holds: &dyn Fn(&Auto<'_>) -> bool| autos.iter().filter(|auto| holds(auto)).count();
    let (off, best) = (count(&|auto| auto.speedup >= OFF_MIN), count(&|auto| auto.of_best() >= BEST_MIN));
    let predicted: Vec<f64> = autos.iter().filter_map(Auto::of_predicted).collect();
    let within = predicted.iter().filter(|quotient| (*quotient - 1.0).abs() <= PREDICTED_WITHIN).count();
    let of_own = match predicted.len() {
        0 => "it predicted nothing".to_owned(),
        all => format!("within {:.0} % of its own prediction in {within} of {all}", PREDICTED_WITHIN * 100.0),
    };
    format!(
        "auto: at least {OFF_MIN} of no draft in {off} of {all} settings, at least {BEST_MIN} of the best fixed \
         length in {best} of {all}, {of_own}"
    )
}

#[cfg(test)]
mod tests {
    use super::super::stats::Spread;
    use super::*;

    fn row(task: &str, len: &str, speedup: f64, predicted: Option<f64>) -> Row {
        Row {
            task: task.into(),
            drafter: "ngram".into(),
            draft_len: len.into(),
            speedup: Spread::of([speedup]),
            predicted_speedup: predicted,
            ..Row::default()
        }
    }

    #[test]
    fn auto_is_held_against_the_best_length_and_none_is_one_of_them() {
        let slow = [row("a", "auto", 0.99, Some(1.2)), row("a", "1", 0.9, None), row("a", "4", 0.5, None)];
        let found = autos(&slow);
        assert_eq!((found.len(), found[0].best), (1, ("0", 1.0)));
        let fast = [row("a", "auto", 1.5, Some(1.6)), row("a", "4", 2.0, None), row("b", "8", 9.0, None)];
        let found = autos(&fast);
        assert_eq!((found[0].best, found[0].of_best()), (("4", 2.0), 0.75));
        let cells = found[0].cells();
        assert_eq!((cells.len(), cells[8].as_str(), cells[10].as_str()), (HEADS.len(), "0.75", "0.94"));
        let line = summary(&found);
        assert!(line.contains("no draft in 1 of 1") && line.contains("length in 0 of 1"), "{line}");
        assert!(line.contains("prediction in 1 of 1"), "{line}");
        assert!(summary(&autos(&slow[1..])).contains("0 of 0") && summary(&[]).contains("predicted nothing"));
    }

    #[test]
    fn rows_over_all_tasks_stand_for_theirs_and_without_auto_there_is_nothing() {
        let rows = [row("all", "auto", 1.0, None), row("all", "1", 1.0, None), row("a", "auto", 1.0, None)];
        assert_eq!(autos(&rows).len(), 1);
        assert!(autos(&[row("a", "1", 1.0, None)]).is_empty());
        assert!(autos(&[row("a", "auto", 1.0, None)]).is_empty(), "nothing to hold it against");
    }
}
