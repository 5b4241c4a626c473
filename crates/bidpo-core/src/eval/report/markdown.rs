//! A run as Markdown, which also reads well in a terminal.

use super::tables::{SIDE_BY_SIDE, cut_off_cells, main_cells, side_cells, steered_cells, surface_cells, verdict_cells};
use crate::eval::analysis::Analysis;
use crate::eval::conditions::STEERED;
use crate::eval::items::Protocol;
use crate::text::{Table, render};
use serde::Serialize;

const TEMPLATE: &str = include_str!("templates/report.md");

/// Data of the template.
#[derive(Serialize)]
struct Data<'a> {
    title: String,
    summary: Vec<String>,
    /// Name of the headline measure; absent for a judge's comparisons.
    measure: Option<&'a str>,
    headline: Table,
    others: Vec<Table>,
    method: String,
}

/// A run's results: summary, tables, method.
///
/// # Panics
/// If the template does not fit its data, which are both constants of the program.
pub fn markdown(a: &Analysis) -> String {
    let (measure, headline) = match verdict_cells(a) {
        Some(table) => (None, table),
        None => (Some(a.tables[0].measure.name()), main_cells(&a.tables[0])),
    };
    let mut others = Vec::from_iter(steered_cells(&a.tables[0]));
    others.extend(a.tables[1..].chunks(SIDE_BY_SIDE).map(side_cells));
    others.extend(cut_off_cells(a));
    if !a.surface.is_empty() {
        others.push(surface_cells(a));
    }
    let data = Data { title: title(a), summary: a.summary(), measure, headline, others, method: method(a) };
    render("report.md", TEMPLATE, data).expect("the template fits its data")
}

/// The heading of a run: benchmark, protocol, items, model, prompt.
pub(super) fn title(a: &Analysis) -> String {
    let m = &a.manifest;
    let preset = m.prompt.get("preset").and_then(|p| p.as_str()).map_or(String::new(), |p| format!(", prompt {p}"));
    format!(
        "{} {}, {} {}, {} ({}){preset}",
        m.benchmark,
        m.protocol,
        m.items,
        a.items_word(),
        m.model.file,
        m.model.quantization
    )
}

/// Statistical methods of the report, in one or two lines.
pub(super) fn method(a: &Analysis) -> String {
    if a.protocol == Protocol::Judge {
        return "An answer wins if the judge prefers it in both orders; order-averaged preference: the sign of the letters' log-odds, averaged over \
                both orders; p: exact sign tests; interval: 95 %, Wilson."
            .into();
    }
    let binary = a.tables[0].measure.is_binary();
    let mut out = String::from(if binary {
        "Intervals: 95 %, Wilson; differences paired, Bonett-Price; p: exact McNemar; P(difference > 0): Jeffreys' prior on the \
         discordant items."
    } else {
        "Intervals: 95 %, bootstrap over items; differences paired, bootstrap; p: random signs; P(difference > 0): Bayesian bootstrap."
    });
    let steered = a.tables[0].row(STEERED).and_then(|r| r.against_unsteered);
    if let Some(k) = steered.and_then(|c| c.clustered) {
        let f = if a.tables[0].measure.is_share() { 100.0 } else { 1.0 };
        out += &format!(
            " With the {} categories as clusters: steered minus unsteered [{:+.1}, {:+.1}].",
            k.groups,
            f * k.estimate.interval.lo,
            f * k.estimate.interval.hi
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::analysis::analyse;
    use crate::eval::analysis::tests::{bits, run_of};

    #[test]
    fn the_text_holds_the_figures() {
        let u = bits(40, |i| i % 2 == 0);
        let s = bits(40, |i| i % 2 == 0 || i < 10);
        let run = run_of(&[("unsteered", "unsteered", &u), ("steered", "steered", &s), ("a|b", "random", &u)]);
        let text = markdown(&analyse(&run).unwrap());
        for part in [
            "## truthfulqa mc1, 40 questions, m.gguf (Q4_1), prompt qa",
            "50.0 % (20 of 40)",
            "+12.5 points [",
            "+5 -0",
            "0.062 (0.125)",
            "a\\|b",
            "steered minus",
            "mc1_per_token",
            "always the longest",
            "With the 4 categories",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }
}
