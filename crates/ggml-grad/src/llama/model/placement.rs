//! Placement of a model's layers on devices.

use crate::llama::devices::connect;
use crate::llama::devices::{device_description, device_name, find_device, local_gpus};
use crate::llama::model::tensors::ModelTensor;
use crate::llama::{LlamaError, init, sys};
use std::collections::BTreeMap;

/// ggml's name of the CPU.
const CPU: &str = "CPU";

/// Division of the layers between several devices (llama.cpp's `--split-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SplitMode {
    /// One device takes all.
    None,
    /// Whole layers, in proportion to the free memory.
    #[default]
    Layer,
    /// The rows of each matrix.
    Row,
}

/// Requested placement of a model's layers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Offload {
    /// Layers to offload, the last ones first, the output after them; None: all.
    pub n_gpu_layers: Option<u32>,
    /// Names of devices, in the order in which they are used; None: the workers, then every GPU.
    pub devices: Option<Vec<String>>,
    /// Division of the layers between them.
    pub split_mode: SplitMode,
    /// The device that takes all with [`SplitMode::None`], counted among those in use.
    pub main_gpu: usize,
    /// Shares of the devices; empty: by their free memory.
    pub tensor_split: Vec<f32>,
    /// Workers (`bidpo worker`), as HOST:PORT.
    pub workers: Vec<String>,
}

impl Offload {
    /// Everything in the memory of the CPU.
    pub fn none() -> Self {
        Self { n_gpu_layers: Some(0), ..Self::default() }
    }

    /// True if a model that is loaded so goes to devices at all.
    ///
    /// # Errors
    /// [`LlamaError::Device`] for a worker that cannot be reached or a device that is not there.
    pub fn offloads(&self) -> Result<bool, LlamaError> {
        Ok(!self.resolve()?.is_empty())
    }

    /// ggml's handles of the devices to use, in order.
    ///
    /// # Errors
    /// [`LlamaError::Device`] for a worker that cannot be reached or a device that is not there.
    pub(in crate::llama) fn resolve(&self) -> Result<Vec<sys::ggml_backend_dev_t>, LlamaError> {
        init();
        let mut devices = Vec::new();
        for worker in &self.workers {
            devices.extend(connect(worker)?);
        }
        if self.n_gpu_layers == Some(0) {
            return Ok(Vec::new());
        }
        match &self.devices {
            Some(names) => {
                devices = names.iter().filter(|n| *n != "none").map(|n| find_device(n)).collect::<Result<_, _>>()?;
            }
            None => devices.extend(local_gpus()),
        }
        // SAFETY: no arguments.
        let most = unsafe { sys::llama_max_devices() };
        if devices.len() > most {
            return Err(LlamaError::Device(format!(
                "{} devices, and llama.cpp uses at most {most}: name some with --device",
                devices.len()
            )));
        }
        if self.split_mode == SplitMode::None && self.main_gpu >= devices.len() && !devices.is_empty() {
            return Err(LlamaError::Device(format!(
                "--main-gpu {} is out of range: there are {} devices, counted from 0",
                self.main_gpu,
                devices.len()
            )));
        }
        Ok(devices)
    }

    /// The shares as llama.cpp wants them: one for each device it could have.
    ///
    /// # Errors
    /// [`LlamaError::Device`] for more shares than devices.
    pub(in crate::llama) fn shares(&self, n_devices: usize) -> Result<Option<Vec<f32>>, LlamaError> {
        if self.tensor_split.is_empty() || n_devices == 0 {
            return Ok(None);
        }
        if self.tensor_split.len() > n_devices || self.tensor_split.iter().sum::<f32>() <= 0.0 {
            return Err(LlamaError::Device(format!(
                "--tensor-split {:?} does not fit {n_devices} devices: one share for each, not all of them 0",
                self.tensor_split
            )));
        }
        // SAFETY: no arguments.
        let mut shares = vec![0.0; unsafe { sys::llama_max_devices() }];
        shares[..self.tensor_split.len()].copy_from_slice(&self.tensor_split);
        Ok(Some(shares))
    }
}

/// Placement of a loaded model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// Device of each layer.
    pub layers: Vec<String>,
    /// Device of the output.
    pub output: String,
    /// Full names of the devices.
    words: Vec<(String, String)>,
}

impl Placement {
    /// Placement of a model of `n_layer` layers, by the memory that holds its tensors. A layer lies where most of its bytes
    /// do.
    pub(in crate::llama) fn of(tensors: &[ModelTensor], n_layer: usize, devices: &[sys::ggml_backend_dev_t]) -> Self {
        let words = devices.iter().map(|&d| (device_name(d), device_description(d))).collect();
        if tensors.is_empty() {
            return Self { words, ..Self::default() }; // only the vocabulary was loaded
        }
        let mut bytes: Vec<BTreeMap<&str, usize>> = vec![BTreeMap::new(); n_layer];
        for tensor in tensors {
            let layer = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            if let Some(bytes) = layer.and_then(|i| bytes.get_mut(i)) {
                *bytes.entry(&tensor.device).or_default() += tensor.n_bytes;
            }
        }
        let mut layers: Vec<String> = Vec::with_capacity(n_layer);
        for bytes in bytes {
            let most = bytes.into_iter().max_by_key(|(_, n)| *n).map(|(device, _)| device.to_owned());
            // A layer without weights lies where the one below it does.
            let below = || layers.last().cloned().unwrap_or_else(|| CPU.to_owned());
            let device = most.unwrap_or_else(below);
            layers.push(device);
        }
        let of = |name: &'static str| tensors.iter().filter(move |t| t.name == name).map(|t| &t.device);
        // A tied output on a device is a second copy of the table of embeddings, which itself stays with the CPU.
        let mut output = of("output.weight").chain(of("token_embd.weight").filter(|d| *d != CPU));
        let output = output.next().cloned().unwrap_or_else(|| CPU.to_owned());
        Self { layers, output, words }
    }

    /// True if something lies outside of the CPU's memory.
    pub fn is_offloaded(&self) -> bool {
        self.layers.iter().chain([&self.output]).any(|d| !d.is_empty() && d != CPU)
    }

    /// Share of the layers, the output among them, that the CPU's memory holds.
    pub fn share_on_cpu(&self) -> f64 {
        let all = self.layers.len() + 1;
        let elsewhere = self.layers.iter().chain([&self.output]).filter(|d| !d.is_empty() && *d != CPU).count();
        (all - elsewhere) as f64 / all as f64
    }

    fn long<'a>(&'a self, name: &'a str) -> &'a str {
        self.words.iter().find(|(n, _)| n == name).map_or(name, |(_, words)| words)
    }
}

/// For a reader: `layers 0-14 on CPU, 15-29 and the output on CUDA0 (NVIDIA H100)`.
impl std::fmt::Display for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut runs: Vec<(usize, usize, &str)> = Vec::new();
        for (i, device) in self.layers.iter().enumerate() {
            match runs.last_mut() {
                Some((_, last, same)) if *same == device.as_str() => *last = i,
                _ => runs.push((i, i, device)),
            }
        }
        let mut text = Vec::new();
        let mut output = format!("the output on {}", self.long(&self.output));
        let n = runs.len();
        for (k, (first, last, device)) in runs.into_iter().enumerate() {
            let what = if first == last { format!("{first}") } else { format!("{first}-{last}") };
            let and = if k + 1 == n && device == self.output {
                output.clear();
                " and the output"
            } else {
                ""
            };
            let layers = match k {
                0 if first == last => "layer ",
                0 => "layers ",
                _ => "",
            };
            text.push(format!("{layers}{what}{and} on {}", self.long(device)));
        }
        if !output.is_empty() {
            text.push(output);
        }
        f.write_str(&text.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, device: &str, n_bytes: usize) -> ModelTensor {
        ModelTensor { name: name.into(), device: device.into(), n_bytes }
    }

    #[test]
    fn the_memory_of_tensors_tells_where_layers_lie() {
        let mut tensors = vec![
            tensor("token_embd.weight", "CPU", 9),
            tensor("blk.0.attn_q.weight", "CPU", 2),
            tensor("blk.1.attn_norm.weight", "CPU", 1),
            tensor("blk.1.attn_q.weight", "CUDA0", 2),
            tensor("blk.10.attn_q.weight", "CUDA1", 2),
            tensor("output.weight", "CUDA0", 9),
        ];
        let p = Placement::of(&tensors, 3, &[]);
        assert_eq!(
            (p.layers.clone(), p.output.as_str()),
            (["CPU", "CUDA0", "CUDA0"].map(String::from).into(), "CUDA0")
        );
        assert!(p.is_offloaded());
        assert_eq!(p.to_string(), "layer 0 on CPU, 1-2 and the output on CUDA0");
        assert!((p.share_on_cpu() - 1.0 / 4.0).abs() < 1e-12);
        // Tied: the copy on the device is the output.
        tensors.pop();
        assert_eq!(Placement::of(&tensors, 3, &[]).output, "CPU");
        tensors.push(tensor("token_embd.weight", "CUDA1", 9));
        assert_eq!(Placement::of(&tensors, 3, &[]).output, "CUDA1");
        assert_eq!(Placement::of(&[], 3, &[]).layers.len(), 0);
    }

    #[test]
    fn placements_in_words() {
        let of = |layers: &[&str], output: &str| Placement {
            layers: layers.iter().map(|&l| l.to_owned()).collect(),
            output: output.to_owned(),
            words: vec![("A".into(), "A (big)".into())],
        };
        assert_eq!(of(&["CPU"; 3], "CPU").to_string(), "layers 0-2 and the output on CPU");
        assert!(!of(&["CPU"; 3], "CPU").is_offloaded());
        assert_eq!(of(&["CPU", "CPU", "A"], "CPU").to_string(), "layers 0-1 on CPU, 2 on A (big), the output on CPU");
        assert_eq!(of(&["A", "B", "B"], "B").to_string(), "layer 0 on A (big), 1-2 and the output on B");
    }

    #[test]
    fn shares_are_for_devices() {
        let with = |shares: &[f32]| Offload { tensor_split: shares.to_vec(), ..Offload::default() };
        assert_eq!(with(&[]).shares(2).unwrap(), None);
        assert_eq!(with(&[1.0]).shares(0).unwrap(), None);
        assert_eq!(with(&[1.0, 3.0]).shares(2).unwrap().unwrap()[..3], [1.0, 3.0, 0.0]);
        assert!(with(&[1.0, 1.0, 1.0]).shares(2).unwrap_err().to_string().contains("2 devices"));
        assert!(with(&[0.0]).shares(2).is_err());
    }
}
