//! Foreign files, foreign clients and the system at its limits: what is refused, and that nothing else suffers.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

#[path = "../common/mod.rs"]
mod common;
mod connections;
#[path = "../../fuzz/src/inputs/mod.rs"]
#[allow(dead_code, missing_docs)] // of a package of its own
mod fuzz;
mod models;
mod mutated;
mod outputs;
mod poison;
mod readers;
mod server;
mod signals;
mod tiny;
