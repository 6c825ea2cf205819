//! The report as one page: table, facts and plots in a file that needs nothing else.
//!
//! Well-formed as XML, no script, no address anywhere: it opens from a disk years later as it did today.

use super::plot::{PlotError, all};
use super::report::{Identity, Report};
use super::side_table::{SideTable, side_tables};
use super::table::{LEGEND, cells, facts, heads};

const STYLE: &str = "body{font-family:sans-serif;max-width:100em;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse;font-size:85%}td,th{border:1px solid #ccc;padding:.2em .5em;text-align:right}\
    th{background:#eee}.off td{background:#f6f6f6}.bad td{background:#fdd}.wide{overflow-x:auto}\
    code{background:#eee;word-break:break-all}svg{max-width:100%;height:auto}";

/// The whole page.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn page(report: &Report) -> Result<String, PlotError> {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<title>Speedup of drafting</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>Speedup of drafting</h1>\n<p><code>{}</code></p>\n<ul>\n",
        escaped(&report.command)
    );
    facts(report).iter().for_each(|fact| page.push_str(&format!("<li>{}</li>\n", escaped(fact))));
    page.push_str("</ul>\n<h2>Table</h2>\n<div class=\"wide\">\n<table>\n<tr>");
    heads().iter().for_each(|head| page.push_str(&format!("<th>{}</th>", escaped(head))));
    page.push_str("</tr>\n");
    for row in &report.rows {
        let class = match (row.ids, row.failed > 0, row.drafter.as_str()) {
            (Identity::Differs, ..) | (_, true, _) => " class=\"bad\"",
            (.., "none") => " class=\"off\"",
            _ => "",
        };
        let cells: String = cells(row).iter().map(|cell| format!("<td>{}</td>", escaped(cell))).collect();
        page.push_str(&format!("<tr{class}>{cells}</tr>\n"));
    }
    page.push_str("</table>\n</div>\n");
    LEGEND.iter().for_each(|line| page.push_str(&format!("<p>{}</p>\n", escaped(line))));
    side_tables(&report.rows).iter().for_each(|table| page.push_str(&side(table)));
    page.push_str("<h2>Plots</h2>\n");
    for plot in all(&report.rows)? {
        page.push_str(&format!("<h3>{}</h3>\n{}\n", escaped(&plot.title), plot.svg.trim()));
    }
    page.push_str("</body>\n</html>\n");
    Ok(page)
}

fn side(table: &SideTable) -> String {
    let line = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
        let cells: String = cells.map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let heads = line("th", &mut table.heads.iter().copied());
    let rows: String =
        table.rows.iter().map(|cells| line("td", &mut cells.iter().map(String::as_str))).collect();
    let (title, says) = (escaped(table.title), escaped(&table.line));
    format!("<h2>{title}</h2>\n<p>{says}</p>\n<table>\n{heads}{rows}</table>\n")
}

/// Text that means itself in HTML and XML; what XML cannot hold is replaced.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() && !c.is_whitespace() => escaped.push('\u{FFFD}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(escaped("<b a='1'>&\"\u{1}"), "&lt;b a=&#39;1&#39;&gt;&amp;&quot;\u{FFFD}");
    }
}
