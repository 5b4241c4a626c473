//! Activations quantized to int8 by ggml's own functions, laid out for bidpo's matmul kernels.
//!
//! `ggml_mul_mat` quantizes in the same way before every matmul with a quantized weight; only the order of the bytes is
//! bidpo's. Quantizing is a separate op in the graph: all workers do it together, once for all matmuls that read it.

use crate::graph::kernels::products::quants::{Activations, Format, half};
use crate::graph::kernels::share;
use crate::llama::sys;
use std::ffi::{c_int, c_void};

/// Columns (tokens) are padded to a multiple of this.
pub(in crate::graph::kernels) const TILE_COLUMNS: usize = 8;

/// Layout of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::graph) enum Layout {
    /// For [`crate::graph::kernels::products::int8::exact`]: two columns side by side, block by block: `[column pairs, blocks]` records of 64 bytes
    /// of numbers, where the weights have an offset 64 bytes of corrections (32-bit integers), and 64 bytes of scales; then
    /// `[tiles of 8 columns, blocks, 8]` scaled sums.
    Pairs,
    /// For [`crate::graph::kernels::products::int8::Columns`]: `[columns, k]` numbers, then `[columns, groups]` scales, corrections and scaled sums.
    Columns,
}

/// Quantized activations of `m` columns of `k` numbers for weights of one format.
#[derive(Debug, Clone, Copy)]
pub(in crate::graph::kernels) struct Packed {
    pub format: Format,
    pub layout: Layout,
    pub k: usize,
    pub m: usize,
}

impl Packed {
    pub(in crate::graph::kernels) fn new(format: Format, layout: Layout, k: usize, m: usize) -> Self {
        Self { format, layout, k, m }
    }

    /// Groups of a column.
    pub(in crate::graph::kernels) fn groups(&self) -> usize {
        self.k / self.format.group
    }

    /// Columns with the padding.
    pub(in crate::graph::kernels) fn columns(&self) -> usize {
        self.m.next_multiple_of(TILE_COLUMNS)
    }

    /// Bytes of a record of [`Layout::Pairs`].
    pub(in crate::graph::kernels) fn record(&self) -> usize {
        if self.format.offset == 0 { 128 } else { 192 }
    }

    /// Offset of the second part: the sums of [`Layout::Pairs`], the scales of [`Layout::Columns`].
    pub(in crate::graph::kernels) fn second(&self) -> usize {
        match self.layout {
            Layout::Pairs => self.columns() / 2 * self.groups() * self.record(),
            Layout::Columns => self.columns() * self.k,
        }
    }

    /// Bytes in all.
    pub(in crate::graph::kernels) fn bytes(&self) -> usize {
        let per_part = self.columns() * self.groups() * 4;
        self.second() + if self.layout == Layout::Pairs { per_part } else { 3 * per_part }
    }
}

/// Bytes that [`pack`] writes for weights of type `kind`; None for a type without a [`Format`].
pub(in crate::graph) fn packed_bytes(kind: sys::ggml_type, layout: Layout, k: usize, m: usize) -> Option<usize> {
    Format::of(kind).map(|format| Packed::new(format, layout, k, m).bytes())
}

/// The user data of [`pack`]: type of the weights and layout.
pub(in crate::graph) fn pack_task(kind: sys::ggml_type, layout: Layout) -> *mut c_void {
    (((kind as usize) << 1) | usize::from(layout == Layout::Columns)) as *mut c_void
}

/// The custom op: src0 = x `[k, m]` contiguous F32, dst bytes; `user` from [`pack_task`].
pub(in crate::graph) unsafe extern "C" fn pack(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, user: *mut c_void) {
    // SAFETY: `emit` gives dst the bytes that `packed_bytes` says; workers take different tiles of columns.
    unsafe {
        let x = &*(*dst).src[0];
        let task = user as usize;
        let Some(format) = Format::of((task >> 1) as sys::ggml_type) else { return };
        let layout = if task & 1 == 1 { Layout::Columns } else { Layout::Pairs };
        let k = x.ne[0] as usize;
        let packed = Packed::new(format, layout, k, (x.ne[1] * x.ne[2] * x.ne[3]) as usize);
        let (t0, t1) = share(packed.columns() / TILE_COLUMNS, ith as usize, nth as usize);
        let mut column = Column::new(&packed);
        for c in t0 * TILE_COLUMNS..t1 * TILE_COLUMNS {
            if c < packed.m {
                column.round(std::slice::from_raw_parts(x.data.cast::<f32>().add(c * k), k));
            } else {
                column.clear();
            }
            column.write(&packed, c, (*dst).data.cast::<u8>());
        }
    }
}

/// The same outside a graph: columns `x` `[m, k]`, packed.
pub(in crate::graph::kernels) fn pack_columns(packed: &Packed, x: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0u8; packed.bytes()];
    let mut column = Column::new(packed);
    for (c, x) in x.chunks_exact(packed.k).enumerate().take(packed.m) {
        column.round(x);
        // SAFETY: the bytes are as many as `packed` says.
        unsafe { column.write(packed, c, bytes.as_mut_ptr()) };
    }
    bytes
}

/// One column, quantized.
struct Column {
    format: Format,
    /// The column as ggml quantizes it.
    stored: Vec<u8>,
    q: Vec<i8>,        // [k]
    scale: Vec<f32>,   // [groups]
    correct: Vec<i32>, // [groups]: -offset times the sum of the bytes
    sum: Vec<f32>,     // [groups]: scaled sum of the bytes
}

impl Column {
    fn new(packed: &Packed) -> Self {
        let groups = packed.groups();
        // SAFETY: arithmetic on the type's traits.
        let stored = unsafe { sys::ggml_row_size(packed.format.activations.kind(), packed.k as i64) };
        Self {
            format: packed.format,
            stored: vec![0; stored],
            q: vec![0; packed.k],
            scale: vec![0.0; groups],
            correct: vec![0; groups],
            sum: vec![0.0; groups],
        }
    }

    fn clear(&mut self) {
        self.q.fill(0);
        self.scale.fill(0.0);
        self.correct.fill(0);
        self.sum.fill(0.0);
    }

    fn round(&mut self, x: &[f32]) {
        let group = self.format.group;
        let kind = self.format.activations.kind();
        // SAFETY: `stored` holds the blocks of one row of this type.
        unsafe {
            if let Some(from_float) = (*sys::ggml_get_type_traits_cpu(kind)).from_float {
                from_float(x.as_ptr(), self.stored.as_mut_ptr().cast::<c_void>(), x.len() as i64);
            }
        }
        let copy = |q: &mut [i8], b: &[u8]| q.iter_mut().zip(b).for_each(|(q, b)| *q = *b as i8);
        match self.format.activations {
            Activations::Q8_0 => {
                for (i, block) in self.stored.chunks_exact(34).enumerate() {
                    self.scale[i] = half(block, 0);
                    copy(&mut self.q[32 * i..32 * (i + 1)], &block[2..]);
                }
            }
            Activations::Q8_1 => {
                for (i, block) in self.stored.chunks_exact(36).enumerate() {
                    (self.scale[i], self.sum[i]) = (half(block, 0), half(block, 2));
                    copy(&mut self.q[32 * i..32 * (i + 1)], &block[4..]);
                }
            }
            Activations::Q8K => {
                for (i, block) in self.stored.chunks_exact(292).enumerate() {
                    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
                    let groups = 256 / group;
                    self.scale[groups * i..groups * (i + 1)].fill(d);
                    copy(&mut self.q[256 * i..256 * (i + 1)], &block[4..260]);
                }
            }
        }
        if self.format.offset != 0 || self.format.activations == Activations::Q8K {
            for (i, q) in self.q.chunks_exact(group).enumerate() {
                let sum: i32 = q.iter().map(|&q| i32::from(q)).sum();
                self.correct[i] = -self.format.offset * sum;
                if self.format.activations == Activations::Q8K {
                    self.sum[i] = self.scale[i] * sum as f32;
                }
            }
        }
    }

    /// # Safety
    /// `to` has [`Packed::bytes`] bytes.
    unsafe fn write(&self, packed: &Packed, column: usize, to: *mut u8) {
        let groups = packed.groups();
        // SAFETY: offsets as in `Packed`.
        unsafe {
            match packed.layout {
                Layout::Pairs => {
                    let side = column % 2;
                    let sums = to.add(packed.second()).cast::<f32>();
                    for b in 0..groups {
                        let record = to.add((column / 2 * groups + b) * packed.record());
                        let q = self.q.as_ptr().add(32 * b).cast::<u8>();
                        std::ptr::copy_nonoverlapping(q, record.add(32 * side), 32);
                        let mut at = 64;
                        if self.format.offset != 0 {
                            // Each lane of 32 bits sums four bytes.
                            let lanes = record.add(at).cast::<i32>().add(8 * side);
                            for lane in 0..8 {
                                let four = &self.q[32 * b + 4 * lane..32 * b + 4 * lane + 4];
                                let sum: i32 = four.iter().map(|&q| i32::from(q)).sum();
                                lanes.add(lane).write(-self.format.offset * sum);
                            }
                            at += 64;
                        }
                        let scales = record.add(at).cast::<f32>().add(8 * side);
                        (0..8).for_each(|lane| scales.add(lane).write(self.scale[b]));
                        let tile = column / TILE_COLUMNS * groups + b;
                        sums.add(tile * TILE_COLUMNS + column % TILE_COLUMNS).write(self.sum[b]);
                    }
                }
                Layout::Columns => {
                    let part = packed.columns() * groups;
                    let q = to.add(column * packed.k).cast::<i8>();
                    let scale = to.add(packed.second()).cast::<f32>().add(column * groups);
                    let correct = scale.add(part).cast::<i32>();
                    let sum = scale.add(2 * part);
                    std::ptr::copy_nonoverlapping(self.q.as_ptr(), q, packed.k);
                    std::ptr::copy_nonoverlapping(self.scale.as_ptr(), scale, groups);
                    std::ptr::copy_nonoverlapping(self.correct.as_ptr(), correct, groups);
                    std::ptr::copy_nonoverlapping(self.sum.as_ptr(), sum, groups);
                }
            }
        }
    }
}
