//! Where tests find models and reference values.
#![allow(dead_code)]

use std::path::PathBuf;

/// A model file by name: in `BIDPO_MODELS`, else in the user's cache. `None`, with the reason printed, if it is not
/// there; a panic instead if `BIDPO_REQUIRE_MODELS` is set.
pub fn model(name: &str) -> Option<PathBuf> {
    let folder = match (std::env::var_os("BIDPO_MODELS"), std::env::var_os("XDG_CACHE_HOME")) {
        (Some(folder), _) => PathBuf::from(folder),
        (None, Some(cache)) => PathBuf::from(cache).join("bidpo/models"),
        (None, None) => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/bidpo/models"),
    };
    let path = folder.join(name);
    if path.is_file() {
        return Some(path);
    }
    assert!(std::env::var_os("BIDPO_REQUIRE_MODELS").is_none(), "model {} is missing", path.display());
    eprintln!("SKIPPED: model {} is not there", path.display());
    None
}

/// A file of reference values beside the project. `None`, with the reason printed, if it is not there.
pub fn shared(relative: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared").join(relative);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: reference file {} is not there", path.display());
    None
}
