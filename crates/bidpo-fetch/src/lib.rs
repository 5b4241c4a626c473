//! Files from the network, for bidpo: models and benchmarks.
//!
//! - [`Download`]: one file from one address, continued where an earlier transfer broke off, checked by its SHA-256, and at its
//!   place complete or not at all.
//! - [`models`] and [`benchmarks`]: tables of what bidpo knows where to get, with licences and hashes.
//!
//! Nothing else in bidpo connects to a server of the internet, and this crate does so only in the calls named `fetch` and
//! [`Download::run`].

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod benchmarks;
pub mod models;

mod archive;
mod download;
mod error;
mod http;
mod partial;
mod pip;
mod sums;

pub use download::{Download, Event, Fetched, Outcome, Patience};
pub use error::{FetchError, HashText};
pub use http::{file_name, shown};
pub use sums::{recorded, write_record};
