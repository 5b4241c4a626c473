//! A run's figures as Markdown, which is also readable in a terminal.

use crate::eval::analysis::{Analysis, Comparison, Estimate, MeasureTable, difference_words};
use crate::eval::conditions::STEERED;
use crate::eval::items::Protocol;
use crate::eval::measures::{Kind, Measure};
use crate::stats::Interval;
use crate::text::Table;
use crate::text::numbers::{interval, p_value, percent};

/// A figure: `28.7 %`, or a plain number.
pub(crate) fn figure(measure: Measure, x: f64) -> String {
    match measure.kind {
        Kind::Words => format!("{x:.1}"),
        _ if measure.is_share() => percent(x),
        _ => format!("{x:.4}"),
    }
}

/// An interval of fractions, in percent.
fn percent_interval(i: Interval) -> String {
    interval(100.0 * i.lo, 100.0 * i.hi, 1)
}

/// An interval of a figure.
pub(crate) fn range(measure: Measure, i: Interval) -> String {
    match measure.kind {
        Kind::Words => interval(i.lo, i.hi, 1),
        _ if measure.is_share() => percent_interval(i),
        _ => interval(i.lo, i.hi, 4),
    }
}

fn value(e: &Estimate, measure: Measure) -> String {
    match e.count {
        Some(k) => format!("{} ({k} of {})", figure(measure, e.value), e.n),
        None => figure(measure, e.value),
    }
}

fn comparison(measure: Measure, c: Option<&Comparison>) -> [String; 4] {
    let Some(c) = c else { return Default::default() };
    [
        difference_words(measure, c),
        format!("+{} -{}", c.gained, c.lost),
        c.p_holm.map_or_else(|| p_value(c.p), |h| format!("{} ({})", p_value(c.p), p_value(h))),
        percent(c.higher),
    ]
}

/// The conditions under the headline measure.
pub(crate) fn main_cells(t: &MeasureTable) -> Table {
    let header = ["condition", "value", "95 % interval", "against unsteered", "items", "p (Holm)", "P(higher)"];
    let rows: Vec<Vec<String>> = t
        .rows
        .iter()
        .map(|r| {
            let mut cells =
                vec![r.condition.clone(), value(&r.estimate, t.measure), range(t.measure, r.estimate.interval)];
            cells.extend(comparison(t.measure, r.against_unsteered.as_ref()));
            cells
        })
        .collect();
    Table::new(header).with(rows)
}

/// The other measures side by side, a column each.
pub(crate) fn side_cells(tables: &[MeasureTable]) -> Table {
    let mut header = vec!["condition"];
    header.extend(tables.iter().map(|t| t.measure.name()));
    let rows: Vec<Vec<String>> = (0..tables[0].rows.len())
        .map(|i| {
            let mut cells = vec![tables[0].rows[i].condition.clone()];
            cells.extend(tables.iter().map(|t| {
                let e = &t.rows[i].estimate;
                format!("{} {}", figure(t.measure, e.value), range(t.measure, e.interval))
            }));
            cells
        })
        .collect();
    Table::new(header).with(rows)
}

/// The steered model against each of the other conditions.
pub(crate) fn steered_cells(t: &MeasureTable) -> Option<Table> {
    let rows: Vec<Vec<String>> = t
        .rows
        .iter()
        .filter_map(|r| {
            let mut cells = vec![r.condition.clone()];
            cells.extend(comparison(t.measure, Some(r.steered_against.as_ref()?)));
            Some(cells)
        })
        .collect();
    (!rows.is_empty()).then(|| Table::new(["steered minus", "difference", "items", "p", "P(higher)"]).with(rows))
}

/// How matches ended; nothing for other runs.
pub(crate) fn verdict_cells(a: &Analysis) -> Option<Table> {
    let header = [
        "steered against",
        "wins",
        "ties",
        "losses",
        "sign test p",
        "wins of those decided",
        "leaning, orders averaged",
        "first one chosen",
    ];
    let rows: Vec<Vec<String>> = a
        .verdicts
        .iter()
        .map(|v| {
            let share =
                v.share().map_or_else(String::new, |s| format!("{} {}", percent(s), percent_interval(v.interval)));
            let [wins, ties, losses] = [v.wins, v.ties, v.losses].map(|n| n.to_string());
            let lean = format!("{} to, {} from; p {}", v.leans_to, v.leans_from, p_value(v.lean_p));
            let first = percent(v.first);
            vec![v.against.clone(), wins, ties, losses, p_value(v.p), share, lean, first]
        })
        .collect();
    (!rows.is_empty()).then(|| Table::new(header).with(rows))
}

/// Measures that stand side by side in one table; more make it too wide.
pub(crate) const SIDE_BY_SIDE: usize = 6;

/// The heading of a run: benchmark, protocol, items, model, prompt.
pub(crate) fn title(a: &Analysis) -> String {
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

/// How the figures were computed, in a line or two.
pub(crate) fn method(a: &Analysis) -> String {
    if a.protocol == Protocol::Judge {
        return "An answer wins if the judge prefers it in both orders; leaning: the sign of the letters' log-odds, averaged over \
                both orders; p: exact sign tests; interval: 95 %, Wilson."
            .into();
    }
    let binary = a.tables[0].measure.is_binary();
    let mut out = String::from(if binary {
        "Intervals: 95 %, Wilson; differences paired, Bonett-Price; p: exact McNemar; P(higher): Jeffreys' prior on the \
         discordant items."
    } else {
        "Intervals: 95 %, bootstrap over items; differences paired, bootstrap; p: random signs; P(higher): Bayesian bootstrap."
    });
    let steered = a.tables[0].row(STEERED).and_then(|r| r.against_unsteered);
    if let Some(k) = steered.and_then(|c| c.clustered) {
        let f = if a.tables[0].measure.is_share() { 100.0 } else { 1.0 };
        out += &format!(
            " With the {} categories as clusters: steered minus unsteered [{:+.1}, {:+.1}].",
            k.groups,
            f * k.interval.lo,
            f * k.interval.hi
        );
    }
    out
}

/// What rules without a model reach.
pub(crate) fn surface_cells(a: &Analysis) -> Table {
    let rows = a
        .surface
        .iter()
        .map(|s| vec![s.name.into(), percent(s.value), percent_interval(s.interval)])
        .collect::<Vec<_>>();
    Table::new(["without any model", "right", "95 % interval"]).with(rows)
}

/// The whole of a run's figures.
pub fn markdown(a: &Analysis) -> String {
    let mut out = format!("## {}\n\n", title(a));
    for sentence in a.words() {
        out += &format!("> {sentence}\n");
    }
    match verdict_cells(a) {
        Some(cells) => out += &format!("\n{}", cells.markdown()),
        None => out += &format!("\n{}:\n\n{}", a.tables[0].measure.name(), main_cells(&a.tables[0]).markdown()),
    }
    if let Some(steered) = steered_cells(&a.tables[0]) {
        out += &format!("\n{}", steered.markdown());
    }
    for tables in a.tables[1..].chunks(SIDE_BY_SIDE) {
        out += &format!("\n{}", side_cells(tables).markdown());
    }
    if !a.surface.is_empty() {
        out += &format!("\n{}", surface_cells(a).markdown());
    }
    out += &format!("\n{}\n", method(a));
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
