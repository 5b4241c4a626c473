//! The sign of a file, by what becomes of preference pairs.

use super::{Problem, Verification, VerifyError};
use crate::eval::conditions::condition::flipped;
use crate::eval::{Scorer, ScorerParams, TokenRequest};
use crate::stats::{Interval, mean, student_mean};
use crate::steer::ControlVector;

/// Change of the log-probability difference (chosen minus rejected, nats a pair) under a file.
#[derive(Debug, Clone, PartialEq)]
pub struct SignChange {
    /// Half the change from scale -1 to scale +1, mean over the pairs.
    pub change: f64,
    /// Its 95 % interval by Student's t; `None` with one pair.
    pub interval: Option<Interval>,
    /// Pairs.
    pub n: usize,
    /// Pairs whose chosen answer gains.
    pub gained: usize,
}

impl SignChange {
    /// A sign that is clearly negative.
    pub(super) fn problem(&self) -> Option<Problem> {
        let clear = self.interval.as_ref().is_none_or(|i| i.hi < 0.0);
        (self.change < 0.0 && clear).then_some(Problem::SignReversed { change: self.change })
    }
}

/// Differences of the pairs under a steering.
fn differences(of: &Verification<'_>, control: ControlVector) -> Result<Vec<f64>, VerifyError> {
    let params = ScorerParams { n_threads: of.n_threads, ..ScorerParams::default() };
    let mut scorer = Scorer::new(of.model, params, Some(control))?;
    let request = |pair: &crate::train::NamedPair| TokenRequest {
        context: pair.tokens.prompt.clone(),
        answers: vec![pair.tokens.chosen.clone(), pair.tokens.rejected.clone()],
    };
    let plan = scorer.plan_tokens(&of.pairs.iter().map(request).collect::<Vec<_>>())?;
    let mut out = Vec::new();
    for pack in 0..plan.n_packs() {
        out.extend(scorer.run_pack(&plan, pack)?.iter().map(|s| s[0].logprob - s[1].logprob));
    }
    Ok(out)
}

pub(super) fn sign(of: &Verification<'_>, control: &ControlVector) -> Result<SignChange, VerifyError> {
    let (plus, minus) = (differences(of, control.clone())?, differences(of, flipped(control))?);
    let changes: Vec<f64> = plus.iter().zip(&minus).map(|(a, b)| (a - b) / 2.0).collect();
    let estimate = student_mean(&changes, 0.95);
    Ok(SignChange {
        change: mean(&changes),
        interval: estimate.map(|e| e.interval),
        n: changes.len(),
        gained: changes.iter().filter(|c| **c > 0.0).count(),
    })
}
