//! The table as a picture: a panel for each measure, a dot for each subject on a logarithmic scale, its value beside it.

use std::fmt::Write as _;

use crate::measure::Measured;

const WIDTH: usize = 860;
const NAMES: usize = 190;
const VALUES: usize = 130;
const LINE: usize = 24;
const GAP: usize = 44;

struct Panel {
    title: &'static str,
    value: fn(&Measured) -> f64,
}

const PANELS: [Panel; 4] = [
    Panel { title: "records a second (right is better)", value: |row| row.records_per_s },
    Panel { title: "CPU, µs a record (left is better)", value: |row| row.cpu_us_per_record },
    Panel { title: "reply latency p50, ms (left is better)", value: |row| row.latency().p50_ms },
    Panel { title: "peak memory, MB (left is better)", value: |row| row.peak_mb },
];

/// An SVG document.
pub(crate) fn svg(rows: &[Measured]) -> String {
    let height = PANELS.len() * (rows.len() * LINE + GAP) + GAP / 2;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for (index, panel) in PANELS.iter().enumerate() {
        draw(&mut svg, panel, rows, GAP + index * (rows.len() * LINE + GAP));
    }
    svg + "</svg>\n"
}

fn draw(svg: &mut String, panel: &Panel, rows: &[Measured], top: usize) {
    let decade = |value: f64| value.max(1e-3).log10();
    let values = rows.iter().map(|row| decade((panel.value)(row)));
    // Whole decades, at least one.
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    let (low, high) = (low.floor(), high.ceil().max(low.floor() + 1.0));
    let left = NAMES as f64;
    let right = (WIDTH - VALUES) as f64;
    let x = |value: f64| left + (decade(value) - low) / (high - low) * (right - left);
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "<text x=\"8\" y=\"{}\" font-weight=\"bold\">{}</text>", top - 12, panel.title);
    for (number, row) in rows.iter().enumerate() {
        let (y, value) = (top + number * LINE + LINE / 2, (panel.value)(row));
        let (at, colour) = (x(value), if row.subject.is_forebay() { "#c2410c" } else { "#475569" });
        let name = row.subject.name();
        let text = if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{}\" fill=\"{colour}\">{name}</text>\
             <line x1=\"{left}\" x2=\"{right}\" y1=\"{y}\" y2=\"{y}\" stroke=\"#e2e8f0\"/>\
             <circle cx=\"{at:.1}\" cy=\"{y}\" r=\"6\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{text}</text>",
            y + 4,
            right + 14.0,
            y + 4,
        );
    }
}
