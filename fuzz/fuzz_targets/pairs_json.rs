#![no_main]
bidpo_fuzz::target!("pairs_json");
