//! The plots of a report as SVG: the break-even surface, speedup over the cache, acceptance by place.
//!
//! Pure: rows in, text out. A plot that has fewer than two points to show is left out.

use plotters::prelude::*;

use super::report::{ALL_TASKS, Row};
use super::stats::median;

const CELL_PX: u32 = 76;
const LINES_PX: (u32, u32) = (760, 420);
/// How far lines' plots go on to the right of the data, for the names.
const LEGEND_ROOM: f64 = 1.4;
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x44, 0x77, 0xAA),
    RGBColor(0xEE, 0x66, 0x77),
    RGBColor(0x22, 0x88, 0x33),
    RGBColor(0xCC, 0xBB, 0x44),
    RGBColor(0x66, 0xCC, 0xEE),
    RGBColor(0xAA, 0x33, 0x77),
    RGBColor(0x66, 0x66, 0x66),
];

/// Why a plot could not be drawn.
pub type PlotError = Box<dyn std::error::Error>;

/// A plot and what it shows.
pub struct Plot {
    pub title: String,
    pub svg: String,
}

/// A grid of numbers with names on both sides.
struct Grid {
    title: String,
    across: (&'static str, Vec<String>),
    down: (&'static str, Vec<String>),
    /// By row, from the top.
    values: Vec<Vec<Option<f64>>>,
}

/// Every plot of the rows.
///
/// # Errors
/// The drawing library's.
pub fn all(rows: &[Row]) -> Result<Vec<Plot>, PlotError> {
    let mut plots = Vec::new();
    let over_all: Vec<Row> = rows.iter().filter(|row| row.task == ALL_TASKS).cloned().collect();
    let rows = if over_all.is_empty() { rows } else { &over_all };
    for (start, temperature) in kinds(rows, |row| (row.start.clone(), row.temperature)) {
        let of_kind: Vec<&Row> =
            rows.iter().filter(|row| row.start == start && row.temperature == temperature).collect();
        let named = format!("{start}, temperature {temperature}");
        for grid in grids(&of_kind, &named) {
            plots.push(heat_map(&grid)?);
        }
        plots.extend(over_cache(&of_kind, &named)?);
        plots.extend(by_place(&of_kind, &named)?);
    }
    Ok(plots)
}

fn kinds<T: PartialEq>(rows: &[Row], kind: impl Fn(&Row) -> T) -> Vec<T> {
    let mut kinds: Vec<T> = Vec::new();
    for row in rows {
        let kind = kind(row);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

fn names(rows: &[&Row], name: impl Fn(&Row) -> String) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in rows {
        let name = name(row);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Drafters as they stand in plots, the scripted ones by acceptance, the highest on top.
fn drafters(rows: &[&Row]) -> Vec<String> {
    let mut found: Vec<(f64, String)> = Vec::new();
    for row in rows.iter().filter(|row| row.drafter != "none") {
        let name = drafter_name(row);
        if !found.iter().any(|(_, known)| *known == name) {
            found.push((row.script_acceptance.unwrap_or(-1.0), name));
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().map(|(_, name)| name).collect()
}

fn drafter_name(row: &Row) -> String {
    let name = match row.script_acceptance {
        Some(acceptance) => format!("accept {acceptance}"),
        None => row.drafter.clone(),
    };
    if row.verify == "coupled" { name } else { format!("{name}, {}", row.verify) }
}

/// What the rows of a point say: one row, or the median of several.
fn speedup_of<'a>(rows: impl Iterator<Item = &'a &'a Row>) -> Option<f64> {
    median(rows.filter_map(|row| row.speedup.map(|spread| spread.median)))
}

/// Drafter against draft length for each cache, and against the cache for each draft length.
fn grids(rows: &[&Row], named: &str) -> Vec<Grid> {
    let drafted: Vec<&Row> = rows.iter().filter(|row| row.drafter != "none").copied().collect();
    let down = drafters(&drafted);
    let lens = names(&drafted, |row| row.draft_len.clone());
    let caches = names(&drafted, |row| row.cache.clone());
    let mut grids = Vec::new();
    for len in lens.iter().filter(|_| caches.len() > 1) {
        let value =
            |drafter: &String, cache: &String| {
                speedup_of(drafted.iter().filter(|row| {
                    row.draft_len == *len && row.cache == *cache && drafter_name(row) == *drafter
                }))
            };
        grids.push(Grid {
            title: format!("Speedup over cache, draft length {len} ({named})"),
            values: down.iter().map(|d| caches.iter().map(|cache| value(d, cache)).collect()).collect(),
            across: ("experts in memory", caches.clone()),
            down: ("drafter", down.clone()),
        });
    }
    for cache in caches.iter().filter(|_| lens.len() > 1) {
        let value =
            |drafter: &String, len: &String| {
                speedup_of(drafted.iter().filter(|row| {
                    row.draft_len == *len && row.cache == *cache && drafter_name(row) == *drafter
                }))
            };
        grids.push(Grid {
            title: format!("Speedup over draft length, cache {cache} ({named})"),
            values: down.iter().map(|d| lens.iter().map(|len| value(d, len)).collect()).collect(),
            across: ("draft length", lens.clone()),
            down: ("drafter", down.clone()),
        });
    }
    grids
}

/// Red where drafting loses, white at 1, blue where it wins; full at a half and at two.
fn colour(speedup: f64) -> RGBColor {
    let depth = speedup.max(1e-6).log2().clamp(-1.0, 1.0);
    let mix = |from: u8| (255.0 - (255.0 - f64::from(from)) * depth.abs()).round() as u8;
    let full = if depth < 0.0 { COLOURS[1] } else { COLOURS[0] };
    RGBColor(mix(full.0), mix(full.1), mix(full.2))
}

fn heat_map(grid: &Grid) -> Result<Plot, PlotError> {
    let (width, height) = (grid.across.1.len() as i32, grid.down.1.len() as i32);
    let size = (CELL_PX * width.max(5) as u32 + 190, CELL_PX / 2 * height as u32 + 110);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .caption(&grid.title, ("sans-serif", 15))
            .x_label_area_size(44)
            .y_label_area_size(150)
            .build_cartesian_2d((0..width - 1).into_segmented(), (0..height - 1).into_segmented())?;
        let label = |names: &[String], value: &SegmentValue<i32>| match value {
            SegmentValue::CenterOf(at) => names.get(*at as usize).cloned().unwrap_or_default(),
            _ => String::new(),
        };
        // From the bottom up.
        let down: Vec<String> = grid.down.1.iter().rev().cloned().collect();
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(width as usize)
            .y_labels(height as usize)
            .x_label_formatter(&|value| label(&grid.across.1, value))
            .y_label_formatter(&|value| label(&down, value))
            .x_desc(grid.across.0)
            .draw()?;
        for (row, values) in grid.values.iter().rev().enumerate() {
            for (column, value) in values.iter().enumerate() {
                let (x, y) = (column as i32, row as i32);
                let corners = [
                    (SegmentValue::Exact(x), SegmentValue::Exact(y)),
                    (SegmentValue::Exact(x + 1), SegmentValue::Exact(y + 1)),
                ];
                let fill = value.map_or(RGBColor(0xDD, 0xDD, 0xDD), colour);
                chart.draw_series(std::iter::once(Rectangle::new(corners, fill.filled())))?;
                let text = value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
                let style = ("sans-serif", 14).into_font().color(&BLACK);
                let at = (SegmentValue::CenterOf(x), SegmentValue::CenterOf(y));
                let element = EmptyElement::at(at) + Text::new(text, (-12, -6), style);
                chart.draw_series(std::iter::once(element))?;
            }
        }
        root.present()?;
    }
    Ok(Plot { title: grid.title.clone(), svg })
}

/// A line of a plot.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Speedup over the share of experts in memory, a line for each drafter: with the length it chooses itself, or
/// the sweep's first where all are fixed.
fn over_cache(rows: &[&Row], named: &str) -> Result<Option<Plot>, PlotError> {
    let drafted: Vec<&Row> =
        rows.iter().filter(|row| row.drafter != "none" && row.share.is_some()).copied().collect();
    let lens = names(&drafted, |row| row.draft_len.clone());
    let Some(len) = lens.iter().find(|len| *len == "auto").or(lens.first()).cloned() else { return Ok(None) };
    let drafted: Vec<&Row> = drafted.into_iter().filter(|row| row.draft_len == len).collect();
    let name = |row: &Row| format!("{}, length {len}", drafter_name(row));
    let mut lines = Vec::new();
    for line in names(&drafted, name) {
        let of_line: Vec<&Row> = drafted.iter().filter(|row| name(row) == line).copied().collect();
        let mut points = Vec::new();
        for cache in names(&of_line, |row| row.cache.clone()) {
            let here = || of_line.iter().filter(|row| row.cache == cache);
            let share = here().find_map(|row| row.share);
            points.extend(share.zip(speedup_of(here())).map(|(share, speedup)| (share * 100.0, speedup)));
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        lines.push(Line { name: line, points });
    }
    let title = format!("Speedup by cache ({named})");
    lines_plot(title, ("experts in memory, %", "speedup over no draft"), lines, 100.0, Some(1.0))
}

/// Acceptance by place in the draft, a line for each drafter, from its longest drafts.
fn by_place(rows: &[&Row], named: &str) -> Result<Option<Plot>, PlotError> {
    let mut lines = Vec::new();
    for drafter in drafters(rows) {
        let of_drafter = || rows.iter().filter(|row| drafter_name(row) == drafter);
        let Some(longest) = of_drafter().max_by_key(|row| row.acceptance_at.len()) else { continue };
        let places = longest.acceptance_at.len();
        let at = |place: usize| {
            let here = of_drafter().filter(|row| row.acceptance_at.len() == places);
            median(here.map(|row| row.acceptance_at[place] * 100.0))
        };
        let points = (0..places).filter_map(|place| Some((place as f64 + 1.0, at(place)?))).collect();
        lines.push(Line { name: drafter, points });
    }
    let x_max = lines.iter().map(|line| line.points.len()).max().unwrap_or(0) as f64;
    let title = format!("Acceptance by place in the draft ({named})");
    lines_plot(title, ("place in the draft", "accepted of verified, %"), lines, x_max, Some(100.0))
}

/// Lines over x from 0; y from 0 to what is highest, `y_mark` included.
fn lines_plot(
    title: String,
    (x_name, y_name): (&str, &str),
    lines: Vec<Line>,
    x_max: f64,
    y_mark: Option<f64>,
) -> Result<Option<Plot>, PlotError> {
    if lines.iter().all(|line| line.points.len() < 2) {
        return Ok(None);
    }
    let y_max = lines.iter().flat_map(|line| &line.points).map(|(_, y)| *y).chain(y_mark).fold(0.0, f64::max);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, LINES_PX).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(14)
            .caption(&title, ("sans-serif", 15))
            .x_label_area_size(40)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..x_max * LEGEND_ROOM, 0.0..y_max * 1.08)?;
        let number = |x: &f64| if *x > x_max { String::new() } else { x.to_string() };
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(x_name).y_desc(y_name).x_label_formatter(&number).light_line_style(TRANSPARENT).draw()?;
        if let Some(mark) = y_mark {
            chart.draw_series(LineSeries::new(
                [(0.0, mark), (x_max * LEGEND_ROOM, mark)],
                BLACK.stroke_width(1),
            ))?;
        }
        for (line, colour) in lines.into_iter().zip(COLOURS.iter().cycle()) {
            let dots = line.points.clone().into_iter().map(|point| Circle::new(point, 3, colour.filled()));
            chart.draw_series(dots)?;
            chart
                .draw_series(LineSeries::new(line.points, colour.stroke_width(2)))?
                .label(line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        chart.configure_series_labels().border_style(BLACK).background_style(WHITE.mix(0.8)).draw()?;
        root.present()?;
    }
    Ok(Some(Plot { title, svg }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::stats::Spread;
    use super::*;

    fn row(cache: &str, share: f64, acceptance: f64, len: &str, speedup: f64) -> Row {
        Row {
            task: "t".into(),
            cache: cache.into(),
            share: Some(share),
            start: "cold".into(),
            drafter: format!("script:accept={acceptance}"),
            script_acceptance: Some(acceptance),
            draft_len: len.into(),
            verify: "coupled".into(),
            speedup: Spread::of([speedup]),
            acceptance_at: vec![acceptance, acceptance * acceptance],
            ..Row::default()
        }
    }

    #[test]
    fn the_surface_is_drawn_from_both_sides_with_the_highest_acceptance_on_top() {
        let mut rows = Vec::new();
        for (cache, share) in [("5%", 0.05), ("20%", 0.2), ("<&\">", 1.0)] {
            for acceptance in [0.3, 0.9] {
                for len in ["auto", "4"] {
                    rows.push(row(cache, share, acceptance, len, acceptance + share));
                }
            }
        }
        let kept: Vec<&Row> = rows.iter().collect();
        assert_eq!(drafters(&kept), ["accept 0.9", "accept 0.3"]);
        let grids = grids(&kept, "cold");
        assert_eq!(grids.len(), 2 + 3, "one a draft length, one a cache");
        let first = &grids[0];
        assert_eq!(first.values[0][1], Some(1.1));
        assert_eq!(first.values[1][0], Some(0.35));
        let plots = all(&rows).unwrap();
        assert_eq!(plots.len(), 5 + 2);
        for plot in &plots {
            assert!(roxmltree::Document::parse(&plot.svg).is_ok(), "{}", plot.svg);
        }
        assert!(plots[0].svg.contains("1.10") && plots[0].svg.contains("accept 0.9"), "{}", plots[0].svg);
    }

    #[test]
    fn a_loss_is_red_a_win_is_blue_and_break_even_is_white() {
        assert_eq!(colour(1.0), RGBColor(255, 255, 255));
        assert_eq!((colour(0.5), colour(2.0)), (COLOURS[1], COLOURS[0]));
        assert_eq!((colour(0.01), colour(9.0)), (COLOURS[1], COLOURS[0]));
    }

    #[test]
    fn what_has_nothing_to_show_is_not_drawn() {
        assert!(all(&[row("5%", 0.05, 0.5, "auto", 1.0)]).unwrap().len() <= 1);
        assert!(all(&[]).unwrap().is_empty());
    }
}
