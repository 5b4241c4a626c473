//! Which items of the data are measured: all, or a part of a split, and of these the first ones.

use crate::data::{Part, SplitFile, SplitFileError};
use ggml_grad::files::{FileError, display_name, sha256_of_file};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Errors of selecting items.
#[derive(Debug, thiserror::Error)]
pub enum SelectionError {
    /// The split file cannot be used.
    #[error(transparent)]
    Split(#[from] SplitFileError),
    /// The split file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The split is of other data.
    #[error("{path}: it splits {split} items, the data have {items}")]
    OtherData {
        /// The split file.
        path: PathBuf,
        /// Items that it splits.
        split: usize,
        /// Items of the data.
        items: usize,
    },
    /// No items.
    #[error("{path}: its part {part:?} is empty")]
    EmptyPart {
        /// The split file.
        path: PathBuf,
        /// The part.
        part: Part,
    },
}

/// A selection of items.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemSelection {
    /// Indices in the data, from 0.
    pub items: Vec<usize>,
    /// Indices of the training items, where there is a split and they are not those measured.
    pub train: Option<Vec<usize>>,
    /// Items to choose by: the validation part of the split, or its training part, whichever is not measured and not empty;
    /// never the test part.
    pub choose: Option<(Part, Vec<usize>)>,
    /// Entry of the manifest.
    pub facts: Value,
}

impl ItemSelection {
    /// The first `limit` of `n` items.
    pub fn all(n: usize, limit: Option<u32>) -> Self {
        let items = (0..n.min(limit.map_or(usize::MAX, |l| l as usize))).collect();
        Self { items, train: None, choose: None, facts: json!({ "limit": limit }) }
    }

    /// The first `limit` items of a part of the split in `path`, whose data has `n` items and this SHA-256.
    ///
    /// # Errors
    /// [`SelectionError`].
    pub fn of_part(
        path: &Path,
        part: Part,
        limit: Option<u32>,
        n: usize,
        data_sha256: &str,
    ) -> Result<Self, SelectionError> {
        let split = SplitFile::load(path, data_sha256)?;
        if split.items != n {
            return Err(SelectionError::OtherData { path: path.to_owned(), split: split.items, items: n });
        }
        let items: Vec<usize> =
            split.part(part).iter().copied().take(limit.map_or(usize::MAX, |l| l as usize)).collect();
        if items.is_empty() {
            return Err(SelectionError::EmptyPart { path: path.to_owned(), part });
        }
        let train = (part != Part::Train && !split.train.is_empty()).then(|| split.train.clone());
        let other = |p: &Part| *p != part && !split.part(*p).is_empty();
        let choose = [Part::Valid, Part::Train].into_iter().find(other).map(|p| (p, split.part(p).to_vec()));
        Ok(Self { items, train, choose, facts: part_facts(path, part_name(part), limit)? })
    }
}

/// A part's name in manifests.
pub fn part_name(part: Part) -> &'static str {
    match part {
        Part::Train => "train",
        Part::Valid => "valid",
        Part::Test => "test",
    }
}

/// Entry of the manifest for a part of a split.
///
/// # Errors
/// The split file cannot be read.
pub fn part_facts(split: &Path, part: &str, limit: Option<u32>) -> Result<Value, FileError> {
    let sha256 = sha256_of_file(split).map_err(FileError::read(split))?;
    Ok(json!({ "split": display_name(split), "split_sha256": sha256, "part": part, "limit": limit }))
}
