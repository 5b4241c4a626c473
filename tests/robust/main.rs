//! Foreign files, foreign clients and the system at its limits: what is refused, and that nothing else suffers.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

#[path = "../common/mod.rs"]
mod common;
mod connections;
mod models;
mod mutated;
mod outputs;
mod poison;
mod readers;
mod server;
mod signals;
mod tiny;
