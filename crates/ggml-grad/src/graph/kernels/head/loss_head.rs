//! The fused LM-head loss (fused linear cross-entropy): from hidden states to log-probabilities of labels and to the
//! gradient of their weighted sum with respect to the hidden states, without a table of logits.
//!
//! Each worker has a share of the labelled rows, and walks through the whole vocabulary for them, 64 rows of the LM head W at
//! a time: logits z in the integer arithmetic of [`crate::graph::kernels::products::int8::Columns`], their exponentials relative to
//! a running maximum, and the sum of `exp(z) W` that the gradient needs, as in the online softmax of Milakov & Gimelshein 2018
//! (arXiv 1805.02867). With c the sum of a row's coefficients,
//!
//! `d/dh sum_l coef_l log p(token_l) = sum_l coef_l W[token_l] - c sum_v p_v W[v]`.
//!
//! The second sum is taken with W and exp(z) in BF16 and F32 accumulation, but for tokens of more than about 1/64 of the
//! probability (1/8 at the start of a walk): these go with the labels, in F32, because there the two terms nearly cancel.
//! Tokens of less than [`SKIPPED`] of a row's probability are left out of that sum (the gradient filter of Wijmans et al.
//! 2024, arXiv 2411.09009, which leaves out what is below 2^-12). Tiles whose largest logit shows that they hold less than
//! [`UNSEEN`] of it, all together, are left out of log p as well: less than F32 can tell from nothing.
//!
//! With the hidden states of a reference p, which the same LM head turns into logits, the sum is that of `-coef KL(p || q)`
//! over the rows instead, and its gradient `coef (sum_v p_v W[v] - sum_v q_v W[v])`: both walks in one, exact over the
//! vocabulary, for `n_embd` numbers a row that the caller keeps. Rows of the reference follow those of the policy.
//!
//! Coefficients may follow from the log-probabilities ([`crate::graph::kernels::head::task::LabelWeightFn`]): the second op knows these before it adds up.

use crate::graph::kernels::head::task::{LargeToken, LossTask, WorkerSums};
use crate::graph::kernels::numeric::{exponentials, largest};
use crate::graph::kernels::products::activations::{Layout, Packed};
use crate::graph::kernels::products::bf16::{self, Product};
use crate::graph::kernels::products::int8::Columns;
use crate::graph::kernels::products::quants::Format;
use crate::graph::kernels::share;
use crate::llama::sys;
use std::ffi::{c_int, c_void};
use std::ops::Range;

/// Rows of the LM head at a time.
const TILE: usize = 64;
/// Probability below which a token (and its neighbour, if it is below as well) is left out of a row's gradient.
pub(in crate::graph) const SKIPPED: f64 = 1.0 / 4_194_304.0;
/// Probability that the tiles left out of a row's sum hold at most, together.
const UNSEEN: f64 = 1.0 / 67_108_864.0;
/// Of the 32 pairs of a tile, with more than so many a row is multiplied with all, together with others.
const DENSE: u32 = 20;
/// After so many tiles logarithms of the sums are taken again.
const LOGS: usize = 32;
/// A running maximum is raised when a logit exceeds it by this: exponentials stay far from F32's limit.
const HEADROOM: f32 = 40.0;
/// Tokens with more than this share of the sum so far are kept for F32.
const LARGE: f64 = 1.0 / 64.0;
/// The share is raised at the start of the walk, at most by this factor: the sum is still small, so that many tokens would
/// seem large.
const LENIENT: f64 = 8.0;

/// [`LARGE`] after `tiles` of `n_tiles`.
fn large_share(tiles: usize, n_tiles: usize) -> f64 {
    LARGE * (n_tiles as f64 / tiles as f64 / 8.0).clamp(1.0, LENIENT)
}

/// True for LM heads of a type that [`partial`] supports, on this CPU.
pub(in crate::graph) fn can_fuse(kind: sys::ggml_type) -> bool {
    crate::graph::kernels::cpu::level().has_bf16() && Format::of(kind).is_some()
}

/// The rows of the task that have labels.
#[derive(Clone, Copy)]
struct Labelled {
    row: usize,
    first: usize,
    last: usize,
    coef: f32,
}

fn labelled(task: &LossTask, n_rows: usize) -> Vec<Labelled> {
    let labels = &task.labels;
    (0..n_rows)
        .map(|row| {
            let first = labels.partition_point(|l| (l.row as usize) < row);
            let last = labels.partition_point(|l| (l.row as usize) <= row);
            Labelled { row, first, last, coef: labels[first..last].iter().map(|l| l.coef).sum() }
        })
        .filter(|l| l.first < l.last)
        .collect()
}

/// The first op: src0 = W `[n_embd, n_vocab]`, src1 = h `[n_embd, n_rows]` in [`Layout::Columns`], dst `[n_embd, n_rows]`:
/// `sum exp(z - max) W`, in rows that have labels. With src2 = the reference's hidden states, as src1, dst has twice the rows.
///
/// A row is one worker's from the first tile to the last: its bits do not depend on their number.
pub(in crate::graph) unsafe extern "C" fn partial(
    dst: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    user: *mut c_void,
) {
    // SAFETY: `emit` passes a LossTask that outlives the computation, with a part for each worker, and tensors of these
    // shapes, on a CPU with the instructions. A worker writes its own part, and the rows of dst and the logits of the labels
    // that are its share.
    unsafe {
        let (d, w, x) = (&*dst, &*(*dst).src[0], &*(*dst).src[1]);
        let Some(format) = Format::of(w.type_) else { return };
        let [k, all_rows] = [d.ne[0] as usize, d.ne[1] as usize];
        let reference = (*dst).src[2];
        let n_rows = if reference.is_null() { all_rows } else { all_rows / 2 };
        let task = user.cast::<LossTask>();
        let (ith, nth) = (ith as usize, (nth as usize).min((*task).workers.len()));
        if ith >= nth {
            return;
        }
        let grad = (*task).grad;
        let mut rows = labelled(&*task, n_rows);
        let (first, last) = share(rows.len(), ith, nth);
        rows.truncate(last);
        rows.drain(..first);
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return };
        let range = first.row..last.row + 1;
        if !reference.is_null() {
            rows.extend_from_within(..);
            let own = rows.len() / 2;
            rows[own..].iter_mut().for_each(|l| l.row += n_rows);
        }
        let part = &mut *(*task).workers.as_mut_ptr().add(ith);
        let sums = d.data.cast::<f32>();
        if grad {
            for l in &rows {
                std::slice::from_raw_parts_mut(sums.add(l.row * k), k).fill(0.0);
            }
        }
        *part = WorkerSums {
            rows: range.clone(),
            max: vec![f32::NEG_INFINITY; all_rows],
            sum: vec![0.0; all_rows],
            cross: vec![0.0; all_rows - n_rows],
            large: Vec::new(),
        };
        let head = Walk {
            w: w.data.cast(),
            stride: w.nb[1],
            packed: Packed::new(format, Layout::Columns, k, n_rows),
            x: x.data.cast(),
            reference: reference.as_ref().map(|r| r.data.cast_const().cast()),
            rows: &rows,
            range,
            grad,
            unseen: (UNSEEN / w.ne[1] as f64).ln() as f32,
            sums,
        };
        let logits = (*task).logits.as_mut_ptr();
        let mut columns = Columns::new(format, k);
        for l in &rows {
            for i in l.first..l.last {
                let token = (&(*task).labels)[i].token as usize;
                let z = head.one(&mut columns, token, l.row);
                part.max[l.row] = part.max[l.row].max(z);
                if l.row < n_rows {
                    *logits.add(i) = z;
                }
            }
        }
        head.walk(&mut columns, w.ne[1] as usize, part);
    }
}

/// Bit mask of the pairs of neighbours that contain a value of at least `least`.
#[inline(always)]
fn pairs_from(e: &[f32; TILE], least: f32) -> u32 {
    let mut pairs = [0u32; TILE / 2];
    for (p, two) in e.as_chunks::<2>().0.iter().enumerate() {
        pairs[p] = u32::from(two[0] >= least || two[1] >= least) << p;
    }
    pairs.iter().fold(0, |all, p| all | p)
}

/// One worker's walk.
struct Walk<'a> {
    w: *const u8,
    stride: usize,
    packed: Packed,
    x: *const u8,
    /// Hidden states of the reference, as `x`: their rows follow.
    reference: Option<*const u8>,
    /// The worker's rows: the policy's, then the reference's.
    rows: &'a [Labelled],
    /// From the first to the last of the policy's.
    range: Range<usize>,
    grad: bool,
    /// Logarithm of the share of the sum so far that none of the tokens of an unseen tile reaches.
    unseen: f32,
    sums: *mut f32, // [n_rows, n_embd]
}

impl Walk<'_> {
    /// The logit of one token in one row.
    unsafe fn one(&self, columns: &mut Columns, token: usize, row: usize) -> f32 {
        let mut z = [0.0f32; Columns::LANES];
        let (x, row) = match self.reference {
            Some(reference) if row >= self.packed.m => (reference, row - self.packed.m),
            _ => (self.x, row),
        };
        // SAFETY: as `partial`.
        unsafe {
            columns.load(self.w.add(token * self.stride), self.stride, 1);
            columns.multiply(&self.packed, x, (row, row + 1), z.as_mut_ptr(), Columns::LANES);
        }
        z[0]
    }

    /// All tiles, from the first: tokens that are often likely stand at the start of most vocabularies, so that the sum soon
    /// shows what is next to nothing.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma"))]
    unsafe fn walk(&self, columns: &mut Columns, n_vocab: usize, part: &mut WorkerSums) {
        let (k, own, range) = (self.packed.k, self.packed.m, (self.range.start, self.range.end));
        let m = if self.reference.is_some() { 2 * own } else { own };
        let mut z = vec![0.0f32; m * TILE]; // [rows, TILE]
        let mut a = vec![0u16; m * TILE]; // [rows, TILE]
        let mut panel = vec![0u32; TILE / 2 * k]; // [TILE / 2, n_embd]
        let (mut dense, mut sparse) = (Vec::with_capacity(m), Vec::with_capacity(m));
        let mut e = [0.0f32; TILE];
        // Logarithms of the sums, as of some tiles ago: sums only grow.
        let mut logs = vec![0.0f32; m];
        for (tile, first) in (0..n_vocab).step_by(TILE).enumerate() {
            let count = TILE.min(n_vocab - first);
            let large_share = large_share(tile + 1, n_vocab.div_ceil(TILE));
            // SAFETY: as `partial`; `z` holds TILE numbers for each row.
            unsafe {
                columns.load(self.w.add(first * self.stride), self.stride, count);
                let of = z.as_mut_ptr().add(range.0 * TILE);
                columns.multiply(&self.packed, self.x, range, of, TILE);
                if let Some(reference) = self.reference {
                    columns.multiply(&self.packed, reference, range, of.add(own * TILE), TILE);
                }
            }
            dense.clear();
            sparse.clear();
            if tile.is_multiple_of(LOGS) {
                logs.iter_mut().zip(&part.sum).for_each(|(log, sum)| *log = sum.max(1.0).ln() as f32);
            }
            let mut used = 0u32;
            for l in self.rows {
                let (before, z) = z.split_at_mut(l.row * TILE);
                let z = &mut z[..TILE];
                z[count..].fill(f32::NEG_INFINITY);
                let top = largest(z);
                // The sum so far is at least the label's exp(0), whatever the maximum is relative to. NaN is not below.
                if top - part.max[l.row] < self.unseen + logs[l.row] {
                    continue;
                }
                if top > part.max[l.row] + HEADROOM {
                    self.raise(part, l.row, top);
                    logs[l.row] = part.sum[l.row].max(1.0).ln() as f32;
                }
                // A NaN reaches the sum, and through it all of the row.
                let mass = exponentials(z, part.max[l.row], &mut e[..]);
                part.sum[l.row] += f64::from(mass);
                if let Some(policy) = l.row.checked_sub(own) {
                    let of_policy = &before[policy * TILE..];
                    let terms = e[..count].iter().zip(z.iter().zip(of_policy)).filter(|(e, _)| **e > 0.0);
                    part.cross[policy] += terms.map(|(e, (z, of))| f64::from(e * (z - of))).sum::<f64>();
                }
                if !self.grad || l.coef == 0.0 {
                    continue;
                }
                // At the start a worker knows little of the whole sum, but at least the label's share: exp(0).
                let so_far = part.sum[l.row].max(1.0);
                let (large, least) = ((large_share * so_far) as f32, (SKIPPED * so_far) as f32);
                if mass >= large {
                    for i in 0..count {
                        if e[i] >= large {
                            part.large.push(LargeToken { row: l.row as u32, token: (first + i) as u32, logit: z[i] });
                            e[i] = 0.0;
                        }
                    }
                }
                let pairs = pairs_from(&e, least);
                if pairs == 0 {
                    continue;
                }
                used |= pairs;
                // SAFETY: the op is used only where the CPU has BF16.
                unsafe { bf16::round_all(&e, &mut a[l.row * TILE..(l.row + 1) * TILE]) };
                if pairs.count_ones() > DENSE {
                    dense.push(l.row as u32);
                } else {
                    sparse.push((l.row as u32, pairs));
                }
            }
            if !dense.is_empty() {
                used = u32::MAX;
            }
            for (p, out) in
                panel.chunks_exact_mut(k).enumerate().take(count.div_ceil(2)).filter(|p| used >> p.0 & 1 == 1)
            {
                let odd = (2 * p + 1 < count).then(|| columns.row(2 * p + 1));
                // SAFETY: as above.
                unsafe { bf16::pair(columns.row(2 * p), odd, out) };
            }
            let product = Product {
                first: false,
                panel: &panel,
                width: k,
                pairs: count.div_ceil(2),
                a: &a,
                a_stride: TILE,
                a_offset: 0,
                d: self.sums,
                d_stride: k,
            };
            // SAFETY: as `partial`.
            unsafe {
                product.add(&dense);
                for &(row, pairs) in &sparse {
                    product.add_some(row, pairs);
                }
            }
        }
    }

    /// A new maximum for a row.
    fn raise(&self, part: &mut WorkerSums, row: usize, top: f32) {
        let factor = (part.max[row] - top).exp();
        part.max[row] = top;
        part.sum[row] *= f64::from(factor);
        if let Some(policy) = row.checked_sub(self.packed.m) {
            part.cross[policy] *= f64::from(factor);
        }
        if self.grad {
            let k = self.packed.k;
            // SAFETY: the row is the worker's, of k numbers.
            let sums = unsafe { std::slice::from_raw_parts_mut(self.sums.add(row * k), k) };
            sums.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

/// The second op: src0 = the first one's result, src1 = W, dst `[n_embd, n_rows]`. Fills in the task's log-probabilities and,
/// where the first op had a reference, its divergences.
pub(in crate::graph) unsafe extern "C" fn finish(
    dst: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    user: *mut c_void,
) {
    // SAFETY: as `partial`; workers take disjoint rows, and with them disjoint labels.
    unsafe {
        let (d, sums, w) = (&*dst, &*(*dst).src[0], &*(*dst).src[1]);
        let Some(format) = Format::of(w.type_) else { return };
        let [k, n_rows] = [d.ne[0] as usize, d.ne[1] as usize];
        let all_rows = sums.ne[1] as usize;
        let has_reference = all_rows > n_rows;
        let task = user.cast::<LossTask>();
        let parts = &raw const (*task).workers;
        let parts = &*parts;
        let (r0, r1) = share(n_rows, ith as usize, nth as usize);
        let log_probs = (*task).log_probs.as_mut_ptr();
        let divergences = (*task).divergences.as_mut_ptr();
        let mut row = Dequantized::new(format, w, k);
        // Of the policy's rows, then of the reference's.
        let mut large = [vec![Vec::new(); r1 - r0], vec![Vec::new(); r1 - r0]];
        for token in parts.iter().flat_map(|p| &p.large) {
            let row = token.row as usize;
            let at = if row < n_rows { (0, row) } else { (1, row - n_rows) };
            if let Some(large) = at.1.checked_sub(r0).and_then(|row| large[at.0].get_mut(row)) {
                large.push(token);
            }
        }
        std::slice::from_raw_parts_mut(d.data.cast::<f32>().add(r0 * k), (r1 - r0) * k).fill(0.0);
        // Coefficients that follow from log-probabilities follow from those of all rows: each worker finds them.
        let weigh = (*task).weigh.filter(|_| (*task).grad);
        let rows = labelled(&*task, n_rows).into_iter().filter(|l| weigh.is_some() || (r0..r1).contains(&l.row));
        let rows: Vec<Total> = rows.filter_map(|l| Total::new(l, l.row, parts)).collect();
        let (labels, logits) = (&raw const (*task).labels, &raw const (*task).logits);
        let (labels, logits) = (&*labels, &*logits);
        let coefs: Vec<f32> = match weigh {
            None => labels.iter().map(|l| l.coef).collect(),
            Some(weigh) => {
                let mut all = vec![f64::NAN; labels.len()];
                for t in &rows {
                    let of = t.of.first..t.of.last;
                    for (log_prob, &z) in all[of.clone()].iter_mut().zip(&logits[of]) {
                        *log_prob = f64::from(z) - t.log_z;
                    }
                }
                weigh(&all)
            }
        };
        for t in rows.iter().filter(|t| (r0..r1).contains(&t.of.row)) {
            let l = &t.of;
            for (i, &z) in logits.iter().enumerate().take(l.last).skip(l.first) {
                *log_probs.add(i) = f64::from(z) - t.log_z;
            }
            let beside = has_reference.then_some(Labelled { row: l.row + n_rows, ..*l });
            let reference = beside.and_then(|of| Total::new(of, l.row, parts));
            if let Some(reference) = &reference {
                for i in l.first..l.last {
                    *divergences.add(i) = t.part.cross[l.row] / reference.sum - reference.log_z + t.log_z;
                }
            }
            if !(*task).grad {
                continue;
            }
            let out = std::slice::from_raw_parts_mut(d.data.cast::<f32>().add(l.row * k), k);
            if l.coef != 0.0 {
                let coef = f64::from(coefs[l.first..l.last].iter().sum::<f32>());
                // coef sum_v p_v W[v]
                let mut mean = |out: &mut [f32], t: &Total<'_>, coef: f64, large: &[&LargeToken]| {
                    let sums = sums.data.cast::<f32>().add(t.of.row * k);
                    add(out, (coef / t.sum) as f32, std::slice::from_raw_parts(sums, k));
                    for large in large {
                        let p = (f64::from(large.logit) - t.log_z).exp();
                        add(out, (coef * p) as f32, row.read(large.token as usize));
                    }
                };
                let [own, others] = [&large[0][l.row - r0], &large[1][l.row - r0]];
                match &reference {
                    None => mean(out, t, -coef, own),
                    // Each by itself: equal distributions leave nothing, to the last bit.
                    Some(reference) => {
                        let mut policy = vec![0.0; k];
                        mean(&mut policy, t, coef, own);
                        mean(out, reference, coef, others);
                        add(out, -1.0, &policy);
                    }
                }
            }
            if has_reference {
                continue;
            }
            for (label, &coef) in labels[l.first..l.last].iter().zip(&coefs[l.first..l.last]) {
                add(out, coef, row.read(label.token as usize));
            }
        }
    }
}

/// A row's sum over the vocabulary.
struct Total<'a> {
    of: Labelled,
    /// The worker that has the row.
    part: &'a WorkerSums,
    sum: f64,
    log_z: f64,
}

impl<'a> Total<'a> {
    /// The total of `of`, which is the policy's `row` or the reference's beside it.
    fn new(of: Labelled, row: usize, parts: &'a [WorkerSums]) -> Option<Self> {
        let part = parts.iter().find(|p| p.rows.contains(&row))?;
        let sum = part.sum[of.row];
        Some(Self { part, sum, log_z: f64::from(part.max[of.row]) + sum.ln(), of })
    }
}

fn add(out: &mut [f32], factor: f32, x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += factor * x;
    }
}

/// Rows of W as they are.
struct Dequantized<'a> {
    format: Format,
    w: &'a sys::ggml_tensor,
    u: Vec<u8>,
    scale: Vec<f32>,
    min: Vec<f32>,
    out: Vec<f32>,
}

impl<'a> Dequantized<'a> {
    fn new(format: Format, w: &'a sys::ggml_tensor, k: usize) -> Self {
        let groups = k / format.group;
        Self { format, w, u: vec![0; k], scale: vec![0.0; groups], min: vec![0.0; groups], out: vec![0.0; k] }
    }

    /// # Safety
    /// The tensor has such a row, in host memory.
    unsafe fn read(&mut self, row: usize) -> &[f32] {
        let bytes = self.u.len() / self.format.block * self.format.bytes;
        // SAFETY: by contract.
        let stored = unsafe { std::slice::from_raw_parts(self.w.data.cast::<u8>().add(row * self.w.nb[1]), bytes) };
        self.format.unpack_row(stored, &mut self.u, &mut self.scale, &mut self.min);
        self.format.to_f32(&self.u, &self.scale, &self.min, &mut self.out);
        &self.out
    }
}
