//! Batches of pairs under an intervention: log-probabilities, and the gradient of a loss.

use super::applied::Applied;
use super::joined_batch::JoinedBatch;
use super::layout::Labels;
use super::traced::Steered;
use super::{BatchPlan, Engine, EngineError, PairLogp, Parameters, TracedPair};
use ggml_grad::graph::emit::{Executor, Label};
use std::ops::Range;

/// From a pair's margin, the change of `log p(chosen) - log p(rejected)` against its reference, to the derivative of the loss
/// with respect to it.
pub type LossDerivative<'a> = &'a (dyn Fn(f64) -> f64 + Sync);

/// Derivatives of a loss with respect to the log-probabilities of a pair's two responses.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ResponseSlopes {
    /// Of the chosen response.
    pub chosen: f64,
    /// Of the rejected response.
    pub rejected: f64,
}

/// From the number of a pair in a batch and its log-probabilities to the derivatives of its loss.
pub type ResponseDerivative<'a> = &'a (dyn Fn(usize, &PairLogp) -> ResponseSlopes + Sync);

/// The loss whose gradient a batch gives.
#[derive(Clone, Copy)]
pub enum BatchLoss<'a> {
    /// None: log-probabilities alone.
    Unweighed,
    /// One that follows from each pair's margin.
    OfMargins(LossDerivative<'a>),
    /// One with a derivative for each response.
    OfResponses(ResponseDerivative<'a>),
}

/// Pairs that are computed together, and under which parameters.
pub struct BatchRun<'a> {
    /// The pairs.
    pub members: Vec<&'a TracedPair>,
    /// Parameters of the intervention.
    pub at: Parameters<'a>,
    /// The loss.
    pub loss: BatchLoss<'a>,
}

/// Result of a batch.
#[derive(Debug, Clone, Default)]
pub struct BatchScore {
    /// Log-probabilities of each pair.
    pub logp: Vec<PairLogp>,
    /// Sum over the pairs of the gradient of their loss, `[n_params]`; empty when not asked for.
    pub grad: Vec<f64>,
}

/// Log-probabilities of a batch and, where a gradient was asked for, that at each hook point, `[n_rows, n_embd]`, lowest layer
/// first.
struct JoinedRun {
    logp: Vec<PairLogp>,
    hooks: Vec<Vec<f32>>,
}

impl Engine {
    /// Runs batches, side by side where there are threads and memory for it ([`Engine::set_tokens_at_once`]), each in one graph
    /// where its pairs can be joined.
    ///
    /// # Errors
    /// Any of [`EngineError`]; [`EngineError::Model`] for [`BatchLoss::OfResponses`] and a model on devices.
    pub fn run_batches(&mut self, runs: &[BatchRun<'_>]) -> Result<Vec<BatchScore>, EngineError> {
        if self.is_on_devices() && runs.iter().any(|run| matches!(run.loss, BatchLoss::OfResponses(_))) {
            return Err(EngineError::Model(format!(
                "{} lies on devices, where both responses of a pair have one coefficient: keep all layers on the CPU \
                 (--gpu-layers 0), or take --objective bidpo, dpo or ipo",
                self.model.path().display()
            )));
        }
        self.side_by_side(
            runs,
            |run| run.members.iter().map(|t| t.n_tokens()).sum(),
            |engine, run| engine.join_some(&run.members),
            |applied, exec, run, joined| applied.run_batch(exec, run, joined.as_ref()),
        )
    }

    /// Joins pairs, where there are several and they can be joined.
    pub(super) fn join_some(&mut self, members: &[&TracedPair]) -> Result<Option<JoinedBatch>, EngineError> {
        if members.len() > 1 { self.join(members) } else { Ok(None) }
    }

    /// Scores some pairs under parameters of the intervention, in one graph where they can be joined. With `derivative`, also
    /// their gradient.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub fn run_batch<'p>(
        &mut self,
        members: &[&TracedPair],
        at: impl Into<Parameters<'p>>,
        derivative: Option<LossDerivative<'_>>,
    ) -> Result<BatchScore, EngineError> {
        let loss = derivative.map_or(BatchLoss::Unweighed, BatchLoss::OfMargins);
        let run = BatchRun { members: members.to_vec(), at: at.into(), loss };
        Ok(self.run_batches(&[run])?.pop().unwrap_or_default())
    }

    /// Log-probabilities of traced pairs under parameters of the intervention, in the batches of the plan.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub fn score_all<'p>(
        &mut self,
        traced: &[TracedPair],
        at: impl Into<Parameters<'p>>,
        plan: BatchPlan,
    ) -> Result<Vec<PairLogp>, EngineError> {
        let at = at.into();
        let sizes: Vec<usize> = traced.iter().map(TracedPair::n_tokens).collect();
        let run =
            |group: Range<usize>| BatchRun { members: traced[group].iter().collect(), at, loss: BatchLoss::Unweighed };
        let runs: Vec<BatchRun<'_>> = plan.batches(&sizes).into_iter().map(run).collect();
        Ok(self.run_batches(&runs)?.into_iter().flat_map(|score| score.logp).collect())
    }
}

impl Applied<'_> {
    fn run_batch(
        &self,
        exec: &mut Executor,
        run: &BatchRun<'_>,
        joined: Option<&JoinedBatch>,
    ) -> Result<BatchScore, EngineError> {
        let (members, at) = (&run.members[..], run.at);
        match (joined, run.loss) {
            (Some(joined), BatchLoss::Unweighed) => self.run_joined(exec, joined, at, None),
            (Some(joined), BatchLoss::OfMargins(derivative)) => self.run_joined(exec, joined, at, Some(derivative)),
            (Some(joined), BatchLoss::OfResponses(derivative)) => {
                self.run_joined_by(exec, joined, members.len(), at, derivative)
            }
            (None, BatchLoss::Unweighed) => self.run_apart(exec, members, at, None),
            (None, BatchLoss::OfMargins(derivative)) => self.run_apart(exec, members, at, Some(derivative)),
            (None, BatchLoss::OfResponses(derivative)) => self.run_apart_by(exec, members, at, derivative),
        }
    }

    fn run_apart(
        &self,
        exec: &mut Executor,
        members: &[&TracedPair],
        at: Parameters<'_>,
        derivative: Option<LossDerivative<'_>>,
    ) -> Result<BatchScore, EngineError> {
        let mut sum = BatchScore { logp: Vec::new(), grad: vec![0.0; derivative.map_or(0, |_| self.n_params())] };
        for member in members {
            let scored = self.run(exec, (*member).as_ref(), at, derivative.is_some())?;
            if let Some(derivative) = derivative {
                for (policy, grad) in scored.logp.iter().zip(&scored.grads) {
                    let factor = derivative(policy.gap() - member.reference().gap());
                    sum.grad.iter_mut().zip(grad).for_each(|(sum, g)| *sum += factor * g);
                }
            }
            sum.logp.extend(scored.logp);
        }
        Ok(sum)
    }

    fn run_apart_by(
        &self,
        exec: &mut Executor,
        members: &[&TracedPair],
        at: Parameters<'_>,
        derivative: ResponseDerivative<'_>,
    ) -> Result<BatchScore, EngineError> {
        let mut sum = BatchScore { logp: Vec::new(), grad: vec![0.0; self.n_params()] };
        for (i, member) in members.iter().enumerate() {
            // The coefficients follow from the log-probabilities: the forward pass comes first, by itself.
            let logp = self.run(exec, (*member).as_ref(), at, false)?.logp;
            let slopes: Vec<ResponseSlopes> = logp.iter().map(|l| derivative(i, l)).collect();
            let graph = member.graph();
            let steered = self.steer(graph, at)?;
            let labels = graph.labels.labels.iter().zip(coefs(&graph.labels, &slopes));
            let labels: Vec<Label> = labels.map(|(l, coef)| Label { coef, ..*l }).collect();
            let mut bind = graph.bindings(&steered);
            bind.labels = &labels;
            let outcome = exec.run(&graph.downstream.graph, &bind, &[], &graph.downstream.grads)?;
            for grad in self.gradients(graph, at, &outcome.values, 1) {
                sum.grad.iter_mut().zip(&grad).for_each(|(sum, g)| *sum += g);
            }
            sum.logp.extend(logp);
        }
        Ok(sum)
    }

    fn run_joined(
        &self,
        exec: &mut Executor,
        joined: &JoinedBatch,
        at: Parameters<'_>,
        derivative: Option<LossDerivative<'_>>,
    ) -> Result<BatchScore, EngineError> {
        let steered = self.steer(joined.graph(), at)?;
        let ran = run_steered(exec, joined, &steered, derivative)?;
        let grad = match derivative {
            Some(_) => self.gradients(joined.graph(), at, &ran.hooks, 1).swap_remove(0),
            None => Vec::new(),
        };
        Ok(BatchScore { logp: ran.logp, grad })
    }

    /// Log-probabilities of a batch without an intervention.
    pub(super) fn unsteered_logps(
        &self,
        exec: &mut Executor,
        joined: &JoinedBatch,
    ) -> Result<Vec<PairLogp>, EngineError> {
        Ok(run_steered(exec, joined, &self.unsteered(joined.graph()), None)?.logp)
    }

    fn run_joined_by(
        &self,
        exec: &mut Executor,
        joined: &JoinedBatch,
        n: usize,
        at: Parameters<'_>,
        derivative: ResponseDerivative<'_>,
    ) -> Result<BatchScore, EngineError> {
        let graph = joined.graph();
        let steered = self.steer(graph, at)?;
        let owned = &graph.labels;
        let weigh = |log_probs: &[f64]| -> Vec<f32> {
            let logp = owned.sums(n, log_probs);
            let slopes: Vec<ResponseSlopes> = logp.iter().enumerate().map(|(i, l)| derivative(i, l)).collect();
            coefs(owned, &slopes)
        };
        let labels = open_labels(owned);
        let mut bind = graph.bindings(&steered);
        bind.labels = &labels;
        bind.weigh = Some(&weigh);
        let outcome = exec.run(&graph.downstream.graph, &bind, &[], &graph.downstream.grads)?;
        let grad = self.gradients(graph, at, &outcome.values, 1).swap_remove(0);
        Ok(BatchScore { logp: owned.sums(n, &outcome.log_probs), grad })
    }
}

fn run_steered(
    exec: &mut Executor,
    joined: &JoinedBatch,
    steered: &Steered,
    derivative: Option<LossDerivative<'_>>,
) -> Result<JoinedRun, EngineError> {
    let (graph, labels, references) = (joined.graph(), &joined.graph().labels, joined.references());
    let weigh = |log_probs: &[f64]| -> Vec<f32> {
        let logp = labels.sums(references.len(), log_probs);
        let margins = logp.into_iter().zip(references).map(|(l, r)| l.gap() - r.gap());
        let factors: Vec<f32> = margins.map(|margin| derivative.map_or(1.0, |d| d(margin)) as f32).collect();
        labels.owners.iter().zip(&labels.labels).map(|(owner, l)| l.coef * factors[owner.pair]).collect()
    };
    let (computed, read) = match derivative {
        Some(_) => (&[][..], &graph.downstream.grads[..]),
        None => (graph.computed(), &[][..]),
    };
    let mut bind = graph.bindings(steered);
    bind.weigh = Some(&weigh);
    let outcome = exec.run(&graph.downstream.graph, &bind, computed, read)?;
    Ok(JoinedRun { logp: labels.sums(references.len(), &outcome.log_probs), hooks: outcome.values })
}

/// Labels whose coefficients add up to 0 in no row: which rows have a gradient is decided before the coefficients are known.
fn open_labels(labels: &Labels) -> Vec<Label> {
    let coef = |chosen: bool| if chosen { 1.0 } else { -0.5 };
    labels.labels.iter().zip(&labels.owners).map(|(l, owner)| Label { coef: coef(owner.chosen), ..*l }).collect()
}

/// The coefficient of each label.
fn coefs(labels: &Labels, slopes: &[ResponseSlopes]) -> Vec<f32> {
    let of = |s: &ResponseSlopes, chosen: bool| if chosen { s.chosen } else { s.rejected };
    labels.owners.iter().map(|owner| of(&slopes[owner.pair], owner.chosen) as f32).collect()
}
