//! LoRA adapters of a model: `y = W x + s B (A x)` for the products that llama.cpp builds with `build_lora_mm`
//! (Hu et al. 2021, arXiv 2106.09685, equation 3).

mod vet;

use crate::llama::process::guard::{guarded, throwing};
use crate::llama::{Context, LlamaError, Model, last_log_lines, sys};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// llama.cpp keeps a set of a model's adapters that it does not lock.
static LOADING: Mutex<()> = Mutex::new(());

/// A LoRA adapter, loaded beside the model it belongs to.
///
/// llama.cpp puts its weights into the memory of the model's device, or into the CPU's where the model's weights are repacked.
#[derive(Debug)]
pub struct Adapter {
    raw: *mut sys::llama_adapter_lora,
    model: Arc<Model>,
    path: PathBuf,
}

// SAFETY: an adapter is not changed after it was loaded; loading and freeing are locked.
unsafe impl Send for Adapter {}
// SAFETY: as above.
unsafe impl Sync for Adapter {}

impl Adapter {
    /// Loads an adapter for `model` through llama.cpp's own reader.
    ///
    /// # Errors
    /// [`LlamaError::Adapter`] where llama.cpp refuses the file: another architecture, a tensor that the model does not have, shapes
    /// that do not fit, half a pair; and what llama.cpp would end the process on.
    pub fn load(model: &Arc<Model>, path: &Path) -> Result<Self, LlamaError> {
        let refused = |reason| LlamaError::Adapter { path: path.to_path_buf(), reason };
        let name = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| refused("its name holds a NUL byte".to_owned()))?;
        vet::fits(model, path)?;
        let lock = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = last_log_lines();
        let (model_raw, name) = (model.raw(), name.as_c_str());
        // SAFETY: the model is alive, the path NUL-terminated; the lock keeps other adapters of the model away.
        let raw =
            guarded(|| unsafe { throwing::llama_adapter_lora_init(model_raw, name.as_ptr()) }).map_err(refused)?;
        drop(lock);
        if raw.is_null() {
            return Err(refused(last_log_lines()));
        }
        Ok(Self { raw, model: Arc::clone(model), path: path.to_path_buf() })
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model it belongs to.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let lock = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: freed once; the model is alive, and each context that uses the adapter holds an Arc of it.
        unsafe { sys::llama_adapter_lora_free(self.raw) };
        drop(lock);
    }
}

impl Context {
    /// Puts adapters on the context, each with its scale, instead of those before; an empty slice takes them off. An adapter at
    /// scale 0 is not in the graph. Clears the KV cache: K and V were computed under other adapters.
    ///
    /// llama.cpp adds the products of several adapters in an order of its own, so that the last bits may differ between
    /// processes.
    ///
    /// # Errors
    /// [`LlamaError::Adapter`] for an adapter of another model or a scale that is not finite, [`LlamaError::Failed`] where
    /// llama.cpp throws.
    pub fn set_adapters(&mut self, adapters: &[(Arc<Adapter>, f32)]) -> Result<(), LlamaError> {
        self.switch_adapters(adapters)?;
        self.clear_kv();
        Ok(())
    }

    /// As [`Context::set_adapters`], but keeps the KV cache, for callers that know under which adapters each sequence was computed.
    ///
    /// # Errors
    /// As [`Context::set_adapters`].
    pub fn switch_adapters(&mut self, adapters: &[(Arc<Adapter>, f32)]) -> Result<(), LlamaError> {
        for (adapter, scale) in adapters {
            let refused = |reason| LlamaError::Adapter { path: adapter.path.clone(), reason };
            if !Arc::ptr_eq(&adapter.model, &self.model) {
                return Err(refused("it was loaded for another model".to_owned()));
            }
            if !scale.is_finite() {
                return Err(refused(format!("its scale is {scale}: give a finite number")));
            }
        }
        let mut raws: Vec<_> = adapters.iter().map(|(a, _)| a.raw).collect();
        let mut scales: Vec<f32> = adapters.iter().map(|&(_, s)| s).collect();
        let (raw, p, n, s) = (self.raw, raws.as_mut_ptr(), raws.len(), scales.as_mut_ptr());
        // SAFETY: `n` adapters of this model, which live as long as the context holds them, and as many scales.
        guarded(|| unsafe { throwing::llama_set_adapters_lora(raw, p, n, s) }).map_err(LlamaError::Failed)?;
        self.adapters = adapters.to_vec();
        Ok(())
    }

    /// The adapters on the context, with their scales.
    pub fn adapters(&self) -> &[(Arc<Adapter>, f32)] {
        &self.adapters
    }
}
