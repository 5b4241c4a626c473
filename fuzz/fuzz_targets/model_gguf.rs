#![no_main]
bidpo_fuzz::target!("model_gguf");
