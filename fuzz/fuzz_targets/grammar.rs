#![no_main]
bidpo_fuzz::target!("grammar");
