#![no_main]
bidpo_fuzz::target!("adapter_config");
