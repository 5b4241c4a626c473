//! Log-probabilities of tokens from hidden states: the LM head fused with the softmax, without a table of logits.
//!
//! Each worker walks through its part of the vocabulary, a tile of rows of the LM head at a time: the tile's logits
//! for all hidden states, then their exponentials relative to a running maximum (the online softmax of Milakov &
//! Gimelshein 2018, arXiv 1805.02867). Tiles are summed in F32, what comes of them in F64.

use crate::graph::kernels::cpu::for_this_cpu;
use crate::graph::kernels::numeric::{exponentials, largest};
use crate::graph::kernels::products::activations::{Layout, Packed, pack_columns};
use crate::graph::kernels::products::int8::Columns;
use crate::graph::kernels::products::quants::Format;
use crate::graph::kernels::share;
use crate::llama::{LlamaError, Token, Weight, sys};
use std::ffi::c_void;
use std::ops::Range;

/// Rows of the LM head at a time: a tile, with its operands, stays in the first-level cache.
const TILE: usize = 32;

/// The LM head of a model, with the soft cap of its logits.
#[derive(Debug, Clone)]
pub struct LmHead {
    weight: Weight,
    /// `cap * tanh(logit / cap)`, where the model has it.
    cap: Option<f32>,
    n_threads: usize,
}

impl LmHead {
    /// A head of `weight` `[n_embd, n_vocab]`.
    ///
    /// # Errors
    /// As [`Weight::make_plain`]; [`LlamaError::Unsupported`] for a type that ggml's CPU backend cannot multiply.
    pub fn new(mut weight: Weight, cap: Option<f32>, n_threads: usize) -> Result<Self, LlamaError> {
        weight.make_plain()?;
        let head = Self { weight, cap, n_threads: n_threads.max(1) };
        match head.matrix() {
            Some(_) => Ok(head),
            None => {
                Err(LlamaError::Unsupported("the output matrix is of a type that cannot be multiplied here".into()))
            }
        }
    }

    fn matrix(&self) -> Option<Matrix> {
        // SAFETY: the weight's tensor lives as long as the weight; the traits are static.
        unsafe {
            let t = &*self.weight.plain_ptr()?;
            let traits = sys::ggml_get_type_traits_cpu(t.type_).as_ref()?;
            let vec_dot = traits.vec_dot?;
            let from_float = (*sys::ggml_get_type_traits_cpu(traits.vec_dot_type)).from_float;
            if t.ne[2] * t.ne[3] != 1 || (from_float.is_none() && traits.vec_dot_type != sys::GGML_TYPE_F32) {
                return None;
            }
            Some(Matrix {
                data: t.data.cast(),
                stride: t.nb[1],
                k: t.ne[0] as usize,
                n: t.ne[1] as usize,
                vec_dot,
                from_float,
                record: sys::ggml_row_size(traits.vec_dot_type, t.ne[0]),
                cap: self.cap,
                format: Format::of(t.type_).filter(|_| crate::graph::kernels::cpu::level().has_int8()),
            })
        }
    }

    /// The log-probabilities (nats) of `wanted`, pairs of a row of `hidden` `[rows, n_embd]` and a token. Not finite where
    /// the hidden states are not.
    pub fn log_probs(&self, hidden: &[f32], wanted: &[(usize, Token)]) -> Vec<f64> {
        let Some(matrix) = self.matrix() else { return vec![f64::NAN; wanted.len()] };
        let x = Quantized::new(&matrix, hidden);
        let (matrix, x, nth) = (&matrix, &x, self.n_threads);
        let work = move |ith: usize| {
            let (t0, t1) = share(matrix.n.div_ceil(TILE), ith, nth);
            matrix.sums(x, t0 * TILE..(t1 * TILE).min(matrix.n))
        };
        let parts: Vec<Sums> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..nth).map(|i| scope.spawn(move || work(i))).collect();
            let mut parts = vec![work(0)];
            parts.extend(others.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))));
            parts
        });
        let mut log_sums: Vec<f64> = Vec::with_capacity(x.m);
        for row in 0..x.m {
            let max = parts.iter().map(|p| p.max[row]).fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = parts.iter().map(|p| p.sum[row] * f64::from(p.max[row] - max).exp()).sum();
            log_sums.push(f64::from(max) + sum.ln());
        }
        let logit = |row: usize, token: Token| f64::from(matrix.capped(matrix.dot(token as usize, x, row)));
        wanted.iter().map(|&(row, token)| logit(row, token) - log_sums[row]).collect()
    }
}

/// For each row, `sum` of the exponentials relative to `max`.
struct Sums {
    max: Vec<f32>,
    sum: Vec<f64>,
}

impl Sums {
    #[inline(always)]
    fn add(&mut self, row: usize, z: &[f32]) {
        let top = largest(z);
        if top > self.max[row] {
            self.sum[row] *= f64::from(self.max[row] - top).exp();
            self.max[row] = top;
        }
        self.sum[row] += f64::from(exponentials(z, self.max[row], &mut [0.0; TILE]));
    }
}

/// The matrix in memory, and how ggml multiplies its rows.
struct Matrix {
    data: *const u8,
    stride: usize,
    k: usize,
    n: usize,
    vec_dot: unsafe extern "C" fn(i32, *mut f32, usize, *const c_void, usize, *const c_void, usize, i32),
    from_float: Option<unsafe extern "C" fn(*const f32, *mut c_void, i64)>,
    /// Bytes of a quantized hidden state.
    record: usize,
    cap: Option<f32>,
    /// The format of weights that [`Columns`] unpacks; None for those that ggml multiplies.
    format: Option<Format>,
}

// SAFETY: read only; the weight it points to outlives the threads that share it.
unsafe impl Sync for Matrix {}

impl Matrix {
    fn capped(&self, z: f32) -> f32 {
        self.cap.map_or(z, |cap| cap * (z / cap).tanh())
    }

    /// One worker's part of the vocabulary.
    fn sums(&self, x: &Quantized, tokens: Range<usize>) -> Sums {
        let matrix = self;
        for_this_cpu!(Matrix::sums_here, (matrix: &Matrix, x: &Quantized, tokens: Range<usize>) -> Sums)
    }

    #[inline(always)]
    fn sums_here(&self, x: &Quantized, tokens: Range<usize>) -> Sums {
        let mut sums = Sums { max: vec![f32::NEG_INFINITY; x.m], sum: vec![0.0; x.m] };
        let mut z = vec![f32::NEG_INFINITY; x.m * TILE]; // [rows, TILE]
        let mut columns = self.format.map(|format| Columns::new(format, self.k));
        for first in tokens.clone().step_by(TILE) {
            let count = TILE.min(tokens.end - first);
            match (&mut columns, &x.packed) {
                // SAFETY: these rows of the matrix exist; the CPU has the instructions; z holds TILE numbers a row.
                (Some(columns), Some((packed, bytes))) => unsafe {
                    columns.load(self.data.add(first * self.stride), self.stride, count);
                    columns.multiply(packed, bytes.as_ptr(), (0, x.m), z.as_mut_ptr(), TILE);
                },
                _ => self.tile(first..first + count, x, &mut z),
            }
            for (row, z) in z.chunks_exact_mut(TILE).enumerate() {
                z[count..].fill(f32::NEG_INFINITY);
                if self.cap.is_some() {
                    z[..count].iter_mut().for_each(|z| *z = self.capped(*z));
                }
                sums.add(row, z);
            }
        }
        sums
    }

    /// The logit of one token.
    #[inline]
    fn dot(&self, token: usize, x: &Quantized, row: usize) -> f32 {
        assert!(token < self.n && row < x.m, "token {token} or row {row} does not exist");
        let mut z = 0.0;
        // SAFETY: the row of the matrix exists, the record was written by the type's own conversion.
        unsafe {
            let w = self.data.add(token * self.stride).cast();
            (self.vec_dot)(self.k as i32, &raw mut z, 0, w, 0, x.bytes.as_ptr().add(row * self.record).cast(), 0, 1);
        }
        z
    }

    /// The logits of `tokens`, at most [`TILE`], in all rows: `z[row][token - first]`.
    fn tile(&self, tokens: Range<usize>, x: &Quantized, z: &mut [f32]) {
        for (row, z) in z.chunks_exact_mut(TILE).enumerate() {
            for (z, token) in z.iter_mut().zip(tokens.clone()) {
                *z = self.dot(token, x, row);
            }
        }
    }
}

/// Hidden states, quantized as ggml does before a matmul.
struct Quantized {
    m: usize,
    bytes: Vec<u8>,
    /// For [`Columns`].
    packed: Option<(Packed, Vec<u8>)>,
}

impl Quantized {
    fn new(matrix: &Matrix, hidden: &[f32]) -> Self {
        let m = hidden.len() / matrix.k;
        let mut bytes = vec![0u8; m * matrix.record];
        for (x, record) in hidden.chunks_exact(matrix.k).zip(bytes.chunks_exact_mut(matrix.record)) {
            match matrix.from_float {
                // SAFETY: the record holds a row of k numbers of the type.
                Some(convert) => unsafe { convert(x.as_ptr(), record.as_mut_ptr().cast(), matrix.k as i64) },
                None => record.chunks_exact_mut(4).zip(x).for_each(|(to, x)| to.copy_from_slice(&x.to_ne_bytes())),
            }
        }
        let packed = matrix.format.map(|format| {
            let packed = Packed::new(format, Layout::Columns, matrix.k, m);
            let bytes = pack_columns(&packed, hidden);
            (packed, bytes)
        });
        Self { m, bytes, packed }
    }
}
