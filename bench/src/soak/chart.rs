//! A run as a figure: memory, descriptors, round trips and bytes over time.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::sample::Sample;
use crate::Result;

const SIZE: (u32, u32) = (1000, 900);
const COLOURS: [RGBColor; 4] = [
    RGBColor(46, 125, 109),
    RGBColor(190, 84, 60),
    RGBColor(70, 96, 160),
    RGBColor(150, 120, 40),
];

/// One line of a panel.
type Line<'a> = (&'a str, Box<dyn Fn(&Sample) -> f64 + 'a>);

/// Draws the run into an SVG.
///
/// # Errors
/// If it cannot be written.
pub(super) fn draw(samples: &[Sample], file: &Path) -> Result<()> {
    register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| "the font is broken")?;
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mean = |sample: &Sample, of: fn(&super::sample::Held) -> u64| {
        let sum: u64 = sample.guests.iter().map(of).sum();
        sum as f64 / sample.guests.len().max(1) as f64
    };
    let panels: [(&str, Vec<Line<'_>>); 4] = [
        (
            "memory, MiB",
            vec![
                (
                    "daemon",
                    Box::new(|sample| sample.daemon.kib as f64 / 1024.0),
                ),
                (
                    "a guest, mean",
                    Box::new(move |sample| mean(sample, |held| held.kib) / 1024.0),
                ),
            ],
        ),
        (
            "descriptors and threads",
            vec![
                (
                    "daemon's descriptors",
                    Box::new(|sample| sample.daemon.fds as f64),
                ),
                (
                    "daemon's threads",
                    Box::new(|sample| sample.daemon.threads as f64),
                ),
                (
                    "a guest's descriptors, mean",
                    Box::new(move |sample| mean(sample, |held| held.fds)),
                ),
            ],
        ),
        (
            "round trip of the witness, µs, median of each sample",
            vec![("p50", Box::new(|sample| sample.echo_us.p50 as f64))],
        ),
        (
            "compared, GB",
            vec![
                ("to guests", Box::new(|sample| sample.done.up as f64 / 1e9)),
                (
                    "from guests",
                    Box::new(|sample| sample.done.down as f64 / 1e9),
                ),
            ],
        ),
    ];
    for (panel, (title, lines)) in area.split_evenly((4, 1)).iter().zip(&panels) {
        draw_panel(panel, samples, title, lines)?;
    }
    Ok(area.present()?)
}

fn draw_panel<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    samples: &[Sample],
    title: &str,
    lines: &[Line<'_>],
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let minutes = |sample: &Sample| sample.t / 60.0;
    let end = samples.last().map_or(1.0, minutes).max(0.01);
    let values = lines
        .iter()
        .flat_map(|(_, value)| samples.iter().map(value));
    let top = values.fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .caption(title, ("sans-serif", 15))
        .x_label_area_size(24)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..end, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("minutes")
        .label_style(("sans-serif", 11))
        .draw()?;
    // Restarts of the daemon.
    for pair in samples.windows(2) {
        if pair[1].done.restarts > pair[0].done.restarts {
            let at = minutes(&pair[1]);
            let mark = PathElement::new(vec![(at, 0.0), (at, top * 0.04)], BLACK.mix(0.4));
            chart.draw_series(std::iter::once(mark))?;
        }
    }
    for ((name, value), colour) in lines.iter().zip(COLOURS) {
        let points: Vec<_> = samples
            .iter()
            .map(|sample| (minutes(sample), value(sample)))
            .collect();
        chart
            .draw_series(std::iter::once(PathElement::new(
                points,
                colour.stroke_width(1),
            )))?
            .label(*name)
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 14, y)], colour.stroke_width(2))
            });
    }
    chart
        .configure_series_labels()
        .label_font(("sans-serif", 11))
        .background_style(WHITE.mix(0.8))
        .position(SeriesLabelPosition::LowerRight)
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_drawn() {
        let file = std::env::temp_dir().join(format!("soak-chart-{}.svg", std::process::id()));
        let sample = |number: u8| Sample {
            t: f64::from(number),
            guests: vec![Default::default()],
            ..Sample::default()
        };
        let samples: Vec<_> = (0..50).map(sample).collect();
        draw(&samples, &file).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(text.contains("compared, GB") && text.contains("polyline"));
    }
}
