//! Train BiDPO steering vectors by gradient on the quantized GGUF model you already run; steer, extract and evaluate with
//! them, offline.
//!
//! ```no_run
//! use bidpo_core::data::{ChatTemplate, PreferenceSet, TemplateChoice};
//! use bidpo_core::layers::Layers;
//! use ggml_grad::llama::{Model, ModelParams, default_threads};
//! use bidpo_core::engine::Engine;
//! use bidpo_core::train::{TrainConfig, Trainer, encode_pair};
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::load(Path::new("model.gguf"), &ModelParams::default())?;
//! let template = ChatTemplate::new(&model, &TemplateChoice::Auto)?;
//! let mut pairs = Vec::new();
//! for p in PreferenceSet::load(Path::new("prefs.jsonl"))?.pairs {
//!     pairs.push(encode_pair(&p, &model, &template, None)?);
//! }
//! let config = TrainConfig::new(Layers::one(model.n_layer() / 2));
//! let longest = pairs.iter().map(|p| p.tokens.n_tokens()).max().unwrap_or(1);
//! let mut engine = Engine::new(&model, &config.layers, longest, 1, default_threads())?;
//! let (train_pairs, valid_pairs) = pairs.split_at(pairs.len() * 5 / 6);
//! let never = AtomicBool::new(false);
//! let mut trainer = Trainer { engine: &mut engine, config: &config, checkpoints: None, interrupt: &never };
//! let trained = trainer.train(train_pairs, valid_pairs, &mut |_event| {})?;
//! trained.steering_vector(None, &model.architecture())?.save(Path::new("dial.gguf"))?;
//! # Ok(())
//! # }
//! ```
//!
//! - [`engine`]: scores and differentiates preference pairs on a model.
//! - [`train`]: objective, optimizer, the loop; [`check`]: is the engine right for a model.
//! - [`steer`]: vectors as values and as files; [`data`]: preference pairs, chat templates, evaluation sets.
//! - [`layers`]: lists of layers as people write them: `15`, `10-20`, `5,9,12-14`.
//! - [`adapter`]: LoRA adapters as values and as files.
//! - [`chat`]: steered conversations; [`extract`]: activations; [`mod@eval`]: benchmarks with their statistics.
//! - [`numbers`]: norms, cosines, medians.
//! - [`stats`]: intervals, tests and power for paired answers; [`mod@bench`]: speed against llama.cpp itself.
//! - [`guard`]: calls of other crates that may panic.
//! - [`verify`]: does anyone's vector or adapter do on a model what it is meant to do.
//! - [`text`]: numbers, tables and templates for people.
//!
//! The engine underneath is the crate `ggml_grad`.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod adapter;
pub mod bench;
pub mod chat;
pub mod check;
pub mod data;
pub mod engine;
pub mod eval;
pub mod extract;
pub mod guard;
pub mod intervention;
pub mod layers;
pub mod numbers;
pub mod stats;
pub mod steer;
pub mod text;
pub mod train;
pub mod verify;
