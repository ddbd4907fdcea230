//! Figures of the ratios: one per kind of case, as SVG and as PNG.
//!
//! Every case is a bar from 1 (as good as the peer) to how many times as good ours
//! was: to the right where ours is better, whether more or less is better there.
//! The line across a bar's end spans the pairs; a mark shows what is wanted.
//! The letters come with the program: no font of the machine is needed.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use crate::Result;
use crate::report::{Better, Case};

const WIDTH: u32 = 1000;
const ROW: u32 = 26;
/// Room above and below the rows.
const TITLE: u32 = 64;
const AXIS: u32 = 44;
/// Where the bars begin and end.
const LEFT: i32 = 560;
const RIGHT: i32 = 970;
const BETTER: RGBColor = RGBColor(46, 125, 109);
const WORSE: RGBColor = RGBColor(190, 84, 60);

/// Figures, by the word that their cases' names begin with.
const FIGURES: [(&str, &str); 6] = [
    ("link", "Frames through the link's ring"),
    ("bulk", "Bulk TCP with the kernel"),
    ("ping-pong", "Round trips with the kernel"),
    ("HTTP", "Connections per second"),
    ("flat", "Cost with many connections"),
    ("64", "Many guests"),
];

/// Draws what there is into `directory`; says which files were written.
///
/// # Errors
/// If a file cannot be written.
pub fn draw(cases: &[Case], directory: &Path) -> Result<Vec<PathBuf>> {
    register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| "the font is broken")?;
    std::fs::create_dir_all(directory)?;
    let mut files = Vec::new();
    for (word, title) in FIGURES {
        let rows: Vec<Bar> = cases
            .iter()
            .filter(|case| case.case.starts_with(word))
            .filter_map(Bar::new)
            .collect();
        if rows.is_empty() {
            continue;
        }
        let size = (WIDTH, TITLE + AXIS + ROW * rows.len() as u32);
        let name = word.to_lowercase();
        let svg = directory.join(format!("{name}.svg"));
        figure(
            &SVGBackend::new(&svg, size).into_drawing_area(),
            title,
            &rows,
        )?;
        let png = directory.join(format!("{name}.png"));
        figure(
            &BitMapBackend::new(&png, size).into_drawing_area(),
            title,
            &rows,
        )?;
        files.extend([svg, png]);
    }
    Ok(files)
}

/// One bar, all in times as good.
#[derive(Debug, Clone, PartialEq)]
struct Bar {
    label: String,
    value: f64,
    range: (f64, f64),
    goal: Option<f64>,
}

impl Bar {
    /// `None` where there is no ratio, as beside a bound of nothing.
    fn new(case: &Case) -> Option<Self> {
        let good = |ratio: f64| match case.better {
            Better::More => ratio,
            Better::Less => 1.0 / ratio,
        };
        let (a, b) = (good(case.ratio_range.0), good(case.ratio_range.1));
        let bar = Self {
            label: format!("{} — {}", case.case, case.peer_name),
            value: good(case.ratio),
            range: (a.min(b), a.max(b)),
            goal: case.goal.map(good),
        };
        let drawable = [bar.value, bar.range.0, bar.range.1];
        drawable
            .iter()
            .all(|value| value.is_finite() && *value > 0.0)
            .then_some(bar)
    }
}

/// A logarithmic axis between two pixels.
#[derive(Debug, Clone, Copy)]
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// Wide enough for all, and for 1.
    fn of(bars: &[Bar]) -> Self {
        let all = bars.iter().flat_map(|bar| [bar.range.0, bar.range.1]);
        let low = all.clone().fold(0.9, f64::min);
        let high = all.fold(1.2, f64::max);
        Self {
            low: low / 1.1,
            high: high * 1.1,
        }
    }

    fn pixel(self, value: f64) -> i32 {
        let part = (value / self.low).ln() / (self.high / self.low).ln();
        LEFT + (part.clamp(0.0, 1.0) * f64::from(RIGHT - LEFT)).round() as i32
    }

    /// Values worth a line: 1, 2 and 5 times powers of ten.
    fn ticks(self) -> Vec<f64> {
        let tens = (-3..4).map(|power| 10f64.powi(power));
        let all = tens.flat_map(|ten| [1.0, 2.0, 5.0].map(|digit| digit * ten));
        all.filter(|value| (self.low..self.high).contains(value))
            .collect()
    }
}

fn figure<B: DrawingBackend>(area: &DrawingArea<B, Shift>, title: &str, bars: &[Bar]) -> Result<()>
where
    B::ErrorType: 'static,
{
    let scale = Scale::of(bars);
    let bottom = (TITLE + ROW * bars.len() as u32) as i32;
    let text = |size: u32, anchor: HPos| {
        ("sans-serif", size)
            .into_text_style(area)
            .color(&BLACK)
            .pos(Pos::new(anchor, VPos::Center))
    };
    let line = |x: i32, from: i32, to: i32, style: ShapeStyle| {
        PathElement::new(vec![(x, from), (x, to)], style)
    };
    area.fill(&WHITE)?;
    let heading = text(19, HPos::Left);
    area.draw(&Text::new(title, (16, 20), heading))?;
    let words =
        "times as good as the peer, in one run; right of 1 is better; a mark shows the goal";
    area.draw(&Text::new(words, (16, 44), text(13, HPos::Left)))?;
    for tick in scale.ticks() {
        let x = scale.pixel(tick);
        area.draw(&line(x, TITLE as i32, bottom, BLACK.mix(0.12).into()))?;
        let label = Text::new(tick.to_string(), (x, bottom + 14), text(13, HPos::Center));
        area.draw(&label)?;
    }
    for (row, bar) in bars.iter().enumerate() {
        let y = (TITLE + ROW * row as u32 + ROW / 2) as i32;
        let label = text(12, HPos::Right);
        area.draw(&Text::new(bar.label.as_str(), (LEFT - 8, y), label))?;
        let color = if bar.value >= 1.0 { BETTER } else { WORSE };
        let ends = [scale.pixel(1.0), scale.pixel(bar.value)];
        let corners = [
            (ends[0].min(ends[1]), y - 7),
            (ends[0].max(ends[1]).max(ends[0].min(ends[1]) + 1), y + 7),
        ];
        area.draw(&Rectangle::new(corners, color.filled()))?;
        let span = vec![(scale.pixel(bar.range.0), y), (scale.pixel(bar.range.1), y)];
        area.draw(&PathElement::new(span, BLACK.stroke_width(1)))?;
        if let Some(goal) = bar
            .goal
            .filter(|goal| (scale.low..scale.high).contains(goal))
        {
            let x = scale.pixel(goal);
            area.draw(&line(x, y - 11, y + 11, BLACK.stroke_width(2)))?;
        }
    }
    let one = scale.pixel(1.0);
    area.draw(&line(one, TITLE as i32, bottom, BLACK.stroke_width(1)))?;
    Ok(area.present()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Metric;

    fn case(metric: Metric, pairs: &[(f64, f64)]) -> Case {
        Case::from_pairs(&metric, "a peer", pairs)
    }

    #[test]
    fn better_is_to_the_right_whether_more_or_less_is_better() {
        let more = Bar::new(&case(
            Metric::more("bulk", "Gbit/s").goal(0.8),
            &[(4.0, 2.0)],
        ));
        let less = Bar::new(&case(Metric::less("bulk", "µs").goal(1.25), &[(2.0, 4.0)]));
        let (more, less) = (more.unwrap(), less.unwrap());
        assert_eq!(more, less);
        assert_eq!((more.value, more.goal), (2.0, Some(0.8)));
    }

    #[test]
    fn a_ratio_to_nothing_is_not_drawn() {
        let wakeups = case(Metric::less("idle", "1/s"), &[(3.0, 0.0)]);
        assert_eq!(Bar::new(&wakeups), None);
    }

    #[test]
    fn the_scale_holds_every_bar_and_one() {
        let bars = [(0.2, 0.1), (30.0, 1.0)]
            .map(|pair| Bar::new(&case(Metric::more("bulk", "Gbit/s"), &[pair])).unwrap());
        let scale = Scale::of(&bars);
        let pixels = [1.0, 2.0, 30.0].map(|value| scale.pixel(value));
        assert!(pixels.windows(2).all(|two| two[0] < two[1]));
        assert!(pixels[0] >= LEFT && pixels[2] <= RIGHT);
        assert_eq!(scale.ticks(), [1.0, 2.0, 5.0, 10.0, 20.0]);
    }

    #[test]
    fn both_kinds_of_files_are_written() {
        let directory = std::env::temp_dir().join(format!("bench-plot-{}", std::process::id()));
        let cases = [case(
            Metric::more("bulk v4", "Gbit/s").goal(0.8),
            &[(3.0, 2.0)],
        )];
        let files = draw(&cases, &directory).unwrap();
        assert_eq!(files.len(), 2);
        for file in &files {
            assert!(std::fs::metadata(file).unwrap().len() > 1000);
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}
