//! Commands that measure what a vector or an adapter does.

pub mod calibrate;
pub mod eval;
pub mod judge;
pub mod report;
pub mod sweep;
