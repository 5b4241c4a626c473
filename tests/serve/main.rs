//! `bidpo serve`: its API, its answers under load, the official client, the page in a browser.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod adapters;
mod api;
mod client;
mod fields;
mod forms;
mod gates;

#[path = "../common/mod.rs"]
mod common;
mod front_ends;
mod http;
mod hybrid;
mod kinds;
mod llama_server;
mod load;
mod models;
mod ollama;
mod page;
mod responses;
mod rows;
mod scopes;
mod server;
mod shutdown;
mod thoughts;
mod tools;
mod vectors;
