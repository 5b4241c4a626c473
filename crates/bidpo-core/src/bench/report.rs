//! All figures of one model.

use super::{Line, Spread};
use crate::data::TokenizedPair;
use ggml_grad::graph::emit::Profile;
use ggml_grad::llama::Model;
use serde::Serialize;

/// Parts of a step's time, milliseconds, medians over the rounds. All but `compute` is serial.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Split {
    /// The whole step.
    pub wall: f64,
    /// Making the ggml graphs.
    pub build: f64,
    /// Memory for the graphs, inputs copied.
    pub upload: f64,
    /// ggml's computation, forward and backward.
    pub compute: f64,
    /// The same of a run that only goes forward.
    pub forward: f64,
    /// `compute` less `forward`.
    pub backward: f64,
    /// Results copied out.
    pub read: f64,
    /// Loss and optimizer.
    pub optimizer: f64,
    /// Share of the step outside ggml's computation.
    pub serial: f64,
    /// The computation of one more step, op by op, the longest first: those of at least a hundredth of it.
    pub ops: Vec<OpTime>,
}

/// Time of an op's nodes in a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpTime {
    /// ggml's name of the op, or that of a kernel of ours.
    pub op: String,
    /// Number of nodes.
    pub nodes: usize,
    /// Milliseconds of the first thread, with its wait for the others.
    pub millis: f64,
}

impl OpTime {
    /// From a profile.
    pub(super) fn all(profile: Profile) -> Vec<Self> {
        let total: f64 = profile.values().map(|(time, _)| time.as_secs_f64()).sum();
        let mut ops: Vec<Self> = profile
            .into_iter()
            .map(|(op, (time, nodes))| Self { op, nodes, millis: 1e3 * time.as_secs_f64() })
            .filter(|op| op.millis >= 10.0 * total)
            .collect();
        ops.sort_by(|a, b| b.millis.total_cmp(&a.millis));
        ops
    }

    /// As a list for people.
    pub fn words(ops: &[Self]) -> String {
        ops.iter().map(|op| format!("{} {:.0}", op.op, op.millis)).collect::<Vec<_>>().join(", ")
    }
}

/// A step with one thread and with more.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Threads {
    /// Threads of the second measurement.
    pub threads: u32,
    /// Milliseconds with one.
    pub one: Spread,
    /// Milliseconds with `threads`.
    pub all: Spread,
    /// `one` over `all`.
    pub speedup: f64,
    /// Milliseconds outside ggml's computation over milliseconds of the step, at one thread: Amdahl's serial fraction of
    /// what is ours.
    pub serial: f64,
    /// The serial fraction that explains the speed-up (Karp and Flatt 1990): what is serial inside ggml's graph, memory
    /// bandwidth and waiting included. None with one thread.
    pub karp_flatt: Option<f64>,
    /// Speed-up at 16 threads by Amdahl's law with `serial`.
    pub at_16: f64,
}

impl Threads {
    /// From the times of both, and the serial milliseconds at one thread.
    pub(super) fn new(threads: u32, one: Spread, all: Spread, serial_millis: f64) -> Self {
        let speedup = one.median / all.median;
        let serial = serial_millis / one.median;
        let p = f64::from(threads);
        Self {
            threads,
            one,
            all,
            speedup,
            serial,
            karp_flatt: (threads > 1).then(|| (1.0 / speedup - 1.0 / p) / (1.0 - 1.0 / p)),
            at_16: 1.0 / (serial + (1.0 - serial) / 16.0),
        }
    }
}

/// All figures of one model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    /// File name.
    pub model: String,
    /// In words.
    pub description: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Steered layer.
    pub layer: usize,
    /// Layers there are.
    pub n_layer: usize,
    /// Threads of both sides.
    pub threads_used: u32,
    /// Pairs in a step.
    pub n_pairs: usize,
    /// Their tokens, each prompt once.
    pub unique_tokens: usize,
    /// Their tokens as a trainer counts them that gives each answer a prompt of its own.
    pub tokens: usize,
    /// The figures.
    pub lines: Vec<Line>,
    /// Parts of a step's time.
    pub split: Option<Split>,
    /// Growth with the threads.
    pub threads: Option<Threads>,
}

impl ModelReport {
    pub(super) fn new(model: &Model, layer: usize, threads: u32, pairs: &[TokenizedPair]) -> Self {
        let unique: usize = pairs.iter().map(TokenizedPair::n_tokens).sum();
        Self {
            model: crate::check::file_name(model.path()),
            description: model.description(),
            bytes: std::fs::metadata(model.path()).map_or(0, |m| m.len()),
            layer,
            n_layer: model.n_layer(),
            threads_used: threads,
            n_pairs: pairs.len(),
            unique_tokens: unique,
            tokens: unique + pairs.iter().map(|p| p.prompt.len()).sum::<usize>(),
            lines: Vec::new(),
            split: None,
            threads: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Amdahl by hand: a tenth serial, so 10 takes 1 + 9 / 2 = 5.5 with two threads, and 1 / (0.1 + 0.9 / 16) = 6.4 times
    /// less with 16.
    #[test]
    fn amdahl() {
        let t = Threads::new(2, Spread::exactly(10.0), Spread::exactly(5.5), 1.0);
        assert!((t.serial - 0.1).abs() < 1e-12 && (t.karp_flatt.unwrap() - 0.1).abs() < 1e-12, "{t:?}");
        assert!((t.at_16 - 6.4).abs() < 1e-12, "{t:?}");
        assert_eq!(Threads::new(1, Spread::exactly(10.0), Spread::exactly(10.0), 1.0).karp_flatt, None);
    }
}
