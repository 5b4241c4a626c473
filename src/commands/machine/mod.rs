//! Commands about the program, the machine and random models; two of them are for other commands.

pub mod bench;
pub mod check;
pub mod completions;
pub mod doctor;
pub mod first_token;
pub mod probe;
pub mod self_test;
pub mod synth;
pub mod worker;
