//! Hit rate over cache size as an SVG plot, one line a policy.

use std::path::Path;

use plotters::prelude::*;

use super::{ReplayError, ReplayReport, ReplayRow};

const SIZE_PX: (u32, u32) = (800, 500);
const COLOURS: [RGBColor; 5] = [
    RGBColor(0x44, 0x77, 0xAA),
    RGBColor(0xEE, 0x66, 0x77),
    RGBColor(0x22, 0x88, 0x33),
    RGBColor(0xCC, 0xBB, 0x44),
    RGBColor(0x66, 0x66, 0x66),
];

/// Writes the plot.
///
/// # Errors
/// A file that cannot be written.
pub fn svg(report: &ReplayReport, file: &Path) -> Result<(), ReplayError> {
    let problem = |e: &dyn std::fmt::Display| ReplayError::Plot { file: file.into(), problem: e.to_string() };
    let mut text = String::new();
    draw(report, &mut text).map_err(|e| problem(&e))?;
    std::fs::write(file, text).map_err(|e| problem(&e))
}

type Drawing = Result<(), Box<dyn std::error::Error>>;

fn draw(report: &ReplayReport, text: &mut String) -> Drawing {
    let root = SVGBackend::with_string(text, SIZE_PX).into_drawing_area();
    root.fill(&WHITE)?;
    let share_max = report.rows.iter().fold(0.0, |max: f64, row| max.max(row.share));
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .caption(&report.trace, ("sans-serif", 16))
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..share_max * 105.0, 0.0..100.0)?;
    chart.configure_mesh().x_desc("slots, % of the experts").y_desc("hit rate, %").draw()?;
    for (rows, colour) in report.rows.chunk_by(|a, b| a.policy == b.policy).zip(COLOURS.iter().cycle()) {
        let mut points: Vec<(f64, f64)> = rows.iter().map(point).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let name = rows.first().map_or("", |row| row.policy);
        let dots = points.clone().into_iter().map(|point| Circle::new(point, 3, colour.filled()));
        chart.draw_series(dots)?;
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}

fn point(row: &ReplayRow) -> (f64, f64) {
    (row.share * 100.0, row.hit_rate * 100.0)
}
