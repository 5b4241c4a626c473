//! The vectors that the chosen configuration is compared with, at scales of their own: swept at the chosen layer on the validation
//! items, and brought to the price of the chosen configuration.

use super::session::{Sweep, Whole};
use crate::commands::measure::eval::text::Text;
use anyhow::Context as _;
use bidpo_core::eval::conditions::Condition;
use bidpo_core::eval::measures::Kind;
use bidpo_core::eval::prompt::Style;
use bidpo_core::eval::results::{ChoiceRule, ChosenOn, ConditionKind, EqualKl};
use bidpo_core::eval::sweep::{ChoiceError, Compared, Configuration, KL_TOLERANCE, Percents, choose, scale_of_kl};
use bidpo_core::eval::task::Task;

/// Interpolations of the scale of equal price, each with a measurement. The first one is within the tolerance unless the
/// curve is far from a power of the scale.
const INTERPOLATIONS: usize = 2;

/// The chosen configuration, and what other vectors are measured on.
pub struct Comparisons<'a> {
    /// The sweep.
    pub sweep: &'a Sweep<'a>,
    /// The median residual norm at the layer of the chosen configuration.
    pub norm: f64,
    /// The rule that chose the configuration.
    pub rule: ChoiceRule,
    /// KL of the chosen configuration on the text, nats a token.
    pub kl: f64,
    /// Prompts of the items.
    pub style: &'a Style,
    /// The validation items.
    pub on_valid: &'a Task,
    /// The text.
    pub text: &'a Text,
}

/// The conditions for the test items, and the validation results with all scales that were tried.
pub struct Found {
    /// Each vector at its own best scale and at the price of the chosen configuration, where it has them.
    pub conditions: Vec<Condition>,
    /// Results on the validation items.
    pub on_valid: Box<Whole>,
    /// Results on the text.
    pub on_text: Box<Whole>,
}

/// A vector, the scales that are tried for it, and its own best one.
struct Tried<'a> {
    vector: &'a Compared,
    points: Vec<Configuration>,
    best: Option<Configuration>,
}

impl Tried<'_> {
    /// The points whose divergence is needed: those of the best one's sign, and all under a budget.
    fn priced(&self, rule: ChoiceRule) -> Vec<Configuration> {
        let sign = self.best.as_ref().map_or(1.0, |b| b.scale().signum());
        let needed = |p: &&Configuration| rule != ChoiceRule::OneStandardError || p.scale().signum() == sign;
        self.points.iter().filter(needed).cloned().collect()
    }
}

/// A configuration, and what it costs.
#[derive(Clone)]
struct Priced {
    setting: Configuration,
    /// Nats a token.
    kl: f64,
}

/// KL of a configuration, nats a token.
fn kl_of(on_text: &Whole, setting: &Configuration) -> Option<f64> {
    let table = on_text.analysis.tables.iter().find(|t| t.measure.kind == Kind::Divergence)?;
    Some(table.row(&setting.name())?.estimate.value)
}

impl Comparisons<'_> {
    /// Sweeps `vectors` over the scales of the sweep; `None` if Ctrl-C ended their measurement.
    pub fn find(&self, vectors: &[Compared], scales: &Percents) -> anyhow::Result<Option<Found>> {
        let mut tried: Vec<Tried<'_>> = vectors
            .iter()
            .map(|vector| {
                let points = vector.scales(scales).into_iter().map(|p| self.at(vector, p)).collect();
                Tried { vector, points, best: None }
            })
            .collect();
        let all: Vec<Configuration> = tried.iter().flat_map(|t| t.points.clone()).collect();
        let Some(on_valid) = self.on_items(&all)? else { return Ok(None) };
        for t in &mut tried {
            self.add_earlier(t, &on_valid);
        }
        let by_score = self.rule == ChoiceRule::OneStandardError;
        if by_score {
            for t in &mut tried {
                // This rule reads no divergence: any table stands for it.
                let table = &on_valid.analysis.tables[0];
                t.best = Some(choose(&t.points, table, table, self.rule)?.clone());
            }
        }
        let priced: Vec<Configuration> = tried.iter().flat_map(|t| t.priced(self.rule)).collect();
        let Some(mut on_text) = self.on_text(&priced)? else { return Ok(None) };
        if !by_score {
            let kl = on_text.analysis.tables.iter().find(|t| t.measure.kind == Kind::Divergence);
            let kl = kl.context("internal: the results on text hold no KL")?;
            for t in &mut tried {
                match choose(&t.points, &on_valid.analysis.tables[0], kl, self.rule) {
                    Ok(best) => t.best = Some(best.clone()),
                    Err(e @ ChoiceError::OverBudget { .. }) => {
                        eprintln!("bidpo: {:?} has no best scale of its own: {e}", t.vector.name);
                    }
                    Err(e) => return Err(e.into()),
                }
            }
        }
        let Some(equal) = self.at_equal_price(&tried, &mut on_text)? else { return Ok(None) };
        let mut conditions = Vec::new();
        for (t, equal) in tried.iter().zip(equal) {
            let chosen_on = ChosenOn {
                part: "valid".into(),
                items: self.on_valid.benchmark.items.len(),
                settings: t.points.len(),
                rule: Some(self.rule),
                other: serde_json::Map::new(),
            };
            conditions.extend(t.best.as_ref().map(|best| t.vector.own_best(best, chosen_on)));
            match equal {
                Some(Priced { setting, kl }) if self.is_equal(kl) => {
                    conditions.push(t.vector.equal_kl(&setting, EqualKl { kl, target: self.kl }));
                }
                _ => eprintln!(
                    "bidpo: {:?} is not measured at equal KL: no scale near those of the sweep was found at which it has {:.4} \
                     nats a token; give other --scales",
                    t.vector.name, self.kl
                ),
            }
        }
        Ok(Some(Found { conditions, on_valid, on_text }))
    }

    /// For each vector the configuration that costs as much as the chosen one, with its KL; `None` if Ctrl-C ended the measurement.
    fn at_equal_price(
        &self,
        tried: &[Tried<'_>],
        on_text: &mut Box<Whole>,
    ) -> anyhow::Result<Option<Vec<Option<Priced>>>> {
        let mut curves: Vec<Vec<(f64, f64)>> = Vec::new();
        for t in tried {
            let sign = t.best.as_ref().map_or(1.0, |b| b.scale().signum());
            let of_sign = t.points.iter().filter(|p| p.scale().signum() == sign);
            curves.push(of_sign.filter_map(|p| Some((p.scale(), kl_of(on_text, p)?))).collect());
        }
        let mut found: Vec<Option<Priced>> = vec![None; tried.len()];
        for _ in 0..INTERPOLATIONS {
            let next = |i: usize| {
                let is_done = found[i].as_ref().is_some_and(|f| self.is_equal(f.kl));
                let scale = scale_of_kl(&curves[i], self.kl).filter(|_| !is_done)?;
                Some(self.at(tried[i].vector, scale))
            };
            let settings: Vec<Option<Configuration>> = (0..tried.len()).map(next).collect();
            let wanted: Vec<Configuration> = settings.iter().flatten().cloned().collect();
            if wanted.is_empty() {
                break;
            }
            match self.on_text(&wanted)? {
                Some(whole) => *on_text = whole,
                None => return Ok(None),
            }
            for (i, setting) in settings.into_iter().enumerate() {
                let Some(setting) = setting else { continue };
                let kl = kl_of(on_text, &setting).context("internal: a setting has no KL")?;
                curves[i].push((setting.scale(), kl));
                found[i] = Some(Priced { setting, kl });
            }
        }
        Ok(Some(found))
    }

    fn at(&self, vector: &Compared, percent: f64) -> Configuration {
        vector.at(percent, self.norm)
    }

    /// Adds the scales that an earlier run of the sweep tried for a vector: the choice is among all.
    fn add_earlier(&self, t: &mut Tried<'_>, on_valid: &Whole) {
        for c in &on_valid.analysis.manifest.conditions {
            let ConditionKind::Rescaled { of, percent, .. } = &c.kind else { continue };
            let point = self.at(t.vector, *percent);
            let is_new = *of == t.vector.name && !t.points.iter().any(|p| p.scale() == *percent);
            if is_new && point.name() == c.name && point.condition().manifest().control_sha256 == c.control_sha256 {
                t.points.push(point);
            }
        }
    }

    /// True for a divergence that counts as that of the chosen configuration.
    fn is_equal(&self, kl: f64) -> bool {
        (kl / self.kl - 1.0).abs() <= KL_TOLERANCE
    }

    fn on_items(&self, settings: &[Configuration]) -> anyhow::Result<Option<Box<Whole>>> {
        let conditions: Vec<Condition> = settings.iter().map(Configuration::condition).collect();
        Ok(self.sweep.task("valid.jsonl", self.on_valid, self.style, &conditions)?.whole())
    }

    fn on_text(&self, settings: &[Configuration]) -> anyhow::Result<Option<Box<Whole>>> {
        let conditions: Vec<Condition> = settings.iter().map(Configuration::condition).collect();
        Ok(self.sweep.text(self.text, &conditions)?.whole())
    }
}
