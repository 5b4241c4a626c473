//! The tables of a run: results with units and denominators, as texts.

use crate::eval::analysis::{Analysis, Comparison, Estimate, MeasureTable, difference_text};
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
        difference_text(measure, c),
        format!("+{} -{}", c.gained, c.lost),
        c.p_holm.map_or_else(|| p_value(c.p), |h| format!("{} ({})", p_value(c.p), p_value(h))),
        percent(c.higher),
    ]
}

/// The conditions under the headline measure.
pub(crate) fn main_cells(t: &MeasureTable) -> Table {
    let header = [
        "condition",
        "value",
        "95 % interval",
        "difference vs. unsteered",
        "gained, lost",
        "p (Holm)",
        "P(difference > 0)",
    ];
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
    (!rows.is_empty())
        .then(|| Table::new(["steered minus", "difference", "gained, lost", "p", "P(difference > 0)"]).with(rows))
}

/// Results of pairwise judging; `None` for other runs.
pub(crate) fn verdict_cells(a: &Analysis) -> Option<Table> {
    let header = [
        "steered against",
        "wins",
        "ties",
        "losses",
        "sign test p",
        "win rate without ties",
        "order-averaged preference",
        "answer shown first chosen",
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

/// Written answers that the token limit cut off; `None` for a run in which nothing was written.
pub(crate) fn cut_off_cells(a: &Analysis) -> Option<Table> {
    let cut_off = a.cut_off();
    let rows =
        cut_off.iter().map(|c| vec![c.condition.clone(), format!("{} ({} of {})", percent(c.share()), c.cut, c.n)]);
    (!cut_off.is_empty())
        .then(|| Table::new(["condition", "cut off by the token limit"]).with(rows.collect::<Vec<_>>()))
}

/// Measures that stand side by side in one table; more make it too wide.
pub(crate) const SIDE_BY_SIDE: usize = 6;

/// Results of question-blind heuristics.
pub(crate) fn surface_cells(a: &Analysis) -> Table {
    let rows = a
        .surface
        .iter()
        .map(|s| vec![s.name.into(), percent(s.value), percent_interval(s.interval)])
        .collect::<Vec<_>>();
    Table::new(["question-blind heuristic", "right", "95 % interval"]).with(rows)
}
