//! The way from hidden states to log-probabilities: bidpo's own LM head where it is that of the model's graph, llama.cpp's
//! logits otherwise.

use super::error::ScoreError;
use ggml_grad::graph::{LmHead, log_sum_exp};
use ggml_grad::llama::{Batch, Context, DType, EvalCallback, LlamaError, Node, NodeId, Token, Weight};

/// Nats by which our head may differ from llama.cpp's logits on the token that decides whether it is used. Both round the
/// hidden state alike and differ in the order of F32 sums: 1e-5 or less is usual.
const TOLERANCE: f64 = 1e-3;

/// How a batch's log-probabilities are computed.
#[derive(Debug)]
pub(super) enum Head {
    /// llama.cpp stops before its LM head; the product and the softmax are ours, in one.
    Fused(LmHead, HiddenAt),
    /// llama.cpp's logits, a table of `[n_vocab]` a row; and why.
    Logits(String),
}

/// Which node of the graph makes the hidden states that the LM head is multiplied with.
#[derive(Debug, Clone)]
pub(super) struct HiddenAt {
    /// How many computed nodes stand before it.
    place: usize,
    /// Its name; empty where it does not stand right before the product.
    name: String,
}

impl Head {
    /// Looks at the end of the context's graph by decoding one token as sequence `sequence`, and leaves it in the cache.
    ///
    /// # Errors
    /// As [`Context::decode`].
    pub(super) fn find(ctx: &mut Context, sequence: i32) -> Result<Self, LlamaError> {
        let model = ctx.model().clone();
        let mut batch = Batch::new();
        let row = batch.add(model.bos().unwrap_or(0), 0, &[sequence], true);
        batch.set_prompt(row, 1);
        let mut probe = Probe { n_vocab: model.n_vocab(), before: Vec::new(), found: None, behind: Vec::new() };
        ctx.decode_with_callback(&batch, &mut probe)?;
        let end = match probe.end() {
            Ok(end) => end,
            Err(reason) => return Ok(Self::Logits(reason)),
        };
        let head = match LmHead::new(end.weight, end.cap, ctx.n_threads() as usize) {
            Ok(head) => head,
            Err(reason) => return Ok(Self::Logits(reason.to_string())),
        };
        // Trusted only after it agreed with llama.cpp.
        let logits = ctx.logits(row)?;
        let log_sum = log_sum_exp(logits);
        let tokens: Vec<Token> = (0..8).map(|i| (i * (model.n_vocab() - 1) / 7) as Token).collect();
        let wanted: Vec<(usize, Token)> = tokens.iter().map(|&t| (0, t)).collect();
        let ours = head.log_probs(&end.hidden, &wanted);
        let theirs = tokens.iter().map(|&t| f64::from(logits[t as usize]) - log_sum);
        let largest = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        // What is not a number (a vector far too large) is found by the caller, on either way.
        if largest > TOLERANCE {
            return Ok(Self::Logits(format!("our output head differs from llama.cpp's by {largest} nats")));
        }
        Ok(Self::Fused(head, end.at))
    }

    /// Decodes a batch and gives the log-probabilities (nats) of `wanted`: pairs of a row of the batch, ascending, and a
    /// token. The rows of `wanted`, and no others, must ask for logits. A batch that is not `kept` need not be in the cache
    /// afterwards.
    ///
    /// # Errors
    /// As [`Context::decode`].
    pub(super) fn decode(
        &self,
        ctx: &mut Context,
        batch: &Batch,
        wanted: &[(usize, Token)],
        kept: bool,
    ) -> Result<Vec<f64>, ScoreError> {
        match self {
            Self::Fused(..) if wanted.is_empty() => {
                ctx.decode(batch)?;
                Ok(Vec::new())
            }
            Self::Fused(head, at) => {
                // From rows of the batch to rows of the output.
                let mut rows: Vec<usize> = wanted.iter().map(|w| w.0).collect();
                rows.dedup();
                let hidden = hidden(ctx, batch, rows.len(), at, kept)?;
                let mut out = 0;
                let mut output_row = |&(row, token): &(usize, Token)| {
                    out += usize::from(rows[out] != row);
                    (out, token)
                };
                let wanted: Vec<(usize, Token)> = wanted.iter().map(&mut output_row).collect();
                Ok(head.log_probs(&hidden, &wanted))
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

/// The hidden states of a batch's output rows, `[n_rows, n_embd]`.
fn hidden(ctx: &mut Context, batch: &Batch, n_rows: usize, at: &HiddenAt, kept: bool) -> Result<Vec<f32>, ScoreError> {
    let model = ctx.model().clone();
    let n_embd = model.n_embd();
    if !kept && !at.name.is_empty() {
        let mut tap = PeekTap { at, shape: [n_embd, n_rows, 1, 1], seen: 0, hidden: Vec::new() };
        ctx.peek(batch, &mut tap)?;
        if !tap.hidden.is_empty() {
            return Ok(tap.hidden);
        }
        // The graph of this batch is another one: again, from the start.
        for (seq, first) in batch.first_positions() {
            ctx.kv_remove(seq, first);
        }
    }
    let mut tap = HiddenTap { n_vocab: model.n_vocab(), n_rows, hidden: Vec::new() };
    ctx.decode_with_callback(batch, &mut tap)?;
    if tap.hidden.len() != n_rows * n_embd {
        return Err(ScoreError::Unsupported(format!(
            "{}: the graph of {} tokens does not end like that of one token",
            model.path().display(),
            batch.len()
        )));
    }
    Ok(tap.hidden)
}

/// True for the product with the LM head.
fn is_head(node: &Node<'_>, n_vocab: usize) -> bool {
    node.ne()[0] == n_vocab
        && node.op_name() == "MUL_MAT"
        && node.src(0).is_some_and(|w| w.ne()[1] == n_vocab && w.weight().is_some())
}

/// True for a node that the backend does something for.
fn is_work(node: &Node<'_>) -> bool {
    node.is_computed() && !matches!(node.op_name(), "NONE" | "RESHAPE" | "VIEW" | "PERMUTE" | "TRANSPOSE")
}

/// The end of a graph.
struct End {
    weight: Weight,
    cap: Option<f32>,
    hidden: Vec<f32>,
    at: HiddenAt,
}

/// The LM head, the hidden states that it is multiplied with, and their node.
type Found = (Weight, Vec<f32>, NodeId);

/// Remembers the graph's end.
struct Probe {
    n_vocab: usize,
    /// The nodes before the product with the LM head.
    before: Vec<(NodeId, String)>,
    /// The LM head, and the hidden state that it was multiplied with, with its node; why not, where it cannot be used.
    found: Option<Result<Found, String>>,
    /// Operations behind it: name, parameters as floats.
    behind: Vec<(&'static str, [f32; 2])>,
}

impl Probe {
    fn end(self) -> Result<End, String> {
        let (weight, hidden, id) = self.found.ok_or("the graph has no product with an output matrix")??;
        let cap = match self.behind[..] {
            [] => None,
            [("SCALE", [down, 0.0]), ("TANH", _), ("SCALE", [cap, 0.0])] if (down * cap - 1.0).abs() < 1e-5 => {
                Some(cap)
            }
            _ => {
                let names: Vec<&str> = self.behind.iter().map(|b| b.0).collect();
                return Err(format!("the graph goes on behind the output matrix: {}", names.join(", ")));
            }
        };
        let last = self.before.last().filter(|(last, _)| *last == id);
        let name = last.map_or(String::new(), |(_, name)| name.clone());
        Ok(End { weight, cap, hidden, at: HiddenAt { place: self.before.len().saturating_sub(1), name } })
    }
}

impl EvalCallback for Probe {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        if !is_work(node) {
            return false;
        }
        if self.found.is_some() {
            let params = node.params();
            self.behind.push((node.op_name(), [0, 1].map(|i| f32::from_bits(params[i] as u32))));
            return false;
        }
        let found = is_head(node, self.n_vocab);
        if !found {
            self.before.push((node.id(), node.name()));
        }
        found
    }

    fn computed(&mut self, node: &Node<'_>) -> bool {
        self.found = Some(match (node.src(0).and_then(|w| w.weight()), node.src(1)) {
            (Some(_), Some(hidden)) if hidden.dtype() != DType::F32 || !hidden.is_host() || !node.is_host() => {
                Err("the output matrix is not multiplied on the CPU".into())
            }
            (Some(weight), Some(hidden)) => Ok((weight, hidden.read_f32(), hidden.id())),
            _ => Err("the output matrix is not one of the model's weights".into()),
        });
        true
    }
}

/// Takes the hidden states and has llama.cpp leave the LM head out.
struct HiddenTap {
    n_vocab: usize,
    n_rows: usize,
    hidden: Vec<f32>, // [n_rows, n_embd]
}

impl EvalCallback for HiddenTap {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        is_head(node, self.n_vocab) && node.ne()[1] == self.n_rows
    }

    fn computed(&mut self, node: &Node<'_>) -> bool {
        if let Some(hidden) = node.src(1) {
            self.hidden = hidden.read_f32();
        }
        false
    }

    /// Nothing of it goes to the cache.
    fn skips(&mut self, node: &Node<'_>) -> bool {
        self.wants(node)
    }
}

/// Takes the hidden states and gives the batch up: stops at the node before the one that makes them, which is the one more
/// that is computed then.
struct PeekTap<'a> {
    at: &'a HiddenAt,
    shape: [usize; 4],
    /// Computed nodes that came by.
    seen: usize,
    hidden: Vec<f32>, // [n_rows, n_embd]
}

impl PeekTap<'_> {
    fn is_hidden(&self, node: &Node<'_>) -> bool {
        self.seen == self.at.place + 1
            && node.ne() == self.shape
            && node.dtype() == DType::F32
            && node.name() == self.at.name
    }
}

impl EvalCallback for PeekTap<'_> {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        if !is_work(node) {
            return false;
        }
        self.seen += 1;
        self.seen == self.at.place || self.is_hidden(node)
    }

    fn computed(&mut self, node: &Node<'_>) -> bool {
        if self.is_hidden(node) {
            self.hidden = node.read_f32();
        }
        false
    }
}
