//! A run's figures, as text and as JSON.

use bidpo::eval::stats::Interval;
use bidpo::eval::summary::{Difference, Measure, Summary};
use serde_json::{Value, json};
use std::fmt::Write;

/// What was run, as the reader needs it beside the figures.
pub struct Run<'a> {
    /// `TruthfulQA`.
    pub benchmark: &'a str,
    /// `mc1`, `mc2`, `binary`.
    pub protocol: &'a str,
    /// File name of the model.
    pub model: &'a str,
    /// `qa`, `none` or a file.
    pub preamble: &'a str,
    /// What steers, for example `honest.gguf x 1.5`; empty without steering.
    pub steering: &'a str,
    /// Questions that were asked for.
    pub asked: usize,
}

fn percent(x: f64) -> String {
    format!("{:5.1} %", 100.0 * x)
}

fn range(i: Interval, sign: bool) -> String {
    let f = |x: f64| if sign { format!("{:+.1}", 100.0 * x) } else { format!("{:.1}", 100.0 * x) };
    format!("[{}, {}]", f(i.lo), f(i.hi))
}

/// The figures for a person.
pub fn text(run: &Run, s: &Summary) -> String {
    let mut out = String::new();
    let questions = match (s.n, run.asked) {
        (n, asked) if n < asked => format!("{n} of {asked} questions"),
        (1, _) => "1 question".into(),
        (n, _) => format!("{n} questions"),
    };
    let line = |name: &str, m: &Measure, note: &str| {
        let count = m.right.map_or(String::new(), |k| format!("  {k} of {}", s.n));
        let line = format!("  {name:<11}{}  {:<14}{count}{note}", percent(m.value), range(m.interval, false));
        line.trim_end().to_owned() + "\n"
    };
    let _ = writeln!(out, "{} {}, {questions}, {}, preamble {}", run.benchmark, run.protocol, run.model, run.preamble);
    if run.steering.is_empty() {
        out += &line("unsteered", &s.measure, "");
    } else {
        if let Some(baseline) = &s.baseline {
            out += &line("unsteered", baseline, "");
        }
        out += &line("steered", &s.measure, &format!("  {}", run.steering));
    }
    if let Some(d) = &s.difference {
        let _ = write!(out, "  {:<11}{:+5.1} pt {}", "difference", 100.0 * d.value, range(d.interval, true));
        if let Some((gained, lost, p)) = d.discordant {
            let _ = write!(out, "  {gained} gained, {lost} lost, exact McNemar p = {p:.3}");
        }
        out.push('\n');
        out += if !d.is_shown() {
            "No difference that this many questions could show.\n"
        } else if d.value > 0.0 {
            "Steering raises this measure: the interval of the difference leaves out 0.\n"
        } else {
            "Steering lowers this measure: the interval of the difference leaves out 0.\n"
        };
    } else if !run.steering.is_empty() {
        out += "Without its baseline this figure shows no effect of the vector.\n";
    }
    out += match s.measure.right {
        Some(_) => "Intervals: 95 %, Wilson",
        None => "Intervals: 95 %, bootstrap over questions",
    };
    if s.difference.is_some() {
        out += if s.measure.right.is_some() { "; difference paired, Bonett-Price" } else { "; difference paired" };
    }
    out += ".\n";
    out
}

fn interval(i: Interval) -> Value {
    json!([i.lo, i.hi])
}

fn measure(protocol: &str, m: &Measure) -> serde_json::Map<String, Value> {
    let mut map = serde_json::Map::new();
    map.insert(protocol.into(), json!(m.value));
    map.insert("interval".into(), interval(m.interval));
    if let Some(right) = m.right {
        map.insert("right".into(), json!(right));
    }
    map
}

fn difference(d: &Difference) -> Value {
    let mut value = json!({ "value": d.value, "interval": interval(d.interval), "shown": d.is_shown() });
    if let Some((gained, lost, p)) = d.discordant {
        value["gained"] = json!(gained);
        value["lost"] = json!(lost);
        value["mcnemar_p"] = json!(p);
    }
    value
}

/// The figures for a program: one object. `rest` follows the figures.
pub fn to_json(run: &Run, s: &Summary, rest: Value) -> Value {
    let mut map = measure(run.protocol, &s.measure);
    map.insert("n".into(), json!(s.n));
    let method = if s.measure.right.is_some() { "wilson" } else { "bootstrap" };
    map.insert("interval_method".into(), json!(method));
    map.insert("level".into(), json!(bidpo::eval::summary::LEVEL));
    map.insert("baseline".into(), s.baseline.as_ref().map_or(Value::Null, |b| measure(run.protocol, b).into()));
    map.insert("difference".into(), s.difference.as_ref().map_or(Value::Null, difference));
    map.insert("benchmark".into(), json!(run.benchmark.to_lowercase()));
    map.insert("protocol".into(), json!(run.protocol));
    map.insert("preamble".into(), json!(run.preamble));
    if let Value::Object(rest) = rest {
        map.extend(rest);
    }
    map.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(value: f64, lo: f64, hi: f64, right: Option<usize>) -> Measure {
        Measure { value, interval: Interval { lo, hi }, right }
    }

    fn run() -> Run<'static> {
        Run {
            benchmark: "TruthfulQA",
            protocol: "mc1",
            model: "m.gguf",
            preamble: "qa",
            steering: "v.gguf x 1.5",
            asked: 10,
        }
    }

    #[test]
    fn words_follow_the_interval() {
        let mut s = Summary {
            n: 10,
            measure: measure(0.5, 0.2, 0.8, Some(5)),
            baseline: Some(measure(0.4, 0.1, 0.7, Some(4))),
            difference: Some(Difference {
                value: 0.1,
                interval: Interval { lo: -0.1, hi: 0.3 },
                discordant: Some((2, 1, 1.0)),
            }),
        };
        let t = text(&run(), &s);
        assert!(t.contains("No difference that this many questions could show."), "{t}");
        assert!(t.contains("+10.0 pt [-10.0, +30.0]  2 gained, 1 lost, exact McNemar p = 1.000"), "{t}");
        s.difference = Some(Difference { value: -0.1, interval: Interval { lo: -0.2, hi: -0.01 }, discordant: None });
        assert!(text(&run(), &s).contains("lowers"));
        s.difference = None;
        s.baseline = None;
        assert!(text(&run(), &s).contains("Without its baseline"));
    }
}
