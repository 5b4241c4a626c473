//! Texts on which an intervention should change nothing: the divergence from the unsteered model, with its gradient.
//!
//! The unsteered model's final hidden states are kept, `n_embd` numbers a token. The head makes their logits again beside those
//! of the steered model, so the divergence is exact over the vocabulary.

use super::applied::Applied;
use super::joined_batch::{Head, JoinedBatch};
use super::layout::Labels;
use super::traced::PairGraph;
use super::{BatchPlan, Engine, EngineError, Parameters, TracedPair};
use crate::data::TokenizedPair;
use crate::intervention::Stream;
use ggml_grad::graph::emit::{Executor, Label};
use ggml_grad::graph::passes::lower::DivergenceScores;
use std::ops::Range;

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

/// Texts whose divergence is computed together.
pub struct DivergeRun<'a> {
    /// The texts.
    pub texts: Vec<&'a RetainedText>,
    /// Parameters of the intervention.
    pub at: Parameters<'a>,
    /// With a number: also the gradient of so many times the sum.
    pub coef: Option<f64>,
}

impl Engine {
    /// Traces a text and keeps the unsteered model's final hidden states.
    ///
    /// # Errors
    /// [`EngineError::Model`] for a model whose logits are not made by one matmul; as [`Engine::trace`].
    pub fn trace_retained(&mut self, text: &TokenizedPair) -> Result<RetainedText, EngineError> {
        if !text.rejected.is_empty() {
            return Err(EngineError::Pair("a retained text has one response".into()));
        }
        let mut traced = self.trace(text)?;
        let graph = traced.graph();
        let steered = self.applied().unsteered(graph);
        let downstream = &graph.downstream;
        let hidden = downstream.graph.final_hidden(downstream.logits).ok_or_else(|| {
            EngineError::Model(format!(
                "the logits of {} are not made by one matmul with the LM head: retained texts cannot be used",
                self.model.path().display()
            ))
        })?;
        let outcome = self.exec.run(&downstream.graph, &graph.bindings(&steered), &[], &[hidden])?;
        let reference = outcome.values.into_iter().next().unwrap_or_default();
        let diverging = downstream.diverging(reference, &self.exec, self.attention)?;
        // On devices the coefficients are a part of the graph: the head gives minus the divergence, and its gradient.
        let mut labels: Vec<Label> = graph.labels.labels.iter().map(|l| Label { coef: 1.0, ..*l }).collect();
        let mut placed = self.place(diverging, &mut labels)?;
        placed.downstream.finish()?;
        let graph = &mut traced.batch_mut().graph;
        (graph.downstream, graph.divergence, graph.gradient_scale) =
            (placed.downstream, placed.divergence, placed.gradient_scale);
        Ok(RetainedText(traced))
    }

    /// As [`Engine::freeze_choices`], for a retained text.
    ///
    /// # Errors
    /// [`EngineError::Trace`].
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
        let run = DivergeRun { texts: texts.to_vec(), at: at.into(), coef };
        Ok(self.diverge_batches(&[run])?.pop().unwrap_or_default())
    }

    /// As [`Engine::diverge`], for several batches, side by side as [`Engine::run_batches`] runs them.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub fn diverge_batches(&mut self, runs: &[DivergeRun<'_>]) -> Result<Vec<Divergence>, EngineError> {
        self.side_by_side(
            runs,
            |run| run.texts.iter().map(|t| t.n_tokens()).sum(),
            |engine, run| {
                let members: Vec<&TracedPair> = run.texts.iter().map(|t| &t.0).collect();
                if members.len() > 1 { engine.join_under(&members, Head::Divergence) } else { Ok(None) }
            },
            |applied, exec, run, joined| applied.diverge(exec, run, joined.as_ref()),
        )
    }

    /// Divergence of texts, in batches of the plan.
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
        let run = |group: Range<usize>| DivergeRun { texts: texts[group].iter().collect(), at, coef: None };
        let runs: Vec<DivergeRun<'_>> = plan.batches(&sizes).into_iter().map(run).collect();
        Ok(self.diverge_batches(&runs)?.into_iter().flat_map(|d| d.nats).collect())
    }
}

impl Applied<'_> {
    fn diverge(
        &self,
        exec: &mut Executor,
        run: &DivergeRun<'_>,
        joined: Option<&JoinedBatch>,
    ) -> Result<Divergence, EngineError> {
        let (at, coef) = (run.at, run.coef);
        if let Some(joined) = joined {
            return self.diverge_in(exec, joined.graph(), run.texts.len(), at, coef);
        }
        let mut sum = Divergence { nats: Vec::new(), grad: vec![0.0; coef.map_or(0, |_| self.n_params())] };
        for text in &run.texts {
            let one = self.diverge_in(exec, text.0.graph(), 1, at, coef)?;
            sum.nats.extend(one.nats);
            sum.grad.iter_mut().zip(&one.grad).for_each(|(sum, g)| *sum += g);
        }
        Ok(sum)
    }

    fn diverge_in(
        &self,
        exec: &mut Executor,
        graph: &PairGraph,
        n: usize,
        at: Parameters<'_>,
        coef: Option<f64>,
    ) -> Result<Divergence, EngineError> {
        let steered = self.steer(graph, at)?;
        // The head gives the gradient of minus the divergence: on a device with coefficient 1.
        let coef_of_labels = match graph.divergence {
            Some(_) => 1.0,
            None => -coef.unwrap_or(0.0),
        };
        let weight = coef_of_labels as f32 * graph.gradient_scale;
        let labels: Vec<Label> = graph.labels.labels.iter().map(|l| Label { coef: weight, ..*l }).collect();
        let mut bind = graph.bindings(&steered);
        bind.labels = &labels;
        let (computed, mut read) = match coef {
            Some(_) => (&[][..], graph.downstream.grads.clone()),
            None if graph.divergence.is_some() => (&[][..], Vec::new()),
            None => (std::slice::from_ref(&graph.downstream.head), Vec::new()),
        };
        let n_grads = read.len();
        read.extend(graph.divergence.iter().flat_map(DivergenceScores::values));
        let mut outcome = exec.run(&graph.downstream.graph, &bind, computed, &read)?;
        if let Some(scores) = &graph.divergence {
            let parts = outcome.values.split_off(n_grads);
            if let [mean, y, p, x, q] = &parts[..] {
                outcome.divergences = scores.divergences([mean, y, p, x, q]);
            }
        }
        let grad = match coef {
            Some(coef) => {
                let owners = 1 + graph.row_owner.iter().flatten().max().copied().unwrap_or(0);
                let each = self.gradients(graph, at, &outcome.values, owners);
                let mut sum = vec![0.0; self.n_params()];
                let factor = if graph.divergence.is_some() { -coef } else { 1.0 };
                each.iter().for_each(|g| sum.iter_mut().zip(g).for_each(|(sum, g)| *sum += factor * g));
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
