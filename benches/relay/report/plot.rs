//! Pictures as SVG, by hand: bars and curves, readable on light and on dark ground.

use std::fmt::Write as _;

use super::{Curves, Sweep, Unit};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
/// What surrounds the drawing: left, right, above, below.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 52.0;
const BOTTOM: f64 = 40.0;

/// Inside the file: a page that shows it as an image cannot style it.
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#24292f}.small{font-size:11px}.title{font-size:14px;font-weight:600}\
.grid{stroke:#8c959f;stroke-opacity:.3}.c0{fill:#8c959f;stroke:#8c959f}.c1{fill:#0969da;stroke:#0969da}\
.c2{fill:#bf8700;stroke:#bf8700}.c3{fill:#8250df;stroke:#8250df}.line{fill:none;stroke-width:2}.bar{stroke:none}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.c1{fill:#58a6ff;stroke:#58a6ff}.c2{fill:#d29922;stroke:#d29922}\
.c3{fill:#bc8cff;stroke:#bc8cff}}";
const COLOURS: usize = 4;

/// The drawn columns of each line, side by side.
pub(crate) fn bars(sweep: &Sweep) -> String {
    let column = |index: &usize| sweep.columns.get(*index).cloned().unwrap_or_default();
    let names: Vec<String> = sweep.drawn.iter().map(column).collect();
    let values = sweep.lines.iter().map(|line| {
        let cells = sweep
            .drawn
            .iter()
            .filter_map(|index| line.cells.get(*index));
        cells
            .map(|cell| (cell.unit, cell.median()))
            .collect::<Vec<_>>()
    });
    let groups: Vec<Vec<(Unit, f64)>> = values.collect();
    let all = groups.iter().flatten();
    let unit = all.clone().next().map_or(Unit::Count, |(unit, _)| *unit);
    let mut drawing = Drawing::new(sweep.title, (&names, 0), unit, all.map(|(_, value)| *value));

    let slot = (WIDTH - LEFT - RIGHT) / groups.len().max(1) as f64;
    let width = slot * 0.8 / names.len().max(1) as f64;
    for (index, (line, group)) in sweep.lines.iter().zip(&groups).enumerate() {
        let start = LEFT + slot * index as f64;
        for (bar, (_, value)) in group.iter().enumerate() {
            if !value.is_finite() {
                continue;
            }
            let x = start + slot * 0.1 + width * bar as f64;
            let y = drawing.y(*value);
            let (colour, height) = (bar % COLOURS, HEIGHT - BOTTOM - y);
            let _ = write!(
                drawing.svg,
                r#"<rect class="bar c{colour}" x="{x:.1}" y="{y:.1}" width="{:.1}" height="{height:.1}"/>"#,
                width * 0.94
            );
            drawing.text("small", "middle", x + width / 2.0, y - 4.0, &short(*value));
        }
        let below = HEIGHT - BOTTOM + 16.0;
        drawing.text("small", "middle", start + slot / 2.0, below, &line.label);
    }
    drawing.text("small", "middle", WIDTH / 2.0, HEIGHT - 6.0, sweep.axis);
    drawing.finish()
}

/// Each curve as a line over seconds.
pub(crate) fn curves(curves: &Curves) -> String {
    let names: Vec<String> = curves
        .curves
        .iter()
        .map(|curve| curve.label.clone())
        .collect();
    let all = curves.curves.iter().flat_map(|curve| curve.points.iter());
    let end = all.clone().map(|(x, _)| *x).fold(1.0, f64::max);
    // The pale colour is that of references.
    let values = all.map(|(_, y)| *y);
    let mut drawing = Drawing::new(curves.title, (&names, 1), curves.unit, values);
    let x = |seconds: f64| LEFT + (WIDTH - LEFT - RIGHT) * seconds / end;
    for (index, curve) in curves.curves.iter().enumerate() {
        let mut points = String::new();
        for (seconds, value) in &curve.points {
            let _ = write!(points, "{:.1},{:.1} ", x(*seconds), drawing.y(*value));
        }
        let _ = write!(
            drawing.svg,
            r#"<polyline class="line c{}" style="fill:none" points="{}"/>"#,
            (index + 1) % COLOURS,
            points.trim_end()
        );
    }
    for step in 0..=4 {
        let seconds = end * f64::from(step) / 4.0;
        let label = format!("{seconds:.0} s");
        drawing.text(
            "small",
            "middle",
            x(seconds),
            HEIGHT - BOTTOM + 16.0,
            &label,
        );
    }
    drawing.finish()
}

struct Drawing {
    svg: String,
    /// The value at the upper edge.
    most: f64,
}

impl Drawing {
    /// Title, legend and a grid that holds all values.
    fn new(
        title: &str,
        (names, first_colour): (&[String], usize),
        unit: Unit,
        values: impl Iterator<Item = f64>,
    ) -> Self {
        let highest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let mut drawing = Self {
            svg: format!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{0}</title><style>{STYLE}</style>"#,
                escaped(title)
            ),
            most: round_up(highest),
        };
        drawing.text("title", "start", 8.0, 18.0, title);
        let mut x = 8.0;
        for (index, name) in names.iter().enumerate() {
            let colour = (index + first_colour) % COLOURS;
            let _ = write!(
                drawing.svg,
                r#"<rect class="bar c{colour}" x="{x:.1}" y="28" width="10" height="10"/>"#
            );
            drawing.text("small", "start", x + 14.0, 37.0, name);
            x += 34.0 + 6.5 * name.chars().count() as f64;
        }
        for step in 0..=4 {
            let value = drawing.most * f64::from(step) / 4.0;
            let y = drawing.y(value);
            let _ = write!(
                drawing.svg,
                r#"<line class="grid" x1="{LEFT}" x2="{}" y1="{y:.1}" y2="{y:.1}"/>"#,
                WIDTH - RIGHT
            );
            let label = match step {
                4 => unit.write(value),
                _ => short(value),
            };
            drawing.text("small", "end", LEFT - 6.0, y + 4.0, &label);
        }
        drawing
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value / self.most).clamp(0.0, 1.0)
    }

    fn text(&mut self, class: &str, anchor: &str, x: f64, y: f64, text: &str) {
        let text = escaped(text);
        let _ = write!(
            self.svg,
            r#"<text class="{class}" text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{text}</text>"#
        );
    }

    fn finish(self) -> String {
        self.svg + "</svg>\n"
    }
}

/// The next of 1, 2, 4, 8 (times a power of ten).
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 8.0, 10.0];
    let step = steps.iter().find(|step| **step * power >= value);
    step.copied().unwrap_or(10.0) * power
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.1}M", v / 1e6),
        v if v >= 1e4 => format!("{:.0}k", v / 1e3),
        v if v >= 1e3 => format!("{:.1}k", v / 1e3),
        v if v >= 10.0 || v.fract() == 0.0 => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
