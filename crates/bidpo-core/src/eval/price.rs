//! The price of a vector: how far it moves the model on text that has nothing to do with its training pairs.

use super::measures::{Kind, Measure};
use super::results::{DataFacts, Record, TextScore};
use super::runs::{TextScorer, Windows};
use super::scoring::ScoreError;
use crate::stats::{Interval, student_ratio};
use crate::steer::ControlVector;
use crate::text::numbers::{fixed, percent};
use ggml_grad::files::sha256_of_bytes;
use ggml_grad::llama::Model;
use serde::{Serialize, Serializer};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Neutral passages, about 98 words each: a recipe, a weather report, a letter, a code comment, ... Blank lines separate them.
const NEUTRAL: &str = include_str!("../../data/neutral.txt");

/// The built-in neutral passages.
pub fn neutral_passages() -> Vec<&'static str> {
    NEUTRAL.split("\n\n").map(str::trim).filter(|p| !p.is_empty()).collect()
}

/// The neutral passages, one window each.
///
/// # Errors
/// [`ScoreError::Input`] for a model whose context holds no two tokens.
pub fn neutral_windows(model: &Model) -> Result<Windows, ScoreError> {
    Windows::of_passages(model, &neutral_passages())
}

/// The neutral passages in a manifest's list of data files.
pub fn neutral_facts() -> DataFacts {
    DataFacts { file: "neutral passages (built in)".into(), sha256: sha256_of_bytes(NEUTRAL.as_bytes()) }
}

/// A value with its 95 % interval over passages; no interval where all passages have the same value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Its interval.
    pub interval: Option<Interval>,
}

impl Serialize for Estimate {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let (low, high) = (self.interval.map(|i| i.lo), self.interval.map(|i| i.hi));
        serde_json::json!({ "value": self.value, "low": low, "high": high }).serialize(to)
    }
}

impl Estimate {
    /// A ratio of sums over passages, by Student's t.
    fn ratio(items: &[(f64, f64)]) -> Self {
        let (x, n) = items.iter().fold((0.0, 0.0), |(x, n), i| (x + i.0, n + i.1));
        let estimate = student_ratio(items, 0.95).filter(|e| e.standard_error > 0.0);
        Self { value: x / n, interval: estimate.map(|e| e.interval) }
    }

    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self { value: f(self.value), interval: self.interval.map(|i| Interval { lo: f(i.lo), hi: f(i.hi) }) }
    }

    /// Value and interval, each written by `text`.
    fn words(self, text: impl Fn(f64) -> String) -> String {
        let interval = self.interval.map(|i| format!(" [{}, {}]", text(i.lo), text(i.hi)));
        text(self.value) + &interval.unwrap_or_default()
    }
}

/// The price of a vector at scale +1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Price {
    /// Passages whose predictions are finite under the vector: those that the values below are of.
    pub passages: usize,
    /// Passages whose predictions are not finite.
    pub not_finite: usize,
    /// Tokens predicted.
    pub tokens: usize,
    /// KL(unsteered || steered) of the next-token distributions, nats a token.
    pub kl_per_token: Estimate,
    /// Perplexity of the unsteered model.
    pub perplexity_unsteered: f64,
    /// Perplexity of the steered model.
    pub perplexity_steered: f64,
    /// Relative change of the perplexity: 0.02 for 2 % more.
    pub perplexity_change: Estimate,
    /// Fraction of the tokens whose most probable prediction is another one.
    pub changed_top_tokens: Estimate,
}

/// A price that cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    /// The model.
    #[error("measuring the vector on neutral text: {0}")]
    Score(#[from] ScoreError),
    /// The user interrupted.
    #[error("interrupted")]
    Interrupted,
}

impl Price {
    /// Measures `control` on the first `passages` neutral passages, each predicted by itself. Passages longer than the model's
    /// context are cut.
    ///
    /// # Errors
    /// [`PriceError`].
    pub fn measure(
        model: &Arc<Model>,
        control: &ControlVector,
        passages: usize,
        n_threads: u32,
        interrupt: &AtomicBool,
    ) -> Result<Self, PriceError> {
        Self::measure_against(model, None, control, passages, n_threads, interrupt)
    }

    /// As [`Price::measure`], against the model under `reference` in the place of the unsteered one.
    ///
    /// # Errors
    /// [`PriceError`].
    pub fn measure_against(
        model: &Arc<Model>,
        reference: Option<&ControlVector>,
        control: &ControlVector,
        passages: usize,
        n_threads: u32,
        interrupt: &AtomicBool,
    ) -> Result<Self, PriceError> {
        let windows = Self::windows(model, passages)?;
        let mut scorer = TextScorer::new(model, windows.longest(), n_threads, Some(control))?;
        if let Some(reference) = reference {
            scorer.refer_to(reference)?;
        }
        Self::measure_with(scorer, &windows, interrupt)
    }

    /// Measures another model of the same vocabulary against `model` under `control`, which takes the place of the unsteered one.
    ///
    /// # Errors
    /// [`PriceError`].
    pub fn between(
        model: &Arc<Model>,
        control: &ControlVector,
        other: &Arc<Model>,
        passages: usize,
        n_threads: u32,
        interrupt: &AtomicBool,
    ) -> Result<Self, PriceError> {
        let windows = Self::windows(model, passages)?;
        let scorer = TextScorer::between(model, control, other, windows.longest(), n_threads)?;
        Self::measure_with(scorer, &windows, interrupt)
    }

    fn windows(model: &Arc<Model>, passages: usize) -> Result<Windows, PriceError> {
        let neutral = neutral_passages();
        Ok(Windows::of_passages(model, &neutral[..passages.clamp(1, neutral.len())])?)
    }

    fn measure_with(mut scorer: TextScorer, windows: &Windows, interrupt: &AtomicBool) -> Result<Self, PriceError> {
        let mut scores = Vec::with_capacity(windows.len());
        for i in 0..windows.len() {
            if interrupt.load(Ordering::Relaxed) {
                return Err(PriceError::Interrupted);
            }
            let both = scorer.score(windows, i)?;
            scores.push([both.unsteered, both.steered.unwrap_or(both.unsteered)]);
        }
        Ok(Self::of(&scores))
    }

    /// From the records of the same windows of text under the unsteered model and under a vector; `None` for records of
    /// anything else.
    pub fn of_records(unsteered: &[Record], steered: &[Record]) -> Option<Self> {
        let both = unsteered.iter().zip(steered).map(|(u, s)| Some([u.text?, s.text?]));
        both.collect::<Option<Vec<_>>>().map(|scores| Self::of(&scores))
    }

    /// From the scores of each passage, unsteered and steered.
    fn of(scores: &[[TextScore; 2]]) -> Self {
        let finite: Vec<&[TextScore; 2]> =
            scores.iter().filter(|s| s[1].nll.is_finite() && s[1].kl.is_finite()).collect();
        let parts = |kind: Kind, side: usize| -> Vec<(f64, f64)> {
            let measure = Measure { kind, per_token: false };
            finite.iter().filter_map(|s| measure.parts(&Record::of_text(s[side])).ok()).collect()
        };
        let (before, after) = (parts(Kind::Perplexity, 0), parts(Kind::Perplexity, 1));
        let change: Vec<(f64, f64)> = before.iter().zip(&after).map(|(b, a)| (a.0 - b.0, a.1)).collect();
        let perplexity = |of: &[(f64, f64)]| Estimate::ratio(of).value.exp();
        Self {
            passages: finite.len(),
            not_finite: scores.len() - finite.len(),
            tokens: finite.iter().map(|s| s[1].n_tokens).sum(),
            kl_per_token: Estimate::ratio(&parts(Kind::Divergence, 1)),
            perplexity_unsteered: perplexity(&before),
            perplexity_steered: perplexity(&after),
            // exp is monotone: the ends of the interval of the mean difference of log-probabilities are carried over.
            perplexity_change: Estimate::ratio(&change).map(f64::exp_m1),
            changed_top_tokens: Estimate::ratio(&parts(Kind::SameTop, 1)).map(|x| 1.0 - x).ordered(),
        }
    }

    /// KL(unsteered || steered), nats a token, with its interval.
    pub fn kl_in_words(&self) -> String {
        self.kl_per_token.words(|x| if x.abs() < 0.01 { format!("{x:.4}") } else { fixed(x, 3) })
    }

    /// The price in one sentence, or two where the vector breaks the model.
    pub fn in_words(&self) -> String {
        self.in_words_of("scale +1", "neutral passages", " that have nothing to do with the pairs")
    }

    /// The same of a `setting` on `texts` (a plural), `about` them.
    pub fn in_words_of(&self, setting: &str, texts: &str, about: &str) -> String {
        let broken = match self.not_finite {
            0 => String::new(),
            n => format!(
                "On {n} of {} {texts} the predictions at {setting} are not finite: the vector breaks the model. ",
                n + self.passages
            ),
        };
        if self.passages == 0 {
            return broken.trim_end().to_owned();
        }
        let signed = |x: f64| if x < 1e3 { format!("{:+.1} %", 100.0 * x) } else { format!("{:+.1e} %", 100.0 * x) };
        format!(
            "{broken}Price at {setting}, on {} {texts} ({} tokens){about}: KL(unsteered || steered) {} nats a token, perplexity {}, and {} of the tokens have another most probable \
             prediction.",
            self.passages,
            self.tokens,
            self.kl_in_words(),
            self.perplexity_change.words(signed),
            self.changed_top_tokens.words(percent),
        )
    }
}

impl Estimate {
    /// With the ends of the interval in order, after a falling function.
    fn ordered(self) -> Self {
        let interval = self.interval.map(|i| Interval { lo: i.lo.min(i.hi), hi: i.lo.max(i.hi) });
        Self { interval, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_passages_are_alike_in_length() {
        let passages = neutral_passages();
        assert_eq!(passages.len(), 24);
        for p in &passages {
            let n = p.split_whitespace().count();
            assert!((80..=110).contains(&n), "{n} words: {p}");
            assert!(p.is_ascii() && !p.contains('\n'), "{p}");
        }
    }

    #[test]
    fn passages_that_are_alike_give_no_interval() {
        assert_eq!(Estimate::ratio(&[(1.0, 2.0), (2.0, 4.0)]), Estimate { value: 0.5, interval: None });
    }

    #[test]
    fn a_price_in_words() {
        let score = |nll: f64, kl: f64, same_top: usize| TextScore { n_tokens: 100, nll, kl, same_top, gate: None };
        let scores = [
            [score(300.0, 0.0, 100), score(310.0, 5.0, 90)],
            [score(280.0, 0.0, 100), score(282.0, 3.0, 94)],
            [score(290.0, 0.0, 100), score(f64::NAN, f64::NAN, 0)],
        ];
        let price = Price::of(&scores);
        assert_eq!((price.passages, price.not_finite, price.tokens), (2, 1, 200));
        assert!((price.kl_per_token.value - 0.04).abs() < 1e-12);
        assert!((price.perplexity_change.value - 0.06f64.exp_m1()).abs() < 1e-12);
        assert!((price.changed_top_tokens.value - 0.08).abs() < 1e-12);
        let i = price.changed_top_tokens.interval.unwrap();
        assert!(i.lo < 0.08 && 0.08 < i.hi);
        let said = price.in_words();
        assert!(
            said.starts_with("On 1 of 3 neutral passages") && said.contains("KL(unsteered || steered) 0.040 ["),
            "{said}"
        );
        assert!(said.contains("perplexity +6.2 % [") && said.contains("8.0 % ["), "{said}");
        assert!(!Price::of(&scores[2..]).in_words().contains("NaN"));
    }
}
