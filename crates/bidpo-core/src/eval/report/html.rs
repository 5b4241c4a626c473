//! One self-contained page: works offline, on a phone, and on paper. Words first, then figures, then what they came from.

use super::svg::{self, Point, Series};
use super::text::{SIDE_BY_SIDE, main_cells, method, side_cells, steered_cells, surface_cells, title, verdict_cells};
use crate::eval::analysis::{Analysis, MeasureTable, Row};
use crate::eval::conditions::{STEERED, UNSTEERED};
use crate::eval::items::Protocol;
use crate::eval::measures::Measure;
use crate::eval::results::ConditionKind;
use crate::layers::Layers;
use crate::stats::posterior_density;
use crate::text::{Table, escape};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Changed items that are shown; more make no page that is read.
const CHANGED_MAX: usize = 200;

const STYLE: &str = "
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:60rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #ccc}h3{font-size:1rem}
.words{background:#f3f6fa;border-left:4px solid #0072b2;padding:.6rem 1rem}.words p{margin:.4rem 0}
.words p:first-child{font-size:1.1rem;font-weight:600}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;margin:.8rem 0}
th,td{border:1px solid #ccc;padding:.25rem .5rem;text-align:left;vertical-align:top;font-variant-numeric:tabular-nums}
th{background:#f3f3f3}svg{width:100%;height:auto;max-width:44rem;font:12px system-ui,sans-serif}
svg .grid{stroke:#ddd}figure{margin:1rem 0}figcaption,.note{font-size:.85rem;color:#444}
.legend span{margin-right:1rem;white-space:nowrap}.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.3em}
pre{background:#f6f6f6;padding:.6rem;overflow-x:auto;font-size:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}
td{overflow-wrap:anywhere}
@media print{body{max-width:none;padding:0;font-size:11pt}.scroll{overflow:visible}details{display:block}
figure,tr{break-inside:avoid}h2{break-after:avoid}}
";

fn table(cells: &Table) -> String {
    let row = |cells: &[String], tag: &str| -> String {
        let inside: String = cells.iter().map(|c| format!("<{tag}>{}</{tag}>", escape(c))).collect();
        format!("<tr>{inside}</tr>\n")
    };
    let body: String = cells.rows.iter().map(|r| row(r, "td")).collect();
    format!("<div class=\"scroll\"><table>\n{}{body}</table></div>\n", row(&cells.header, "th"))
}

fn figure(picture: &str, caption: &str) -> String {
    format!("<figure>\n{picture}<figcaption>{}</figcaption></figure>\n", escape(caption))
}

/// In the unit that a plot shows: per cent for shares.
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

/// Curves over the scale, one for each layer.
fn scale_curves(t: &MeasureTable) -> Option<String> {
    let mut by_layers: BTreeMap<&[usize], (&Layers, Vec<Point>)> = BTreeMap::new();
    for row in &t.rows {
        if let ConditionKind::Point { layers, percent, .. } = &row.kind {
            let (_, points) = by_layers.entry(&layers[..]).or_insert_with(|| (layers, Vec::new()));
            points.push(point(t.measure, row, *percent));
        }
    }
    let series: Vec<Series> = by_layers
        .into_values()
        .map(|(layers, mut points)| {
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            Series { name: format!("layer {layers}"), points }
        })
        .collect();
    if series.is_empty() {
        return None;
    }
    let reference = t.row(UNSTEERED).map(|r| point(t.measure, r, 0.0));
    let picture = svg::curves(
        &format!("{} over the scale", t.measure.name()),
        "scale, % of the median residual norm",
        &unit(t.measure),
        &series,
        reference,
    );
    Some(figure(&picture, "95 % intervals; dashed with its interval shaded: the unsteered model."))
}

fn is_point(row: &Row) -> bool {
    matches!(row.kind, ConditionKind::Point { .. })
}

fn conditions_plot(t: &MeasureTable) -> String {
    let rows: Vec<(String, Point)> =
        t.rows.iter().filter(|r| !is_point(r)).map(|r| (r.condition.clone(), point(t.measure, r, 0.0))).collect();
    if rows.len() < 2 {
        return String::new();
    }
    let reference = t.row(UNSTEERED).map(|r| shown(t.measure, r.estimate.value));
    let picture = svg::intervals(&format!("{} by condition", t.measure.name()), &unit(t.measure), &rows, reference);
    figure(&picture, "95 % intervals of each figure by itself; the comparisons in the table are paired and sharper.")
}

/// Wins as a share of those decided, one row a match.
fn verdict_plot(a: &Analysis) -> String {
    let rows: Vec<(String, Point)> = a
        .verdicts
        .iter()
        .filter_map(|v| {
            let (y, i) = (100.0 * v.share()?, v.interval);
            Some((v.against.clone(), Point { x: 0.0, y, lo: 100.0 * i.lo, hi: 100.0 * i.hi }))
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let picture =
        svg::intervals("Head to head", "wins of the steered answers among those decided, %", &rows, Some(50.0));
    figure(&picture, "95 % intervals; dashed: as many wins as losses.")
}

fn posterior(t: &MeasureTable) -> Option<String> {
    let c = t.row(STEERED)?.against_unsteered.filter(|_| t.measure.is_binary())?;
    let picture =
        svg::density("Posterior of the advantage", "share of the changed items that the vector turned right", &|x| {
            posterior_density(c.gained, c.lost, x)
        });
    Some(figure(
        &picture,
        &format!(
            "Of {} changed items {} were gained: the vector has the advantage with probability {:.1} % (shaded; Jeffreys' \
             prior).",
            c.gained + c.lost,
            c.gained,
            100.0 * c.higher
        ),
    ))
}

/// Losses of the training run, of the first steered vector whose file holds them.
fn training_curve(a: &Analysis) -> Option<String> {
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
        &picture,
        &format!("Training of {}. A vector that changes nothing has the loss 0.693 (ln 2).", vector.file),
    ))
}

fn changed(a: &Analysis) -> String {
    if a.changed.is_empty() {
        return String::new();
    }
    let share = |x: f64| {
        if x == 0.0 {
            "0".into()
        } else if x == 1.0 {
            "1".into()
        } else {
            format!("{x:.2}")
        }
    };
    let rows = a
        .changed
        .iter()
        .take(CHANGED_MAX)
        .map(|c| {
            let value = format!("{} to {}", share(c.values.0), share(c.values.1));
            let value = match a.protocol {
                Protocol::Judge if c.values.1 > 0.5 => "steered".into(),
                Protocol::Judge => "the other".into(),
                _ => value,
            };
            vec![(c.index + 1).to_string(), c.question.clone(), c.before.clone(), c.after.clone(), value]
        })
        .collect::<Vec<_>>();
    let against = a.verdicts.first().map_or("unsteered", |v| v.against.as_str());
    let (before, after, heading) = if a.protocol == Protocol::Judge {
        (against, "steered", "Pairs that the judge decided")
    } else if a.protocol.writes() {
        ("unsteered", "steered", "Answers that changed")
    } else {
        ("unsteered prefers", "steered prefers", "Items that changed")
    };
    let header = ["no.", "question", before, after, a.tables[0].measure.name()];
    let cells = Table::new(header).with(rows);
    let more = a.changed.len().saturating_sub(CHANGED_MAX);
    let note = if more > 0 { format!("<p class=\"note\">and {more} more.</p>\n") } else { String::new() };
    format!("<h3>{heading} ({})</h3>\n{}{note}", a.changed.len(), table(&cells))
}

/// The exact protocol.
fn protocol(a: &Analysis) -> String {
    let manifest = serde_json::to_string_pretty(&a.manifest).unwrap_or_default();
    format!(
        "<details open><summary>Protocol, exactly</summary>\n<p class=\"note\">{}</p>\n<pre>{}</pre></details>\n",
        escape(&method(a)),
        escape(&manifest)
    )
}

/// A run's part of the page.
fn section(a: &Analysis) -> String {
    let t = &a.tables[0];
    let mut s = format!("<section>\n<h2>{}</h2>\n<div class=\"words\">\n", escape(&title(a)));
    for sentence in a.words() {
        let _ = writeln!(s, "<p>{}</p>", escape(&sentence));
    }
    s += "</div>\n";
    s += &scale_curves(t).unwrap_or_default();
    match verdict_cells(a) {
        Some(cells) => {
            s += &verdict_plot(a);
            s += &format!("<h3>Head to head</h3>\n{}", table(&cells));
        }
        None => {
            s += &conditions_plot(t);
            s += &format!("<h3>{}</h3>\n{}", escape(t.measure.name()), table(&main_cells(t)));
            s += &posterior(t).unwrap_or_default();
        }
    }
    if let Some(cells) = steered_cells(t) {
        s += &table(&cells);
    }
    if a.tables.len() > 1 {
        s += "<h3>Other measures</h3>\n";
    }
    for tables in a.tables[1..].chunks(SIDE_BY_SIDE) {
        s += &table(&side_cells(tables));
    }
    if !a.surface.is_empty() {
        s += &format!("<h3>What the data alone gives away</h3>\n{}", table(&surface_cells(a)));
    }
    s += &changed(a);
    s += &training_curve(a).unwrap_or_default();
    s += &protocol(a);
    s + "</section>\n"
}

/// Truthfulness against capability, where the same points were measured in both on the same model.
fn fronts(runs: &[Analysis]) -> String {
    let has_points = |a: &&Analysis| a.tables[0].rows.iter().any(is_point);
    let is_truth = |a: &Analysis| a.manifest.benchmark == "truthfulqa";
    let swept: Vec<&Analysis> = runs.iter().filter(has_points).collect();
    let models: BTreeSet<&str> = swept.iter().map(|a| a.manifest.model.sha256.as_str()).collect();
    let mut s = String::new();
    for truth in swept.iter().filter(|a| is_truth(a)) {
        // A second TruthfulQA run is no cost of the first.
        let same_model = |a: &&&Analysis| a.manifest.model.sha256 == truth.manifest.model.sha256;
        for cost in swept.iter().filter(|a| !is_truth(a)).filter(same_model) {
            let picture = front(truth, cost);
            let of = if models.len() > 1 { format!("{}. ", truth.manifest.model.file) } else { String::new() };
            s += &figure(
                &picture,
                &format!(
                    "{of}To the upper right is better in both. Joined: settings that no other one beats in both (Pareto front)."
                ),
            );
        }
    }
    if s.is_empty() { s } else { format!("<section>\n<h2>What truthfulness costs</h2>\n{s}</section>\n") }
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

/// The page of some runs.
pub fn html(runs: &[Analysis]) -> String {
    let heading = match runs {
        [one] => title(one),
        _ => "Evaluation of a steering vector".into(),
    };
    let sections: String = runs.iter().map(section).collect();
    let tools: Value =
        runs.first().map_or(Value::Null, |a| format!("bidpo {}, {}", a.manifest.bidpo, a.manifest.llama_cpp).into());
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>{0}</title>\n<style>{STYLE}</style>\n\
         </head>\n<body>\n<h1>Evaluation</h1>\n{1}{sections}<p class=\"note\">{2}</p>\n</body>\n</html>\n",
        escape(&heading),
        fronts(runs),
        escape(tools.as_str().unwrap_or_default())
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::analysis::analyse;
    use crate::eval::analysis::tests::{bits, run_of};

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
        let drawn = |runs: &[Analysis]| fronts(runs).matches("<figure>").count();
        let (truth, again, mmlu, other) =
            (of("truthfulqa", "a"), of("truthfulqa", "a"), of("mmlu", "a"), of("mmlu", "b"));
        assert_eq!(drawn(&[truth.clone(), mmlu.clone()]), 1);
        assert_eq!(drawn(&[truth.clone(), other.clone()]), 0, "another model's");
        assert_eq!(drawn(&[truth.clone(), again]), 0, "a second TruthfulQA run is no cost");
        assert_eq!(drawn(&[mmlu.clone(), other.clone()]), 0);
        let page = fronts(&[truth, of("truthfulqa", "b"), mmlu, other]);
        assert_eq!((page.matches("<figure>").count(), page.matches("a.gguf").count()), (2, 1));
    }

    #[test]
    fn a_training_run_is_drawn_where_the_vector_knows_it() {
        let u = bits(20, |i| i % 2 == 0);
        let mut run = run_of(&[("unsteered", "unsteered", &u), ("steered", "steered", &u)]);
        let curve = serde_json::json!([[8, 0.69, 0.66], [16, 0.6, null], [24, 0.5, 0.64]]);
        let mut steered = |vectors: &[(&str, Value)]| {
            let vectors: Vec<Value> = vectors
                .iter()
                .map(|(file, curve)| {
                    serde_json::json!({ "file": file, "sha256": "x", "scale": 1.0, "training_curve": curve })
                })
                .collect();
            let kind = serde_json::json!({ "kind": "steered", "vectors": vectors });
            run.manifest.conditions[1].kind = serde_json::from_value(kind).unwrap();
            html(&[analyse(&run).unwrap()])
        };
        assert!(!steered(&[]).contains("Training curve"));
        let page = steered(&[("v.gguf", Value::Null), ("w.gguf", curve)]);
        assert!(
            page.contains("Training curve") && page.contains("Training of w.gguf") && page.contains("validation loss")
        );
        // Nothing that is no curve is drawn, or ends the report.
        assert!(!steered(&[("v.gguf", serde_json::json!(["x"]))]).contains("Training curve"));
    }

    #[test]
    fn matches_are_shown_with_both_answers() {
        // Right: the judge prefers the first answer, the steered one, in the one view there is.
        let s = bits(12, |i| i < 10);
        let mut run = run_of(&[("steered against unsteered", "match", &s)]);
        run.manifest.protocol = "judge".into();
        run.manifest.prompt = serde_json::json!({ "same_model": true });
        for record in run.records.iter_mut().flatten() {
            record.answers.iter_mut().for_each(|a| a.label = a.mc1.take());
            record.views[0].order = Some(vec![0, 1]);
        }
        let analysis = analyse(&run).unwrap();
        let words = analysis.words().join("\n");
        assert!(
            words.contains("prefers the steered answers to those under \"unsteered\": 10 wins, 2 losses, 0 ties of 12")
        );
        assert!(words.contains("the judge is the model that wrote the answers"), "{words}");
        let page = html(&[analysis]);
        for part in ["Head to head", "Pairs that the judge decided (12)", "True &amp; short.", "83.3 % ["] {
            assert!(page.contains(part), "{part} is missing");
        }
    }

    #[test]
    fn the_page_is_whole_and_stands_alone() {
        let u = bits(40, |i| i % 2 == 0);
        let s = bits(40, |i| i % 2 == 0 || i < 10);
        let run = run_of(&[("unsteered", "unsteered", &u), ("steered", "steered", &s), ("<b>", "random", &u)]);
        let page = html(&[analyse(&run).unwrap()]);
        assert!(
            page.contains("Question &lt;1&gt;?") && page.contains("True &amp; short.") && page.contains("&lt;b&gt;")
        );
        assert!(page.find("class=\"words\"").unwrap() < page.find("<table").unwrap(), "words come first");
        for outside in ["http:", "https:", "<script", "<link", "@import", "url(", "src="] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(!page.contains("NaN"));
    }
}
