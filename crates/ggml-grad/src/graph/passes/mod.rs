//! Rewrites of a graph: fusing what one kernel computes, lowering to what every backend has, graphs with symbolic shapes.

pub mod fuse;
pub mod lower;
pub mod symbolic;
