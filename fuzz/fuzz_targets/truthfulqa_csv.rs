#![no_main]
bidpo_fuzz::target!("truthfulqa_csv");
