//! bidpo: train BiDPO steering vectors by gradient on the quantized GGUF model you already run.

pub mod chat;
pub mod check;
pub mod data;
pub mod eval;
pub mod extract;
pub mod files;
pub mod graph;
pub mod llama;
pub mod steer;
pub mod train;
