//! The part of a steering that llama.cpp's control vector cannot express: changes that differ from row to row.
//!
//! Where several act at one layer, each reads the stream as it arrives there, before any of them acts, and their changes add
//! up. A layer above sees the changed stream.

use super::ControlVector;
use crate::intervention::{Place, Pool, RowKind, Scope, ThoughtState, ThoughtTokens};
use ggml_grad::llama::{BatchRow, RowChange};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A change of rows at one layer, with its scale applied.
#[derive(Debug, Clone)]
pub struct Conditional {
    /// The name of its dial.
    pub name: String,
    /// The layer.
    pub layer: usize,
    /// The change.
    pub change: Change,
    /// Positions at which it acts.
    pub scope: Scope,
}

/// A change of a row.
#[derive(Debug, Clone)]
pub enum Change {
    /// The same vector for each row of the scope, `[n_embd]`.
    Constant(Vec<f32>),
    /// A change that depends on the row.
    Rows {
        /// The kind.
        rows: Arc<dyn RowKind>,
        /// Its parameters.
        theta: Vec<f64>,
        /// [`RowKind::prepared`] of them.
        prepared: Vec<f64>,
    },
}

impl Change {
    /// A change that depends on the row.
    pub fn rows(rows: Arc<dyn RowKind>, theta: Vec<f64>) -> Self {
        let prepared = rows.prepared(&theta);
        Self::Rows { rows, theta, prepared }
    }
}

impl PartialEq for Conditional {
    fn eq(&self, other: &Self) -> bool {
        let kinds = match (&self.change, &other.change) {
            (Change::Constant(a), Change::Constant(b)) => a == b,
            (Change::Rows { rows: a, theta: x, .. }, Change::Rows { rows: b, theta: y, .. }) => {
                format!("{a:?}") == format!("{b:?}") && x == y
            }
            _ => false,
        };
        kinds && (&self.name, self.layer, &self.scope) == (&other.name, other.layer, &other.scope)
    }
}

impl Conditional {
    /// The rows that decide.
    fn pool(&self) -> Pool {
        match &self.change {
            Change::Constant(_) => Pool::Each,
            Change::Rows { rows, .. } => rows.pool(),
        }
    }

    fn has_gate(&self) -> bool {
        matches!(&self.change, Change::Rows { rows, theta, .. } if rows.opening(theta, 0.0).is_some())
    }

    /// Opening of the gate of change `i` at a position.
    fn opening(&self, memory: &GateMemory, sequence: i32, i: usize, at: usize, n_prompt: usize) -> Option<f64> {
        let Change::Rows { rows, theta, .. } = &self.change else { return None };
        let in_thought = memory.in_thought(sequence, i, at).unwrap_or(false);
        let covered = self.scope.covers(Place { sequence: 0, at, n_prompt, in_thought });
        let score = memory.decision(sequence, i, self.pool(), at, n_prompt).filter(|_| covered)?;
        rows.opening(theta, score)
    }

    /// The change depends on where the prompt ends.
    pub fn depends_on_prompt(&self) -> bool {
        !self.scope.is_all() || self.pool() != Pool::Each
    }

    /// Bytes that identify it, for hashes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} ", self.layer, self.scope).into_bytes();
        match &self.change {
            Change::Constant(v) => bytes.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            Change::Rows { rows, theta, .. } => {
                bytes.extend(format!("{rows:?} ").into_bytes());
                bytes.extend(theta.iter().flat_map(|x| x.to_le_bytes()));
            }
        }
        bytes
    }

    /// The change times `factor`.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        let change = match &self.change {
            Change::Constant(v) => Change::Constant(v.iter().map(|&x| (f64::from(x) * factor) as f32).collect()),
            Change::Rows { rows, theta, .. } => Change::rows(Arc::clone(rows), rows.scaled(theta, factor)),
        };
        Self { change, ..self.clone() }
    }

    /// All parameters are finite, and no larger than `most`.
    pub(super) fn is_bounded(&self, most: f64) -> bool {
        match &self.change {
            Change::Constant(v) => crate::numbers::norm(v) <= most,
            Change::Rows { theta, .. } => crate::numbers::norm(theta) <= most,
        }
    }

    /// The constant vector that is nearest: with a fully open gate, at every position. `None` where there is none.
    pub fn constant(&self) -> Option<Vec<f64>> {
        match &self.change {
            Change::Constant(v) => Some(v.iter().map(|&x| f64::from(x)).collect()),
            Change::Rows { rows, theta, .. } => rows.constant(theta),
        }
    }

    /// A random change of the same kind and size.
    #[must_use]
    pub fn random(&self, n_embd: usize, seed: u64) -> Self {
        let change = match &self.change {
            Change::Constant(v) => Change::Constant(super::rotated(v, n_embd, seed)),
            Change::Rows { rows, theta, .. } => {
                let narrow: Vec<f32> = theta.iter().map(|&x| x as f32).collect();
                let turned = crate::intervention::random_of(&**rows, &narrow, seed);
                Change::rows(Arc::clone(rows), turned.into_iter().map(f64::from).collect())
            }
        };
        Self { change, ..self.clone() }
    }
}

/// What a steering keeps of positions: the scores that its gates gave, because a prompt decides for its answer, and whether a
/// thought goes on there.
#[derive(Debug, Clone, Default)]
pub struct GateMemory {
    /// For each sequence and each change of the steering: the score of each position.
    scores: HashMap<(i32, usize), Vec<f64>>,
    /// For each sequence and each change whose scope reads thoughts: the state behind each position.
    thoughts: HashMap<(i32, usize), Vec<ThoughtState>>,
}

impl GateMemory {
    fn set(&mut self, sequence: i32, change: usize, at: usize, score: f64) {
        let scores = self.scores.entry((sequence, change)).or_default();
        if scores.len() <= at {
            scores.resize(at + 1, f64::NAN);
        }
        scores[at] = score;
    }

    fn copy(&mut self, from: i32, to: i32) {
        let copied: Vec<_> =
            self.scores.iter().filter(|(k, _)| k.0 == from).map(|(k, v)| ((to, k.1), v.clone())).collect();
        self.scores.extend(copied);
        let copied: Vec<_> =
            self.thoughts.iter().filter(|(k, _)| k.0 == from).map(|(k, v)| ((to, k.1), v.clone())).collect();
        self.thoughts.extend(copied);
    }

    /// Follows the thoughts of the sequences of a row. Rows of a sequence come in order.
    fn follow(&mut self, change: usize, row: &BatchRow, thoughts: &ThoughtTokens) {
        for &sequence in &row.sequences {
            let states = self.thoughts.entry((sequence, change)).or_default();
            let before = match row.at.checked_sub(1) {
                None => Some(ThoughtState::default()),
                Some(before) => states.get(before).copied(),
            };
            // A row whose beginning is not known has no state: [`GateMemory::in_thought`].
            states.truncate(row.at);
            states.extend(before.map(|before| thoughts.step(before, row.token)));
        }
    }

    /// True if position `at` of a sequence lies in a thought; `None` where the tokens before it were not followed.
    fn in_thought(&self, sequence: i32, change: usize, at: usize) -> Option<bool> {
        Some(self.thoughts.get(&(sequence, change))?.get(at)?.is_inside())
    }

    /// The score that decides at a position; `None` where the prompt decides and the position is the prompt's.
    fn decision(&self, sequence: i32, change: usize, pool: Pool, at: usize, n_prompt: usize) -> Option<f64> {
        let scores = self.scores.get(&(sequence, change))?;
        match pool {
            Pool::Each => scores.get(at).copied(),
            _ if at + 1 < n_prompt => None,
            Pool::Last => scores.get(n_prompt.saturating_sub(1)).copied(),
            Pool::Mean => Some(scores.get(..n_prompt)?.iter().sum::<f64>() / n_prompt as f64),
        }
    }
}

/// Opening of a gate at the positions of a sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Openings {
    /// The name of its dial.
    pub name: String,
    /// For each position; `None` where nothing is changed.
    pub at: Vec<Option<f64>>,
}

/// Opening of a gate at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct Opening {
    /// The name of its dial.
    pub name: String,
    /// How far it is open; `None` where nothing is changed.
    pub open: Option<f64>,
}

impl ControlVector {
    /// Some change needs to know where the prompt ends.
    pub fn depends_on_prompt(&self) -> bool {
        self.conditional.iter().any(Conditional::depends_on_prompt)
    }

    /// True if the row at position `at` is changed in the same way whether the prompt has `n` or `m` tokens, in a thought and
    /// outside.
    pub fn treats_alike(&self, at: usize, n: usize, m: usize) -> bool {
        let covers =
            |c: &Conditional, n_prompt, in_thought| c.scope.covers(Place { sequence: 0, at, n_prompt, in_thought });
        self.conditional.iter().all(|c| {
            let held = c.pool() != Pool::Each && (at + 1 >= n || at + 1 >= m) && n != m;
            [false, true].into_iter().all(|inside| covers(c, n, inside) == covers(c, m, inside)) && !held
        })
    }

    /// Follows the thoughts in the rows of a decode that begins.
    pub(super) fn follow_thoughts<'r>(
        &self,
        rows: impl Iterator<Item = &'r BatchRow> + Clone,
        memory: &mut GateMemory,
    ) {
        for (i, c) in self.conditional.iter().enumerate() {
            if let Some(thoughts) = c.scope.thoughts() {
                rows.clone().for_each(|row| memory.follow(i, row, thoughts));
            }
        }
    }

    /// Openings of the gates at the first `n` positions of a sequence.
    pub fn openings(&self, memory: &GateMemory, sequence: i32, n_prompt: usize, n: usize) -> Vec<Openings> {
        let all = self.gates().map(|(i, c)| {
            let at = (0..n).map(|at| c.opening(memory, sequence, i, at, n_prompt));
            Openings { name: c.name.clone(), at: at.collect() }
        });
        all.collect()
    }

    /// Openings of the gates at position `at` of a sequence, in the order of the steering; empty without gates.
    pub fn openings_at(&self, memory: &GateMemory, sequence: i32, n_prompt: usize, at: usize) -> Vec<Opening> {
        let one = |(i, c): (usize, &Conditional)| Opening {
            name: c.name.clone(),
            open: c.opening(memory, sequence, i, at, n_prompt),
        };
        self.gates().map(one).collect()
    }

    /// The gates where nothing is changed.
    pub fn closed_gates(&self) -> Vec<Opening> {
        self.gates().map(|(_, c)| Opening { name: c.name.clone(), open: None }).collect()
    }

    /// The changes that have a gate, with their numbers.
    fn gates(&self) -> impl Iterator<Item = (usize, &Conditional)> {
        self.conditional.iter().enumerate().filter(|(_, c)| c.has_gate())
    }

    /// What is added to row `h` of layer `layer`, beside the constant part: added to `out` in f32, one change after the other.
    pub(super) fn change_row(
        &self,
        layer: usize,
        place: &BatchRow,
        h: &[f32],
        memory: &mut GateMemory,
        out: &mut [f32],
    ) -> Result<(), String> {
        for (i, c) in self.conditional.iter().enumerate().filter(|(_, c)| c.layer == layer) {
            let n_prompt = match place.n_prompt {
                Some(n) => n,
                None if c.depends_on_prompt() => {
                    return Err(format!(
                        "{} acts by prompt and answer, and here no prompt is told from an answer",
                        c.name
                    ));
                }
                None => 0,
            };
            let first = place.sequences.first().copied().unwrap_or(0);
            let in_thought = match c.scope.reads_thoughts() {
                true => memory.in_thought(first, i, place.at).ok_or_else(|| {
                    format!(
                        "{} acts by thoughts, and here nothing marks them: it needs a chat template that does",
                        c.name
                    )
                })?,
                false => false,
            };
            let covered = c.scope.covers(Place { sequence: 0, at: place.at, n_prompt, in_thought });
            match &c.change {
                Change::Constant(v) if covered => out.iter_mut().zip(v).for_each(|(x, v)| *x += v),
                Change::Constant(_) => {}
                Change::Rows { rows, theta, prepared } => {
                    let own = rows.score(theta, h);
                    for &sequence in &place.sequences {
                        memory.set(sequence, i, place.at, own);
                    }
                    let score = memory.decision(first, i, rows.pool(), place.at, n_prompt);
                    if let Some(score) = score.filter(|_| covered) {
                        let mut change = vec![0.0; h.len()];
                        rows.change(prepared, h, score, &mut change);
                        out.iter_mut().zip(change).for_each(|(x, d)| *x += d as f32);
                    }
                }
            }
        }
        Ok(())
    }
}

/// A steering in the decodes of one context.
#[derive(Debug)]
pub(super) struct Steer {
    pub control: ControlVector,
    pub memory: Arc<Mutex<GateMemory>>,
    pub n_embd: usize,
}

impl RowChange for Steer {
    fn layers(&self) -> Vec<usize> {
        let (c, n_embd) = (&self.control, self.n_embd);
        let mut layers: Vec<usize> = c.conditional.iter().map(|c| c.layer).collect();
        layers.extend((c.first..=c.last).filter(|&l| c.added(l, n_embd).iter().any(|&x| x != 0.0)));
        layers.sort_unstable();
        layers.dedup();
        layers
    }

    fn begins(&mut self, places: &[BatchRow]) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        self.control.follow_thoughts(places.iter(), &mut memory);
    }

    fn change(&mut self, layer: usize, places: &[BatchRow], rows: &mut [f32]) -> Result<(), String> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let n_embd = self.n_embd;
        for (row, place) in rows.chunks_exact_mut(n_embd).zip(places) {
            let h = row.to_vec();
            row.iter_mut().zip(self.control.added(layer, n_embd)).for_each(|(x, v)| *x += v);
            self.control.change_row(layer, place, &h, &mut memory, row)?;
        }
        Ok(())
    }

    fn copied(&mut self, from: i32, to: i32) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).copy(from, to);
    }
}
