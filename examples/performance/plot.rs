//! The pictures.

use crate::Measured;
use crate::fit::{Costs, Step};
use crate::plan::{Kind, SMALL, Sizes, TINY, WIDE};
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

/// A name, its points, and a line through (predicted) others.
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
    line: Vec<(f64, f64)>,
}

const COLORS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 160, 44), RGBColor(148, 103, 189)];

fn chart(path: &Path, title: &str, x: &str, y: &str, series: &[Series]) -> Result<(), Box<dyn Error>> {
    let max = |f: &dyn Fn(&(f64, f64)) -> f64| {
        series.iter().flat_map(|s| s.points.iter().chain(&s.line)).map(f).fold(0.0, f64::max) * 1.05
    };
    let root = SVGBackend::new(path, (760, 440)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..max(&|p| p.0), 0.0..max(&|p| p.1))?;
    chart.configure_mesh().light_line_style(WHITE).x_desc(x).y_desc(y).draw()?;
    for (s, color) in series.iter().zip(COLORS) {
        chart.draw_series(LineSeries::new(s.line.iter().copied(), color.stroke_width(1)))?;
        chart
            .draw_series(s.points.iter().map(|&p| Circle::new(p, 4, color.filled())))?
            .label(&s.name)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

/// Points of a model by some number, and the cost model's line through it.
fn by(
    measured: &[Measured],
    name: String,
    chosen: &dyn Fn(&Measured) -> bool,
    x: &dyn Fn(&Step) -> f64,
    y: &dyn Fn(&Measured) -> f64,
    predicted: &dyn Fn(&Step) -> f64,
) -> Series {
    let mine: Vec<&Measured> = measured.iter().filter(|m| m.plan.kind == Kind::Fit && chosen(m)).collect();
    let mut line: Vec<(f64, f64)> = mine.iter().map(|m| Step::of(m)).map(|s| (x(&s), predicted(&s))).collect();
    line.sort_by(|a, b| a.0.total_cmp(&b.0));
    Series { name, points: mine.iter().map(|m| (x(&Step::of(m)), y(m))).collect(), line }
}

pub fn all(folder: &Path, measured: &[Measured], costs: &Costs) -> Result<(), Box<dyn Error>> {
    let seconds = |m: &Measured| m.point.step;
    let gigabytes = |m: &Measured| m.point.step_bytes as f64 / 1e9;
    let said = |s: &Step| costs.seconds(s);
    let needed = |s: &Step| costs.bytes(s) / 1e9;
    let tokens = |s: &Step| s.tokens;
    let above = |s: &Step| s.model.above(s.layer) as f64;
    let middle = |m: Sizes, layer: usize| move |p: &Measured| p.plan.model == m && p.plan.layer == layer;
    let short = |m: Sizes| move |p: &Measured| p.plan.model == m && p.plan.tokens == 128;
    let subjects = [(SMALL, 6), (TINY, 11), (WIDE, 1)];
    let note = "points: measured; lines: the fitted cost model";

    let name = |m: Sizes, layer: usize| format!("{}, {} blocks above", m.name, m.above(layer));
    let grown = |y: &dyn Fn(&Measured) -> f64, predicted: &dyn Fn(&Step) -> f64| {
        subjects.map(|(m, l)| by(measured, name(m, l), &middle(m, l), &tokens, y, predicted))
    };
    let title = format!("A step on one pair by its tokens ({note})");
    chart(&folder.join("time-tokens.svg"), &title, "tokens of the pair", "seconds", &grown(&seconds, &said))?;
    let title = format!("Memory of a step beside the model by tokens ({note})");
    chart(&folder.join("memory-tokens.svg"), &title, "tokens of the pair", "gigabytes", &grown(&gigabytes, &needed))?;

    let layered = |y: &dyn Fn(&Measured) -> f64, predicted: &dyn Fn(&Step) -> f64| {
        [SMALL, TINY, WIDE].map(|m| by(measured, m.name.into(), &short(m), &above, y, predicted))
    };
    let title = format!("A step on 128 tokens by the blocks above the layer ({note})");
    chart(&folder.join("time-layers.svg"), &title, "blocks above the layer", "seconds", &layered(&seconds, &said))?;
    let title = format!("Memory of a step on 128 tokens by blocks above ({note})");
    chart(
        &folder.join("memory-layers.svg"),
        &title,
        "blocks above the layer",
        "gigabytes",
        &layered(&gigabytes, &needed),
    )?;

    // Weights that a token meets: those of the blocks above and, for output rows, the output matrix.
    let weights = |s: &Step| (above(s) * s.model.block_params() + s.outputs / s.tokens * s.model.head_params()) / 1e9;
    let sized = [SMALL, TINY, WIDE].map(|m| by(measured, m.name.into(), &short(m), &weights, &seconds, &said));
    let title = format!("A step on 128 tokens by the weights above the layer ({note})");
    chart(&folder.join("time-size.svg"), &title, "billions of weights above the layer", "seconds", &sized)
}
