//! The numbers alone, as numpy's `.npy`: `[n_embd]` for one layer, `[n_layers, n_embd]` for several, lowest layer first.

use super::loose::Tensor;
use super::torch::Archive;
use crate::steer::{SteerError, SteeringVector};
use half::f16;
use npyz::{NpyFile, Order, WriterBuilder};
use std::path::Path;

impl SteeringVector {
    /// The bytes of the `.npy` file (f4, C order). Layers, architecture and provenance have no place in it.
    ///
    /// # Errors
    /// [`SteerError::Invalid`] for values that no reader would take.
    pub fn to_npy(&self) -> Result<Vec<u8>, SteerError> {
        self.check()?;
        let n_embd = self.n_embd() as u64;
        let shape = match self.directions.len() {
            1 => vec![n_embd],
            n => vec![n as u64, n_embd],
        };
        let mut bytes = Vec::new();
        let mut write = || {
            let mut writer =
                npyz::WriteOptions::<f32>::new().default_dtype().shape(&shape).writer(&mut bytes).begin_nd()?;
            writer.extend(self.directions.values().flatten().copied())?;
            writer.finish()
        };
        write().map_err(|e: std::io::Error| SteerError::Invalid(e.to_string()))?;
        Ok(bytes)
    }
}

/// The array of a `.npy` file: f4, f8 or f2 of either byte order, which become f32.
pub(super) fn array(bytes: &[u8], path: &Path) -> Result<Tensor, SteerError> {
    read_array(bytes, String::new()).map_err(|reason| SteerError::NotAVector { path: path.to_owned(), reason })
}

/// The arrays of a `.npz` file, by name.
pub(super) fn arrays(bytes: &[u8], path: &Path) -> Result<Vec<Tensor>, SteerError> {
    let refuse = |reason: String| SteerError::NotAVector { path: path.to_owned(), reason };
    let mut archive =
        Archive::open(bytes).map_err(|e| refuse(format!("not an archive of numpy's arrays, or damaged: {e}")))?;
    let mut tensors = Vec::new();
    for file in archive.names() {
        let Some(name) = file.strip_suffix(".npy") else {
            return Err(refuse(format!("its file {file:?} is no .npy array")));
        };
        let bytes = archive.file(&file).map_err(refuse)?;
        tensors.push(read_array(&bytes, name.to_owned()).map_err(|e| refuse(format!("{name}: {e}")))?);
    }
    // numpy.savez(file, x) calls a single array arr_0: the 0 is no layer.
    if let [one] = &mut tensors[..] {
        one.name = one.name.strip_prefix("arr_").map_or_else(|| one.name.clone(), |_| String::new());
    }
    Ok(tensors)
}

/// Most bytes of a header, and most brackets in it: the description of a plain array has four, and npyz's parser takes time
/// exponential in their nesting.
const MOST_HEADER: usize = 4096;
const MOST_BRACKETS: usize = 8;

/// Checks that the header is short and flat before it is parsed.
fn check_header(bytes: &[u8]) -> Result<(), String> {
    let damaged = || "not a .npy file of numbers, or damaged: its header is cut short".to_owned();
    if !bytes.starts_with(b"\x93NUMPY") {
        return Err("not a .npy file of numbers, or damaged: it does not start with \\x93NUMPY".into());
    }
    let (length, start) = match (bytes.get(6), bytes.get(8..12)) {
        (Some(1), Some(&[a, b, ..])) => (usize::from(u16::from_le_bytes([a, b])), 10),
        (Some(_), Some(&[a, b, c, d])) => (u32::from_le_bytes([a, b, c, d]) as usize, 12),
        _ => return Err(damaged()),
    };
    if length > MOST_HEADER {
        return Err(format!("its header has {length} bytes, that of a plain array has at most {MOST_HEADER}"));
    }
    let header = bytes.get(start..start + length).ok_or_else(damaged)?;
    match header.iter().filter(|b| b"([{".contains(b)).count() {
        n if n > MOST_BRACKETS => Err(format!("its header has {n} brackets, that of a plain array has two or three")),
        _ => Ok(()),
    }
}

fn read_array(bytes: &[u8], name: String) -> Result<Tensor, String> {
    check_header(bytes)?;
    let header = NpyFile::new(bytes).map_err(|e| format!("not a .npy file of numbers, or damaged: {e}"))?;
    let shape: Vec<usize> =
        header.shape().iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    // The header of a damaged file may claim any number of values.
    let claimed = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if claimed.is_none_or(|n| n > bytes.len()) {
        return Err(format!("it has the shape {shape:?}, more values than the file has bytes"));
    }
    if header.order() == Order::Fortran && shape.iter().filter(|&&n| n != 1).count() > 1 {
        return Err("it is stored in Fortran order: save numpy.ascontiguousarray(x)".into());
    }
    let kind = header.dtype().descr();
    let failed = |e: std::io::Error| format!("it cannot be read as numbers: {e}");
    let values: Vec<f32> = match kind.trim_matches(['\'', '<', '>']) {
        "f4" => header.into_vec::<f32>().map_err(failed)?,
        "f8" => header.into_vec::<f64>().map_err(failed)?.into_iter().map(|x| x as f32).collect(),
        "f2" => header.into_vec::<f16>().map_err(failed)?.into_iter().map(f16::to_f32).collect(),
        _ => return Err(format!("it holds {kind}, expected floats: '<f4', '<f8' or '<f2'")),
    };
    Ok(Tensor { name, shape, values })
}
