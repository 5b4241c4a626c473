#![no_main]
bidpo_fuzz::target!("ablation");
