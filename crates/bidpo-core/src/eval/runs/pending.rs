//! The one loop over items: batches of them into a sink, less those that an earlier run recorded.

use super::error::RunError;
use crate::eval::conditions::Condition;
use crate::eval::results::{Record, ResultsError};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// Takes the records of one batch; `Break` asks to stop.
pub type Sink<'a> = dyn FnMut(Vec<Record>) -> Result<ControlFlow<()>, ResultsError> + 'a;

/// The items of one condition that have no record yet, and the sink for their records.
pub struct Pending<'a> {
    done: &'a BTreeSet<usize>,
    sink: &'a mut Sink<'a>,
}

impl std::fmt::Debug for Pending<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("done", &self.done).finish_non_exhaustive()
    }
}

impl<'a> Pending<'a> {
    /// Everything but `done` is pending.
    pub fn new(done: &'a BTreeSet<usize>, sink: &'a mut Sink<'a>) -> Self {
        Self { done, sink }
    }

    /// The same items for `work`, with `map` between it and the sink.
    pub fn mapped<T>(self, map: &dyn Fn(Vec<Record>) -> Vec<Record>, work: impl FnOnce(Pending<'_>) -> T) -> T {
        let sink = self.sink;
        let mut mapped = |records| sink(map(records));
        work(Pending { done: self.done, sink: &mut mapped })
    }

    /// True if none of these items is pending.
    pub fn none_of<'i>(&self, items: impl IntoIterator<Item = &'i usize>) -> bool {
        items.into_iter().all(|i| self.done.contains(i))
    }

    /// Computes the batches of which an item is pending, and passes the records of its pending items to the sink.
    ///
    /// A batch is computed in full or not at all: which items share a decode decides the last bits of its sums, so a resumed
    /// run computes the same sums as one that was not interrupted. `compute` may return the records of an item with a
    /// later batch, if the item extends into that one.
    ///
    /// # Errors
    /// Those of `compute` and of the sink.
    pub fn for_each_batch<B>(
        &mut self,
        batches: impl IntoIterator<Item = B>,
        items: impl Fn(&B) -> Vec<usize>,
        mut compute: impl FnMut(B) -> Result<Vec<Record>, RunError>,
    ) -> Result<ControlFlow<()>, RunError> {
        for batch in batches {
            if self.none_of(&items(&batch)) {
                continue;
            }
            let mut records = compute(batch)?;
            records.retain(|r| !self.done.contains(&r.item));
            if (self.sink)(records)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Measures items under a condition.
pub trait Runner {
    /// Measures the pending items under `condition`. `Break` if the sink asked to stop.
    ///
    /// # Errors
    /// [`RunError`].
    fn run(&self, condition: &Condition, pending: Pending<'_>) -> Result<ControlFlow<()>, RunError>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::results::Answer;

    fn record(item: usize) -> Record {
        Record {
            item,
            index: item,
            condition: "c".into(),
            question: String::new(),
            category: None,
            answers: vec![Answer::new("a", true)],
            views: Vec::new(),
            text: None,
            written: None,
        }
    }

    #[test]
    fn batches_are_computed_in_full_and_recorded_once() {
        let done = BTreeSet::from([0, 2, 3]);
        let (mut computed, mut kept) = (Vec::new(), Vec::new());
        let mut sink = |records: Vec<Record>| {
            kept.extend(records.iter().map(|r| r.item));
            Ok(if kept.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        let batches = [vec![0, 1], vec![2, 3], vec![4], vec![5]];
        let end = Pending::new(&done, &mut sink)
            .for_each_batch(batches, Vec::clone, |batch| {
                computed.push(batch.clone());
                Ok(batch.into_iter().map(record).collect())
            })
            .unwrap();
        assert!(end.is_break());
        assert_eq!((computed, kept), (vec![vec![0, 1], vec![4]], vec![1, 4]));
    }
}
