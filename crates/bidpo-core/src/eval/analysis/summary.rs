//! The results in sentences: first whether there is a difference at all, then whether anything simpler does the same.

use super::compare::difference_unit;
use super::families::in_family;
use super::{Analysis, Comparison, Gain, MIN_ITEMS, RandomVectors, Row};
use crate::eval::conditions::{STEERED, UNSTEERED};
use crate::eval::items::Protocol;
use crate::eval::measures::{Kind, Measure};
use crate::eval::results::{ConditionKind, VectorFacts};
use crate::layers::Layers;
use crate::stats::Interval;
use crate::text::numbers::{p_equals, percent, significant};

/// A difference with its interval: `+2.0 points [-1.9, +5.8]`.
pub(crate) fn difference(measure: Measure, c: &Comparison) -> String {
    let unit = difference_unit(measure);
    let Interval { lo, hi } = c.interval;
    if measure.kind == Kind::Words {
        format!("{:+.1} {unit} [{lo:+.1}, {hi:+.1}]", c.difference)
    } else if measure.is_share() {
        format!("{:+.1} {unit} [{:+.1}, {:+.1}]", 100.0 * c.difference, 100.0 * lo, 100.0 * hi)
    } else {
        format!("{:+.4} {unit} [{lo:+.4}, {hi:+.4}]", c.difference)
    }
}

/// The smallest difference that is not printed as 0.
fn smallest_shown(measure: Measure) -> f64 {
    match measure.kind {
        Kind::Words => 0.05,
        _ if measure.is_share() => 0.0005,
        _ => 0.00005,
    }
}

/// A size of a difference, without sign.
fn size(measure: Measure, x: f64) -> String {
    if measure.is_share() { format!("{:.1} points", 100.0 * x) } else { format!("{x:.4} {}", difference_unit(measure)) }
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

    /// The summary, one or two sentences an entry: estimate, interval, n, verdict, power; then comparisons and warnings. It
    /// asserts what [`Analysis::claims`] lists, and no more.
    pub fn summary(&self) -> Vec<String> {
        if self.protocol == Protocol::Judge {
            return self.judged();
        }
        let table = &self.tables[0];
        let (n, items) = (self.manifest.items, self.items_word());
        let mut out = Vec::new();
        let Some(steered) = table.row(STEERED) else {
            if table.rows.iter().any(|r| r.kind.is_point()) {
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
        out.push(self.effect(c));
        out.extend(self.floor());
        if let ConditionKind::Steered { chosen_on: Some(chosen), layers, vectors } = &steered.kind {
            out.push(format!(
                "The configuration ({}) was chosen among {} on {} other {items} and measured once on these.",
                configuration(layers.as_ref(), vectors),
                chosen.settings,
                chosen.items
            ));
        }
        if self.manifest.selection.get("part").is_some_and(|p| p == "train") {
            out.push(format!(
                "These {items} are the training part of the split: the vector may have been trained on them, and then the \
                 results do not carry over to others."
            ));
        }
        out.extend(self.truth_or_style(c));
        out.extend(self.randoms.as_ref().and_then(|r| self.rank(r)));
        out.extend(table.rows.iter().filter(|r| in_family(r)).filter_map(|r| self.against(r)));
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

    /// The primary comparison: estimate, interval, n, verdict, power.
    fn effect(&self, c: &Comparison) -> String {
        let measure = self.tables[0].measure;
        let name = measure.name().replace('_', " ");
        let (n, items, d) = (self.manifest.items, self.items_word(), difference(measure, c));
        if c.is_too_small() {
            return format!(
                "{name} {d} with the vector, n = {n}: {n} {items} are too few for any claim (at least {MIN_ITEMS})."
            );
        }
        if c.gained + c.lost == 0 && !measure.is_binary() {
            // Means without any spread: nothing to estimate from what a true difference would have looked like.
            return format!(
                "The vector changed none of the {n} {items}: the minimum detectable effect cannot be estimated from that."
            );
        }
        if c.interval.is_degenerate() {
            return format!(
                "{name} {d} with the vector, n = {n} {items}: all {items} change alike, so the interval has no width and \
                 shows nothing about others."
            );
        }
        if c.is_significant() {
            let verb = if c.difference > 0.0 { "raises" } else { "lowers" };
            let least = smallest_shown(measure);
            if c.difference.abs() < least {
                let least = size(measure, 2.0 * least);
                return format!("The vector {verb} {name} by less than {least}, n = {n} {items} (95 % CI excludes 0).");
            }
            return format!("The vector {verb} {name}: {d}, n = {n} {items} (95 % CI excludes 0).");
        }
        let found = if c.detectable.is_finite() {
            let could = size(measure, c.detectable);
            format!("Minimum detectable effect at 80 % power and alpha 0.05: {could}; a smaller difference may exist.")
        } else {
            format!("{n} {items} are too few to detect any difference with 80 % power.")
        };
        format!("{name} {d} with the vector, n = {n} {items}: not significant (95 % CI includes 0). {found}")
    }

    /// Names a floor or a ceiling, where a difference has no room on one side.
    fn floor(&self) -> Option<String> {
        let table = &self.tables[0];
        let count = |name: &str| table.row(name).and_then(|r| r.estimate.count);
        let (n, unsteered, steered) = (self.manifest.items, count(UNSTEERED)?, count(STEERED)?);
        let at = if unsteered == 0 {
            "0"
        } else if unsteered == n {
            "100"
        } else {
            return None;
        };
        let both = if steered == unsteered { "Both models are" } else { "The unsteered model is" };
        let side = if unsteered == 0 { "a fall" } else { "a rise" };
        Some(format!("{both} at {at} %: these {} cannot show {side}, whatever their number.", self.items_word()))
    }

    /// The gain without the items' own questions, and on the items that no surface rule answers.
    fn truth_or_style(&self, primary: &Comparison) -> Option<String> {
        let measure = self.tables[0].measure;
        // There must be a gain to take apart.
        if !primary.is_significant() || primary.difference * measure.direction() <= 0.0 {
            return None;
        }
        let of = |g: &Gain| {
            let verdict = if g.needs_question(self) {
                "the gain depends on the question"
            } else {
                "that it depends on the question is not shown"
            };
            format!(
                "With \"{}\" the gain is {}; the own question's gain minus that is {}: {verdict}.",
                g.without,
                difference(measure, &g.gain),
                difference(measure, &g.lead)
            )
        };
        let mut out: Vec<String> = self.gains.iter().map(of).collect();
        if let Some((split, wrong)) = self.split.as_ref().and_then(|s| Some((s, s.rule_wrong.as_ref()?))) {
            let right = split.rule_right.as_ref().map_or_else(String::new, |right| {
                format!(" (on the other {}: {})", right.n, difference(measure, right))
            });
            out.push(format!(
                "On the {} {} that the best question-blind rule gets wrong the gain is {}{right}.",
                wrong.n,
                self.items_word(),
                difference(measure, wrong)
            ));
        }
        (!out.is_empty()).then(|| format!("Truth or style: {}", out.join(" ")))
    }

    /// The vector's rank among random vectors.
    fn rank(&self, r: &RandomVectors) -> Option<String> {
        let measure = self.tables[0].measure;
        let figure = |x: f64| if measure.is_share() { percent(x) } else { format!("{x:.4}") };
        let RandomVectors { n, lowest, highest, mean, below } = *r;
        Some(if n == 1 {
            format!(
                "One random vector of the same norm: {}. One draw does not show what other directions do; --random 10 \
                 gives their range.",
                figure(mean)
            )
        } else {
            let steered = figure(self.tables[0].row(STEERED)?.estimate.value);
            let of = if below == n { format!("above all {n} of {n}") } else { format!("above {below} of {n}") };
            format!(
                "Random vectors of the same norm ({n}): {} to {}, mean {}. The vector ({steered}) is {of}.",
                figure(lowest),
                figure(highest),
                figure(mean)
            )
        })
    }

    /// The steered model against another condition.
    fn against(&self, row: &Row) -> Option<String> {
        let c = row.steered_against.as_ref()?;
        let measure = self.tables[0].measure;
        let p = c.p_holm.map_or_else(String::new, |p| format!(", {} after Holm's correction", p_equals(p)));
        let (d, name) = (format!("{}{p}", difference(measure, c)), named(&row.condition));
        Some(if !self.is_shown(c) {
            format!("The vector against {name}: {d}: not significant.")
        } else if c.difference * measure.direction() > 0.0 {
            format!("The vector does better than {name} ({d}).")
        } else {
            format!("The vector does WORSE than {name} ({d}).")
        })
    }

    /// Number of a sweep's configurations that improve on the unsteered model, and that are worse.
    fn points(&self) -> Option<String> {
        let table = &self.tables[0];
        let of_adapter = table.rows.iter().any(|r| matches!(r.kind, ConditionKind::AdapterPoint { .. }));
        let points: Vec<&Comparison> =
            table.rows.iter().filter(|r| r.kind.is_point()).filter_map(|r| r.against_unsteered.as_ref()).collect();
        let shown = |sign: f64| {
            let of = |c: &&&Comparison| {
                c.is_significant()
                    && c.p_holm.is_some_and(|p| p < 0.05)
                    && c.difference * table.measure.direction() * sign > 0.0
            };
            match points.iter().filter(of).count() {
                0 => "none of them".to_owned(),
                n => format!("{n} of them"),
            }
        };
        // The smallest of the p values is tested at this level.
        let level = 0.05 / points.len().max(1) as f64;
        let needed = points.iter().map(|c| c.detectable_at(level)).fold(0.0, f64::max);
        let power = if needed.is_finite() && needed > 0.0 {
            format!(" Minimum detectable effect at 80 % power after that correction: {}.", size(table.measure, needed))
        } else {
            String::new()
        };
        Some(format!(
            "{} configurations ({}) were tried on {} {}; {} improve on the unsteered model after Holm's correction \
             for their number (5 %), {} are worse.{power}",
            points.len(),
            if of_adapter { "scales" } else { "layer, scale" },
            self.manifest.items,
            self.items_word(),
            shown(1.0),
            shown(-1.0)
        ))
    }

    /// Warning where the best question-blind heuristic beats chance and reaches the interval of the steered (or unsteered)
    /// model.
    fn against_surface(&self) -> Option<String> {
        let measure = self.tables[0].measure;
        if !measure.is_share() || measure.kind == Kind::Mc2 || measure.kind == Kind::Mc3 {
            return None;
        }
        let row = self.tables[0].row(STEERED).or(self.tables[0].row(UNSTEERED))?;
        let best = self.surface.best.as_ref()?;
        (best.beats_chance && best.value >= row.estimate.interval.lo).then(|| {
            format!(
                "Warning: a question-blind heuristic, \"{}\", chosen among {} on other items, is right on {} [{:.1}, {:.1}] of \
                 these items without model or question; {} on {}.",
                best.name,
                best.rules,
                percent(best.value),
                100.0 * best.interval.lo,
                100.0 * best.interval.hi,
                row.condition,
                percent(row.estimate.value)
            )
        })
    }
}

/// A condition's name in a sentence.
pub(super) fn named(condition: &str) -> String {
    format!("\"{condition}\"")
}

/// Layers and scales in words: `layer 15, scale 0.989, 15.0 % of the residual norm`.
fn configuration(layers: Option<&Layers>, vectors: &[VectorFacts]) -> String {
    let mut parts: Vec<String> = layers.map(|l| format!("layer {l}")).into_iter().collect();
    for v in vectors {
        parts.push(format!("scale {}", significant(v.scale)));
        parts.extend(v.percent_of_residual_norm.map(|p| format!("{p:.1} % of the residual norm")));
    }
    parts.join(", ")
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
        assert!(
            worse.contains("lowers mc1") && worse.contains("One random vector of the same norm: 50.0 %."),
            "{worse}"
        );
        assert!(!worse.contains("WORSE"), "{worse}");
        // The true answer is always the shorter one in these items.
        assert!(
            same.contains("\"always the shortest\", chosen among 23 on other items, is right on 100.0 %"),
            "{same}"
        );
    }

    #[test]
    fn the_primary_comparison_is_not_corrected_and_settings_are() {
        // Significant by itself (6 gained, p = 0.014), and among four settings not.
        let u = bits(60, |i| i % 2 == 0);
        let up = bits(60, |i| i % 2 == 0 || i < 12);
        let among = summary(&[
            ("unsteered", "unsteered", &u),
            ("steered", "steered", &up),
            ("a", "caa", &u),
            ("b", "system", &u),
            ("c", "shots", &u),
            ("d", "flipped", &u),
        ]);
        assert!(among.contains("The vector raises mc1") && !among.contains("no longer significant"), "{among}");
        // The same difference, four times in a family: p is multiplied.
        assert!(among.contains("p = 0.057 after Holm's correction: not significant"), "{among}");
        assert!(!among.contains("does better"), "{among}");
        let points = summary(&[
            ("unsteered", "unsteered", &u),
            ("L1 5%", "point", &up),
            ("L1 10%", "point", &u),
            ("L2 5%", "point", &u),
            ("L2 10%", "point", &u),
        ]);
        assert!(points.contains("4 configurations") && points.contains("none of them improve"), "{points}");
        assert!(points.contains("after that correction: "), "{points}");
    }

    #[test]
    fn what_cannot_be_shown_is_not_claimed() {
        let (none, all) = (bits(20, |_| false), bits(20, |_| true));
        let floor = summary(&[("unsteered", "unsteered", &none), ("steered", "steered", &none)]);
        assert!(floor.contains("Both models are at 0 %") && floor.contains("cannot show a fall"), "{floor}");
        let ceiling = summary(&[("unsteered", "unsteered", &all), ("steered", "steered", &none)]);
        assert!(ceiling.contains("The unsteered model is at 100 %") && ceiling.contains("lowers mc1"), "{ceiling}");
        let seven = summary(&[("unsteered", "unsteered", &none[..7]), ("steered", "steered", &all[..7])]);
        assert!(seven.contains("7 questions are too few for any claim") && !seven.contains("raises"), "{seven}");
        // A tiny difference that is the same everywhere has an interval without width.
        let mut run = run_of(&[("unsteered", "unsteered", &none), ("steered", "steered", &none)]);
        run.manifest.protocol = "prompts".into();
        for (c, records) in run.records.iter_mut().enumerate() {
            for record in records {
                let text = if c == 0 { "one two" } else { "one two three" };
                record.written = Some(crate::eval::results::Written { text: text.into(), n_tokens: 3, ended: true });
            }
        }
        let a = analyse(&run).unwrap();
        let words = a.tables.iter().find(|t| t.measure.name() == "words").unwrap();
        let c = words.row("steered").unwrap().against_unsteered.unwrap();
        assert!(c.difference == 1.0 && c.interval.is_degenerate() && !c.is_significant(), "{c:?}");
    }

    #[test]
    fn a_gain_without_the_question_is_style() {
        let u = bits(80, |i| i % 4 == 0);
        let up = bits(80, |i| i % 2 == 0);
        let of = |hidden: &[bool]| {
            summary(&[
                ("unsteered", "unsteered", &u),
                ("steered", "steered", &up),
                ("question hidden", "hidden", &u),
                ("question hidden, steered", "hidden-steered", hidden),
                ("random vector 1", "random", &u),
                ("random vector 2", "random", &up),
            ])
        };
        let truth = of(&u);
        assert!(truth.contains("With \"question hidden\" the gain is +0.0 points"), "{truth}");
        assert!(truth.contains(": the gain depends on the question."), "{truth}");
        assert!(truth.contains("The vector (50.0 %) is above 1 of 2"), "{truth}");
        let style = of(&up);
        assert!(style.contains("the own question's gain minus that is +0.0 points"), "{style}");
        assert!(style.contains("that it depends on the question is not shown"), "{style}");
        // The shortest answer is always the true one: the rule is wrong nowhere.
        assert!(!style.contains("gets wrong"), "{style}");
    }
}
