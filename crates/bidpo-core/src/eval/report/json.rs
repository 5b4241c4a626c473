//! A run's results for a program.

use crate::eval::analysis::{Analysis, Comparison, CutOff, Row};
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
        "p": c.p,
        "p_holm": c.p_holm,
        "sign_test_p": c.sign_p,
        "probability_higher": c.higher,
        "detectable": c.detectable,
        "clustered": c.clustered.map(|k| object!({
            "clusters": k.groups, "standard_error": k.estimate.standard_error, "interval": interval(k.estimate.interval),
        })),
    })
}

fn row(r: &Row) -> Value {
    object!({
        "condition": r.condition,
        "kind": r.kind.name(),
        "value": r.estimate.value,
        "interval": interval(r.estimate.interval),
        "right": r.estimate.count,
        "against_unsteered": r.against_unsteered.as_ref().map(comparison),
        "steered_against": r.steered_against.as_ref().map(comparison),
    })
}

/// One object: `benchmark`, `protocol`, `n`, `summary` (also as `words`, the name of 0.1.0), `measures` (each with its `conditions`), `without_model`, `manifest`, and
/// of a judge's matches `head_to_head`.
/// Fractions are from 0 to 1, their differences from -1 to 1.
pub fn json(a: &Analysis) -> Value {
    let measures: Vec<Value> = a
        .tables
        .iter()
        .map(|t| {
            object!({
                "measure": t.measure.name(),
                "interval_method": if t.measure.is_binary() { "wilson" } else { "bootstrap" },
                "conditions": t.rows.iter().map(row).collect::<Vec<_>>(),
            })
        })
        .collect();
    let surface: Vec<Value> = a
        .surface
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
    if !verdicts.is_empty() {
        out["head_to_head"] = verdicts.into();
    }
    out
}
