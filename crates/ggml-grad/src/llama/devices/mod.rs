//! Devices of this machine, and of workers that are reached over a network.

mod device;
mod rpc;

pub use device::{
    CpuFeature, Device, LLAMA_CPP_SYS_VERSION, backends, cpu_features, device_memory, devices, ggml_commit,
    ggml_version, system_info,
};
pub(super) use device::{device_description, find_device, local_gpus};
pub(crate) use device::{device_name, is_rpc};
pub(super) use rpc::connect;
pub use rpc::{connect_worker, resolve as resolve_endpoint, serve as serve_devices};
