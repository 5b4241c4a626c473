//! The tables of a run: results with units and denominators, as texts.

use crate::eval::analysis::{Analysis, Comparison, Estimate, MeasureTable, Row, difference_text, difference_unit};
use crate::eval::measures::{Kind, Measure};
use crate::eval::results::ConditionKind;
use crate::stats::Interval;
use crate::text::Table;
use crate::text::numbers::{interval, p_value, percent};

/// A value: `28.7 %`, or a plain number.
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

/// An interval of a value.
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

fn comparison(measure: Measure, c: Option<&Comparison>) -> [String; 3] {
    let Some(c) = c else { return Default::default() };
    [
        difference_text(measure, c),
        format!("+{} -{}", c.gained, c.lost),
        c.p_holm.map_or_else(|| p_value(c.p), |h| format!("{} ({})", p_value(c.p), p_value(h))),
    ]
}

/// Heading of the posterior probability, with its prior.
fn probability_heading(measure: Measure) -> &'static str {
    if measure.is_binary() { "P(difference > 0), Jeffreys' prior" } else { "P(difference > 0), Bayesian bootstrap" }
}

/// The posterior probability that a condition is higher; empty for controls, of which nobody asks that.
fn probability(r: &Row, c: Option<&Comparison>) -> String {
    let control =
        matches!(r.kind, ConditionKind::Random { .. } | ConditionKind::Negated) || r.kind.changes_the_question();
    c.filter(|_| !control).map_or_else(String::new, |c| percent(c.higher))
}

/// Several random vectors in one row: mean and range of the values, range of the differences.
fn random_cells(t: &MeasureTable, rows: &[&Row]) -> Vec<String> {
    let values: Vec<f64> = rows.iter().map(|r| r.estimate.value).collect();
    let ends = |x: &[f64]| x.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), &v| (lo.min(v), hi.max(v)));
    let (lo, hi) = ends(&values);
    let differences: Vec<f64> = rows.iter().filter_map(|r| Some(r.against_unsteered?.difference)).collect();
    let (least, most) = ends(&differences);
    let change = match t.measure {
        _ if differences.is_empty() => String::new(),
        m if m.is_share() => format!("{:+.1} to {:+.1} {}", 100.0 * least, 100.0 * most, difference_unit(m)),
        m => format!("{least:+.4} to {most:+.4} {}", difference_unit(m)),
    };
    vec![
        format!("random vectors ({})", rows.len()),
        format!("{} (mean)", figure(t.measure, crate::stats::mean(&values))),
        format!("range {} to {}", figure(t.measure, lo), figure(t.measure, hi)),
        change,
        String::new(),
        String::new(),
        String::new(),
    ]
}

/// The conditions under the headline measure. Several random vectors share a row.
pub(crate) fn main_cells(t: &MeasureTable) -> Table {
    let corrected = t.rows.iter().any(|r| r.against_unsteered.is_some_and(|c| c.p_holm.is_some()));
    let header = [
        "condition",
        "value",
        "95 % interval",
        "difference vs. unsteered",
        "gained, lost",
        if corrected { "p (Holm)" } else { "p (uncorrected)" },
        probability_heading(t.measure),
    ];
    let random: Vec<&Row> = t.rows.iter().filter(|r| matches!(r.kind, ConditionKind::Random { .. })).collect();
    let shared = |r: &Row| random.len() > 1 && matches!(r.kind, ConditionKind::Random { .. });
    let rows = t.rows.iter().filter_map(|r| {
        if shared(r) {
            return (r.condition == random[0].condition).then(|| random_cells(t, &random));
        }
        let mut cells = vec![r.condition.clone(), value(&r.estimate, t.measure), range(t.measure, r.estimate.interval)];
        cells.extend(comparison(t.measure, r.against_unsteered.as_ref()));
        cells.push(probability(r, r.against_unsteered.as_ref()));
        Some(cells)
    });
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

/// The steered model against each of the other conditions, but for those of another question and for several random
/// vectors.
pub(crate) fn steered_cells(t: &MeasureTable) -> Option<Table> {
    let random = t.rows.iter().filter(|r| matches!(r.kind, ConditionKind::Random { .. })).count();
    let rows: Vec<Vec<String>> = t
        .rows
        .iter()
        .filter(|r| !r.kind.changes_the_question())
        .filter(|r| random < 2 || !matches!(r.kind, ConditionKind::Random { .. }))
        .filter_map(|r| {
            let mut cells = vec![r.condition.clone()];
            cells.extend(comparison(t.measure, Some(r.steered_against.as_ref()?)));
            cells.push(probability(r, r.steered_against.as_ref()));
            Some(cells)
        })
        .collect();
    let header = ["steered minus", "difference", "gained, lost", "p (Holm)", probability_heading(t.measure)];
    (!rows.is_empty()).then(|| Table::new(header).with(rows))
}

/// Where the vector's gain lies: without the items' own questions, and by whether the best question-blind rule is right.
pub(crate) fn style_cells(a: &Analysis) -> Option<Table> {
    let measure = a.tables[0].measure;
    let cells = |name: String, c: &Comparison| {
        let mut cells = vec![name, c.n.to_string()];
        cells.extend(comparison(measure, Some(c)));
        cells
    };
    let mut rows = Vec::new();
    for g in &a.gains {
        rows.push(cells(format!("gain with \"{}\"", g.without), &g.gain));
        rows.push(cells(format!("own question's gain minus gain with \"{}\"", g.without), &g.lead));
    }
    if let Some(s) = &a.split {
        let of = |c: &Option<Comparison>, what: &str| {
            c.as_ref().map(|c| cells(format!("gain where the best question-blind rule is {what}"), c))
        };
        rows.extend([of(&s.rule_right, "right"), of(&s.rule_wrong, "wrong")].into_iter().flatten());
    }
    (!rows.is_empty()).then(|| Table::new(["truth or style", "n", "difference", "gained, lost", "p (Holm)"]).with(rows))
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

/// Results of question-blind heuristics; `None` where there are none.
pub(crate) fn surface_cells(a: &Analysis) -> Option<Table> {
    let single = a.surface.rules.iter().map(|s| vec![s.name.clone(), percent(s.value), percent_interval(s.interval)]);
    let best = a.surface.best.iter().map(|b| {
        let name = format!("best of {}, chosen on other items: {}", b.rules, b.name);
        vec![name, percent(b.value), percent_interval(b.interval)]
    });
    let rows: Vec<_> = single.chain(best).collect();
    (!rows.is_empty()).then(|| Table::new(["question-blind heuristic", "right", "95 % interval"]).with(rows))
}
