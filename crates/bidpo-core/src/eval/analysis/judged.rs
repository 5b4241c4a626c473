//! Results of a judge's comparisons in sentences. The match against the unsteered model is the primary one; the others are a
//! family with Holm's correction, tested as in [`super::families`].

use super::summary::named;
use super::{Analysis, FALLBACK};
use crate::eval::conditions::UNSTEERED;
use crate::eval::judging::PairwiseResult;
use crate::stats::holm;
use crate::text::numbers::p_equals;

impl Analysis {
    /// Results of a judge's comparisons.
    pub(super) fn judged(&self) -> Vec<String> {
        let judge = &self.manifest.model.file;
        let mut out: Vec<String> = self.judgements().iter().map(|j| verdict(j, judge, self.manifest.items)).collect();
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

    /// The matches, each with its p after correction.
    fn judgements(&self) -> Vec<Judgement<'_>> {
        let (primary, others): (Vec<_>, Vec<_>) = self.verdicts.iter().partition(|v| v.against == UNSTEERED);
        let shown = primary.iter().any(|v| v.p < 0.05);
        let adjusted = holm(&others.iter().map(|v| v.p).collect::<Vec<_>>());
        let alpha = if shown { 0.05 } else { FALLBACK };
        let first = primary.into_iter().map(|result| Judgement { result, significant: result.p < 0.05, p_holm: None });
        let rest = others.into_iter().zip(adjusted);
        let judged = |(result, p)| Judgement { result, significant: p < alpha, p_holm: Some(Corrected { p, alpha }) };
        first.chain(rest.map(judged)).collect()
    }
}

/// A match with its verdict.
struct Judgement<'a> {
    result: &'a PairwiseResult,
    significant: bool,
    p_holm: Option<Corrected>,
}

/// A p value after Holm's correction, and the level at which it is tested.
#[derive(Clone, Copy)]
struct Corrected {
    p: f64,
    alpha: f64,
}

impl Corrected {
    /// The level is said where it is not the usual one: the primary comparison shows nothing.
    fn described(self) -> String {
        let level = if self.alpha < 0.05 { format!(", tested at {:.0} %", 100.0 * self.alpha) } else { String::new() };
        format!(" (Holm {}{level})", p_equals(self.p))
    }
}

/// The result of one comparison in a sentence or two.
fn verdict(j: &Judgement<'_>, judge: &str, n: usize) -> String {
    let v = j.result;
    let against = named(&v.against);
    let counts = format!(
        "{} wins, {} losses, {} ties of {n}, sign test {}{}",
        v.wins,
        v.losses,
        v.ties,
        p_equals(v.p),
        j.p_holm.map_or_else(String::new, Corrected::described)
    );
    let lean = format!(
        " With both orders averaged it leans to the steered answer {} times and to the other {} times, {}.",
        v.leans_to,
        v.leans_from,
        p_equals(v.lean_p)
    );
    let said = if !j.significant {
        format!(
            "Head to head the difference between the steered answers and those under {against} is not significant: \
             {counts} (judge: {judge})."
        )
    } else {
        let verb =
            if v.wins > v.losses { "prefers the steered answers to" } else { "likes the steered answers LESS than" };
        format!("Head to head the judge ({judge}) {verb} those under {against}: {counts}.")
    };
    said + &lean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stricter_level_is_said() {
        assert_eq!(Corrected { p: 0.038, alpha: 0.05 }.described(), " (Holm p = 0.038)");
        assert_eq!(Corrected { p: 0.038, alpha: FALLBACK }.described(), " (Holm p = 0.038, tested at 1 %)");
    }
}
