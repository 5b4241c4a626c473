//! One line of results: what was measured of one item under one condition. No judgement: whether it is right follows from
//! these numbers and the protocol's definition (`super::super::measure`).

use serde::{Deserialize, Serialize};

/// An answer that was scored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Answer {
    /// The answer.
    pub text: String,
    /// True or false among all answers; absent where the answer belongs to MC1 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<bool>,
    /// True or false in MC1, whose true answer is the best one; absent where the answer does not take part in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mc1: Option<bool>,
}

impl Answer {
    /// An answer with one label and no part in MC1.
    pub fn new(text: impl Into<String>, label: bool) -> Self {
        Self { text: text.into(), label: Some(label), mc1: None }
    }
}

/// The answers scored once, in one order of presentation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Permutation of the options that were shown: the answers (their indices in [`Record::answers`]) behind letters A, B, ... Absent where
    /// each answer was scored as a continuation of the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Vec<usize>>,
    /// For each of [`Record::answers`], the summed natural log-probability of its tokens (of its letter, where options
    /// were shown), nats.
    pub logprobs: Vec<f64>,
    /// For each of them, the number of those tokens.
    pub n_tokens: Vec<usize>,
}

/// What the gates of a condition did at the predictions of a text: the mean over its gates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct GateScore {
    /// Sum over the predictions of the opening; 0 where no gate acts.
    pub opening: f64,
    /// Predictions at which the opening is above one half.
    pub open: usize,
}

/// A stretch of running text, or the answer to a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TextScore {
    /// Tokens that were predicted.
    pub n_tokens: usize,
    /// Sum of their negative natural log-probabilities, nats.
    pub nll: f64,
    /// Sum over them of KL(unsteered || this condition) of the next-token distributions, nats; 0 for the unsteered model.
    pub kl: f64,
    /// Predictions whose most probable token is the unsteered model's.
    pub same_top: usize,
    /// What its gates did; absent for conditions without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateScore>,
}

/// An answer that the model wrote itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The answer, without blanks around it and without what ended it; may be empty.
    pub text: String,
    /// Its tokens.
    pub n_tokens: usize,
    /// The model ended it; false where the limit of tokens did.
    pub ended: bool,
}

/// Measurements of one item under one condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Place among the items of the run, from 0.
    pub item: usize,
    /// Place in the data file, from 0.
    pub index: usize,
    /// The condition's name in the manifest.
    pub condition: String,
    /// The question, or the beginning of the text.
    pub question: String,
    /// Its category, where the data gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// The answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Answer>,
    /// Their scores, once for each order of presentation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub views: Vec<View>,
    /// The scores of running text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextScore>,
    /// The answer that the model wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Written>,
}

/// More nats than any text has: squares and sums of such numbers are finite.
const MOST_NATS: f64 = 1e12;

impl Record {
    /// Of a text's scores alone, with no name and at place 0.
    pub(in crate::eval) fn of_text(text: TextScore) -> Self {
        Self {
            item: 0,
            index: 0,
            condition: String::new(),
            question: String::new(),
            category: None,
            answers: Vec::new(),
            views: Vec::new(),
            text: Some(text),
            written: None,
        }
    }

    /// Description of an invalid shape or number; `None` for a valid record.
    pub fn fault(&self) -> Option<String> {
        let numbers = self.views.iter().flat_map(|v| v.logprobs.iter().copied());
        let numbers = numbers.chain(self.text.iter().flat_map(|t| [t.nll, t.kl, t.gate.map_or(0.0, |g| g.opening)]));
        if let Some(x) = numbers.into_iter().find(|x| x.is_nan() || x.abs() > MOST_NATS) {
            return Some(format!("{x:e} is no measured number of nats: at most {MOST_NATS:e} is possible"));
        }
        for (v, view) in self.views.iter().enumerate() {
            let n = self.answers.len();
            if view.logprobs.len() != n || view.n_tokens.len() != n {
                return Some(format!(
                    "view {v} has {} scores and {} token counts for {n} answers",
                    view.logprobs.len(),
                    view.n_tokens.len()
                ));
            }
            if view.n_tokens.contains(&0) {
                return Some(format!("view {v} has an answer without tokens"));
            }
            if let Some(order) = &view.order {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                if sorted != (0..n).collect::<Vec<_>>() {
                    return Some(format!("view {v}: {order:?} is no order of {n} answers"));
                }
            }
        }
        match (&self.text, self.views.is_empty(), &self.written) {
            (Some(t), true, None) if t.n_tokens == 0 => Some("a text without tokens".into()),
            (Some(_), true, None) | (None, true, Some(_)) => None,
            (None, false, None) if self.answers.is_empty() => Some("no answers".into()),
            (None, false, None) => None,
            _ => Some("a record holds one of views of answers, a text, and a written answer".into()),
        }
    }
}
