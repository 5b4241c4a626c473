#![no_main]
bidpo_fuzz::target!("vector_safetensors");
