//! The numbers alone, as numpy's `.npy`: `[n_embd]` for one layer, `[n_layers, n_embd]` for several, lowest layer first.

use super::gguf::MAX_N_EMBD;
use crate::layers::Layers;
use crate::steer::{SteerError, SteeringVector};
use half::f16;
use npyz::{NpyFile, Order, WriterBuilder};
use std::path::Path;

impl SteeringVector {
    /// Reads an `.npy` array of f4, f8 or f2: `[n_embd]` or `[n_layers, n_embd]`. The format has no place for the layers:
    /// the caller names them.
    ///
    /// # Errors
    /// [`SteerError::Io`] for a file that cannot be read; [`SteerError::NotAVector`] for one that is no array of that kind,
    /// is cut short, or has another number of rows than there are layers.
    pub fn load_npy(path: &Path, layers: &Layers) -> Result<Self, SteerError> {
        let refuse = |reason: String| SteerError::NotAVector { path: path.to_owned(), reason };
        let bytes = super::read(path)?;
        let header =
            NpyFile::new(&bytes[..]).map_err(|e| refuse(format!("not a .npy file of numbers, or damaged: {e}")))?;
        let shape = header.shape().to_vec();
        let (rows, n_embd) = match shape[..] {
            [n] => (1, n),
            [rows, n] => (rows, n),
            _ => return Err(refuse(format!("it has the shape {shape:?}, expected [n_embd] or [n_layers, n_embd]"))),
        };
        if rows != layers.len() as u64 {
            return Err(refuse(format!(
                "it holds {rows} directions ({shape:?}), {} were named: {layers}",
                layers.len()
            )));
        }
        if !(1..=MAX_N_EMBD as u64).contains(&n_embd) {
            return Err(refuse(format!("it has {n_embd} values in a row, expected 1 to {MAX_N_EMBD}")));
        }
        if header.order() == Order::Fortran && rows > 1 {
            return Err(refuse("it is stored in Fortran order: save numpy.ascontiguousarray(x)".into()));
        }
        let kind = header.dtype().descr();
        let failed = |e: std::io::Error| refuse(format!("it cannot be read as numbers: {e}"));
        let values: Vec<f32> = match kind.trim_matches(['\'', '<', '>']) {
            "f4" => header.into_vec::<f32>().map_err(failed)?,
            "f8" => header.into_vec::<f64>().map_err(failed)?.into_iter().map(|x| x as f32).collect(),
            "f2" => header.into_vec::<f16>().map_err(failed)?.into_iter().map(f16::to_f32).collect(),
            _ => return Err(refuse(format!("it holds {kind}, expected floats: '<f4', '<f8' or '<f2'"))),
        };
        Self::from_layers(layers, &values, "").map_err(|e| refuse(e.to_string()))
    }

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
