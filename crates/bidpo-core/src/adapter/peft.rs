//! Adapters as PEFT keeps them: a folder with `adapter_config.json` and `adapter_model.safetensors`
//! (<https://huggingface.co/docs/peft/developer_guides/checkpoint>).
//!
//! A is `[r, n_in]` and B `[n_out, r]` in both formats. In GGUF models of some architectures the rows of Q and K lie in another
//! order within each head: pairs of the rotation are neighbours there, and half a head apart at Hugging Face. B has the rows of
//! the matrix that it is added to, so its rows are moved with them.

use super::{AdapterError, AdapterFile, LowRank, Target};
use ::safetensors::tensor::{Dtype, SafeTensors, TensorView};
use ggml_grad::files::{FileError, read_at_most, write_atomically};
use ggml_grad::llama::{GgufFile, GgufValue};
use ggml_grad::numeric;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// The settings' file.
pub const CONFIG: &str = "adapter_config.json";
/// The weights' file.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// More bytes than any adapter has.
const MOST_BYTES: u64 = 1 << 34;
/// What stands before the model's own names.
const PREFIX: &str = "base_model.model.";
/// Matrices of a block, by their names at Hugging Face and in GGUF.
const MODULES: [(&str, &str); 7] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];
/// Architectures with these names, and whether rows of Q and K are moved in their GGUF files.
const ARCHITECTURES: [(&str, bool); 6] =
    [("llama", true), ("qwen2", false), ("qwen3", false), ("gemma", false), ("gemma2", false), ("gemma3", false)];

/// What of a model file the conversion needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadCounts {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`.
    pub name: Option<String>,
    /// Heads of Q.
    pub of_q: usize,
    /// Heads of K.
    pub of_k: usize,
}

impl HeadCounts {
    /// Reads them from a model file.
    ///
    /// # Errors
    /// [`AdapterError::Llama`] for a file that cannot be read; [`AdapterError::Impossible`] for an architecture whose names at
    /// Hugging Face are not known, or without one head count for all blocks.
    pub fn of_model(path: &Path) -> Result<Self, AdapterError> {
        let file = GgufFile::open(path)?;
        let text = |key: &str| match file.get(key) {
            Some(GgufValue::Str(text)) => Some(text.clone()),
            _ => None,
        };
        let architecture = text("general.architecture").unwrap_or_default();
        if !ARCHITECTURES.iter().any(|(name, _)| *name == architecture) {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
            return Err(AdapterError::Impossible(format!(
                "adapters for {architecture} cannot be converted: bidpo knows the names of {}",
                known.join(", ")
            )));
        }
        let count = |key: &str| match file.get(&format!("{architecture}.attention.{key}")) {
            Some(&GgufValue::Int(n)) if (1..=1 << 16).contains(&n) => Some(n as usize),
            _ => None,
        };
        let of_q = count("head_count").ok_or_else(|| {
            AdapterError::Impossible(format!("{} does not say one number of heads for all blocks", path.display()))
        })?;
        let of_k = match file.get(&format!("{architecture}.attention.head_count_kv")) {
            None => of_q,
            Some(_) => count("head_count_kv").ok_or_else(|| {
                AdapterError::Impossible(format!("{} has other numbers of K heads in each block", path.display()))
            })?,
        };
        Ok(Self { architecture, name: text("general.name"), of_q, of_k })
    }

    /// Heads within which the rows of a matrix are moved; `None` for a matrix whose rows stay.
    fn moved(&self, target: &Target) -> Option<usize> {
        let moves = ARCHITECTURES.iter().any(|(name, moves)| *name == self.architecture && *moves);
        match target.matrix.as_str() {
            "attn_q" if moves => Some(self.of_q),
            "attn_k" if moves => Some(self.of_k),
            _ => None,
        }
    }
}

/// Which way rows are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToGguf,
    FromGguf,
}

/// Moves rows of `width` numbers within each of `heads` heads: row 2j + s of a head in GGUF is row s d/2 + j at Hugging Face,
/// where d is the head's size and s is 0 or 1.
fn moved(values: &[f32], width: usize, heads: usize, way: Way) -> Result<Vec<f32>, AdapterError> {
    let rows = values.len() / width.max(1);
    if heads == 0 || !rows.is_multiple_of(2 * heads) {
        return Err(AdapterError::Impossible(format!("{rows} rows are no {heads} heads of an even size")));
    }
    let size = rows / heads;
    let mut out = vec![0.0; values.len()];
    for head in 0..heads {
        for j in 0..size / 2 {
            for s in 0..2 {
                let (gguf, theirs) = (head * size + 2 * j + s, head * size + s * size / 2 + j);
                let (from, to) = match way {
                    Way::ToGguf => (theirs, gguf),
                    Way::FromGguf => (gguf, theirs),
                };
                out[to * width..][..width].copy_from_slice(&values[from * width..][..width]);
            }
        }
    }
    Ok(out)
}

/// The module's name at Hugging Face: `model.layers.3.self_attn.q_proj`.
fn module(target: &Target) -> Option<String> {
    let (theirs, _) = MODULES.iter().find(|(_, ours)| *ours == target.matrix)?;
    Some(format!("model.layers.{}.{theirs}", target.layer?))
}

/// The matrix that a module is; what stands before `layers.` differs between classes of models.
fn target(module: &str) -> Option<Target> {
    let (_, rest) = module.rsplit_once("layers.")?;
    let (layer, name) = rest.split_once('.')?;
    let (_, ours) = MODULES.iter().find(|(theirs, _)| *theirs == name)?;
    Some(Target { layer: Some(layer.parse().ok()?), matrix: (*ours).to_owned() })
}

/// The settings that are written, in order.
const SETTINGS: [&str; 14] = [
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
];

impl AdapterFile {
    /// True for a folder of PEFT's that [`AdapterFile::save_peft`] has written: PEFT itself writes more settings.
    pub fn wrote_peft(folder: &Path) -> bool {
        let config = read_at_most(&folder.join(CONFIG), MOST_BYTES).ok();
        let config = config.and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).ok());
        let keys = |config: Map<String, Value>| config.into_iter().map(|(key, _)| key).collect::<BTreeSet<String>>();
        config.is_some_and(|config| keys(config).iter().eq(SETTINGS.iter()))
    }

    /// Writes a folder that PEFT loads, for the model whose head counts these are. The settings come last: a folder without
    /// them is none.
    ///
    /// # Errors
    /// [`AdapterError::Impossible`] for a pair that has no module at Hugging Face; [`AdapterError::File`] when the folder cannot be
    /// written.
    pub fn save_peft(&self, folder: &Path, model: &HeadCounts) -> Result<(), AdapterError> {
        self.check()?;
        if self.architecture != model.architecture {
            return Err(AdapterError::Impossible(format!(
                "the adapter is for {}, the model is {}",
                self.architecture, model.architecture
            )));
        }
        let (_, rank) = self.ranks();
        let alpha = self.alpha.filter(|a| *a != 0.0).unwrap_or(rank as f32);
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        let (mut modules, mut ranks) = (BTreeSet::new(), Map::new());
        for (target, pair) in &self.pairs {
            let Some(name) = module(target).filter(|_| pair.n_experts == 1) else {
                return Err(AdapterError::Impossible(format!("{target} has no module of that kind in PEFT's layout")));
            };
            let mut b = match model.moved(target) {
                Some(heads) => moved(&pair.b, pair.rank, heads, Way::FromGguf)?,
                None => pair.b.clone(),
            };
            // PEFT multiplies by alpha / rank of the pair; llama.cpp does too, or by the scale alone.
            let factor = (self.factor(pair, 1.0) / (f64::from(alpha) / pair.rank as f64)) as f32;
            if factor != 1.0 {
                b.iter_mut().for_each(|x| *x *= factor);
            }
            let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            tensors.push((format!("{PREFIX}{name}.lora_A.weight"), vec![pair.rank, pair.n_in], bytes(&pair.a)));
            tensors.push((format!("{PREFIX}{name}.lora_B.weight"), vec![pair.n_out, pair.rank], bytes(&b)));
            modules.insert(name.rsplit('.').next().unwrap_or_default().to_owned());
            if pair.rank != rank {
                ranks.insert(name, json!(pair.rank));
            }
        }
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": model.name,
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "target_modules": modules,
            "rank_pattern": ranks,
            "alpha_pattern": {},
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "use_rslora": false,
            "use_dora": false,
        });
        let invalid = |e: ::safetensors::SafeTensorError| AdapterError::Invalid(e.to_string());
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(invalid)?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let weights = ::safetensors::serialize(views, Some(metadata)).map_err(invalid)?;
        std::fs::create_dir_all(folder).map_err(FileError::write(folder))?;
        for (name, bytes) in [(WEIGHTS, weights), (CONFIG, format!("{config:#}\n").into_bytes())] {
            let path = folder.join(name);
            write_atomically(&path, &bytes).map_err(FileError::write(&path))?;
        }
        Ok(())
    }

    /// Reads a folder of PEFT's for the model whose head counts these are.
    ///
    /// # Errors
    /// [`AdapterError::File`] for files that cannot be read; [`AdapterError::NotAnAdapter`] for another method than plain LoRA, and for
    /// tensors that no GGUF adapter holds.
    pub fn load_peft(folder: &Path, model: &HeadCounts) -> Result<Self, AdapterError> {
        let (config_path, path) = (folder.join(CONFIG), folder.join(WEIGHTS));
        let read = |path: &Path| read_at_most(path, MOST_BYTES).map_err(FileError::read(path));
        let refuse_config = |reason: String| AdapterError::NotAnAdapter { path: config_path.clone(), reason };
        let refuse = |reason: String| AdapterError::NotAnAdapter { path: path.clone(), reason };
        let config: Value = serde_json::from_slice(&read(&config_path)?).map_err(|e| refuse_config(e.to_string()))?;
        let scaling = Scaling::of(&config).map_err(refuse_config)?;
        let bytes = read(&path)?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| refuse(format!("no safetensors file: {e}")))?;
        let mut halves: BTreeMap<String, [Option<Half>; 2]> = BTreeMap::new();
        for (name, tensor) in file.tensors() {
            let half = [".lora_A.weight", ".lora_B.weight"].iter().position(|end| name.ends_with(end));
            let of = half.and_then(|half| Some((half, name.get(..name.len() - ".lora_A.weight".len())?)));
            let Some((half, module)) = of else {
                return Err(refuse(format!(
                    "{name} is no part of a plain LoRA adapter: GGUF adapters hold lora_A and lora_B only"
                )));
            };
            let values =
                floats(&tensor).ok_or_else(|| refuse(format!("{name} is {:?}: floats are wanted", tensor.dtype())))?;
            halves.entry(module.to_owned()).or_default()[half] = Some(Half { shape: tensor.shape().to_vec(), values });
        }
        let mut adapter = Self::new(&model.architecture, Some(scaling.alpha));
        for (name, pair) in halves {
            let [Some(Half { shape: of_a, values: a }), Some(Half { shape: of_b, values: b })] = pair else {
                return Err(refuse(format!("{name}: half a pair")));
            };
            let module = name.strip_prefix(PREFIX).unwrap_or(&name);
            let Some(target) = target(module) else {
                return Err(refuse(format!(
                    "{module} is no module that bidpo knows in a {} model",
                    model.architecture
                )));
            };
            let (&[rank, _], &[_, of_rank]) = (&of_a[..], &of_b[..]) else {
                return Err(refuse(format!("{name}: A {of_a:?} and B {of_b:?} are no matrices")));
            };
            if adapter.pairs.contains_key(&target) {
                return Err(refuse(format!("{module}: another module of the file is {target} too")));
            }
            if rank != of_rank {
                return Err(refuse(format!("{name}: A {of_a:?} and B {of_b:?} have no common rank")));
            }
            let named = |e: AdapterError| refuse(format!("{name}: {e}"));
            let mut pair = LowRank::new(rank, a, b).map_err(named)?;
            if let Some(heads) = model.moved(&target) {
                pair.b = moved(&pair.b, rank, heads, Way::ToGguf).map_err(named)?;
            }
            let factor = (scaling.factor(module, rank) / adapter.factor(&pair, 1.0)) as f32;
            if factor != 1.0 {
                pair.b.iter_mut().for_each(|x| *x *= factor);
            }
            adapter.pairs.insert(target, pair);
        }
        adapter.check().map_err(|e| refuse(e.to_string()))?;
        Ok(adapter)
    }
}

/// A or B of a pair.
struct Half {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// By what PEFT multiplies `B A`.
struct Scaling {
    alpha: f32,
    of_modules: Map<String, Value>,
    by_root: bool,
}

impl Scaling {
    fn of(config: &Value) -> Result<Self, String> {
        if config["peft_type"] != "LORA" {
            return Err(format!("peft_type is {}: GGUF adapters are \"LORA\"", config["peft_type"]));
        }
        for (key, why) in [
            ("use_dora", "DoRA scales each column by a learned magnitude"),
            ("fan_in_fan_out", "its matrices are transposed"),
            ("lora_bias", "B has a bias"),
        ] {
            if config[key] == true {
                return Err(format!("{key} is true: {why}, which GGUF adapters cannot hold"));
            }
        }
        // As an f32, which a GGUF file holds; 0 would mean no alpha there.
        let usable = |x: &f64| (*x as f32).is_finite() && *x as f32 != 0.0;
        let alpha = config["lora_alpha"].as_f64().filter(usable);
        let alpha = alpha.ok_or_else(|| format!("lora_alpha is {}: a number is wanted", config["lora_alpha"]))?;
        let of_modules = match &config["alpha_pattern"] {
            Value::Null => Map::new(),
            Value::Object(patterns) if patterns.values().all(Value::is_number) => patterns.clone(),
            other => return Err(format!("alpha_pattern is {other}: numbers by the names of modules are wanted")),
        };
        Ok(Self { alpha: alpha as f32, of_modules, by_root: config["use_rslora"] == true })
    }

    /// alpha / rank, or alpha / sqrt(rank) with rank-stabilized scaling (arXiv 2312.03732); a pattern names the end of a module.
    fn factor(&self, module: &str, rank: usize) -> f64 {
        let named = |key: &str| module == key || module.strip_suffix(key).is_some_and(|rest| rest.ends_with('.'));
        let own = self.of_modules.iter().find(|(key, _)| named(key)).and_then(|(_, alpha)| alpha.as_f64());
        let rank = rank as f64;
        own.unwrap_or(f64::from(self.alpha)) / if self.by_root { rank.sqrt() } else { rank }
    }
}

/// A tensor's numbers as f32; `None` for other types.
fn floats(tensor: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = tensor.data();
    Some(match tensor.dtype() {
        Dtype::F32 => numeric::f32_from_le(data),
        Dtype::F16 => numeric::f16_from_le(data),
        Dtype::BF16 => numeric::bf16_from_le(data),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(architecture: &str) -> HeadCounts {
        HeadCounts { architecture: architecture.into(), name: None, of_q: 2, of_k: 1 }
    }

    fn adapter(architecture: &str, alpha: Option<f32>) -> AdapterFile {
        let mut adapter = AdapterFile::new(architecture, alpha);
        for (name, rank, n_in, n_out) in
            [("blk.0.attn_q.weight", 2, 3, 8), ("blk.0.attn_k.weight", 2, 3, 4), ("blk.1.ffn_down.weight", 3, 5, 3)]
        {
            let values = |n: usize, from: usize| (0..n).map(|i| (i + from) as f32 / 8.0).collect::<Vec<f32>>();
            let pair = LowRank::new(rank, values(rank * n_in, 1), values(rank * n_out, 2)).unwrap();
            adapter.pairs.insert(Target::of(name), pair);
        }
        adapter
    }

    /// The order of llama.cpp's converter: `w.reshape(heads, 2, size / 2, ..).swapaxes(1, 2)`.
    #[test]
    fn rows_of_heads_are_moved() {
        let rows: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let gguf = moved(&rows, 1, 2, Way::ToGguf).unwrap();
        assert_eq!(gguf, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(moved(&gguf, 1, 2, Way::FromGguf).unwrap(), rows);
        assert!(moved(&rows, 1, 3, Way::ToGguf).is_err());
    }

    #[test]
    fn a_folder_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        for (architecture, alpha) in [("llama", Some(6.0)), ("qwen2", Some(6.0)), ("llama", None)] {
            let adapter = adapter(architecture, alpha);
            assert!(!AdapterFile::wrote_peft(&folder.path().join("other")));
            adapter.save_peft(folder.path(), &heads(architecture)).unwrap();
            assert!(AdapterFile::wrote_peft(folder.path()));
            let back = AdapterFile::load_peft(folder.path(), &heads(architecture)).unwrap();
            for (target, pair) in &adapter.pairs {
                let other = &back.pairs[target];
                assert_eq!((pair.rank, &pair.a), (other.rank, &other.a));
                let factors = (adapter.factor(pair, 1.0), back.factor(other, 1.0));
                for (x, y) in pair.b.iter().zip(&other.b) {
                    let (x, y) = (factors.0 * f64::from(*x), factors.1 * f64::from(*y));
                    assert!((x - y).abs() <= 1e-6 * x.abs(), "{target}: {x} {y}");
                }
            }
        }
        assert!(adapter("llama", None).save_peft(folder.path(), &heads("qwen2")).is_err());
        let config = |edit: &dyn Fn(&mut Value)| {
            adapter("llama", None).save_peft(folder.path(), &heads("llama")).unwrap();
            let path = folder.path().join(CONFIG);
            let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            edit(&mut config);
            std::fs::write(&path, config.to_string()).unwrap();
            AdapterFile::load_peft(folder.path(), &heads("llama"))
        };
        for (key, value) in [
            ("peft_type", json!("IA3")),
            ("use_dora", json!(true)),
            ("lora_alpha", json!("x")),
            ("lora_alpha", json!(1e300)),
            ("lora_alpha", json!(1e-300)),
            ("alpha_pattern", json!({"q_proj": "8"})),
        ] {
            let error = config(&|c| c[key] = value.clone()).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(CONFIG), "{error}");
        }
        let rooted = config(&|c| c["use_rslora"] = json!(true)).unwrap();
        let pair = &rooted.pairs[&Target::of("blk.1.ffn_down.weight")];
        let plain = adapter("llama", None);
        let other = &plain.pairs[&Target::of("blk.1.ffn_down.weight")];
        let ratio =
            f64::from(pair.b[1]) * rooted.factor(pair, 1.0) / (f64::from(other.b[1]) * plain.factor(other, 1.0));
        assert!((ratio - 3.0f64.sqrt()).abs() < 1e-5, "{ratio}");
        // Two modules of the classes with and without a head are one matrix.
        let path = folder.path().join(WEIGHTS);
        let whole = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&whole).unwrap();
        let twice: Vec<(String, TensorView<'_>)> = file
            .tensors()
            .into_iter()
            .flat_map(|(name, view)| [(name.replace("model.layers", "layers"), view.clone()), (name, view)])
            .collect();
        std::fs::write(&path, ::safetensors::serialize(twice, None).unwrap()).unwrap();
        let error = AdapterFile::load_peft(folder.path(), &heads("llama")).unwrap_err().to_string();
        assert!(error.contains("attn_k@0 too"), "{error}");
        std::fs::write(folder.path().join(WEIGHTS), b"nothing").unwrap();
        assert!(
            AdapterFile::load_peft(folder.path(), &heads("llama")).unwrap_err().to_string().contains("no safetensors")
        );
    }
}
