//! Heads: ops that turn hidden states or logits into the gradient of a loss, and the search for what logits are made of.

use super::Graph;
use crate::graph::ir::{Elem, IrError, Node, Op, Value, WeightId, n_elements};
use std::collections::HashMap;

impl Graph {
    /// The LM head, if the logits are its matmul with hidden states and nothing else.
    pub fn output_matrix(&self, logits: Value) -> Option<WeightId> {
        let node = self.node(logits);
        let (&[w, h], Op::MulMat(_)) = (&node.src[..], node.op) else { return None };
        let (w_ne, ne) = (self.ne(w), self.ne(h));
        let Op::Weight(id) = self.node(w).op else { return None };
        (w_ne[2] * w_ne[3] * ne[2] * ne[3] == 1 && self.is_contiguous(h)).then_some(id)
    }

    /// [`Op::LossHead`] for logits that have an [`Graph::output_matrix`]: the op and the hidden states, with respect to which
    /// it is the gradient. None for any other logits.
    pub fn loss_head(&mut self, logits: Value) -> Option<(Value, Value)> {
        self.output_matrix(logits)?;
        let (w, h) = (self.node(logits).src[0], self.node(logits).src[1]);
        let ne = self.ne(h);
        Some((self.f32(Op::LossHead, &[w, h], ne), h))
    }

    /// The matmul with a weight that the logits are made by, whatever follows (a scale, a soft cap). None for logits that are
    /// made in another way.
    fn output_product(&self, logits: Value) -> Option<&Node> {
        let mut at = logits;
        loop {
            let node = self.node(at);
            let first = *node.src.first()?;
            match (node.op, self.node(first).op) {
                (Op::MulMat(_), Op::Weight(_)) => return Some(node),
                (Op::MulMat(_), _) => return None,
                _ if n_elements(node.ne) != n_elements(self.ne(first)) => return None,
                _ => at = first,
            }
        }
    }

    /// The weight of that matmul.
    pub fn output_weight(&self, logits: Value) -> Option<WeightId> {
        match self.node(*self.output_product(logits)?.src.first()?).op {
            Op::Weight(id) => Some(id),
            _ => None,
        }
    }

    /// The hidden states of that matmul.
    pub fn final_hidden(&self, logits: Value) -> Option<Value> {
        self.output_product(logits)?.src.get(1).copied()
    }

    /// The head that gives the divergence from a reference, whose hidden states ([`Graph::final_hidden`]) become the last input
    /// of the graph: [`Op::LossHead`] if `fused`, [`Op::LogProbHead`] with the reference's logits otherwise. Returns the head
    /// and the value with respect to which it is the gradient.
    ///
    /// # Errors
    /// [`IrError::Shape`] for logits whose hidden states are not found.
    pub fn divergence_head(&mut self, logits: Value, fused: bool) -> Result<(Value, Value), IrError> {
        let Some(hidden) = self.final_hidden(logits) else {
            return Self::err(Op::LogProbHead, "the logits are not made by one matmul with the LM head");
        };
        let ne = self.ne(hidden);
        let (reference, _) = self.input(ne, Elem::F32);
        if fused && self.output_matrix(logits).is_some() {
            let w = self.node(logits).src[0];
            return Ok((self.f32(Op::LossHead, &[w, hidden, reference], ne), hidden));
        }
        // The nodes from the hidden states to the logits once more, for the reference.
        let mut map = HashMap::from([(hidden, reference)]);
        for i in hidden.0 + 1..=logits.0 {
            let node = self.node(Value(i)).clone();
            if node.src.iter().any(|s| map.contains_key(s)) {
                let src = node.src.iter().map(|s| map.get(s).copied().unwrap_or(*s)).collect();
                let copy = self.copy(&node, src);
                map.insert(Value(i), copy);
            }
        }
        Ok((self.log_prob_head_against(logits, map[&logits])?, logits))
    }

    /// [`Op::LogProbHead`].
    pub fn log_prob_head(&mut self, logits: Value) -> Result<Value, IrError> {
        let ne = self.ne(logits);
        if ne[2] != 1 || ne[3] != 1 || !self.is_contiguous(logits) {
            return Self::err(Op::LogProbHead, format!("logits of shape {ne:?}"));
        }
        Ok(self.f32(Op::LogProbHead, &[logits], ne))
    }

    /// [`Op::LogProbHead`] with the logits of a reference.
    ///
    /// # Errors
    /// [`IrError::Shape`].
    pub fn log_prob_head_against(&mut self, logits: Value, reference: Value) -> Result<Value, IrError> {
        let (ne, other) = (self.ne(logits), self.ne(reference));
        if ne != other || ne[2] * ne[3] != 1 || !self.is_contiguous(logits) || !self.is_contiguous(reference) {
            return Self::err(Op::LogProbHead, format!("logits of shapes {ne:?} and {other:?}"));
        }
        Ok(self.f32(Op::LogProbHead, &[logits, reference], ne))
    }
}
