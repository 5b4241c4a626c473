#![no_main]
bidpo_fuzz::target!("chat_line");
