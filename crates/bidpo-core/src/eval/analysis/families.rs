//! Which comparisons are corrected together, and what may be claimed.
//!
//! There is one primary comparison, steered minus unsteered on the first measure, tested at 5 % without correction. All
//! others of the steered model (with other conditions, and the differences of gains) are one family with Holm's correction.
//! The family is tested at 5 % where the primary comparison is significant, and at 1 % where it is not. With P the event
//! that a true primary hypothesis is rejected, any false claim then needs P or a false rejection at 1 %: at most 5 + 1 %.
//! Where the primary hypothesis is false, false claims are those of Holm at 5 %. So at most 6 % of summaries hold a false
//! claim, whatever is true (a fallback procedure: Wiens 2003, Pharm. Stat. 2:211).

use super::style::Gain;
use super::{Analysis, Comparison, LEVEL, Row};
use crate::eval::conditions::STEERED;
use crate::eval::results::ConditionKind;
use crate::stats;

/// Level of the family where the primary comparison is not significant.
pub const FALLBACK: f64 = 0.01;

/// What the summary asserts.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// The vector raises the primary measure.
    Raises,
    /// The vector lowers it.
    Lowers,
    /// The steered model does better than another condition.
    BetterThan(String),
    /// The steered model does worse than another condition.
    WorseThan(String),
    /// The gain is larger under the item's own question than without it.
    NeedsQuestion(String),
}

/// True for a condition that the steered model is compared with in the family. Random vectors are judged by rank; without
/// its question an item is another task.
pub(super) fn in_family(row: &Row) -> bool {
    use ConditionKind as K;
    row.steered_against.is_some()
        && match &row.kind {
            K::Negated
            | K::OtherVector { .. }
            | K::MeanDifference { .. }
            | K::System { .. }
            | K::FewShot { .. }
            | K::Rescaled { .. }
            | K::Unknown(_) => true,
            K::Unsteered | K::Steered { .. } | K::Random { .. } | K::Match { .. } => false,
            K::Point { .. } | K::AdapterPoint { .. } => false,
            K::ChoicesOnly | K::ChoicesOnlySteered | K::Swapped { .. } | K::SwappedSteered { .. } => false,
        }
}

/// Sets `p_holm` of the family's comparisons, and of a sweep's configurations (a family of their own).
pub(super) fn correct(rows: &mut [Row], gains: &mut [Gain]) {
    let family = rows.iter_mut().filter(|r| in_family(r)).filter_map(|r| r.steered_against.as_mut());
    holm(family.chain(gains.iter_mut().map(|g| &mut g.lead)).collect());
    let points = rows.iter_mut().filter(|r| r.kind.is_point());
    holm(points.filter_map(|r| r.against_unsteered.as_mut()).collect());
}

fn holm(comparisons: Vec<&mut Comparison>) {
    let p: Vec<f64> = comparisons.iter().map(|c| c.p).collect();
    for (c, adjusted) in comparisons.into_iter().zip(stats::holm(&p)) {
        c.p_holm = Some(adjusted);
    }
}

impl Analysis {
    /// The primary comparison: steered minus unsteered on the first measure.
    pub fn primary(&self) -> Option<&Comparison> {
        self.tables[0].row(STEERED)?.against_unsteered.as_ref()
    }

    /// Level at which the family of other comparisons is tested.
    pub fn family_alpha(&self) -> f64 {
        if self.primary().is_some_and(Comparison::is_significant) { 1.0 - LEVEL } else { FALLBACK }
    }

    /// True if a comparison of the family is significant after correction.
    pub fn is_shown(&self, c: &Comparison) -> bool {
        c.is_significant() && c.p_holm.is_some_and(|p| p < self.family_alpha())
    }

    /// All that the summary of a run with a vector asserts about it.
    pub fn claims(&self) -> Vec<Claim> {
        let Some(primary) = self.primary() else { return Vec::new() };
        let table = &self.tables[0];
        let mut out = Vec::new();
        if primary.is_significant() {
            out.push(if primary.difference > 0.0 { Claim::Raises } else { Claim::Lowers });
        }
        for row in table.rows.iter().filter(|r| in_family(r)) {
            if let Some(c) = row.steered_against.filter(|c| self.is_shown(c)) {
                let better = c.difference * table.measure.direction() > 0.0;
                let name = row.condition.clone();
                out.push(if better { Claim::BetterThan(name) } else { Claim::WorseThan(name) });
            }
        }
        let gains = self.gains.iter().filter(|g| g.needs_question(self));
        out.extend(gains.map(|g| Claim::NeedsQuestion(g.without.clone())));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::analyse;
    use super::super::tests::{bits, run_of};
    use super::*;

    /// Of three comparisons with p of 0.046, 0.0027 and 1: Holm's factors are 2, 3 and 1, and the level depends on the
    /// primary comparison alone.
    #[test]
    fn the_family_is_tested_at_the_level_that_the_primary_comparison_allows() {
        let steered = bits(100, |i| i < 50);
        let (near, far) = (bits(100, |i| i < 46), bits(100, |i| i < 41));
        let of = |unsteered: &[bool]| {
            let run = run_of(&[
                ("unsteered", "unsteered", unsteered),
                ("steered", "steered", &steered),
                ("near", "caa", &near),
                ("far", "system", &far),
                ("same", "shots", &steered),
                ("random vector", "random", &bits(100, |_| false)),
            ]);
            analyse(&run).unwrap()
        };
        let a = of(&steered);
        let p = |a: &Analysis, name: &str| a.tables[0].row(name).unwrap().steered_against.unwrap();
        let (near_p, far_p) = (p(&a, "near"), p(&a, "far"));
        assert_eq!((near_p.p, far_p.p), (stats::mcnemar_score(4, 0), stats::mcnemar_score(9, 0)));
        assert_eq!((near_p.p_holm, far_p.p_holm), (Some(2.0 * near_p.p), Some(3.0 * far_p.p)));
        assert_eq!((p(&a, "same").p_holm, p(&a, "random vector").p_holm), (Some(1.0), None));
        assert_eq!((a.family_alpha(), a.claims()), (0.01, vec![Claim::BetterThan("far".into())]));
        let a = of(&bits(100, |i| i < 30));
        assert_eq!(a.claims(), [Claim::Raises, Claim::BetterThan("far".into())]);
        assert!((a.family_alpha() - 0.05).abs() < 1e-12);
        // Every claim stands in the summary, and nothing else.
        let words = a.summary().join(" ");
        assert_eq!((words.matches("raises").count(), words.matches("does better than").count()), (1, 1));
        assert_eq!(words.matches("WORSE").count(), 0);
    }
}
