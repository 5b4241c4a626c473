//! One self-contained page: works offline, on a phone, and on paper. Summary first, then results, then their sources.

use super::markdown::{method, title};
use super::plots::{Figure, conditions_plot, fronts, posterior, scale_curves, training_curve, verdict_plot};
use super::tables::{SIDE_BY_SIDE, main_cells, side_cells, steered_cells, style_cells, surface_cells, verdict_cells};
use crate::eval::analysis::Analysis;
use crate::eval::items::Protocol;
use crate::text::{Table, render};
use serde::Serialize;

/// Changed items that are shown; more make no page that is read.
const CHANGED_MAX: usize = 200;

const TEMPLATE: &str = include_str!("templates/report.html");

/// Data of the template.
#[derive(Serialize)]
struct Page {
    heading: String,
    /// Truthfulness against capability, for sweeps of the same model.
    fronts: Vec<Figure>,
    sections: Vec<Section>,
    /// Versions of the programs.
    tools: String,
}

/// A run's part of the page.
#[derive(Serialize)]
struct Section {
    title: String,
    summary: Vec<String>,
    figures: Vec<Figure>,
    /// Heading of the headline table.
    heading: &'static str,
    headline: Table,
    posterior: Option<Figure>,
    /// The steered model against each other condition.
    steered: Option<Table>,
    /// Where the vector's gain lies.
    style: Option<Table>,
    /// Further measures, several side by side.
    others: Vec<Table>,
    surface: Option<Table>,
    changed: Option<ChangedItems>,
    training: Option<Figure>,
    method: String,
    /// The manifest, as indented JSON.
    manifest: String,
}

/// Items whose answer the vector changed, or pairs that a judge decided.
#[derive(Serialize)]
struct ChangedItems {
    heading: &'static str,
    count: usize,
    table: Table,
    /// Items beyond those in the table.
    more: usize,
}

fn changed(a: &Analysis) -> Option<ChangedItems> {
    if a.changed.is_empty() {
        return None;
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
    let table = Table::new(header).with(rows);
    Some(ChangedItems { heading, count: a.changed.len(), table, more: a.changed.len().saturating_sub(CHANGED_MAX) })
}

impl Section {
    fn of(a: &Analysis) -> Self {
        let t = &a.tables[0];
        let mut figures = Vec::from_iter(scale_curves(t));
        let (heading, headline, posterior) = match verdict_cells(a) {
            Some(table) => {
                figures.extend(verdict_plot(a));
                ("Head to head", table, None)
            }
            None => {
                figures.extend(conditions_plot(t));
                (t.measure.name(), main_cells(t), posterior(t))
            }
        };
        Self {
            title: title(a),
            summary: a.summary(),
            figures,
            heading,
            headline,
            posterior,
            steered: steered_cells(t),
            style: style_cells(a),
            others: a.tables[1..].chunks(SIDE_BY_SIDE).map(side_cells).collect(),
            surface: surface_cells(a),
            changed: changed(a),
            training: training_curve(a),
            method: method(a),
            manifest: serde_json::to_string_pretty(&a.manifest).unwrap_or_default(),
        }
    }
}

/// The page of some runs.
///
/// # Panics
/// If the template does not fit its data, which are both constants of the program.
pub fn html(runs: &[Analysis]) -> String {
    let page = Page {
        heading: match runs {
            [one] => title(one),
            _ => "Evaluation of a steering vector".into(),
        },
        fronts: fronts(runs),
        sections: runs.iter().map(Section::of).collect(),
        tools: runs
            .first()
            .map_or_else(String::new, |a| format!("bidpo {}, {}", a.manifest.bidpo, a.manifest.llama_cpp)),
    };
    render("report.html", TEMPLATE, page).expect("the template fits its data")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::analysis::analyse;
    use crate::eval::analysis::tests::{bits, run_of};
    use serde_json::Value;

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
        let words = analysis.summary().join("\n");
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
