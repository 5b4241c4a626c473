//! Batches side by side: each on threads, and with memory for activations, of its own.
//!
//! ggml's threads meet after every node of a graph, and wait there by spinning: on a busy machine for long. Batches that are computed
//! side by side, on one thread each, do not wait for one another. The kernels give the same bits on any number of threads: nothing but
//! the time depends on how many batches run at once.

use super::applied::Applied;
use super::{Engine, EngineError};
use ggml_grad::graph::emit::Executor;
use std::panic::resume_unwind;

/// Bytes of a lane's stack: as much as a main thread's, on which the kernels run otherwise.
const STACK: usize = 8 << 20;

/// Part of a graph's time in which its threads wait for one another, per further thread: 16 threads were 6.8 to 7.8 times as fast as
/// one (docs/performance.md).
const WAITING: f64 = 0.09;

/// Executors beside the engine's own.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    others: Vec<Executor>,
    /// Tokens at once, at most, where it is more than one batch.
    most_tokens: usize,
}

impl Lanes {
    /// Bytes of activations that their largest runs so far needed.
    pub(super) fn activation_bytes(&self) -> usize {
        self.others.iter().map(Executor::activation_bytes).sum()
    }
}

/// How many of the first of some jobs have no more than `most` tokens in all; at least one.
fn fitting(sizes: &[usize], most: usize) -> usize {
    let sums = sizes.iter().scan(0, |sum: &mut usize, &size| {
        *sum = sum.saturating_add(size);
        Some(*sum)
    });
    sums.take_while(|sum| *sum <= most).count().max(1)
}

/// Threads of each of the jobs that run next: as many of the first ones, of sizes `sizes`, as are done at the highest rate.
fn round(sizes: &[usize], threads: usize) -> Vec<usize> {
    let all = (1..=sizes.len()).map(|n| shares(&sizes[..n], threads));
    let best = all.max_by(|a, b| a.1.total_cmp(&b.1));
    best.map(|(shares, _)| shares).unwrap_or_default()
}

/// Threads of jobs of such sizes that run side by side, each at least one, and the size that is done in a unit of time. Threads go
/// one by one to the job that would take longest.
fn shares(sizes: &[usize], threads: usize) -> (Vec<usize>, f64) {
    let mut shares = vec![1; sizes.len()];
    let slowest = |shares: &[usize]| {
        let times = sizes.iter().zip(shares).map(|(&size, &n)| size as f64 / speed(n)).enumerate();
        times.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default()
    };
    for _ in sizes.len()..threads {
        let next = slowest(&shares).0;
        shares[next] += 1;
    }
    let rate = sizes.iter().sum::<usize>() as f64 / slowest(&shares).1;
    (shares, rate)
}

/// How many times as fast as one thread `threads` are on one graph: they wait for one another after each node.
fn speed(threads: usize) -> f64 {
    let n = threads as f64;
    n / (1.0 + WAITING * (n - 1.0))
}

impl Engine {
    /// Lets batches of up to so many tokens in all be computed at once, as far as there are threads; each takes memory for its
    /// activations. One, if this is not called.
    pub fn set_tokens_at_once(&mut self, most_tokens: usize) {
        self.lanes.most_tokens = most_tokens;
    }

    /// Batches that may be computed at once, where they are small enough.
    pub fn batches_at_once(&self) -> usize {
        let threads = self.n_threads();
        // Devices take one graph at a time, and a profile is of graphs that have all threads.
        if self.is_on_devices() || self.exec.is_profiling() || self.lanes.most_tokens == 0 { 1 } else { threads }
    }

    fn n_threads(&self) -> usize {
        (self.context.n_threads() as usize).max(1)
    }

    /// Makes the inputs of each of `jobs`, of so many tokens, by `prepare`, and computes them by `work`, side by side. The results are in
    /// the order of the jobs. Ends with the first error.
    pub(super) fn side_by_side<J: Sync, P: Sync, T: Send>(
        &mut self,
        jobs: &[J],
        tokens: impl Fn(&J) -> usize,
        mut prepare: impl FnMut(&mut Self, &J) -> Result<P, EngineError>,
        work: impl Fn(Applied<'_>, &mut Executor, &J, &P) -> Result<T, EngineError> + Sync,
    ) -> Result<Vec<T>, EngineError> {
        let (threads, at_once, most) = (self.n_threads(), self.batches_at_once(), self.lanes.most_tokens);
        let sizes: Vec<usize> = jobs.iter().map(tokens).collect();
        let mut results = Vec::with_capacity(jobs.len());
        while results.len() < jobs.len() {
            let first = results.len();
            let next = &sizes[first..jobs.len().min(first + at_once)];
            let shares = round(&next[..fitting(next, most)], threads);
            self.set_lanes(&shares)?;
            // What is prepared takes memory too: no more than what is computed at once.
            let prepared = jobs[first..first + shares.len()].iter().map(|job| Ok((job, prepare(self, job)?)));
            let prepared = prepared.collect::<Result<Vec<_>, EngineError>>()?;
            results.extend(self.compute(&prepared, &work)?);
        }
        self.exec.set_threads(threads as u32)?;
        Ok(results)
    }

    /// Sees to it that there is an executor with each of these shares of the threads.
    fn set_lanes(&mut self, shares: &[usize]) -> Result<(), EngineError> {
        let mut shares = shares.iter().map(|&share| share as u32);
        self.exec.set_threads(shares.next().unwrap_or(1))?;
        for (i, share) in shares.enumerate() {
            match self.lanes.others.get_mut(i) {
                Some(other) => other.set_threads(share)?,
                None => self.lanes.others.push(Executor::new(share)?),
            }
            self.lanes.others[i].set_same(&self.exec);
        }
        Ok(())
    }

    /// Computes no more batches than there are lanes.
    fn compute<J: Sync, P: Sync, T: Send>(
        &mut self,
        prepared: &[(&J, P)],
        work: &(impl Fn(Applied<'_>, &mut Executor, &J, &P) -> Result<T, EngineError> + Sync),
    ) -> Result<Vec<T>, EngineError> {
        let (applied, exec, lanes) = self.parts();
        let Some((first, rest)) = prepared.split_first() else { return Ok(Vec::new()) };
        let lanes = &mut lanes.others[..rest.len()];
        let results: Result<Vec<_>, EngineError> = std::thread::scope(|scope| {
            let mut others = Vec::with_capacity(rest.len());
            for ((job, p), lane) in rest.iter().zip(lanes.iter_mut()) {
                let thread = std::thread::Builder::new().stack_size(STACK).name("batch".into());
                others.push(
                    thread.spawn_scoped(scope, move || work(applied, lane, job, p)).map_err(EngineError::Thread)?,
                );
            }
            let first = work(applied, exec, first.0, &first.1);
            let others = others.into_iter().map(|t| t.join().unwrap_or_else(|panic| resume_unwind(panic)));
            Ok(std::iter::once(first).chain(others).collect())
        });
        results?.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_use_all_threads() {
        assert_eq!(round(&[600, 600], 2), [1, 1]);
        assert_eq!(round(&[600], 2), [2]);
        assert_eq!(round(&[600, 590, 610], 16), [5, 5, 6]);
        assert_eq!(round(&[100, 100], 16), [8, 8]);
        assert_eq!(round(&[300, 100], 4), [3, 1]);
    }

    #[test]
    fn memory_bounds_a_round() {
        assert_eq!(fitting(&[400, 400, 400], 900), 2);
        assert_eq!(fitting(&[400, 400], usize::MAX), 2);
        assert_eq!(fitting(&[1000, 10], 900), 1);
    }

    #[test]
    fn unequal_jobs_run_in_turn_where_that_is_faster() {
        assert_eq!(round(&[600, 200], 2), [2]);
        assert_eq!(round(&[600, 10], 16), [16]);
        assert_eq!(round(&[640, 640, 640, 640], 4), [1, 1, 1, 1]);
        assert_eq!(round(&[640, 640, 640, 20], 4), [2, 2]);
        assert!(round(&[], 4).is_empty());
    }
}
