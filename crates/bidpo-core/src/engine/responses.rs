//! Gradients of losses that weigh the two responses of a pair by themselves.

use super::joined_batch::JoinedBatch;
use super::layout::Labels;
use super::{BatchScore, Engine, EngineError, PairLogp, Parameters, TracedPair};
use ggml_grad::graph::emit::Label;

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

impl Engine {
    /// As [`Engine::run_batch`], for a loss with a derivative for each response.
    ///
    /// # Errors
    /// Any of [`EngineError`]; [`EngineError::Model`] for a model on devices.
    pub fn run_batch_by<'p>(
        &mut self,
        members: &[&TracedPair],
        at: impl Into<Parameters<'p>>,
        derivative: ResponseDerivative<'_>,
    ) -> Result<BatchScore, EngineError> {
        let at = at.into();
        if self.is_on_devices() {
            return Err(EngineError::Model(format!(
                "{} lies on devices, where both responses of a pair have one coefficient: keep all layers on the CPU \
                 (--gpu-layers 0), or take --objective bidpo, dpo or ipo",
                self.model.path().display()
            )));
        }
        let joined = if members.len() > 1 { self.join(members)? } else { None };
        if let Some(joined) = joined {
            return self.run_joined_by(&joined, members.len(), at, derivative);
        }
        let mut sum = BatchScore { logp: Vec::new(), grad: vec![0.0; self.n_params()] };
        for (i, member) in members.iter().enumerate() {
            // The coefficients follow from the log-probabilities: the forward pass comes first, by itself.
            let logp = self.run(*member, at, false)?.logp;
            let slopes: Vec<ResponseSlopes> = logp.iter().map(|l| derivative(i, l)).collect();
            let graph = member.graph();
            let steered = self.steer(graph, at)?;
            let labels = graph.labels.labels.iter().zip(coefs(&graph.labels, &slopes));
            let labels: Vec<Label> = labels.map(|(l, coef)| Label { coef, ..*l }).collect();
            let mut bind = graph.bindings(&steered);
            bind.labels = &labels;
            let outcome = self.exec.run(&graph.downstream.graph, &bind, &[], &graph.downstream.grads)?;
            for grad in self.gradients(graph, at, &outcome.values, 1) {
                sum.grad.iter_mut().zip(&grad).for_each(|(sum, g)| *sum += g);
            }
            sum.logp.extend(logp);
        }
        Ok(sum)
    }

    fn run_joined_by(
        &mut self,
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
        let outcome = self.exec.run(&graph.downstream.graph, &bind, &[], &graph.downstream.grads)?;
        let grad = self.gradients(graph, at, &outcome.values, 1).swap_remove(0);
        Ok(BatchScore { logp: owned.sums(n, &outcome.log_probs), grad })
    }
}
