//! The results in sentences: first whether there is a difference at all, then whether anything simpler does the same.

use super::compare::difference_unit;
use super::{Analysis, Comparison};
use crate::eval::conditions::{STEERED, UNSTEERED};
use crate::eval::items::Protocol;
use crate::eval::judging::PairwiseResult;
use crate::eval::measures::{Kind, Measure};
use crate::eval::results::ConditionKind;
use crate::text::numbers::p_equals;

/// A difference with its interval: `+2.0 points [-1.9, +5.8]`.
pub(crate) fn difference(measure: Measure, c: &Comparison) -> String {
    let unit = difference_unit(measure);
    if measure.kind == Kind::Words {
        format!("{:+.1} {unit} [{:+.1}, {:+.1}]", c.difference, c.interval.lo, c.interval.hi)
    } else if measure.is_share() {
        let (d, i) = (100.0 * c.difference, c.interval);
        format!("{d:+.1} {unit} [{:+.1}, {:+.1}]", 100.0 * i.lo, 100.0 * i.hi)
    } else {
        format!("{:+.4} {unit} [{:+.4}, {:+.4}]", c.difference, c.interval.lo, c.interval.hi)
    }
}

impl Analysis {
    /// Noun for the items: `questions`, `prompts` or `windows of text`.
    pub fn items_word(&self) -> &'static str {
        match self.protocol {
            Protocol::Text => "windows of text",
            Protocol::Prompts => "prompts",
            _ => "questions",
        }
    }

    /// The summary, one or two sentences an entry: estimate, interval, n, verdict, power; then comparisons and warnings.
    pub fn summary(&self) -> Vec<String> {
        if self.protocol == Protocol::Judge {
            return self.judged();
        }
        let table = &self.tables[0];
        let measure = table.measure;
        let name = measure.name().replace('_', " ");
        let (n, items) = (self.manifest.items, self.items_word());
        let mut out = Vec::new();
        let Some(steered) = table.row(STEERED) else {
            if table.rows.iter().any(|r| matches!(r.kind, ConditionKind::Point { .. })) {
                out.extend(self.points());
            } else {
                out.push(format!("{n} {items}, no vector: there is nothing to compare."));
            }
            out.extend(self.against_surface());
            out.extend(self.cut_off_warning());
            return out;
        };
        let Some(c) = &steered.against_unsteered else {
            out.push("Without the unsteered model these figures show no effect of the vector.".into());
            return out;
        };
        let d = difference(measure, c);
        let mut after = Vec::new();
        if let ConditionKind::Steered { chosen_on: Some(chosen), layers, .. } = &steered.kind {
            after.push(format!(
                "The configuration (layer {}) was chosen among {} on {} other {items} and measured once on these.",
                layers.as_ref().map_or_else(String::new, ToString::to_string),
                chosen.settings,
                chosen.items
            ));
        }
        if !c.is_significant() {
            let found = if !c.detectable.is_finite() {
                format!("{n} {items} are too few to detect any difference with 80 % power.")
            } else if c.detectable == 0.0 {
                // Means without any spread: nothing to estimate from what a true difference would have looked like.
                format!(
                    "The vector changed none of the {n} {items}: the minimum detectable effect cannot be estimated from that."
                )
            } else {
                let could = if measure.is_share() {
                    format!("{:.1} points", 100.0 * c.detectable)
                } else {
                    format!("{:.4} {}", c.detectable, difference_unit(measure))
                };
                format!(
                    "Minimum detectable effect at 80 % power and alpha 0.05: {could}; a smaller difference may exist."
                )
            };
            out.push(format!(
                "{name} {d} with the vector, n = {n} {items}: not significant (95 % CI includes 0). {found}"
            ));
        } else {
            let verb = if c.difference > 0.0 { "raises" } else { "lowers" };
            out.push(format!("The vector {verb} {name}: {d}, n = {n} {items} (95 % CI excludes 0)."));
            if let Some(p) = c.p_holm.filter(|&p| p > 0.05) {
                out.push(format!(
                    "After Holm's correction for all conditions in the table it is no longer significant at 5 %: p = {p:.3}."
                ));
            }
        }
        out.extend(after);
        if self.manifest.selection.get("part").is_some_and(|p| p == "train") {
            out.push(format!(
                "These {items} are the training part of the split: the vector may have been trained on them, and then the \
                 results do not carry over to others."
            ));
        }
        if let Some(k) = c.clustered.filter(|k| k.estimate.interval.contains(0.0) == c.is_significant()) {
            let (lo, hi) = (100.0 * k.estimate.interval.lo, 100.0 * k.estimate.interval.hi);
            out.push(format!(
                "With the {} categories as clusters the interval is [{lo:+.1}, {hi:+.1}]: the other way about 0 than with \
                 {items} as independent draws. Trust the wider one.",
                k.groups
            ));
        }
        for row in table
            .rows
            .iter()
            .filter(|r| r.condition != UNSTEERED && r.condition != STEERED && !r.kind.changes_the_question())
        {
            let Some(c) = &row.steered_against else { continue };
            let d = difference(measure, c);
            let better = c.difference * measure.direction() > 0.0;
            out.push(match (c.is_significant(), better) {
                (false, _) => {
                    format!("The vector against {}: {d}, not significant (95 % CI includes 0).", named(&row.condition))
                }
                (true, true) => format!("The vector does better than {} ({d}).", named(&row.condition)),
                (true, false) => format!("The vector does WORSE than {} ({d}).", named(&row.condition)),
            });
        }
        out.extend(self.against_surface());
        out.extend(self.cut_off_warning());
        if self.protocol == Protocol::Generate {
            out.push(
                "N-gram overlap with reference answers is not truth: a \"not\" more or less hardly changes it. Read some of \
                 the answers."
                    .into(),
            );
        }
        out
    }

    /// Results of a judge's comparisons.
    fn judged(&self) -> Vec<String> {
        let judge = &self.manifest.model.file;
        let mut out: Vec<String> = self.verdicts.iter().map(|v| verdict(v, judge, self.manifest.items)).collect();
        if self.manifest.prompt.get("same_model").is_some_and(|s| s == true) {
            out.push(
                "Warning: the judge is the model that wrote the answers. Models prefer their own, and a model that does not \
                 know an answer cannot judge it."
                    .into(),
            );
        }
        if let Some(v) =
            self.verdicts.iter().max_by(|a, b| f64::total_cmp(&(a.first - 0.5).abs(), &(b.first - 0.5).abs()))
            && (v.first - 0.5).abs() > 0.2
        {
            out.push(format!(
                "Warning: {:.0} % of this judge's choices fell on the answer shown first (against \"{}\"); an answer wins only in \
                 both orders, so most of what it could have said is lost as ties.",
                100.0 * v.first,
                v.against
            ));
        }
        if let Some(v) = self.verdicts.iter().find(|v| {
            v.share().is_some_and(|s| v.p < 0.05 && (s > 0.5) == (v.longer > 0.5)) && (v.longer - 0.5).abs() > 0.15
        }) {
            out.push(format!(
                "Warning: the steered answer is the longer one in {:.0} % of the pairs against \"{}\", and judges like length \
                 in either direction.",
                100.0 * v.longer,
                v.against
            ));
        }
        out
    }

    /// Number of a sweep's configurations that improve on the unsteered model.
    fn points(&self) -> Option<String> {
        let table = &self.tables[0];
        let points: Vec<_> = table.rows.iter().filter(|r| matches!(r.kind, ConditionKind::Point { .. })).collect();
        let shown = points.iter().filter(|r| {
            r.against_unsteered
                .is_some_and(|c| c.p_holm.is_some_and(|p| p <= 0.05) && c.difference * table.measure.direction() > 0.0)
        });
        let n = shown.count();
        Some(format!(
            "{} configurations (layer, scale) were tried on {} {}; {} improve on the unsteered model after Holm's correction \
             for their number (5 %).",
            points.len(),
            self.manifest.items,
            self.items_word(),
            if n == 0 { "none of them".into() } else { format!("{n} of them") }
        ))
    }

    /// Warning where the best question-blind heuristic reaches the interval of the steered (or unsteered) model.
    fn against_surface(&self) -> Option<String> {
        let measure = self.tables[0].measure;
        if !measure.is_share() || measure.kind == Kind::Mc2 || measure.kind == Kind::Mc3 {
            return None;
        }
        let row = self.tables[0].row(STEERED).or(self.tables[0].row(UNSTEERED))?;
        let best = self.surface.iter().max_by(|a, b| a.value.total_cmp(&b.value))?;
        (best.value >= row.estimate.interval.lo).then(|| {
            format!(
                "Warning: a question-blind heuristic, \"{}\", is right on {:.1} % of these items; {} on {:.1} %.",
                best.name,
                100.0 * best.value,
                row.condition,
                100.0 * row.estimate.value
            )
        })
    }
}

/// The result of one comparison in a sentence or two.
fn verdict(v: &PairwiseResult, judge: &str, n: usize) -> String {
    let against = named(&v.against);
    let counts = format!("{} wins, {} losses, {} ties of {n}, sign test {}", v.wins, v.losses, v.ties, p_equals(v.p));
    let lean = format!(
        " With both orders averaged it leans to the steered answer {} times and to the other {} times, {}.",
        v.leans_to,
        v.leans_from,
        p_equals(v.lean_p)
    );
    let said = if v.p >= 0.05 {
        format!(
            "Head to head the difference between the steered answers and those under {against} is not significant at 5 %: \
             {counts} (judge: {judge})."
        )
    } else {
        let verb =
            if v.wins > v.losses { "prefers the steered answers to" } else { "likes the steered answers LESS than" };
        format!("Head to head the judge ({judge}) {verb} those under {against}: {counts}.")
    };
    said + &lean
}

/// A condition's name in a sentence.
fn named(condition: &str) -> String {
    format!("\"{condition}\"")
}

#[cfg(test)]
mod tests {
    use super::super::analyse;
    use super::super::tests::{bits, run_of};

    fn summary(conditions: &[(&str, &str, &[bool])]) -> String {
        analyse(&run_of(conditions)).unwrap().summary().join("\n")
    }

    #[test]
    fn the_summary_follows_the_intervals() {
        let u = bits(60, |i| i % 2 == 0);
        let same = summary(&[("unsteered", "unsteered", &u), ("steered", "steered", &u)]);
        assert!(
            same.contains("mc1 +0.0 points") && same.contains("n = 60 questions: not significant (95 % CI includes 0)"),
            "{same}"
        );
        // None of 60 changed: as many would have to, in one direction.
        assert!(same.contains("Minimum detectable effect at 80 % power and alpha 0.05: 12.6 points"), "{same}");
        let three = bits(3, |i| i == 0);
        let few = summary(&[("unsteered", "unsteered", &three), ("steered", "steered", &three)]);
        assert!(few.contains("3 questions are too few") && !few.contains("inf"), "{few}");
        let mut run = run_of(&[("unsteered", "unsteered", &u), ("steered", "steered", &u)]);
        run.manifest.protocol = "mc2".into();
        for record in run.records.iter_mut().flatten() {
            record.answers.iter_mut().for_each(|a| a.label = a.mc1.take());
        }
        let mean = analyse(&run).unwrap().summary().join("\n");
        assert!(mean.contains("The vector changed none of the 60 questions"), "{mean}");
        let mut run = run_of(&[("unsteered", "unsteered", &u), ("steered", "steered", &u)]);
        for (part, said) in [("train", true), ("test", false)] {
            run.manifest.selection = serde_json::json!({ "part": part });
            let said_now = analyse(&run).unwrap().summary().join("\n").contains("may have been trained on them");
            assert_eq!(said_now, said, "{part}");
        }
        let up = bits(60, |i| i % 2 == 0 || i < 30);
        let better =
            summary(&[("unsteered", "unsteered", &u), ("steered", "steered", &up), ("system prompt", "system", &u)]);
        assert!(better.contains("The vector raises mc1: +25.0 points"), "{better}");
        assert!(better.contains("The vector does better than \"system prompt\""), "{better}");
        let worse =
            summary(&[("unsteered", "unsteered", &up), ("steered", "steered", &u), ("random vector", "random", &u)]);
        assert!(worse.contains("lowers mc1") && worse.contains("The vector against \"random vector\": +0.0 points"));
        // The true answer is always the shorter one in these items.
        assert!(same.contains("\"always the shortest\", is right on 100.0 %"), "{same}");
    }

    #[test]
    fn many_settings_are_corrected_for() {
        // A difference that is significant by itself (6 gained, p = 0.03) and not among three.
        let u = bits(60, |i| i % 2 == 0);
        let up = bits(60, |i| i % 2 == 0 || i < 12);
        let alone = summary(&[("unsteered", "unsteered", &u), ("steered", "steered", &up)]);
        assert!(!alone.contains("Holm"), "{alone}");
        let among = summary(&[
            ("unsteered", "unsteered", &u),
            ("steered", "steered", &up),
            ("a", "random", &u),
            ("b", "random", &u),
        ]);
        assert!(among.contains("it is no longer significant at 5 %"), "{among}");
        let points = summary(&[
            ("unsteered", "unsteered", &u),
            ("L1 5%", "point", &up),
            ("L1 10%", "point", &u),
            ("L2 5%", "point", &u),
        ]);
        assert!(points.contains("3 configurations") && points.contains("none of them improve"), "{points}");
    }
}
