//! A tensor of a model, on the CPU or on a device.

use crate::llama::callback::Node;
use crate::llama::tensor::TransposedTensor;
use crate::llama::{DType, FileTensor, LlamaError, Model, sys};
use std::sync::Arc;

/// A tensor of a model, kept together with the model it belongs to.
#[derive(Debug, Clone)]
pub struct Weight {
    raw: *mut sys::ggml_tensor,
    model: Arc<Model>,
    plain: Option<Arc<FileTensor>>,
    /// Keeps the tensor alive, where it is a transposed copy.
    _transposed: Option<Arc<TransposedTensor>>,
}

// SAFETY: the tensor and its data belong to the model, which is held; both are read only, by ggml too: graphs that read a weight
// write nothing into its header.
unsafe impl Send for Weight {}
// SAFETY: as above.
unsafe impl Sync for Weight {}

impl Weight {
    /// The tensor, to be read.
    pub fn node(&self) -> Node<'_> {
        Node { raw: self.raw, model: &self.model }
    }

    /// Makes sure that the CPU can read the weight as it lies in the file: where llama.cpp keeps it in another form or
    /// memory, a copy of it is read.
    ///
    /// # Errors
    /// As [`FileTensor::load`].
    pub fn make_plain(&mut self) -> Result<(), LlamaError> {
        let node = self.node();
        if !node.is_host() && self.plain.is_none() {
            self.plain = Some(self.model.plain(&node.name(), node.dtype(), node.ne())?);
        }
        Ok(())
    }

    /// The device whose memory holds the weight; None where that is the CPU's.
    pub fn device(&self) -> Option<sys::ggml_backend_dev_t> {
        let node = self.node();
        if node.is_host() || node.t().buffer.is_null() {
            return None;
        }
        // SAFETY: a live buffer; its type and device live forever.
        unsafe {
            let device = sys::ggml_backend_buft_get_device(sys::ggml_backend_buffer_get_type(node.t().buffer));
            let kind = if device.is_null() { return None } else { sys::ggml_backend_dev_type(device) };
            (kind != sys::GGML_BACKEND_DEVICE_TYPE_CPU && kind != sys::GGML_BACKEND_DEVICE_TYPE_ACCEL).then_some(device)
        }
    }

    /// ggml's name of [`Weight::device`].
    pub fn device_name(&self) -> Option<String> {
        self.device().map(crate::llama::devices::device_name)
    }

    /// The first of `types` in which the weight's device multiplies by its transpose; None for a weight in the CPU's memory.
    ///
    /// # Errors
    /// [`LlamaError::Device`] where it does in none.
    pub fn transposed_type(&self, types: &[DType]) -> Result<Option<DType>, LlamaError> {
        self.device().map(|device| TransposedTensor::choose(self.node().ne(), device, types)).transpose()
    }

    /// True if the transposed copy in this type is there.
    pub fn has_transposed(&self, kind: DType) -> bool {
        self.model.has_transposed(&self.node().name(), kind)
    }

    /// The transposed copy of the weight on its device, as `kind`, as a weight; None for a weight in the CPU's memory.
    ///
    /// # Errors
    /// [`LlamaError::Device`] where the device has no room, and what reading the file gives.
    pub fn transposed(&self, kind: DType) -> Result<Option<Self>, LlamaError> {
        let Some(device) = self.device() else { return Ok(None) };
        let node = self.node();
        let copy = self.model.transposed(&node.name(), node.dtype(), node.ne(), device, kind)?;
        Ok(Some(Self { raw: copy.raw(), model: Arc::clone(&self.model), plain: None, _transposed: Some(copy) }))
    }

    /// The weight's tensor as it lies in the file, None where the CPU cannot read it and [`Weight::make_plain`] was not
    /// called.
    pub fn plain_ptr(&self) -> Option<*mut sys::ggml_tensor> {
        match &self.plain {
            Some(plain) => Some(plain.raw()),
            None => self.node().is_host().then_some(self.raw),
        }
    }
}

impl Node<'_> {
    /// The tensor as a weight that outlives the graph, if it is one of the model's.
    pub fn weight(&self) -> Option<Weight> {
        (self.is_leaf() && self.is_weight()).then(|| Weight {
            raw: self.raw,
            model: Arc::clone(self.model),
            plain: None,
            _transposed: None,
        })
    }
}
