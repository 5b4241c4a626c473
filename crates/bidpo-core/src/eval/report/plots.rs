//! The plots of a page, each with its caption.

use super::svg::{self, Point, Series};
use crate::eval::analysis::{Analysis, MeasureTable, Row};
use crate::eval::conditions::{STEERED, UNSTEERED};
use crate::eval::measures::Measure;
use crate::eval::results::ConditionKind;
use crate::layers::Layers;
use crate::stats::posterior_density;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A plot and its caption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Figure {
    /// SVG, with a legend where there is one.
    picture: String,
    caption: String,
}

fn figure(picture: String, caption: impl Into<String>) -> Figure {
    Figure { picture, caption: caption.into() }
}

/// In the unit that a plot shows: percent for proportions.
fn shown(measure: Measure, x: f64) -> f64 {
    if measure.is_share() { 100.0 * x } else { x }
}

fn point(measure: Measure, row: &Row, x: f64) -> Point {
    let (e, f) = (row.estimate, |v| shown(measure, v));
    Point { x, y: f(e.value), lo: f(e.interval.lo), hi: f(e.interval.hi) }
}

fn unit(measure: Measure) -> String {
    let name = measure.name().replace('_', " ");
    if measure.is_share() { format!("{name}, %") } else { name }
}

/// Curves over the scale, one for each layer; of an adapter one.
pub(super) fn scale_curves(t: &MeasureTable) -> Option<Figure> {
    let mut by_layers: BTreeMap<&[usize], (&Layers, Vec<Point>)> = BTreeMap::new();
    let mut of_adapter = Vec::new();
    for row in &t.rows {
        match &row.kind {
            ConditionKind::Point { layers, percent, .. } => {
                let (_, points) = by_layers.entry(&layers[..]).or_insert_with(|| (layers, Vec::new()));
                points.push(point(t.measure, row, *percent));
            }
            ConditionKind::AdapterPoint { factor } => of_adapter.push(point(t.measure, row, *factor)),
            _ => {}
        }
    }
    let in_order = |name: String, mut points: Vec<Point>| {
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        Series { name, points }
    };
    // A sweep is of a vector or of an adapter.
    let (series, x_name) = if of_adapter.is_empty() {
        let of_layers = |(layers, points)| in_order(format!("layer {layers}"), points);
        (by_layers.into_values().map(of_layers).collect(), "scale, % of the median residual norm")
    } else {
        (vec![in_order("adapter".into(), of_adapter)], "scale of the adapter")
    };
    if series.is_empty() {
        return None;
    }
    let reference = t.row(UNSTEERED).map(|r| point(t.measure, r, 0.0));
    let picture =
        svg::curves(&format!("{} over the scale", t.measure.name()), x_name, &unit(t.measure), &series, reference);
    Some(figure(picture, "95 % intervals; dashed with its interval shaded: the unsteered model."))
}

fn is_point(row: &Row) -> bool {
    row.kind.is_point()
}

pub(super) fn conditions_plot(t: &MeasureTable) -> Option<Figure> {
    let rows: Vec<(String, Point)> =
        t.rows.iter().filter(|r| !is_point(r)).map(|r| (r.condition.clone(), point(t.measure, r, 0.0))).collect();
    if rows.len() < 2 {
        return None;
    }
    let reference = t.row(UNSTEERED).map(|r| shown(t.measure, r.estimate.value));
    let picture = svg::intervals(&format!("{} by condition", t.measure.name()), &unit(t.measure), &rows, reference);
    Some(figure(
        picture,
        "95 % intervals of each figure by itself; the comparisons in the table are paired and sharper.",
    ))
}

/// Wins as a fraction of those decided, one row a match.
pub(super) fn verdict_plot(a: &Analysis) -> Option<Figure> {
    let rows: Vec<(String, Point)> = a
        .verdicts
        .iter()
        .filter_map(|v| {
            let (y, i) = (100.0 * v.share()?, v.interval);
            Some((v.against.clone(), Point { x: 0.0, y, lo: 100.0 * i.lo, hi: 100.0 * i.hi }))
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    let picture = svg::intervals("Head to head", "win rate of the steered answers without ties, %", &rows, Some(50.0));
    Some(figure(picture, "95 % intervals; dashed: as many wins as losses."))
}

pub(super) fn posterior(t: &MeasureTable) -> Option<Figure> {
    let c = t.row(STEERED)?.against_unsteered.filter(|_| t.measure.is_binary())?;
    let picture =
        svg::density("Posterior of the advantage", "share of the changed items that the vector turned right", &|x| {
            posterior_density(c.gained, c.lost, x)
        });
    Some(figure(
        picture,
        format!(
            "Of {} changed items {} were gained: the vector has the advantage with probability {:.1} % (shaded; Jeffreys' \
             prior).",
            c.gained + c.lost,
            c.gained,
            100.0 * c.higher
        ),
    ))
}

/// Losses of the training run, of the first steered vector whose file holds them.
pub(super) fn training_curve(a: &Analysis) -> Option<Figure> {
    let ConditionKind::Steered { vectors, .. } = &a.manifest.condition(STEERED)?.kind else { return None };
    let (vector, curve) = vectors.iter().find_map(|v| Some((v, v.training_curve.as_ref()?.as_array()?)))?;
    let series = |name: &str, column: usize| {
        let at = |p: &Value| {
            let (x, y) = (p.get(0)?.as_f64()?, p.get(column)?.as_f64()?);
            Some(Point { x, y, lo: y, hi: y })
        };
        Series { name: name.to_owned(), points: curve.iter().filter_map(at).collect() }
    };
    let all: Vec<Series> = [series("training loss (of the epoch)", 1), series("validation loss", 2)]
        .into_iter()
        .filter(|s| s.points.len() > 1)
        .collect();
    if all.is_empty() {
        return None;
    }
    let picture = svg::curves("Training curve", "step", "loss", &all, None);
    Some(figure(
        picture,
        format!(
            "Training of {}. A vector that changes nothing has the loss 0.693 (ln 2) under bidpo and dpo.",
            vector.file
        ),
    ))
}

/// Truthfulness against capability, where the same points were measured in both on the same model.
pub(super) fn fronts(runs: &[Analysis]) -> Vec<Figure> {
    let has_points = |a: &&Analysis| a.tables[0].rows.iter().any(is_point);
    let is_truth = |a: &Analysis| a.manifest.benchmark == "truthfulqa";
    let swept: Vec<&Analysis> = runs.iter().filter(has_points).collect();
    let models: BTreeSet<&str> = swept.iter().map(|a| a.manifest.model.sha256.as_str()).collect();
    let mut out = Vec::new();
    for truth in swept.iter().filter(|a| is_truth(a)) {
        // A second TruthfulQA run is no cost of the first.
        let same_model = |a: &&&Analysis| a.manifest.model.sha256 == truth.manifest.model.sha256;
        for cost in swept.iter().filter(|a| !is_truth(a)).filter(same_model) {
            let picture = front(truth, cost);
            let of = if models.len() > 1 { format!("{}. ", truth.manifest.model.file) } else { String::new() };
            out.push(figure(
                picture,
                format!(
                    "{of}To the upper right is better in both. Joined: settings that no other one beats in both (Pareto front)."
                ),
            ));
        }
    }
    out
}

/// The points of one run against those of another.
fn front(truth: &Analysis, cost: &Analysis) -> String {
    // KL is the cost itself; of other runs it is the headline measure.
    let t = cost.tables.iter().find(|t| t.measure.name() == "kl_per_token").unwrap_or(&cost.tables[0]);
    let y = &truth.tables[0];
    let merit = |m: Measure, v: f64| m.direction() * shown(m, v);
    let points: Vec<(String, f64, f64)> = y
        .rows
        .iter()
        .filter_map(|r| {
            let other = t.row(&r.condition)?;
            Some((r.condition.clone(), merit(t.measure, other.estimate.value), merit(y.measure, r.estimate.value)))
        })
        .collect();
    let sign = |m: Measure| if m.direction() < 0.0 { format!("minus {}", unit(m)) } else { unit(m) };
    let x_name = format!("{} {}", cost.manifest.benchmark, sign(t.measure));
    let y_name = format!("{} {}", truth.manifest.benchmark, sign(y.measure));
    svg::pareto(&format!("{y_name} against {x_name}"), &x_name, &y_name, &points)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::analysis::analyse;
    use crate::eval::analysis::tests::{bits, run_of};

    #[test]
    fn an_adapters_scales_are_one_curve() {
        let (u, p) = (bits(20, |i| i % 2 == 0), bits(20, |i| i % 3 == 0));
        let mut run = run_of(&[("unsteered", "unsteered", &u), ("a", "adapter-point", &p), ("b", "adapter-point", &u)]);
        run.manifest.conditions[2].kind = ConditionKind::AdapterPoint { factor: -0.25 };
        let analysis = analyse(&run).unwrap();
        let picture = scale_curves(&analysis.tables[0]).unwrap().picture;
        assert!(picture.contains("scale of the adapter") && !picture.contains("residual norm"), "{picture}");
        assert_eq!(picture.matches("<circle").count(), 2, "{picture}");
        assert!(analysis.tables[0].rows[1..].iter().all(|r| r.against_unsteered.unwrap().p_holm.is_some()));
        let summary = analysis.summary().join("\n");
        assert!(summary.contains("2 configurations (scales) were tried"), "{summary}");
    }

    #[test]
    fn costs_are_those_of_the_same_model() {
        let (u, p) = (bits(20, |i| i % 2 == 0), bits(20, |i| i % 3 == 0));
        let of = |benchmark: &str, model: &str| {
            let mut run = run_of(&[("unsteered", "unsteered", &u), ("layer 1, +5 %", "point", &p)]);
            run.manifest.benchmark = benchmark.into();
            run.manifest.model.sha256 = model.into();
            run.manifest.model.file = format!("{model}.gguf");
            analyse(&run).unwrap()
        };
        let drawn = |runs: &[Analysis]| fronts(runs).len();
        let (truth, again, mmlu, other) =
            (of("truthfulqa", "a"), of("truthfulqa", "a"), of("mmlu", "a"), of("mmlu", "b"));
        assert_eq!(drawn(&[truth.clone(), mmlu.clone()]), 1);
        assert_eq!(drawn(&[truth.clone(), other.clone()]), 0, "another model's");
        assert_eq!(drawn(&[truth.clone(), again]), 0, "a second TruthfulQA run is no cost");
        assert_eq!(drawn(&[mmlu.clone(), other.clone()]), 0);
        let both = fronts(&[truth, of("truthfulqa", "b"), mmlu, other]);
        assert_eq!((both.len(), both.iter().filter(|f| f.caption.contains("a.gguf")).count()), (2, 1));
    }
}
