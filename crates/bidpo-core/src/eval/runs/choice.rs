//! Items whose answers are scored, under a condition.

use super::error::RunError;
use super::pending::{Pending, Runner};
use crate::eval::conditions::Condition;
use crate::eval::items::Benchmark;
use crate::eval::prompt::{Prompts, Style};
use crate::eval::results::{Record, Shard, View};
use crate::eval::scoring::{AnswerScore, ScoreError, Scorer, ScorerParams};
use crate::eval::scoring::{Plan, Request};
use ggml_grad::llama::Model;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Scores the answers of a benchmark's items.
#[derive(Debug)]
pub struct Measurement<'a> {
    /// The model.
    pub model: &'a Arc<Model>,
    /// The items.
    pub benchmark: &'a Benchmark,
    /// Their prompts.
    pub style: &'a Style,
    /// Subset of the items.
    pub shard: Shard,
    /// Sizes to compute with.
    pub params: ScorerParams,
}

impl Runner for Measurement<'_> {
    fn run(&self, condition: &Condition, mut pending: Pending<'_>) -> Result<ControlFlow<()>, RunError> {
        for group in 0..self.benchmark.groups.len() {
            if self.group(group, condition, &mut pending)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Measurement<'_> {
    /// Measures the items of one group. Break if the sink asked to stop.
    fn group(
        &self,
        group: usize,
        condition: &Condition,
        pending: &mut Pending<'_>,
    ) -> Result<ControlFlow<()>, RunError> {
        let items = &self.benchmark.items;
        let of_group: Vec<usize> = self.shard.items(items.len()).filter(|&i| items[i].group == group).collect();
        if pending.none_of(&of_group) {
            return Ok(ControlFlow::Continue(()));
        }
        let under = RunError::under(&condition.name);
        let (prompts, views) =
            self.style
                .prompts(self.model, self.benchmark, group, &of_group, &condition.overrides)
                .map_err(|source| RunError::Prompt { place: format!("condition {:?}", condition.name), source })?;
        let place = |request: usize| {
            let item = &items[views[request].0];
            format!("question {} ({:?})", item.index + 1, item.question)
        };
        let failed = |source: ScoreError| match source {
            ScoreError::Request { request, source } => RunError::Score { place: place(request), source: *source },
            source => under(source),
        };
        let (mut scorer, plan) = self.prepare(condition, &prompts, views.len()).map_err(failed)?;
        // Views of an item may lie in two packs: its record is complete with the last of them.
        let mut open: Vec<(usize, View)> = Vec::new();
        let of_pack = |&pack: &usize| views[plan.requests(pack)].iter().map(|v| v.0).collect();
        pending.for_each_batch(0..plan.n_packs(), of_pack, |pack| {
            let requests = plan.requests(pack);
            let scores = scorer.run_pack(&plan, pack).map_err(failed)?;
            for (request, scores) in requests.clone().zip(scores) {
                if scores.iter().any(|s| !s.logprob.is_finite()) {
                    return Err(RunError::NotFinite { place: place(request), condition: condition.name.clone() });
                }
                let (item, order) = &views[request];
                open.push((*item, view(order.as_ref(), &scores)));
            }
            let next = views.get(requests.end).map(|v| v.0);
            let ready = open.iter().take_while(|(i, _)| Some(*i) != next).count();
            let mut records: Vec<Record> = Vec::new();
            for (i, view) in open.drain(..ready) {
                match records.last_mut().filter(|r| r.item == i) {
                    Some(record) => record.views.push(view),
                    None => records.push(self.record(i, condition, view)),
                }
            }
            Ok(records)
        })
    }

    fn record(&self, i: usize, condition: &Condition, view: View) -> Record {
        let item = &self.benchmark.items[i];
        Record {
            item: i,
            index: item.index,
            condition: condition.name.clone(),
            question: item.question.clone(),
            category: item.category.clone(),
            answers: item.answers.clone(),
            views: vec![view],
            text: None,
            written: None,
        }
    }

    fn prepare(&self, condition: &Condition, prompts: &Prompts, n: usize) -> Result<(Scorer, Plan), ScoreError> {
        let mut params = self.params.clone();
        // Many few-shot examples: room for them and a batch beside them.
        params.max_cells = params.max_cells.max(prompts.n_prefix(self.model)? + 2 * params.n_batch);
        let mut scorer = Scorer::new(self.model, params, condition.control.clone())?;
        let plan = match prompts {
            Prompts::Text { prefix, requests } => {
                scorer.set_prefix(prefix)?;
                let answers: Vec<Vec<&str>> =
                    requests.iter().map(|(_, a)| a.iter().map(String::as_str).collect()).collect();
                let requests: Vec<Request<'_>> =
                    requests.iter().zip(&answers).map(|((prompt, _), answers)| Request { prompt, answers }).collect();
                scorer.plan(&requests)?
            }
            Prompts::Tokens { prefix, requests } => {
                scorer.set_prefix_tokens(prefix.clone());
                scorer.plan_tokens(requests)?
            }
        };
        debug_assert_eq!(plan.n_requests(), n);
        Ok((scorer, plan))
    }
}

/// Scores by answer: behind the letters, they are turned round to the answers' own order.
fn view(order: Option<&Vec<usize>>, scores: &[AnswerScore]) -> View {
    let mut logprobs: Vec<f64> = scores.iter().map(|s| s.logprob).collect();
    let mut n_tokens: Vec<usize> = scores.iter().map(|s| s.n_tokens).collect();
    if let Some(order) = order {
        for (&answer, score) in order.iter().zip(scores) {
            logprobs[answer] = score.logprob;
            n_tokens[answer] = score.n_tokens;
        }
    }
    View { order: order.cloned(), logprobs, n_tokens }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_go_back_to_their_answers() {
        let score = |logprob: f64| AnswerScore { logprob, n_tokens: 1 };
        // Shown as A = answer 2, B = answer 0, C = answer 1.
        let v = view(Some(&vec![2, 0, 1]), &[score(-1.0), score(-2.0), score(-3.0)]);
        assert_eq!(v.logprobs, [-2.0, -3.0, -1.0]);
        assert_eq!(view(None, &[score(-1.0), score(-2.0)]).logprobs, [-1.0, -2.0]);
    }
}
