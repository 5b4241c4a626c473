//! Truth or style: how much of the vector's gain appears without the item's own question, and on which items it lies.

use super::compare::{compare, of_differences};
use super::surface::BestRule;
use super::{Analysis, Comparison, parts};
use crate::eval::conditions::{STEERED, UNSTEERED};
use crate::eval::measures::Measure;
use crate::eval::results::{ConditionKind, Record, Run};

/// The vector's effect with the question hidden, or with another item's question.
#[derive(Debug, Clone, PartialEq)]
pub struct Gain {
    /// Name of the condition without the vector: `question hidden`, `another item's question`.
    pub without: String,
    /// Steered minus unsteered under it.
    pub gain: Comparison,
    /// The gain under the item's own question minus this one, item by item.
    pub lead: Comparison,
}

impl Gain {
    /// True where the vector improves the model, and by more with the item's own question than without it.
    pub(super) fn needs_question(&self, a: &Analysis) -> bool {
        let direction = a.tables[0].measure.direction();
        a.primary().is_some_and(|p| p.is_significant() && p.difference * direction > 0.0)
            && self.lead.difference * direction > 0.0
            && a.is_shown(&self.lead)
    }
}

/// The vector's effect on the items whose true answer a question-blind rule picks, and on the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// The rule.
    pub rule: String,
    /// Steered minus unsteered on the items where the rule is right; absent where there is none.
    pub rule_right: Option<Comparison>,
    /// The same on the other items.
    pub rule_wrong: Option<Comparison>,
}

/// Gains without the item's own question, where both the unsteered and the steered model were measured so.
pub(super) fn gains(run: &Run, measure: Measure) -> Result<Vec<Gain>, String> {
    let find = |wanted: &dyn Fn(&ConditionKind) -> bool| run.manifest.conditions.iter().position(|c| wanted(&c.kind));
    let of = |name: &str| run.manifest.conditions.iter().position(|c| c.name == name);
    let (Some(unsteered), Some(steered)) = (of(UNSTEERED), of(STEERED)) else { return Ok(Vec::new()) };
    let hidden = find(&|k| *k == ConditionKind::ChoicesOnly).zip(find(&|k| *k == ConditionKind::ChoicesOnlySteered));
    let swapped = find(&|k| matches!(k, ConditionKind::Swapped { .. }))
        .zip(find(&|k| matches!(k, ConditionKind::SwappedSteered { .. })));
    let categories = categories(&run.records[unsteered]);
    let scores = |i: usize| parts(measure, &run.records[i]);
    let (first, second) = (scores(unsteered)?, scores(steered)?);
    let mut out = Vec::new();
    for (plain, with) in [hidden, swapped].into_iter().flatten() {
        let (a, b) = (scores(plain)?, scores(with)?);
        let lead: Vec<(f64, f64)> =
            (0..first.len()).map(|i| ((second[i].0 - first[i].0) - (b[i].0 - a[i].0), first[i].1)).collect();
        out.push(Gain {
            without: run.manifest.conditions[plain].name.clone(),
            gain: compare(measure, &a, &b, &categories),
            lead: of_differences(&lead, &categories),
        });
    }
    Ok(out)
}

/// The gain by whether the rule is right on an item.
pub(super) fn split(run: &Run, measure: Measure, best: &BestRule) -> Result<Option<Split>, String> {
    let (Some(unsteered), Some(steered)) = (run.under(UNSTEERED), run.under(STEERED)) else { return Ok(None) };
    let (first, second) = (parts(measure, unsteered)?, parts(measure, steered)?);
    let categories = categories(unsteered);
    let of = |right: bool| {
        let items: Vec<usize> = (0..first.len()).filter(|&i| best.right.get(i) == Some(&Some(right))).collect();
        let take = |x: &[(f64, f64)]| items.iter().map(|&i| x[i]).collect::<Vec<_>>();
        let groups: Vec<Option<&str>> = items.iter().map(|&i| categories[i]).collect();
        (!items.is_empty()).then(|| compare(measure, &take(&first), &take(&second), &groups))
    };
    Ok(Some(Split { rule: best.name.clone(), rule_right: of(true), rule_wrong: of(false) }))
}

fn categories(records: &[Record]) -> Vec<Option<&str>> {
    records.iter().map(|r| r.category.as_deref()).collect()
}
