//! Recurrent layers: convolutions over time and scans. Several streams in one.

use super::Graph;
use crate::graph::ir::{Elem, IrError, MatrixScan, MatrixScanBack, Op, Shape, Value, contiguous, n_elements};

impl Graph {
    /// [`Op::MixStreams`].
    ///
    /// # Errors
    /// [`IrError::Shape`] for sources that do not fit.
    pub fn mix_streams(&mut self, x: Value, weights: Value, scale: f32) -> Result<Value, IrError> {
        let (a, b) = (self.ne(x), self.ne(weights));
        if a[3] != 1 || b != [a[1], a[2], 1, 1] {
            return Self::err(Op::MixStreams { scale }, format!("{a:?} and weights {b:?} do not fit"));
        }
        Ok(self.f32(Op::MixStreams { scale }, &[x, weights], [a[0], a[2], 1, 1]))
    }

    /// [`Op::SsmConv`].
    ///
    /// # Errors
    /// [`IrError::Shape`] for sources that do not fit.
    pub fn ssm_conv(&mut self, x: Value, filters: Value) -> Result<Value, IrError> {
        let (a, b) = (self.ne(x), self.ne(filters));
        if a[0] < b[0] || b[0] == 0 || a[1] != b[1] || a[3] * b[2] * b[3] != 1 || !self.is_contiguous(x) {
            return Self::err(Op::SsmConv, format!("{a:?} and filters {b:?} do not fit"));
        }
        Ok(self.f32(Op::SsmConv, &[x, filters], [a[1], a[0] - b[0] + 1, a[2], 1]))
    }

    /// Gradient of [`Op::SsmConv`] with respect to its first source.
    ///
    /// # Errors
    /// As [`Graph::ssm_conv`].
    pub fn ssm_conv_back(&mut self, g: Value, filters: Value) -> Result<Value, IrError> {
        let (a, b) = (self.ne(g), self.ne(filters));
        if a[0] != b[1] || b[0] == 0 || a[3] != 1 || ![g, filters].iter().all(|&v| self.is_contiguous(v)) {
            return Self::err(Op::SsmConvBack, format!("{a:?} and filters {b:?} do not fit"));
        }
        Ok(self.f32(Op::SsmConvBack, &[g, filters], [a[1] + b[0] - 1, a[0], a[2], 1]))
    }

    /// [`Op::SsmScan`] of its sources in their order.
    ///
    /// # Errors
    /// [`IrError::Shape`] for sources that do not fit.
    pub fn ssm_scan(&mut self, src: [Value; 7]) -> Result<Value, IrError> {
        let [state, x, dt, a, b, c, ids] = src.map(|v| self.ne(v));
        let [n_state, dim, n_head, _] = state;
        let [.., tokens, sequences] = x;
        let n_group = b[1];
        let fits = x[..2] == [dim, n_head]
            && dt == [n_head, tokens, sequences, 1]
            && (a == [n_state, n_head, 1, 1] || a == [1, n_head, 1, 1])
            && b == [n_state, n_group, tokens, sequences]
            && c == b
            && n_group > 0
            && n_head.is_multiple_of(n_group)
            && ids == [sequences, 1, 1, 1];
        let elems = src.map(|v| self.node(v).elem);
        let types = elems[..6].iter().all(|&e| e == Elem::F32) && elems[6] == Elem::I32;
        // The rows of x, B and C are read without gaps; their tokens may lie apart.
        let rows = [1, 4, 5].iter().all(|&i| {
            let node = self.node(src[i]);
            node.nb[0] == 4 && (node.ne[1] == 1 || node.nb[1] == 4 * node.ne[0])
        });
        let whole = [0, 2, 3, 6].iter().all(|&i| self.is_contiguous(src[i]));
        if !fits || !types || !rows || !whole {
            return Self::err(Op::SsmScan, format!("{state:?}, {x:?}, {dt:?}, {a:?}, {b:?}, {c:?} do not fit"));
        }
        let n = n_elements(x) + n_state * dim * n_head * sequences;
        Ok(self.f32(Op::SsmScan, &src, [n, 1, 1, 1]))
    }

    /// Gradients of the sources of an [`Op::SsmScan`] from that of its result: x, dt, B and C, contiguous.
    ///
    /// # Errors
    /// [`IrError::Shape`].
    pub fn ssm_scan_back(&mut self, scan: Value, g: Value) -> Result<[Value; 4], IrError> {
        if self.node(scan).op != Op::SsmScan {
            return Self::err(self.node(scan).op, "not a scan");
        }
        let g = self.contiguous(g);
        let mut src = self.node(scan).src.clone();
        src.push(g);
        let shapes = [1, 2, 4, 5].map(|i| self.ne(src[i]));
        let n = shapes.iter().map(|&ne| n_elements(ne)).sum();
        let all = self.f32(Op::SsmScanBack, &src, [n, 1, 1, 1]);
        let mut offset = 0;
        let mut parts = [all; 4];
        for (part, ne) in parts.iter_mut().zip(shapes) {
            *part = self.view(all, ne, contiguous(ne), offset)?;
            offset += 4 * n_elements(ne);
        }
        Ok(parts)
    }

    /// [`Op::MatrixScan`] of its sources in ggml's order.
    ///
    /// # Errors
    /// [`IrError::Shape`] for sources that do not fit.
    pub fn matrix_scan(&mut self, kind: MatrixScan, src: &[Value]) -> Result<Value, IrError> {
        let op = Op::MatrixScan(kind);
        let shapes: Vec<Shape> = src.iter().map(|&v| self.ne(v)).collect();
        let misfit = || Self::err(op, format!("{shapes:?} do not fit"));
        let Some((&state, rows)) = shapes.split_last() else { return misfit() };
        let n_sources = match kind {
            MatrixScan::Gated { .. } => 5,
            MatrixScan::Wkv6 | MatrixScan::DeltaNet => 6,
            MatrixScan::Wkv7 => 7,
        };
        if rows.len() + 1 != n_sources || src.iter().any(|&v| self.node(v).elem != Elem::F32) {
            return misfit();
        }
        let whole = |i: &usize| self.is_contiguous(src[*i]);
        let (fits, n_states) = if kind == MatrixScan::DeltaNet {
            let [n, heads, tokens, sequences] = rows[2];
            let queries = rows[..2].iter().all(|ne| {
                ne[0] == n && heads.is_multiple_of(ne[1]) && ne[2] == tokens && sequences.is_multiple_of(ne[3])
            });
            let gates = rows[3] == [1, heads, tokens, sequences] || rows[3] == [n, heads, tokens, sequences];
            let dense = (0..3).all(|i| self.node(src[i]).nb[0] == 4) && (3..6).all(|i| whole(&i));
            let rest = rows[4] == [1, heads, tokens, sequences] && state == [n, n, heads, sequences];
            (queries && gates && rest && dense, n_elements(state))
        } else {
            let [n, heads, tokens, rest] = rows[0];
            let sequences = state[1];
            let alike = (0..rows.len()).all(|i| match (kind, i) {
                (MatrixScan::Wkv6, 3) => rows[i] == [n, heads, 1, 1],
                _ => rows[i] == rows[0],
            });
            let states = state == [n * n * heads, sequences, 1, 1] && tokens.is_multiple_of(sequences);
            (alike && rest == 1 && states && (0..n_sources).all(|i| whole(&i)), n_elements(state))
        };
        if !fits {
            return misfit();
        }
        let value = if kind == MatrixScan::DeltaNet { rows[2] } else { rows[0] };
        let width = value[0] * value[1];
        Ok(self.f32(op, src, [width, (n_elements(value) + n_states) / width, 1, 1]))
    }

    /// [`Op::MatrixScanBack`]: the gradients of r, w, k, v (and of a and b) of `src`, which are those, from that of y, `g`; all
    /// `[n, n_head, tokens, sequences]` without gaps.
    ///
    /// # Errors
    /// [`IrError::Shape`] for sources that do not fit.
    pub fn matrix_scan_back(
        &mut self,
        kind: MatrixScanBack,
        state: Value,
        src: &[Value],
        g: Value,
    ) -> Result<Vec<Value>, IrError> {
        let op = Op::MatrixScanBack(kind);
        let ne = self.ne(g);
        let [n, heads, _, sequences] = ne;
        let mut all = vec![state];
        all.extend(src);
        all.push(g);
        let alike = all[1..].iter().all(|&v| self.ne(v) == ne) && src.len() == if kind.delta { 6 } else { 4 };
        if !alike
            || n_elements(self.ne(state)) != n * n * heads * sequences
            || !all.iter().all(|&v| self.is_contiguous(v))
        {
            let shapes: Vec<Shape> = all.iter().map(|&v| self.ne(v)).collect();
            return Self::err(op, format!("{shapes:?} do not fit"));
        }
        let size = n_elements(ne);
        let back = self.f32(op, &all, [size, src.len(), 1, 1]);
        (0..src.len()).map(|i| self.view(back, ne, contiguous(ne), 4 * size * i)).collect()
    }
}
