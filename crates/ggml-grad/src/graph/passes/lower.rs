//! Lowers a graph for devices: ops that only bidpo's kernels compute, or that a device may lack, become ops that every
//! backend of ggml has.
//!
//! [`Op::MulMatT`] becomes an ordinary matmul with a transposed copy of the weight, the ops of gradients (`*Back`) become elementwise
//! arithmetic, and the head becomes a softmax whose label entries are written in place. Matrices of adapters and the rows that their
//! gradients are sums of are transposed in the graph.

use crate::graph::emit::{Data, Label};
use crate::graph::ir::{Elem, Graph, IrError, Node, Op, Unary, Value, WeightId};
use crate::llama::sys;
use std::collections::BTreeMap;

/// The parts of a graph to rewrite.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    /// For each weight: it lies on a device.
    pub on_device: &'a [bool],
    /// The head too: the logits lie on a device.
    pub head: bool,
    /// Labels of the head, by row.
    pub labels: &'a [Label],
    /// Data of the inputs.
    pub inputs: &'a [Data],
}

/// The rewritten graph.
#[derive(Debug)]
pub struct Lowered {
    /// It has all inputs and weights of the old one, then the new ones.
    pub graph: Graph,
    /// For each value of the old graph, its value in the new one.
    pub map: Vec<Value>,
    /// Data of the new inputs.
    pub inputs: Vec<Data>,
    /// The weights whose transposed copies the new weights are, in order.
    pub transposed: Vec<WeightId>,
    /// The values that the labels' log-probabilities follow from, where the head was rewritten.
    pub head: Option<LabelScores>,
    /// The values that the divergences follow from, where a head with a reference was rewritten.
    pub divergence: Option<DivergenceScores>,
}

/// Five small results from which each row's divergence from its reference follows. With p and y the reference's distribution and
/// logits, q and x the policy's: `KL(p || q) = sum_v p_v (y_v - x_v) - log Z_p + log Z_q`, and
/// `log Z = largest logit - log p(largest)`.
#[derive(Debug, Clone, PartialEq)]
pub struct DivergenceScores {
    /// `sum_v p_v (y_v - x_v)` of each row, `[1, n_rows]`.
    pub mean: Value,
    /// Largest logit and its probability, `[1, 1, n_rows]`: the reference's, then the policy's.
    pub largest: [(Value, Value); 2],
    /// The row of each label.
    rows: Vec<usize>,
}

impl DivergenceScores {
    /// The values, in the order of [`DivergenceScores::divergences`].
    pub fn values(&self) -> [Value; 5] {
        let [(y, p), (x, q)] = self.largest;
        [self.mean, y, p, x, q]
    }

    /// For each label, the divergence of its row.
    pub fn divergences(&self, [mean, y, p, x, q]: [&[f32]; 5]) -> Vec<f64> {
        let log_z = |largest: &[f32], of: &[f32], row: usize| f64::from(largest[row]) - f64::from(of[row]).ln();
        self.rows.iter().map(|&row| f64::from(mean[row]) - log_z(y, p, row) + log_z(x, q, row)).collect()
    }
}

/// Three small results from which the log-probabilities of labels follow:
/// `log p(label) = logit(label) - (largest logit - log p(largest))`.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelScores {
    /// Logits of the labels, each (row, token) once, `[1, n]`.
    pub logits: Value,
    /// Largest logit of each row, `[1, 1, n_rows]`.
    pub largest: Value,
    /// Its probability, `[1, 1, n_rows]`.
    pub p_largest: Value,
    /// For each label its place among the logits, and its row.
    places: Vec<(usize, usize)>,
}

impl LabelScores {
    /// log p of each label, from the three results.
    pub fn log_probs(&self, logits: &[f32], largest: &[f32], p_largest: &[f32]) -> Vec<f64> {
        let log_p = |&(place, row): &(usize, usize)| {
            f64::from(logits[place]) - (f64::from(largest[row]) - f64::from(p_largest[row]).ln())
        };
        self.places.iter().map(log_p).collect()
    }

    /// The three values, in the order of the arguments of [`LabelScores::log_probs`].
    pub fn values(&self) -> [Value; 3] {
        [self.logits, self.largest, self.p_largest]
    }
}

struct Lowering<'a> {
    plan: &'a Plan<'a>,
    graph: Graph,
    inputs: Vec<Data>,
    transposed: Vec<WeightId>,
    copies: BTreeMap<WeightId, Value>,
    head: Option<LabelScores>,
    divergence: Option<DivergenceScores>,
    zero: Option<Value>,
}

/// Rewrites a graph.
///
/// # Errors
/// [`IrError`]: a table of logits with more than 2^31 numbers.
pub fn lower(graph: &Graph, plan: &Plan<'_>) -> Result<Lowered, IrError> {
    let mut lowering = Lowering {
        plan,
        graph: Graph::beside(graph),
        inputs: Vec::new(),
        transposed: Vec::new(),
        copies: BTreeMap::new(),
        head: None,
        divergence: None,
        zero: None,
    };
    let mut map = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        let src: Vec<Value> = node.src.iter().map(|s: &Value| map[s.0 as usize]).collect();
        map.push(lowering.node(graph, node, src)?);
    }
    let Lowering { graph, inputs, transposed, head, divergence, .. } = lowering;
    Ok(Lowered { graph, map, inputs, transposed, head, divergence })
}

impl Lowering<'_> {
    fn node(&mut self, old: &Graph, node: &Node, src: Vec<Value>) -> Result<Value, IrError> {
        let weight = |v: Value| match old.node(v).op {
            Op::Weight(id) if self.plan.on_device[id.0 as usize] => Some(id),
            _ => None,
        };
        match node.op {
            Op::MulMatT if weight(node.src[0]).is_some() => {
                let copy = self.copy(old, node.src[0]);
                let product = self.graph.mul_mat(copy, src[1], 0)?;
                match src.get(2) {
                    Some(&sum) => self.graph.add(sum, product),
                    None => Ok(product),
                }
            }
            // The matrix is data of the run, and small.
            Op::MulMatT if old.is_given_matrix(node.src[0]) => {
                let transposed = self.graph.transposed(src[0])?;
                let product = self.graph.mul_mat(transposed, src[1], 0)?;
                match src.get(2) {
                    Some(&sum) => self.graph.add(sum, product),
                    None => Ok(product),
                }
            }
            // sum_m x[k, m] g[n, m]: the product of both with their rows side by side.
            Op::OuterSum if src.len() == 2 => {
                let mut side_by_side = |v: Value, width: usize| {
                    let n_rows = self.graph.ne(v)[1..].iter().product();
                    let flat = self.graph.reshape(v, [width, n_rows, 1, 1])?;
                    self.graph.transposed(flat)
                };
                let x = side_by_side(src[0], node.ne[0])?; // [m, k]
                let g = side_by_side(src[1], node.ne[1])?; // [m, n]
                self.graph.mul_mat(x, g, 0)
            }
            Op::MulMatIdT if weight(node.src[0]).is_some() => {
                let copy = self.copy(old, node.src[0]);
                self.graph.mul_mat_id(copy, src[1], src[2], [0; 16])
            }
            Op::LogProbHead if self.plan.head => match src.get(1) {
                Some(&reference) => self.divergence_head(src[0], reference),
                None => self.log_prob_head(src[0]),
            },
            Op::SiluBack | Op::GeluBack | Op::RmsNormBack { .. } => {
                let g = match src.get(2) {
                    Some(&factor) => self.graph.mul(src[0], factor)?,
                    None => src[0],
                };
                match node.op {
                    Op::SiluBack => self.silu_back(g, src[1]),
                    Op::RmsNormBack { eps } => self.rms_norm_back(g, src[1], eps),
                    _ => self.gelu_back(g, src[1]),
                }
            }
            Op::SoftMaxBack { scale } => self.soft_max_back(src[0], src[1], scale),
            Op::GetRowsBack if self.distinct(old, node.src[1]) => {
                let zeros = self.zeros(node.ne)?;
                self.graph.set_rows(zeros, src[0], src[1])
            }
            _ => Ok(self.graph.copy(node, src)),
        }
    }

    /// The transposed copy of a weight.
    fn copy(&mut self, old: &Graph, w: Value) -> Value {
        let Op::Weight(id) = old.node(w).op else { unreachable!("the caller looked") };
        if let Some(&copy) = self.copies.get(&id) {
            return copy;
        }
        let ne = old.ne(w);
        let (copy, _) = self.graph.weight([ne[1], ne[0], ne[2], ne[3]], Elem::Weight);
        self.transposed.push(id);
        self.copies.insert(id, copy);
        copy
    }

    fn input(&mut self, ne: [usize; 4], data: Data) -> Value {
        let elem = if matches!(data, Data::I32(_)) { Elem::I32 } else { Elem::F32 };
        let (v, _) = self.graph.input(ne, elem);
        self.inputs.push(data);
        v
    }

    fn zeros(&mut self, ne: [usize; 4]) -> Result<Value, IrError> {
        let zero = match self.zero {
            Some(zero) => zero,
            None => self.input([1; 4], Data::F32(vec![0.0])),
        };
        self.zero = Some(zero);
        self.graph.repeat(zero, ne)
    }

    /// True for an input that names no row twice.
    fn distinct(&self, old: &Graph, ids: Value) -> bool {
        let Op::Input(id) = old.node(ids).op else { return false };
        let Some(Data::I32(ids)) = self.plan.inputs.get(id.0 as usize) else { return false };
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        sorted.windows(2).all(|w| w[0] != w[1])
    }

    fn unary(&mut self, kind: Unary, x: Value) -> Value {
        self.graph.same(Op::Unary(kind), &[x])
    }

    /// silu(x) = x s(x):  g s (1 + x (1 - s))
    fn silu_back(&mut self, g: Value, x: Value) -> Result<Value, IrError> {
        let s = self.unary(Unary::Sigmoid, x);
        let rest = self.graph.scale(s, -1.0, 1.0);
        let x_rest = self.graph.mul(x, rest)?;
        let factor = self.graph.scale(x_rest, 1.0, 1.0);
        let slope = self.graph.mul(s, factor)?;
        self.graph.mul(g, slope)
    }

    /// gelu(x) = x (1 + t) / 2, t = tanh(c (x + a x^3)):  g ((1 + t) / 2 + x c (1 + 3 a x^2) (1 - t^2) / 2)
    fn gelu_back(&mut self, g: Value, x: Value) -> Result<Value, IrError> {
        const A: f32 = 0.044_715;
        const C: f32 = 0.797_884_6; // sqrt(2 / pi)
        let xx = self.graph.same(Op::Sqr, &[x]);
        let inner = self.graph.scale(xx, A * C, C);
        let u = self.graph.mul(x, inner)?;
        let t = self.unary(Unary::Tanh, u);
        let half = self.graph.scale(t, 0.5, 0.5);
        let tt = self.graph.same(Op::Sqr, &[t]);
        let rest = self.graph.scale(tt, -0.5, 0.5);
        let du = self.graph.scale(xx, 3.0 * A * C, C);
        let x_du = self.graph.mul(x, du)?;
        let bend = self.graph.mul(rest, x_du)?;
        let slope = self.graph.add(half, bend)?;
        self.graph.mul(g, slope)
    }

    /// y = x / d, d = sqrt(mean(x^2) + eps):  (g - x mean(g x) / d^2) / d
    fn rms_norm_back(&mut self, g: Value, x: Value, eps: f32) -> Result<Value, IrError> {
        let xx = self.graph.same(Op::Sqr, &[x]);
        let mean = self.graph.mean(xx);
        let dd = self.graph.scale(mean, 1.0, eps);
        let d = self.graph.same(Op::Sqrt, &[dd]);
        let gx = self.graph.mul(g, x)?;
        let along = self.graph.mean(gx);
        let share = self.graph.div(along, dd)?;
        let x_share = self.graph.mul(x, share)?;
        let across = self.graph.sub(g, x_share)?;
        self.graph.div(across, d)
    }

    /// s y (g - <g, y>), row by row
    fn soft_max_back(&mut self, g: Value, y: Value, scale: f32) -> Result<Value, IrError> {
        let gy = self.graph.mul(g, y)?;
        let sum = self.graph.sum_rows(gy);
        let rest = self.graph.sub(g, sum)?;
        let d = self.graph.mul(y, rest)?;
        Ok(if scale == 1.0 { d } else { self.graph.scale(d, scale, 0.0) })
    }

    /// The largest logit of each row and its probability, `[1, 1, n_rows]`.
    fn largest(g: &mut Graph, logits: Value, p: Value) -> Result<(Value, Value), IrError> {
        let [n_vocab, n_rows, ..] = g.ne(logits);
        let top = g.other((sys::GGML_OP_ARGMAX, "ARGMAX"), [0; 16], &[logits], [n_rows, 1, 1, 1], Elem::I32);
        let top = g.reshape(top, [1, n_rows, 1, 1])?;
        let by_row = g.reshape(logits, [1, n_vocab, n_rows, 1])?;
        let p_by_row = g.reshape(p, [1, n_vocab, n_rows, 1])?;
        Ok((g.get_rows(by_row, top)?, g.get_rows(p_by_row, top)?))
    }

    /// `coef (p - q)`, row by row: p the softmax of the reference's logits, q that of the policy's, coef the sum of the row's
    /// coefficients.
    fn divergence_head(&mut self, logits: Value, reference: Value) -> Result<Value, IrError> {
        let [_, n_rows, ..] = self.graph.ne(logits);
        let mut coefs = vec![0.0f32; n_rows];
        self.plan.labels.iter().for_each(|l| coefs[l.row as usize] += l.coef);
        let coefs = self.input([1, n_rows, 1, 1], Data::F32(coefs));
        let g = &mut self.graph;
        let soft_max = Op::SoftMax { scale: 1.0, max_bias: 0.0 };
        let (p, q) = (g.same(soft_max, &[reference]), g.same(soft_max, &[logits])); // [n_vocab, n_rows]
        let largest = [Self::largest(g, reference, p)?, Self::largest(g, logits, q)?];
        let above = g.sub(reference, logits)?;
        let weighed = g.mul(p, above)?;
        let mean = g.sum_rows(weighed);
        let difference = g.sub(p, q)?;
        let rows = self.plan.labels.iter().map(|l| l.row as usize).collect();
        self.divergence = Some(DivergenceScores { mean, largest, rows });
        self.graph.mul(difference, coefs)
    }

    /// `sum over labels of coef (onehot(label) - softmax)`, row by row.
    fn log_prob_head(&mut self, logits: Value) -> Result<Value, IrError> {
        let [n_vocab, n_rows, ..] = self.graph.ne(logits);
        let size = n_vocab * n_rows;
        if i32::try_from(size).is_err() {
            return Err(IrError::Shape {
                op: Op::LogProbHead.name(),
                why: format!(
                    "{n_rows} rows of {n_vocab} logits are more than a device's index reaches: shorten the pairs"
                ),
            });
        }
        // One entry for each (row, token): their coefficients add up.
        let mut entries: BTreeMap<(u32, u32), f32> = BTreeMap::new();
        let mut rows = vec![0.0f32; n_rows];
        for l in self.plan.labels {
            *entries.entry((l.row, l.token)).or_default() += l.coef;
            rows[l.row as usize] -= l.coef;
        }
        let keys: Vec<(u32, u32)> = entries.keys().copied().collect();
        let place = |l: &Label| (keys.partition_point(|k| *k < (l.row, l.token)), l.row as usize);
        let places = self.plan.labels.iter().map(place).collect();
        let ids: Vec<i32> =
            keys.iter().map(|(row, token)| (*row as usize * n_vocab + *token as usize) as i32).collect();
        let n = ids.len();
        let ids = self.input([n, 1, 1, 1], Data::I32(ids));
        let coefs = self.input([1, n, 1, 1], Data::F32(entries.into_values().collect()));
        let minus = self.input([1, n_rows, 1, 1], Data::F32(rows));

        let g = &mut self.graph;
        let p = g.same(Op::SoftMax { scale: 1.0, max_bias: 0.0 }, &[logits]); // [n_vocab, n_rows]
        let (largest, p_largest) = Self::largest(g, logits, p)?;
        let flat = g.reshape(logits, [1, size, 1, 1])?;
        let at_labels = g.get_rows(flat, ids)?; // [1, n]
        // The gradient: -coef p everywhere, and the labels' coefficients added at their places.
        let spread = g.mul(p, minus)?;
        let flat = g.reshape(spread, [1, size, 1, 1])?;
        let there = g.get_rows(flat, ids)?; // [1, n]
        let sums = g.add(there, coefs)?;
        let written = g.set_rows(flat, sums, ids)?;
        self.head = Some(LabelScores { logits: at_labels, largest, p_largest, places });
        self.graph.reshape(written, [n_vocab, n_rows, 1, 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::emit::{Bindings, Executor};

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).max(1);
        (0..n)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Runs a graph of two inputs and gives its last value.
    fn run(graph: &Graph, inputs: &[Data], labels: &[Label], read: &[Value]) -> (Vec<Vec<f32>>, Vec<f64>) {
        let bind = Bindings { inputs: inputs.iter().collect(), weights: &[], labels, weigh: None };
        let outcome = Executor::new(1).unwrap().run(graph, &bind, &[], read).unwrap();
        (outcome.values, outcome.log_probs)
    }

    fn close(a: &[f32], b: &[f32], what: &str) {
        assert_eq!(a.len(), b.len(), "{what}");
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            assert!((a - b).abs() <= 2e-5 * (1.0 + b.abs()), "{what}: {a} for {b} at {i}");
        }
    }

    #[test]
    fn gradients_in_primitive_ops_equal_ggmls_own() {
        let ne = [96, 7, 3, 1];
        let n = 96 * 7 * 3;
        for op in [Op::SiluBack, Op::GeluBack, Op::RmsNormBack { eps: 1e-5 }, Op::SoftMaxBack { scale: 0.25 }] {
            let mut graph = Graph::new();
            let (g, _) = graph.input(ne, Elem::F32);
            let (x, _) = graph.input(ne, Elem::F32);
            let d = graph.same(op, &[g, x]);
            let mut at: Vec<f32> = numbers(n, 2).iter().map(|x| 4.0 * x).collect();
            if matches!(op, Op::SoftMaxBack { .. }) {
                for row in at.chunks_mut(96) {
                    let sum: f32 = row.iter().map(|x| x.exp()).sum();
                    row.iter_mut().for_each(|x| *x = x.exp() / sum);
                }
            }
            let inputs = [Data::F32(numbers(n, 1)), Data::F32(at)];
            let want = run(&graph, &inputs, &[], &[d]).0;
            let lowered = lower(&graph, &Plan { inputs: &inputs, ..Plan::default() }).unwrap();
            let back = |n: &Node| {
                matches!(n.op, Op::SiluBack | Op::GeluBack | Op::RmsNormBack { .. } | Op::SoftMaxBack { .. })
            };
            assert!(!lowered.graph.nodes().iter().any(back));
            let got = run(&lowered.graph, &inputs, &[], &[lowered.map[d.0 as usize]]).0;
            close(&got[0], &want[0], &op.name());
        }
    }

    #[test]
    fn rows_go_back_to_where_they_came_from() {
        for (ids, composed) in [(vec![4, 0, 2], true), (vec![4, 0, 4], false)] {
            let mut graph = Graph::new();
            let (g, _) = graph.input([5, 3, 1, 1], Elem::F32);
            let (at, _) = graph.input([3, 1, 1, 1], Elem::I32);
            let d = graph.get_rows_back(g, at, [5, 6, 1, 1]);
            let mut inputs = vec![Data::F32(numbers(15, 3)), Data::I32(ids)];
            let want = run(&graph, &inputs, &[], &[d]).0;
            let lowered = lower(&graph, &Plan { inputs: &inputs, ..Plan::default() }).unwrap();
            assert_eq!(lowered.graph.nodes().iter().any(|n| n.op == Op::SetRows), composed);
            inputs.extend(lowered.inputs);
            assert_eq!(run(&lowered.graph, &inputs, &[], &[lowered.map[d.0 as usize]]).0, want);
        }
    }

    /// Against the CPU's head: a reference that is near, one that is far, and the policy itself, whose divergence is 0.
    #[test]
    fn the_head_gives_the_same_divergence_and_gradient() {
        let (n_vocab, n_rows) = (700, 3);
        let mut graph = Graph::new();
        let (x, _) = graph.input([n_vocab, n_rows, 1, 1], Elem::F32);
        let (y, _) = graph.input([n_vocab, n_rows, 1, 1], Elem::F32);
        let head = graph.log_prob_head_against(x, y).unwrap();
        let logits: Vec<f32> = numbers(n_vocab * n_rows, 5).iter().map(|x| 6.0 * x).collect();
        let mut reference = logits.clone();
        let noise = numbers(n_vocab * n_rows, 9);
        reference[..n_vocab].iter_mut().zip(&noise).for_each(|(y, e)| *y += 0.1 * e);
        reference[n_vocab..2 * n_vocab].iter_mut().zip(&noise).for_each(|(y, e)| *y = 9.0 * e);
        let labels: Vec<Label> = (0..n_rows as u32).map(|row| Label { row, token: 3 + row, coef: 0.7 }).collect();
        let mut inputs = vec![Data::F32(logits), Data::F32(reference)];
        let bind = Bindings { inputs: inputs.iter().collect(), weights: &[], labels: &labels, weigh: None };
        let want = Executor::new(1).unwrap().run(&graph, &bind, &[], &[head]).unwrap();
        let plan = Plan { head: true, labels: &labels, inputs: &inputs, ..Plan::default() };
        let lowered = lower(&graph, &plan).unwrap();
        let scores = lowered.divergence.unwrap();
        inputs.extend(lowered.inputs);
        let read: Vec<Value> = [lowered.map[head.0 as usize]].into_iter().chain(scores.values()).collect();
        let (got, _) = run(&lowered.graph, &inputs, &[], &read);
        close(&got[0], &want.values[0], "gradient");
        let found = scores.divergences([&got[1], &got[2], &got[3], &got[4], &got[5]]);
        for (found, want) in found.iter().zip(&want.divergences) {
            assert!((found - want).abs() < 1e-5 * (1.0 + want), "{found} for {want}");
        }
        assert!(want.divergences[1] > 1.0 && want.divergences[0] > 1e-4 && found[2] == 0.0, "{found:?}");
    }

    #[test]
    fn the_head_gives_the_same_gradient_and_log_probabilities() {
        let (n_vocab, n_rows) = (700, 4);
        let mut graph = Graph::new();
        let (x, _) = graph.input([n_vocab, n_rows, 1, 1], Elem::F32);
        let head = graph.log_prob_head(x).unwrap();
        // A likely token and one that is next to impossible: its probability is no float, its logarithm is one.
        let mut logits: Vec<f32> = numbers(n_vocab * n_rows, 5).iter().map(|x| 6.0 * x).collect();
        logits[n_vocab + 9] = -200.0;
        let label = |row, token, coef| Label { row, token, coef };
        let labels = [
            label(0, 3, 1.0),
            label(0, 3, -1.0),
            label(0, 8, 1.0),
            label(1, 9, 1.0),
            label(3, 0, -1.0),
            label(3, 699, -1.0),
        ];
        let mut inputs = vec![Data::F32(logits)];
        let (want, log_probs) = run(&graph, &inputs, &labels, &[head]);
        for scale in [1.0, 1024.0] {
            let labels = labels.map(|l| Label { coef: l.coef * scale, ..l });
            let plan = Plan { head: true, labels: &labels, inputs: &inputs, ..Plan::default() };
            let lowered = lower(&graph, &plan).unwrap();
            let scores = lowered.head.unwrap();
            let read: Vec<Value> = [lowered.map[head.0 as usize]].into_iter().chain(scores.values()).collect();
            inputs.truncate(1);
            inputs.extend(lowered.inputs);
            let (got, _) = run(&lowered.graph, &inputs, &[], &read);
            let unscaled: Vec<f32> = got[0].iter().map(|x| x / scale).collect();
            close(&unscaled, &want[0], "gradient");
            for (a, b) in scores.log_probs(&got[1], &got[2], &got[3]).iter().zip(&log_probs) {
                assert!((a - b).abs() < 1e-4, "{a} for {b}");
            }
            inputs.truncate(1);
        }
        assert!(log_probs[3] < -190.0, "{log_probs:?}");
    }
}
