//! Batches side by side: each on threads, and with memory for activations, of its own.
//!
//! ggml's threads meet after every node of a graph, and wait there by spinning: on a busy machine for long. Batches that are computed
//! side by side, on one thread each, do not wait for one another. All kernels but that of the fused LM head give the same bits on any
//! number of threads, so where no head is fused nothing but the time depends on how many run at once; elsewhere it is one.

use super::applied::Applied;
use super::{Engine, EngineError};
use ggml_grad::graph::emit::Executor;
use std::panic::resume_unwind;

/// Bytes of a lane's stack: as much as a main thread's, on which the kernels run otherwise.
const STACK: usize = 8 << 20;

/// Executors beside the engine's own.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    others: Vec<Executor>,
    /// Batches at once, at most; 0 counts as 1.
    most: usize,
}

impl Lanes {
    /// Bytes of activations that their largest runs so far needed.
    pub(super) fn activation_bytes(&self) -> usize {
        self.others.iter().map(Executor::activation_bytes).sum()
    }
}

/// Division of `jobs` into rounds of jobs that run at once: as many as there are threads, while there are that many. What is left
/// shares the threads. Each round: number of jobs, and of lanes.
fn rounds(jobs: usize, lanes: usize) -> Vec<(usize, usize)> {
    let full = jobs / lanes * lanes;
    [(full, lanes), (jobs - full, jobs - full)].into_iter().filter(|(jobs, _)| *jobs > 0).collect()
}

/// Threads of each of `lanes`, of `threads` in all.
fn shares(threads: usize, lanes: usize) -> impl Iterator<Item = u32> {
    (0..lanes).map(move |i| (threads / lanes + usize::from(i < threads % lanes)).max(1) as u32)
}

impl Engine {
    /// Lets up to `most` batches be computed at once, as far as there are threads; each takes memory for its activations. One, if this
    /// is not called.
    pub fn set_batches_at_once(&mut self, most: usize) {
        self.lanes.most = most;
    }

    /// Batches that are computed at once, at most.
    pub fn batches_at_once(&self) -> usize {
        let threads = self.n_threads();
        // Devices take one graph at a time, and a profile is of graphs that have all threads. Bits must not depend on free memory: those
        // of joined pairs, whose head is always fused, would.
        if self.is_on_devices() || self.exec.is_profiling() || self.exec.fuses_heads() {
            return 1;
        }
        self.lanes.most.clamp(1, threads)
    }

    fn n_threads(&self) -> usize {
        (self.context.n_threads() as usize).max(1)
    }

    /// Makes the inputs of each of `jobs` by `prepare`, and computes them by `work`, side by side. The results are in the order of the
    /// jobs. Ends with the first error.
    pub(super) fn side_by_side<J: Sync, P: Sync, T: Send>(
        &mut self,
        jobs: &[J],
        mut prepare: impl FnMut(&mut Self, &J) -> Result<P, EngineError>,
        work: impl Fn(Applied<'_>, &mut Executor, &J, &P) -> Result<T, EngineError> + Sync,
    ) -> Result<Vec<T>, EngineError> {
        let (threads, at_once) = (self.n_threads(), self.batches_at_once());
        let mut results = Vec::with_capacity(jobs.len());
        for (n_jobs, lanes) in rounds(jobs.len(), at_once) {
            self.set_lanes(threads, lanes)?;
            let of_round = &jobs[results.len()..results.len() + n_jobs];
            // What is prepared takes memory too: no more than the lanes take at once.
            for some in of_round.chunks(lanes) {
                let prepared = some.iter().map(|job| Ok((job, prepare(self, job)?)));
                let prepared = prepared.collect::<Result<Vec<_>, EngineError>>()?;
                results.extend(self.compute(&prepared, &work)?);
            }
        }
        self.exec.set_threads(threads as u32)?;
        Ok(results)
    }

    /// Sees to it that there are `lanes` executors with a share of `threads` each.
    fn set_lanes(&mut self, threads: usize, lanes: usize) -> Result<(), EngineError> {
        let mut shares = shares(threads, lanes);
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
        assert_eq!(rounds(2, 2), [(2, 2)]);
        assert_eq!(rounds(5, 2), [(4, 2), (1, 1)]);
        assert_eq!(rounds(3, 16), [(3, 3)]);
        assert_eq!(rounds(3, 1), [(3, 1)]);
        assert!(rounds(0, 4).is_empty());
        assert_eq!(shares(16, 3).collect::<Vec<_>>(), [6, 5, 5]);
        assert_eq!(shares(2, 1).collect::<Vec<_>>(), [2]);
        assert_eq!(shares(1, 2).collect::<Vec<_>>(), [1, 1]);
    }
}
