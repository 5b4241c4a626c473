//! The way from hidden states to log-probabilities: our own output head where it is that of the model's graph, llama.cpp's
//! logits otherwise.

use super::ScoreError;
use crate::graph::{OutputHead, log_sum_exp};
use crate::llama::{Batch, Context, DType, LlamaError, Node, Tap, Token, Weight};

/// Nats by which our head may differ from llama.cpp's logits on the token that decides whether it is used. Both round the
/// hidden state alike and differ in the order of F32 sums: 1e-5 or less is usual.
const TOLERANCE: f64 = 1e-3;

/// How a batch's log-probabilities are computed.
#[derive(Debug)]
pub(super) enum Head {
    /// llama.cpp stops before its output matrix; the product and the softmax are ours, in one.
    Fused(OutputHead),
    /// llama.cpp's logits, a table of `[n_vocab]` a row; and why.
    Logits(String),
}

impl Head {
    /// Looks at the end of the context's graph by decoding one token as sequence `sequence`, and leaves it in the cache.
    ///
    /// # Errors
    /// As [`Context::decode`].
    pub fn find(ctx: &mut Context, sequence: i32) -> Result<Self, LlamaError> {
        let model = ctx.model().clone();
        let mut batch = Batch::new();
        let row = batch.add(model.bos().unwrap_or(0), 0, &[sequence], true);
        let mut probe = Probe { n_vocab: model.n_vocab(), found: None, behind: Vec::new() };
        ctx.decode_tapped(&batch, &mut probe)?;
        let (weight, cap, hidden) = match probe.end() {
            Ok(end) => end,
            Err(reason) => return Ok(Self::Logits(reason)),
        };
        let head = match OutputHead::new(weight, cap, ctx.n_threads() as usize) {
            Ok(head) => head,
            Err(reason) => return Ok(Self::Logits(reason.to_string())),
        };
        // Trusted only after it agreed with llama.cpp.
        let logits = ctx.logits(row)?;
        let log_sum = log_sum_exp(logits);
        let tokens: Vec<Token> = (0..8).map(|i| (i * (model.n_vocab() - 1) / 7) as Token).collect();
        let wanted: Vec<(usize, Token)> = tokens.iter().map(|&t| (0, t)).collect();
        let ours = head.log_probs(&hidden, &wanted);
        let theirs = tokens.iter().map(|&t| f64::from(logits[t as usize]) - log_sum);
        let largest = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        // A vector that makes everything infinite is found by the caller, on either way.
        if largest > TOLERANCE {
            return Ok(Self::Logits(format!("our output head differs from llama.cpp's by {largest} nats")));
        }
        Ok(Self::Fused(head))
    }

    /// Decodes a batch and gives the log-probabilities (nats) of `wanted`: pairs of a row of the batch, ascending, and a
    /// token. The rows must ask for logits.
    ///
    /// # Errors
    /// As [`Context::decode`].
    pub fn decode(&self, ctx: &mut Context, batch: &Batch, wanted: &[(usize, Token)]) -> Result<Vec<f64>, ScoreError> {
        match self {
            Self::Fused(head) => {
                // From rows of the batch to rows of the output.
                let mut rows: Vec<usize> = wanted.iter().map(|w| w.0).collect();
                rows.dedup();
                if rows.is_empty() {
                    ctx.decode(batch)?;
                    return Ok(Vec::new());
                }
                let model = ctx.model().clone();
                let mut tap = HiddenTap { n_vocab: model.n_vocab(), n_rows: rows.len(), hidden: Vec::new() };
                ctx.decode_tapped(batch, &mut tap)?;
                if tap.hidden.len() != rows.len() * model.n_embd() {
                    return Err(ScoreError::Unsupported(format!(
                        "{}: the graph of {} tokens does not end like that of one token",
                        model.path().display(),
                        batch.len()
                    )));
                }
                let mut out = 0;
                let wanted: Vec<(usize, Token)> = wanted
                    .iter()
                    .map(|&(row, token)| {
                        out += usize::from(rows[out] != row);
                        (out, token)
                    })
                    .collect();
                Ok(head.log_probs(&tap.hidden, &wanted))
            }
            Self::Logits(_) => {
                ctx.decode(batch)?;
                let mut last: Option<(usize, f64)> = None;
                wanted
                    .iter()
                    .map(|&(row, token)| {
                        let logits = ctx.logits(row)?;
                        let log_sum = last.filter(|l| l.0 == row).map_or_else(|| log_sum_exp(logits), |l| l.1);
                        last = Some((row, log_sum));
                        Ok(f64::from(logits[token as usize]) - log_sum)
                    })
                    .collect()
            }
        }
    }
}

/// True for the product with the output matrix.
fn is_head(node: &Node<'_>, n_vocab: usize) -> bool {
    node.ne()[0] == n_vocab
        && node.op_name() == "MUL_MAT"
        && node.src(0).is_some_and(|w| w.ne()[1] == n_vocab && w.weight().is_some())
}

/// Remembers the graph's end.
struct Probe {
    n_vocab: usize,
    /// The output matrix, and the hidden state that it was multiplied with; why not, where it cannot be used.
    found: Option<Result<(Weight, Vec<f32>), String>>,
    /// Operations behind it: name, parameters as floats.
    behind: Vec<(&'static str, [f32; 2])>,
}

impl Probe {
    fn end(self) -> Result<(Weight, Option<f32>, Vec<f32>), String> {
        let (weight, hidden) = self.found.ok_or("the graph has no product with an output matrix")??;
        match self.behind[..] {
            [] => Ok((weight, None, hidden)),
            [("SCALE", [down, 0.0]), ("TANH", _), ("SCALE", [cap, 0.0])] if (down * cap - 1.0).abs() < 1e-5 => {
                Ok((weight, Some(cap), hidden))
            }
            _ => {
                let names: Vec<&str> = self.behind.iter().map(|b| b.0).collect();
                Err(format!("the graph goes on behind the output matrix: {}", names.join(", ")))
            }
        }
    }
}

impl Tap for Probe {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        if !node.is_computed() {
            return false;
        }
        if self.found.is_some() {
            let params = node.params();
            self.behind.push((node.op_name(), [0, 1].map(|i| f32::from_bits(params[i] as u32))));
            return false;
        }
        is_head(node, self.n_vocab)
    }

    fn computed(&mut self, node: &Node<'_>) -> bool {
        self.found = Some(match (node.src(0).and_then(|w| w.weight()), node.src(1)) {
            (Some(_), Some(hidden)) if hidden.dtype() != DType::F32 || !hidden.is_host() || !node.is_host() => {
                Err("the output matrix is not multiplied on the CPU".into())
            }
            (Some(weight), Some(hidden)) => Ok((weight, hidden.read_f32())),
            _ => Err("the output matrix is not one of the model's weights".into()),
        });
        true
    }
}

/// Takes the hidden states and stops llama.cpp before the output matrix.
struct HiddenTap {
    n_vocab: usize,
    n_rows: usize,
    hidden: Vec<f32>, // [n_rows, n_embd]
}

impl Tap for HiddenTap {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        let found = is_head(node, self.n_vocab) && node.ne()[1] == self.n_rows;
        if found {
            node.set_computed(false);
        }
        found
    }

    fn computed(&mut self, node: &Node<'_>) -> bool {
        // llama.cpp may use this graph again.
        node.set_computed(true);
        if let Some(hidden) = node.src(1) {
            self.hidden = hidden.read_f32();
        }
        false
    }
}
