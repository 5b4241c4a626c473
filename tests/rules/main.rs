//! Every rule of `graph::grad` against central differences on small random tensors, run by ggml.
//!
//! A test builds a graph of one op with an F32 input as entry, takes `L = sum(seed * op(entry))` for a fixed random
//! `seed`, and compares `dL/d entry` from the rule with `(L(x + h) - L(x - h)) / 2h` for every element of the entry,
//! extrapolated from two step lengths (the error is of fourth order in h). ggml computes in F32, so a slope is known to
//! about 1e-5; the line is 1e-3.
//!
//! [`OPS`] lists all ops: an op that is added does not compile here until it has a line, and `all` fails until a case
//! reaches it.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod attention;
mod elementwise;
mod experts;
mod nodes;
mod norms;
mod recurrent;

use ggml_grad::graph::AttentionMemory;
use ggml_grad::graph::emit::{Bindings, Data, Executor, Label};
use ggml_grad::graph::grad::{differentiate, differentiate_within};
use ggml_grad::graph::ir::{Elem, Glu, Graph, IrError, MatrixScan, Op, OpParams, Shape, Unary, Value, n_elements};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;

const LINE: f64 = 1e-3;

/// The place of an op in its graph.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    /// No rule needed: a leaf.
    Leaf,
    /// In forward graphs: its rule is tested.
    Forward,
    /// Only in gradients: it is tested as the rule of another op.
    Gradient,
    /// Only where experts are chosen, which no gradient passes: tested in tests/architectures.rs.
    Choice,
    /// Tested on the weights of real models, in tests/weights.rs, and beside its kernel.
    Weights,
}

/// Lists all ops once: as a function without a wildcard, and as a table.
macro_rules! ops {
    ($($pattern:pat => $place:ident;)*) => {
        /// The line of [`OPS`] that an op belongs to.
        fn line_of(op: &Op) -> usize {
            let mut line = 0;
            let wanted = match op { $($pattern => stringify!($pattern),)* };
            while OPS[line].0 != wanted { line += 1; }
            line
        }
        const OPS: &[(&str, Place)] = &[$((stringify!($pattern), Place::$place)),*];
    };
}

ops! {
    Op::Input(_) => Leaf;
    Op::Weight(_) => Leaf;
    Op::Add => Forward;
    Op::Sub => Forward;
    Op::Mul => Forward;
    Op::Div => Forward;
    Op::AddId => Forward;
    Op::Scale { .. } => Forward;
    Op::Clamp { .. } => Forward;
    Op::Sqr => Forward;
    Op::Sqrt => Forward;
    Op::SumRows => Forward;
    Op::Mean => Forward;
    Op::Repeat => Forward;
    Op::MulMat(_) => Forward;
    Op::MulMatT => Weights;
    Op::MulMatId(_) => Forward;
    Op::MulMatIdT => Gradient;
    Op::OuterSum => Gradient;
    Op::Norm { .. } => Forward;
    Op::L2Norm { .. } => Forward;
    Op::RmsNorm { .. } => Forward;
    Op::RmsNormBack { .. } => Gradient;
    Op::Rope(_) => Forward;
    Op::RopeBack(_) => Gradient;
    Op::SoftMax { .. } => Forward;
    Op::SoftMaxBack { .. } => Gradient;
    Op::Attention { .. } => Forward;
    Op::AttentionBackQ { .. } => Gradient;
    Op::AttentionBackKv { .. } => Gradient;
    Op::Glu(Glu::Reglu) => Forward;
    Op::Glu(Glu::Swiglu) => Forward;
    Op::Glu(Glu::Geglu) => Forward;
    Op::Glu(Glu::GegluErf) => Forward;
    Op::Glu(Glu::GegluQuick) => Forward;
    Op::Glu(Glu::SwigluOai { .. }) => Forward;
    Op::Glu(Glu::SwigluClamp { .. }) => Forward;
    Op::Unary(Unary::Tanh) => Forward;
    Op::Unary(Unary::Silu) => Forward;
    Op::Unary(Unary::Gelu) => Forward;
    Op::Unary(Unary::GeluErf) => Forward;
    Op::Unary(Unary::GeluQuick) => Forward;
    Op::Unary(Unary::Relu) => Forward;
    Op::Unary(Unary::Sigmoid) => Forward;
    Op::Unary(Unary::Exp) => Forward;
    Op::Unary(Unary::Softplus) => Forward;
    Op::Unary(Unary::Neg) => Forward;
    Op::Unary(Unary::Abs) => Forward;
    Op::Unary(Unary::Sgn) => Forward;
    Op::Unary(Unary::Step) => Forward;
    Op::Unary(Unary::Xielu { .. }) => Forward;
    Op::MixStreams { .. } => Forward;
    Op::SsmConv => Forward;
    Op::SsmConvBack => Gradient;
    Op::SsmScan => Forward;
    Op::SsmScanBack => Gradient;
    Op::MatrixScan(MatrixScan::Wkv6) => Forward;
    Op::MatrixScan(MatrixScan::Wkv7) => Forward;
    Op::MatrixScan(MatrixScan::Gated { .. }) => Forward;
    Op::MatrixScan(MatrixScan::DeltaNet) => Forward;
    Op::MatrixScanBack(_) => Gradient;
    Op::SiluBack => Gradient;
    Op::GeluBack => Gradient;
    Op::Cont => Forward;
    Op::Cast => Forward;
    Op::Reshape => Forward;
    Op::View { .. } => Forward;
    Op::Permute(_) => Forward;
    Op::Pad(_) => Forward;
    Op::Concat { .. } => Forward;
    Op::GetRows => Forward;
    Op::GetRowsBack => Gradient;
    Op::ScatterRows => Gradient;
    Op::SetRows => Choice;
    Op::Other { .. } => Choice;
    Op::RepeatBack => Gradient;
    Op::Acc { .. } => Gradient;
    Op::LossHead => Weights;
    Op::LogProbHead => Gradient;
}

/// Function that the numeric side evaluates in place of ggml's own forward where that one is a step function: from the
/// values of the hook point to the result.
type Formula = fn(&[f64]) -> Vec<f64>;

/// A graph under construction with the data of its inputs; input 0 is the entry.
struct Case {
    graph: Graph,
    data: Vec<Data>,
    entry: Value,
    rng: ChaCha8Rng,
    formula: Option<Formula>,
    memory: AttentionMemory,
}

impl Case {
    /// An entry of random numbers in [-1.5, 1.5].
    fn new(ne: Shape) -> Self {
        let graph = Graph::new();
        let rng = ChaCha8Rng::seed_from_u64(7);
        let mut case =
            Self { graph, data: Vec::new(), entry: Value(0), rng, formula: None, memory: AttentionMemory::default() };
        case.entry = case.fixed(ne);
        case
    }

    fn random(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.rng.random_range(-1.5..1.5)).collect()
    }

    /// A random F32 input that stays as it is.
    fn fixed(&mut self, ne: Shape) -> Value {
        let values = self.random(n_elements(ne));
        self.given(ne, values)
    }

    fn given(&mut self, ne: Shape, values: Vec<f32>) -> Value {
        assert_eq!(values.len(), n_elements(ne));
        self.data.push(Data::F32(values));
        self.graph.input(ne, Elem::F32).0
    }

    fn integers(&mut self, values: &[i32]) -> Value {
        self.numbers([values.len(), 1, 1, 1], values)
    }

    fn numbers(&mut self, ne: Shape, values: &[i32]) -> Value {
        assert_eq!(values.len(), n_elements(ne));
        self.data.push(Data::I32(values.to_vec()));
        self.graph.input(ne, Elem::I32).0
    }

    /// Moves the entry's numbers to a distance of at least 0.15 from each of `kinks`, where differences mean nothing.
    fn avoid(mut self, kinks: &[f32]) -> Self {
        let Data::F32(x) = &mut self.data[0] else { unreachable!() };
        for x in x {
            for &kink in kinks {
                if (*x - kink).abs() < 0.15 {
                    *x = kink + 0.3f32.copysign(*x - kink);
                }
            }
        }
        self
    }

    /// A source that depends on the entry: its element (i, j, k, l) is the entry's. Smaller than the entry.
    fn window(&mut self, ne: Shape) -> Value {
        let nb = self.graph.node(self.entry).nb;
        let view = self.graph.view(self.entry, ne, nb, 0).unwrap();
        self.graph.contiguous(view)
    }

    /// Compares the rule with central differences. Returns the lines of [`OPS`] on the way, forward and in the gradient.
    fn check(mut self, name: &str, of: Value) -> BTreeSet<usize> {
        let n_forward = self.graph.nodes().len();
        let seed = self.fixed(self.graph.ne(of));
        let Data::F32(seed_values) = self.data.last().unwrap().clone() else { unreachable!() };
        let grad = differentiate_within(&mut self.graph, of, seed, &[self.entry], self.memory).unwrap()[0];
        assert_eq!(self.graph.ne(grad), self.graph.ne(self.entry), "{name}: the gradient has the entry's shape");
        let of = if self.graph.is_contiguous(of) { of } else { self.graph.contiguous(of) };
        let mut exec = Executor::new(1).unwrap();
        let analytic = self.run(&mut exec, &self.data, grad);
        let Data::F32(x) = self.data[0].clone() else { unreachable!() };

        if let Some(formula) = self.formula {
            // ggml's GELU goes through a table of 16-bit floats: 2^-11 relative, of the argument and of the result.
            let exact = formula(&x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            for (a, b) in self.run(&mut exec, &self.data, of).iter().zip(&exact) {
                assert!((f64::from(*a) - b).abs() <= 2e-3, "{name}: the formula gives {b}, ggml {a}");
            }
        }
        let mut slope = |i: usize, h: f32| -> f64 {
            let mut sides = [0.0; 2];
            let mut at = [0.0; 2];
            for (side, sign) in [1.0f32, -1.0].into_iter().enumerate() {
                let mut moved = x.clone();
                moved[i] += sign * h;
                at[side] = f64::from(moved[i]);
                let values: Vec<f64> = match self.formula {
                    Some(f) => f(&moved.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()),
                    None => {
                        let mut data = self.data.clone();
                        data[0] = Data::F32(moved);
                        self.run(&mut exec, &data, of).into_iter().map(f64::from).collect()
                    }
                };
                sides[side] = values.iter().zip(&seed_values).map(|(v, s)| v * f64::from(*s)).sum();
            }
            (sides[0] - sides[1]) / (at[0] - at[1])
        };
        let numeric: Vec<f64> = (0..x.len()).map(|i| (4.0 * slope(i, 0.02) - slope(i, 0.04)) / 3.0).collect();
        let analytic: Vec<f64> = analytic.into_iter().map(f64::from).collect();
        assert_close(name, &analytic, &numeric, LINE);

        let nodes = self.graph.nodes();
        let mut active = vec![false; n_forward];
        active[self.entry.0 as usize] = true;
        for i in self.entry.0 as usize + 1..n_forward {
            active[i] = nodes[i].src.iter().any(|s| active[s.0 as usize]);
        }
        let on_the_way = |i: usize| i >= n_forward || active[i];
        (0..nodes.len()).filter(|&i| on_the_way(i)).map(|i| line_of(&nodes[i].op)).collect()
    }

    fn run(&self, exec: &mut Executor, data: &[Data], read: Value) -> Vec<f32> {
        let bind = Bindings { inputs: data.iter().collect(), ..Default::default() };
        exec.run(&self.graph, &bind, &[], &[read]).unwrap().values.remove(0)
    }
}

/// `|a - b| <= line * |b|` in Euclidean length, and no element off by more than that share of the largest.
fn assert_close(name: &str, a: &[f64], b: &[f64], line: f64) {
    assert_eq!(a.len(), b.len(), "{name}");
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = length(&mut a.iter().zip(b).map(|(a, b)| a - b)) / length(&mut b.iter().copied());
    let largest = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f64::max);
    // Written so that NaN fails.
    assert!(error <= line && worst <= line, "{name}: relative error {error:.2e}, worst element {worst:.2e}");
    eprintln!("{name:<44} {error:.1e}");
}

/// gelu(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

/// A rotary embedding's parameters; floats as their bits.
fn rope(n_dims: usize, mode: i32, scale: f32, yarn: f32, attn: f32) -> OpParams {
    let f = |x: f32| x.to_bits() as i32;
    let mut p = [0; 16];
    p[1] = n_dims as i32;
    p[2] = mode;
    p[4] = 128; // n_ctx_orig
    p[5] = f(10000.0); // freq_base
    p[6] = f(scale); // freq_scale
    p[7] = f(yarn); // ext_factor
    p[8] = f(attn); // attn_factor
    p[9] = f(32.0); // beta_fast
    p[10] = f(1.0); // beta_slow
    p
}

/// Sums over several paths: h + softmax(h k^T) v with k and v from h, the shape of an attention block.
fn several_paths() -> Vec<BTreeSet<usize>> {
    let mut c = Case::new([4, 6, 1, 1]);
    let n = c.graph.same(Op::RmsNorm { eps: 1e-5 }, &[c.entry]);
    let scores = c.graph.mul_mat(n, n, 0).unwrap(); // [6, 6]
    let p = c.graph.same(Op::SoftMax { scale: 0.5, max_bias: 0.0 }, &[scores]);
    let v = c.graph.transposed(n).unwrap(); // [6, 4]
    let mixed = c.graph.mul_mat(v, p, 0).unwrap(); // [4, 6]
    let z = c.graph.add(c.entry, mixed).unwrap();
    vec![c.check("a small attention with its residual", z)]
}

#[test]
fn all() {
    let cases: [fn() -> Vec<BTreeSet<usize>>; 38] = [
        nodes::add,
        nodes::mul,
        nodes::scale,
        nodes::mul_mat,
        nodes::rms_norm,
        nodes::rotary,
        nodes::soft_max,
        nodes::glu,
        nodes::unary,
        nodes::moves,
        nodes::view,
        nodes::pad,
        nodes::concat,
        nodes::get_rows,
        several_paths,
        attention::computed_again,
        attention::in_one,
        elementwise::sub,
        elementwise::div,
        elementwise::clamp,
        elementwise::square_and_root,
        elementwise::reductions,
        elementwise::repeat,
        elementwise::unary,
        elementwise::constant_pieces,
        elementwise::xielu,
        elementwise::gated,
        elementwise::gated_with_limits,
        elementwise::cast,
        norms::norm,
        norms::l2_norm,
        norms::sinks,
        experts::mul_mat_id,
        experts::rows_and_biases,
        nodes::mix_streams,
        recurrent::ssm_conv,
        recurrent::ssm_scan,
        recurrent::matrix_scans,
    ];
    let mut reached: BTreeSet<usize> = cases.iter().flat_map(|case| case()).flatten().collect();
    reached.extend(log_prob_head());
    divergence_from_a_reference();
    for (line, (op, place)) in OPS.iter().enumerate() {
        match place {
            Place::Forward | Place::Gradient => assert!(reached.contains(&line), "no case of this test reaches {op}"),
            Place::Leaf | Place::Choice | Place::Weights => {}
        }
    }
}

/// L = sum over labels of coef log p(token), log p = x[token] - log sum exp(x).
/// dL/dx[v] = sum over the row's labels of coef ([v = token] - softmax(x)[v]).
fn log_prob_head() -> BTreeSet<usize> {
    const V: usize = 70; // more than one chunk of 64
    let mut c = Case::new([V, 4, 1, 1]);
    let head = c.graph.log_prob_head(c.entry).unwrap();
    let label = |row, token, coef| Label { row, token, coef };
    let labels = [
        label(0, 3, 1.0),
        label(0, 69, -1.0), // with the first: the softmax terms cancel
        label(1, 0, 1.0),
        label(1, 0, 0.5), // the same token twice
        label(1, 64, -0.25),
        label(3, 7, -1.0), // row 2 has no label
    ];
    let mut exec = Executor::new(1).unwrap();
    let mut run = |data: &Data| {
        let bind = Bindings { inputs: vec![data], weights: &[], labels: &labels, weigh: None };
        exec.run(&c.graph, &bind, &[], &[head]).unwrap()
    };
    let outcome = run(&c.data[0]);
    let Data::F32(x) = &c.data[0] else { unreachable!() };
    for (l, got) in labels.iter().zip(&outcome.log_probs) {
        let row: Vec<f64> = x[l.row as usize * V..][..V].iter().map(|&x| f64::from(x)).collect();
        let want = row[l.token as usize] - row.iter().map(|x| x.exp()).sum::<f64>().ln();
        assert!((got - want).abs() < 1e-6, "log p of {l:?}: {got} for {want}");
    }
    let mut slope = |i: usize, h: f32| {
        let mut sides = [0.0; 2];
        let mut at = [0.0; 2];
        for (side, sign) in [1.0f32, -1.0].into_iter().enumerate() {
            let mut moved = x.clone();
            moved[i] += sign * h;
            at[side] = f64::from(moved[i]);
            let log_probs = run(&Data::F32(moved)).log_probs;
            sides[side] = log_probs.iter().zip(&labels).map(|(p, l)| p * f64::from(l.coef)).sum::<f64>();
        }
        (sides[0] - sides[1]) / (at[0] - at[1])
    };
    let numeric: Vec<f64> = (0..x.len()).map(|i| (4.0 * slope(i, 0.02) - slope(i, 0.04)) / 3.0).collect();
    let analytic: Vec<f64> = outcome.values[0].iter().map(|&g| f64::from(g)).collect();
    assert_close("log_prob_head", &analytic, &numeric, LINE);
    assert!(analytic[2 * V..3 * V].iter().all(|&g| g == 0.0), "a row without a label has no gradient");
    BTreeSet::from([line_of(&Op::LogProbHead)])
}

/// L = -sum over rows of coef KL(p || q), where q = softmax(x) and p = softmax(y); KL from its definition, in f64.
/// dL/dx[v] = coef (p[v] - q[v]).
fn divergence_from_a_reference() {
    const V: usize = 70;
    const ROWS: usize = 3;
    let c = Case::new([V, ROWS, 1, 1]);
    let mut graph = Graph::new();
    let (x, _) = graph.input([V, ROWS, 1, 1], Elem::F32);
    let (y, _) = graph.input([V, ROWS, 1, 1], Elem::F32);
    let head = graph.log_prob_head_against(x, y).unwrap();
    let Data::F32(x) = c.data[0].clone() else { unreachable!() };
    let y: Vec<f32> = x.iter().enumerate().map(|(i, x)| 0.4 * x + (i % 7) as f32 * 0.3 + 2.0).collect();
    let labels = [(0, 0.5f32), (2, -2.0)].map(|(row, coef)| Label { row, token: 4, coef });
    let mut exec = Executor::new(1).unwrap();
    let reference = Data::F32(y.clone());
    let mut run = |x: &[f32]| {
        let x = Data::F32(x.to_vec());
        let bind = Bindings { inputs: vec![&x, &reference], weights: &[], labels: &labels, weigh: None };
        exec.run(&graph, &bind, &[], &[head]).unwrap()
    };
    let kl = |x: &[f32], row: usize| {
        let logs = |z: &[f32]| {
            let z: Vec<f64> = z[row * V..][..V].iter().map(|&z| f64::from(z)).collect();
            let log_z = z.iter().map(|z| z.exp()).sum::<f64>().ln();
            z.into_iter().map(move |z| z - log_z).collect::<Vec<f64>>()
        };
        logs(&y).iter().zip(logs(x)).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    };
    let outcome = run(&x);
    for (label, got) in labels.iter().zip(&outcome.divergences) {
        let want = kl(&x, label.row as usize);
        assert!((got - want).abs() < 1e-6 * (1.0 + want), "KL of row {}: {got} for {want}", label.row);
    }
    for i in 0..x.len() {
        let side = |h: f32| {
            let mut moved = x.clone();
            moved[i] += h;
            let loss = |l: &Label| -f64::from(l.coef) * kl(&moved, l.row as usize);
            (f64::from(moved[i]), labels.iter().map(loss).sum::<f64>())
        };
        let ((a, up), (b, down)) = (side(1e-3), side(-1e-3));
        let (numeric, got) = ((up - down) / (a - b), f64::from(outcome.values[0][i]));
        assert!((got - numeric).abs() < 1e-5, "number {i}: {got} for {numeric}");
    }
    let same = run(&y);
    assert!(same.divergences.iter().all(|d| d.abs() < 1e-7) && same.values[0].iter().all(|g| *g == 0.0));
}

#[test]
fn what_has_no_rule_is_refused() {
    let refusal = |c: &mut Case, of: Value| {
        let seed = c.fixed(c.graph.ne(of));
        match differentiate(&mut c.graph, of, seed, &[c.entry]) {
            Err(IrError::NoRule { op, .. }) => op,
            other => panic!("{other:?}"),
        }
    };
    // A result that does not depend on the entry.
    let mut c = Case::new([4, 1, 1, 1]);
    let x = c.fixed([4, 1, 1, 1]);
    let z = c.graph.scale(x, 2.0, 0.0);
    assert_eq!(refusal(&mut c, z), "graph");
    // A mask that does.
    let mut c = Case::new([4, 4, 1, 1]);
    let z = c.graph.same(Op::SoftMax { scale: 1.0, max_bias: 0.0 }, &[c.entry, c.entry]);
    assert_eq!(refusal(&mut c, z), "SoftMax");
    // A gradient of a gradient.
    let mut c = Case::new([4, 4, 1, 1]);
    let z = c.graph.same(Op::SiluBack, &[c.entry, c.entry]);
    assert_eq!(refusal(&mut c, z), "SiluBack");
    // An op that is only repeated.
    let mut c = Case::new([4, 4, 1, 1]);
    let z = c.graph.other((42, "FOO"), [0; 16], &[c.entry], [4, 4, 1, 1], Elem::F32);
    assert_eq!(refusal(&mut c, z), "FOO");
}
