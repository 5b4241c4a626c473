//! Placement of a model's layers: options of every command that loads a model.

use ggml_grad::llama::{Offload, SplitMode};

/// Layers to offload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuLayers {
    All,
    Some(u32),
}

impl std::str::FromStr for GpuLayers {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        // An empty environment variable says nothing.
        if s == "all" || s.is_empty() {
            return Ok(Self::All);
        }
        s.parse().map(Self::Some).map_err(|_| "must be a number of layers, or all".into())
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum SplitModeArg {
    None,
    Layer,
    Row,
}

/// Devices, with llama.cpp's names and meanings.
#[derive(Debug, Clone, clap::Args)]
pub struct DeviceArgs {
    /// Layers to put on devices, the last ones first: a number, or all. The output counts as one. [default: all, where there
    /// is a device]
    #[arg(long, visible_alias = "n-gpu-layers", value_name = "N|all", env = "BIDPO_GPU_LAYERS")]
    gpu_layers: Option<GpuLayers>,
    /// Devices to use, in this order (`bidpo doctor` lists them); none: the CPU alone. [default: the workers, then every
    /// GPU]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', env = "BIDPO_DEVICE")]
    device: Vec<String>,
    /// Division of the model between several devices: layer (whole layers), row (the rows of each matrix) or none (one takes all).
    #[arg(long, value_name = "MODE", value_enum, default_value = "layer", hide_short_help = true)]
    split_mode: SplitModeArg,
    /// With --split-mode none: the device that takes all, counted from 0.
    #[arg(long, value_name = "I", default_value_t = 0, hide_short_help = true)]
    main_gpu: usize,
    /// Shares of the devices, such as 3,1. [default: by their free memory]
    #[arg(long, value_name = "S,...", value_delimiter = ',', value_parser = share, hide_short_help = true)]
    tensor_split: Vec<f32>,
    /// Workers (`bidpo worker`) whose devices to use as well. The connection is neither encrypted nor authenticated.
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', env = "BIDPO_RPC")]
    rpc: Vec<String>,
}

fn share(s: &str) -> Result<f32, String> {
    s.parse::<f32>()
        .ok()
        .filter(|x| x.is_finite() && *x >= 0.0)
        .ok_or_else(|| "must be zero or a positive number".into())
}

impl DeviceArgs {
    /// As the library wants it. Empty environment variables say nothing.
    pub fn offload(&self) -> Offload {
        let said = |list: &[String]| list.iter().filter(|s| !s.is_empty()).cloned().collect::<Vec<_>>();
        let devices = said(&self.device);
        Offload {
            n_gpu_layers: match self.gpu_layers {
                None | Some(GpuLayers::All) => None,
                Some(GpuLayers::Some(n)) => Some(n),
            },
            devices: (!devices.is_empty()).then_some(devices),
            split_mode: match self.split_mode {
                SplitModeArg::None => SplitMode::None,
                SplitModeArg::Layer => SplitMode::Layer,
                SplitModeArg::Row => SplitMode::Row,
            },
            main_gpu: self.main_gpu,
            tensor_split: self.tensor_split.clone(),
            workers: said(&self.rpc),
        }
    }
}
