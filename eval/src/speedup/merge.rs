//! One report of several sweeps that differ in their cache sizes alone: run side by side on a large machine, each
//! pinned to its own cores, where one sweep of everything would take too long.
//!
//! Pure. Refuses what would not be one table: other settings, another model, a cell that is there twice.

use serde_json::Value;

use super::SpeedupError;
use super::report::{Report, Row, Text};

/// The setting in which the sweeps may differ: a list.
const AXIS: &str = "cache";

/// The rows of all `reports` (with the names of their folders) as one report, made by `command`.
///
/// # Errors
/// [`SpeedupError::Usage`] names the folder and what does not fit.
pub fn merge(reports: Vec<(String, Report)>, command: String) -> Result<Report, SpeedupError> {
    let mut reports = reports.into_iter();
    let Some((_, mut whole)) = reports.next() else {
        return Err(SpeedupError::Usage("there is no report to merge".to_owned()));
    };
    let mut commands = vec![std::mem::replace(&mut whole.command, command)];
    for (folder, report) in reports {
        check(&whole, &report, &folder)?;
        whole.date = whole.date.max(report.date);
        merge_axis(&mut whole.sweep, report.sweep);
        merge_texts(&mut whole.texts, report.texts, &folder);
        whole.rows.extend(report.rows);
        let fresh: Vec<String> =
            report.notes.into_iter().filter(|note| !whole.notes.contains(note)).collect();
        whole.notes.extend(fresh);
        commands.push(report.command);
    }
    sort_by_task(&mut whole.rows);
    let of = match commands.len() {
        1 => "the sweep: ".to_owned(),
        count => format!("{count} sweeps, which may have run side by side: "),
    };
    whole.notes.push(of + &commands.join("; "));
    Ok(whole)
}

fn check(whole: &Report, report: &Report, folder: &str) -> Result<(), SpeedupError> {
    let refused = |problem: String| Err(SpeedupError::Usage(format!("{folder}: {problem}")));
    if report.model != whole.model || report.bank != whole.bank {
        return refused(format!("the model is {}, not {}", report.model, whole.model));
    }
    if report.environment.machine.cpu != whole.environment.machine.cpu {
        return refused("it was measured on another machine".to_owned());
    }
    if report.environment.commit != whole.environment.commit {
        return refused(format!("commit {}, not {}", report.environment.commit, whole.environment.commit));
    }
    if let Some(key) = differing_key(&whole.sweep, &report.sweep) {
        return refused(format!("its sweep has another {key}; only {AXIS} may differ"));
    }
    match report.rows.iter().find(|row| whole.rows.iter().any(|other| is_same_cell(row, other))) {
        Some(row) => refused(format!(
            "{}, cache {}, {}, temperature {}, drafter {}, length {} is in another report too",
            row.task,
            row.cache,
            row.start,
            row.temperature,
            row.who(),
            row.draft_len
        )),
        None => Ok(()),
    }
}

/// The first setting that differs, [`AXIS`] apart.
fn differing_key(a: &Value, b: &Value) -> Option<String> {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return Some("form".to_owned()) };
    let keys = a.keys().chain(b.keys());
    keys.filter(|key| *key != AXIS).find(|key| a.get(*key) != b.get(*key)).cloned()
}

fn is_same_cell(a: &Row, b: &Row) -> bool {
    let names = |row: &Row| {
        [&row.task, &row.cache, &row.start, &row.drafter, &row.draft_len, &row.verify].map(String::clone)
    };
    names(a) == names(b) && a.slots == b.slots && a.temperature == b.temperature
}

fn merge_axis(whole: &mut Value, part: Value) {
    if let (Some(Value::Array(whole)), Value::Object(mut part)) = (whole.get_mut(AXIS), part)
        && let Some(Value::Array(values)) = part.remove(AXIS)
    {
        whole.extend(values);
    }
}

/// A sweep whose reference had other ids counts as a run that differs: settings must not change the text.
fn merge_texts(whole: &mut Vec<Text>, part: Vec<Text>, folder: &str) {
    for text in part {
        let same = |known: &&mut Text| known.prompt == text.prompt && known.temperature == text.temperature;
        let Some(known) = whole.iter_mut().find(same) else {
            whole.push(text);
            continue;
        };
        known.runs += text.runs;
        known.differing.extend(text.differing);
        if known.ids_sha256 != text.ids_sha256 {
            known.differing.push(format!("the reference of {folder}"));
        }
    }
}

/// Tasks in the order in which they first come, the rows of one as they come.
fn sort_by_task(rows: &mut [Row]) {
    let mut tasks: Vec<String> = Vec::new();
    for row in rows.iter() {
        if !tasks.contains(&row.task) {
            tasks.push(row.task.clone());
        }
    }
    rows.sort_by_key(|row| tasks.iter().position(|task| *task == row.task));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(task: &str, cache: &str) -> Row {
        Row { task: task.into(), cache: cache.into(), draft_len: "auto".into(), ..Row::default() }
    }

    #[test]
    fn rows_of_a_task_stay_together_and_in_order() {
        let mut rows = vec![row("all", "3%"), row("prose", "3%"), row("all", "9%"), row("prose", "9%")];
        sort_by_task(&mut rows);
        let names: Vec<_> = rows.iter().map(|row| (row.task.as_str(), row.cache.as_str())).collect();
        assert_eq!(names, [("all", "3%"), ("all", "9%"), ("prose", "3%"), ("prose", "9%")]);
    }

    #[test]
    fn sweeps_may_differ_in_their_cache_sizes_alone() {
        let sweep = |cache: &str, tokens: u32| serde_json::json!({ "cache": [cache], "tokens": tokens });
        assert_eq!(differing_key(&sweep("3%", 5), &sweep("9%", 5)), None);
        assert_eq!(differing_key(&sweep("3%", 5), &sweep("3%", 6)).as_deref(), Some("tokens"));
        let mut whole = sweep("3%", 5);
        merge_axis(&mut whole, sweep("9%", 5));
        assert_eq!(whole["cache"], serde_json::json!(["3%", "9%"]));
    }

    #[test]
    fn a_reference_with_other_ids_is_a_run_that_differs() {
        let text = |ids: &str| Text {
            prompt: "p".into(),
            temperature: 0.0,
            ids_sha256: ids.into(),
            runs: 2,
            differing: Vec::new(),
        };
        let mut whole = vec![text("a")];
        merge_texts(&mut whole, vec![text("a")], "second");
        assert!(whole.len() == 1 && whole[0].runs == 4 && whole[0].differing.is_empty());
        merge_texts(&mut whole, vec![text("b")], "third");
        assert_eq!(whole[0].differing, ["the reference of third"]);
    }
}
