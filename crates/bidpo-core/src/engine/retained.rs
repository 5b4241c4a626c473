//! Texts on which an intervention should change nothing: the divergence from the unsteered model, with its gradient.
//!
//! The unsteered model's final hidden states are kept, `n_embd` numbers a token. The head makes their logits again beside those
//! of the steered model, so the divergence is exact over the vocabulary.

use super::joined_batch::Head;
use super::layout::Labels;
use super::traced::PairGraph;
use super::{BatchPlan, Engine, EngineError, Parameters, TracedPair};
use crate::data::TokenizedPair;
use crate::intervention::Stream;
use ggml_grad::graph::emit::Label;

/// A traced text with the final hidden states of the unsteered model: a pair without a rejected response. The divergence is
/// counted where tokens of the chosen response are predicted.
#[derive(Debug, Clone)]
pub struct RetainedText(TracedPair);

impl RetainedText {
    /// The text's tokens.
    pub fn tokens(&self) -> &TokenizedPair {
        self.0.tokens()
    }

    /// See [`TracedPair::stream`].
    pub fn stream(&self) -> Stream<'_> {
        self.0.stream()
    }

    /// Predictions that are compared.
    pub fn n_predictions(&self) -> usize {
        self.tokens().chosen.len()
    }

    /// Tokens that are computed.
    pub fn n_tokens(&self) -> usize {
        self.0.n_tokens()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

impl AsRef<TracedPair> for RetainedText {
    fn as_ref(&self) -> &TracedPair {
        &self.0
    }
}

/// Divergence of some texts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Divergence {
    /// For each text: KL(unsteered || steered) of the next-token distributions, nats, summed over its predictions.
    pub nats: Vec<f64>,
    /// The gradient of `coef` times their sum, `[n_params]`; empty when not asked for.
    pub grad: Vec<f64>,
}

impl Engine {
    /// Traces a text and keeps the unsteered model's final hidden states.
    ///
    /// # Errors
    /// [`EngineError::Model`] for a model on devices, or one whose logits are not made by one matmul; as [`Engine::trace`].
    pub fn trace_retained(&mut self, text: &TokenizedPair) -> Result<RetainedText, EngineError> {
        if self.is_on_devices() {
            return Err(EngineError::Model(format!(
                "{} lies on devices, where retained texts cannot be computed: keep all layers on the CPU (--gpu-layers 0)",
                self.model.path().display()
            )));
        }
        if !text.rejected.is_empty() {
            return Err(EngineError::Pair("a retained text has one response".into()));
        }
        let mut traced = self.trace(text)?;
        let steered = self.unsteered();
        let graph = traced.graph();
        let downstream = &graph.downstream;
        let hidden = downstream.graph.final_hidden(downstream.logits).ok_or_else(|| {
            EngineError::Model(format!(
                "the logits of {} are not made by one matmul with the LM head: retained texts cannot be used",
                self.model.path().display()
            ))
        })?;
        let outcome = self.exec.run(&downstream.graph, &graph.bindings(&steered), &[], &[hidden])?;
        let reference = outcome.values.into_iter().next().unwrap_or_default();
        let mut diverging = downstream.diverging(reference, &self.exec, self.attention)?;
        diverging.finish()?;
        traced.batch_mut().graph.downstream = diverging;
        Ok(RetainedText(traced))
    }

    /// As [`Engine::freeze_choices`], for a retained text.
    ///
    /// # Errors
    /// [`EngineError::Run`].
    pub fn freeze_retained<'p>(
        &mut self,
        text: &RetainedText,
        at: impl Into<Parameters<'p>>,
    ) -> Result<RetainedText, EngineError> {
        let mut frozen = text.clone();
        *frozen.0.batch_mut() = self.freeze_choices(text.0.as_ref(), at)?;
        Ok(frozen)
    }

    /// The divergence of some texts under parameters of the intervention, in one graph where they can be joined. With `coef`,
    /// also the gradient of `coef` times the sum.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub fn diverge<'p>(
        &mut self,
        texts: &[&RetainedText],
        at: impl Into<Parameters<'p>>,
        coef: Option<f64>,
    ) -> Result<Divergence, EngineError> {
        let at = at.into();
        let members: Vec<&TracedPair> = texts.iter().map(|t| &t.0).collect();
        let joined = if members.len() > 1 { self.join_under(&members, Head::Divergence)? } else { None };
        if let Some(joined) = joined {
            return self.diverge_in(joined.graph(), members.len(), at, coef);
        }
        let mut sum = Divergence { nats: Vec::new(), grad: vec![0.0; coef.map_or(0, |_| self.n_params())] };
        for member in members {
            let one = self.diverge_in(member.graph(), 1, at, coef)?;
            sum.nats.extend(one.nats);
            sum.grad.iter_mut().zip(&one.grad).for_each(|(sum, g)| *sum += g);
        }
        Ok(sum)
    }

    /// Divergence of texts, in the batches of the plan.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub fn diverge_all<'p>(
        &mut self,
        texts: &[RetainedText],
        at: impl Into<Parameters<'p>>,
        plan: BatchPlan,
    ) -> Result<Vec<f64>, EngineError> {
        let at = at.into();
        let sizes: Vec<usize> = texts.iter().map(RetainedText::n_tokens).collect();
        let mut nats = Vec::with_capacity(texts.len());
        for group in plan.batches(&sizes) {
            nats.extend(self.diverge(&texts[group].iter().collect::<Vec<_>>(), at, None)?.nats);
        }
        Ok(nats)
    }

    fn diverge_in(
        &mut self,
        graph: &PairGraph,
        n: usize,
        at: Parameters<'_>,
        coef: Option<f64>,
    ) -> Result<Divergence, EngineError> {
        let steered = self.steer(graph, at)?;
        // The head gives the gradient of minus the divergence.
        let weight = -coef.unwrap_or(0.0) as f32;
        let labels: Vec<Label> = graph.labels.labels.iter().map(|l| Label { coef: weight, ..*l }).collect();
        let mut bind = graph.bindings(&steered);
        bind.labels = &labels;
        let (computed, read) = match coef {
            Some(_) => (&[][..], &graph.downstream.grads[..]),
            None => (graph.computed(), &[][..]),
        };
        let outcome = self.exec.run(&graph.downstream.graph, &bind, computed, read)?;
        let grad = match coef {
            Some(_) => {
                let owners = 1 + graph.row_owner.iter().flatten().max().copied().unwrap_or(0);
                let each = self.gradients(graph, at, &outcome.values, owners);
                let mut sum = vec![0.0; self.n_params()];
                each.iter().for_each(|g| sum.iter_mut().zip(g).for_each(|(sum, g)| *sum += g));
                sum
            }
            None => Vec::new(),
        };
        Ok(Divergence { nats: by_text(&graph.labels, n, &outcome.divergences), grad })
    }
}

/// Sums over the predictions of each text.
fn by_text(labels: &Labels, n: usize, divergences: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; n];
    labels.owners.iter().zip(divergences).for_each(|(owner, d)| sums[owner.pair] += d);
    sums
}
