//! A run's results for a program.

use crate::eval::analysis::{Analysis, Claim, Comparison, CutOff, MeasureTable, Row};
use crate::stats::Interval;
use serde_json::{Value, json as object};

fn interval(i: Interval) -> Value {
    object!([i.lo, i.hi])
}

fn comparison(c: &Comparison) -> Value {
    object!({
        "difference": c.difference,
        "interval": interval(c.interval),
        "shown": c.is_significant(),
        "significant": c.is_significant(),
        "gained": c.gained,
        "lost": c.lost,
        "n": c.n,
        "p": c.p,
        "p_holm": c.p_holm,
        "exact_p": c.exact_p,
        "sign_test_p": c.sign_p,
        "probability_higher": c.higher,
        "detectable": c.detectable,
        "clusters": c.clusters,
        "zero_width": c.interval.is_degenerate(),
    })
}

fn row(r: &Row) -> Value {
    object!({
        "condition": r.condition,
        "kind": r.kind.name(),
        "value": r.estimate.value,
        "interval": interval(r.estimate.interval),
        "right": r.estimate.count,
        "clusters": r.estimate.clusters,
        "against_unsteered": r.against_unsteered.as_ref().map(comparison),
        "steered_against": r.steered_against.as_ref().map(comparison),
    })
}

fn interval_method(t: &MeasureTable) -> &'static str {
    match (t.measure.is_binary(), t.rows.first().is_some_and(|r| r.estimate.clusters.is_some())) {
        (true, false) => "wilson",
        (true, true) => "wilson, clustered",
        (false, false) => "student",
        (false, true) => "student, clustered",
    }
}

fn claim(c: &Claim) -> Value {
    match c {
        Claim::Raises => object!({ "claim": "raises" }),
        Claim::Lowers => object!({ "claim": "lowers" }),
        Claim::BetterThan(other) => object!({ "claim": "better than", "condition": other }),
        Claim::WorseThan(other) => object!({ "claim": "worse than", "condition": other }),
        Claim::NeedsQuestion(other) => object!({ "claim": "gain depends on the question", "condition": other }),
    }
}

/// The primary comparison, the family, and all that the summary asserts.
fn inference(out: &mut Value, a: &Analysis) {
    let measure = a.tables[0].measure.name();
    out["primary"] = a.primary().map_or(Value::Null, |c| {
        object!({ "comparison": "steered minus unsteered", "measure": measure, "corrected": false, "result": comparison(c) })
    });
    out["family"] = object!({ "correction": "holm", "alpha": a.family_alpha() });
    out["claims"] = a.claims().iter().map(claim).collect();
    let gains: Vec<Value> = a
        .gains
        .iter()
        .map(|g| object!({ "without": g.without, "gain": comparison(&g.gain), "own_minus_this": comparison(&g.lead) }))
        .collect();
    out["truth_or_style"] = object!({
        "gains": gains,
        "rule": a.split.as_ref().map(|s| s.rule.as_str()),
        "where_rule_is_right": a.split.as_ref().and_then(|s| s.rule_right.as_ref()).map(comparison),
        "where_rule_is_wrong": a.split.as_ref().and_then(|s| s.rule_wrong.as_ref()).map(comparison),
    });
    out["random_vectors"] = a.randoms.as_ref().map_or(
        Value::Null,
        |r| object!({ "n": r.n, "lowest": r.lowest, "highest": r.highest, "mean": r.mean, "below_steered": r.below }),
    );
}

/// One object: `benchmark`, `protocol`, `n`, `summary` (also as `words`, the name of 0.1.0), `measures` (each with its `conditions`), `primary`, `family`, `claims`, `truth_or_style`,
/// `random_vectors`, `without_model` (single rules), `best_rule`, `manifest`, and of a judge's matches `head_to_head`.
/// Fractions are from 0 to 1, their differences from -1 to 1.
pub fn json(a: &Analysis) -> Value {
    let measures: Vec<Value> = a
        .tables
        .iter()
        .map(|t| {
            object!({
                "measure": t.measure.name(),
                "interval_method": interval_method(t),
                "conditions": t.rows.iter().map(row).collect::<Vec<_>>(),
            })
        })
        .collect();
    let surface: Vec<Value> = a
        .surface
        .rules
        .iter()
        .map(|s| object!({ "rule": s.name, "value": s.value, "interval": interval(s.interval) }))
        .collect();
    let verdicts: Vec<Value> = a
        .verdicts
        .iter()
        .map(|v| {
            object!({
                "against": v.against, "wins": v.wins, "ties": v.ties, "losses": v.losses, "sign_test_p": v.p,
                "leans_to": v.leans_to, "leans_from": v.leans_from, "lean_p": v.lean_p, "share_of_wins": v.share(), "interval": interval(v.interval), "first_chosen": v.first,
                "steered_longer": v.longer,
            })
        })
        .collect();
    let summary = a.summary();
    let mut out = object!({
        "benchmark": a.manifest.benchmark,
        "protocol": a.manifest.protocol,
        "n": a.manifest.items,
        "level": crate::eval::analysis::LEVEL,
        "words": summary,
        "summary": summary,
        "measures": measures,
        "without_model": surface,
        "manifest": a.manifest,
    });
    let cut_off = |c: &CutOff| object!({ "condition": c.condition, "cut_off": c.cut, "answers": c.n });
    let cut_off: Vec<Value> = a.cut_off().iter().map(cut_off).collect();
    if !cut_off.is_empty() {
        out["cut_off"] = cut_off.into();
    }
    inference(&mut out, a);
    out["best_rule"] = a.surface.best.as_ref().map_or(Value::Null, |b| {
        object!({
            "rule": b.name, "chosen_among": b.rules, "value": b.value, "interval": interval(b.interval),
            "beats_chance": b.beats_chance,
        })
    });
    if !verdicts.is_empty() {
        out["head_to_head"] = verdicts.into();
    }
    out
}
