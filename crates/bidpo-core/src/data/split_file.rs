//! A split that is written down: which items to train on, to choose by, to report on.

use super::groups::{PairGroups, SplitBy};
use super::inspect::PairText;
use super::{Split, split_groups};
use ggml_grad::files::{FileError, display_name};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A split of a data file's items, with near-duplicates on one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitFile {
    /// Version of the file's form.
    pub bidpo_split: u32,
    /// Name of the data file.
    pub data: String,
    /// SHA-256 of its bytes.
    pub data_sha256: String,
    /// Its number of items.
    pub items: usize,
    /// Seed of the order.
    pub seed: u64,
    /// What made the groups. Files of bidpo 0.2.0 and before do not say; theirs were made by prompts.
    #[serde(default = "by_prompts")]
    pub by: SplitBy,
    /// Groups of near-duplicates with more than one item: none of them is cut.
    pub groups: Vec<Vec<usize>>,
    /// Training items: indices into the data, from 0. The first k of them are the smaller training set of k: larger ones contain
    /// smaller ones.
    pub train: Vec<usize>,
    /// Validation items.
    pub valid: Vec<usize>,
    /// Test items.
    pub test: Vec<usize>,
}

fn by_prompts() -> SplitBy {
    SplitBy::Prompts
}

/// An invalid split, or one that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SplitFileError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The file is not a split.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// Groups of near-duplicates do not make up a part.
    #[error(
        "{asked} items to {part} were asked for, groups of near-duplicates that may not be cut (the largest has {largest} of \
         the {items} items) give {got}: ask for other numbers with --train and --valid"
    )]
    Groups {
        /// Purpose of the part.
        part: &'static str,
        /// Items asked for.
        asked: usize,
        /// Items that could be had.
        got: usize,
        /// Items of the largest group.
        largest: usize,
        /// All items.
        items: usize,
    },
    /// There are not enough items.
    #[error(
        "{items} items, {n} of them for training and validation, leave none to test on: ask for fewer with --train and --valid"
    )]
    TooFew {
        /// Items there are.
        items: usize,
        /// Asked for.
        n: usize,
    },
}

/// More bytes than a split of ten million items has.
const MOST_BYTES: u64 = 1 << 28;

/// Items by which a part may be short of what was asked for, where groups cannot make it up: fewer than most groups have.
const SHORT: usize = 4;

/// A part of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// To train on.
    Train,
    /// To choose by.
    Valid,
    /// Test items.
    Test,
}

impl SplitFile {
    /// Splits the items of a file by their groups ([`PairGroups`]) with [`split_groups`]. Where groups cannot make up a
    /// number exactly, a part is short by a few items.
    ///
    /// # Errors
    /// [`SplitFileError::TooFew`]; [`SplitFileError::Groups`] for a part that would be empty, or short by more
    /// than four items and more than a tenth.
    pub fn new(
        data: &Path,
        data_sha256: &str,
        items: &[PairText],
        by: SplitBy,
        seed: u64,
        [n_train, n_valid]: [usize; 2],
    ) -> Result<Self, SplitFileError> {
        let mut found = PairGroups::new(items, by);
        // Here a repeat is an item like others: it stays with the earlier one.
        let of = found.group_of(items.len());
        for &(earlier, later) in &found.repeated {
            if let Some(group) = of[earlier] {
                found.groups[group].push(later);
            }
        }
        found.groups.iter_mut().for_each(|g| g.sort_unstable());
        let n_items = items.len();
        let n = n_train.saturating_add(n_valid);
        if n >= n_items {
            return Err(SplitFileError::TooFew { items: n_items, n });
        }
        let Split { train, valid, mut test } = split_groups(&found.groups, seed, n_train, n_valid);
        test.sort_unstable();
        let largest = found.largest();
        for (part, asked, got) in [("train on", n_train, train.len()), ("choose by", n_valid, valid.len())] {
            let short = asked - got;
            if (got == 0 && asked > 0) || short > SHORT.max(asked / 10) {
                return Err(SplitFileError::Groups { part, asked, got, largest, items: n_items });
            }
        }
        if test.is_empty() {
            return Err(SplitFileError::TooFew { items: n_items, n });
        }
        Ok(Self {
            bidpo_split: 1,
            data: display_name(data),
            data_sha256: data_sha256.to_owned(),
            items: n_items,
            seed,
            by,
            groups: found.groups.into_iter().filter(|g| g.len() > 1).collect(),
            train,
            valid,
            test,
        })
    }

    /// Reads a split and checks that it is one of the data file with this hash, and that its parts are disjoint.
    ///
    /// # Errors
    /// [`SplitFileError`].
    pub fn load(path: &Path, data_sha256: &str) -> Result<Self, SplitFileError> {
        let bytes = ggml_grad::files::read_at_most(path, MOST_BYTES).map_err(FileError::read(path))?;
        let fail = |reason: String| SplitFileError::Format { path: path.to_owned(), reason };
        let split: Self = serde_json::from_slice(&bytes)
            .map_err(|e| fail(format!("this is no split file of bidpo ({e}); `bidpo data split` writes one")))?;
        if split.bidpo_split != 1 {
            return Err(fail(format!("a split of form {}; this bidpo reads form 1", split.bidpo_split)));
        }
        if split.data_sha256 != data_sha256 {
            return Err(fail(format!(
                "it splits {} with SHA-256 {}, the data given have {data_sha256}: give the file that was split",
                split.data, split.data_sha256
            )));
        }
        // As large as the lists, whatever number the file gives.
        let mut seen = std::collections::HashSet::new();
        for &i in split.train.iter().chain(&split.valid).chain(&split.test) {
            if i >= split.items {
                return Err(fail(format!("item {i} does not exist: there are {}", split.items)));
            }
            if !seen.insert(i) {
                return Err(fail(format!("item {i} is there twice")));
            }
        }
        Ok(split)
    }

    /// Writes it.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        let text = serde_json::to_string(self).map_err(std::io::Error::other)?;
        // A line for each part is enough to read, and to compare.
        let text = text.replace("],\"", "],\n\"");
        ggml_grad::files::write_atomically(path, format!("{text}\n").as_bytes())
    }

    /// A part's items.
    pub fn part(&self, part: Part) -> &[usize] {
        match part {
            Part::Train => &self.train,
            Part::Valid => &self.valid,
            Part::Test => &self.test,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn items(texts: &[String]) -> Vec<PairText> {
        let item = |prompt: &String| PairText {
            place: String::new(),
            prompt: prompt.clone(),
            chosen: String::new(),
            rejected: String::new(),
        };
        texts.iter().map(item).collect()
    }

    fn texts() -> Vec<String> {
        // Every tenth question has a near-duplicate of its neighbour.
        (0..200)
            .map(
                |i| if i % 10 == 1 { format!("topic{} matter{}", i - 1, i - 1) } else { format!("topic{i} matter{i}") },
            )
            .collect()
    }

    fn split(seed: u64, train: usize, valid: usize) -> SplitFile {
        let items = items(&texts());
        SplitFile::new(Path::new("d/x.csv"), "hash", &items, SplitBy::Groups, seed, [train, valid]).unwrap()
    }

    #[test]
    fn parts_are_whole_disjoint_and_grouped() {
        let s = split(3, 64, 32);
        let all: BTreeSet<usize> = s.train.iter().chain(&s.valid).chain(&s.test).copied().collect();
        assert_eq!((s.train.len(), s.valid.len(), s.test.len(), all.len()), (64, 32, 104, 200));
        assert_eq!((s.groups.len(), s.data.as_str()), (20, "x.csv"));
        let part_of = |i: &usize| [&s.train, &s.valid, &s.test].iter().position(|p| p.contains(i));
        for g in &s.groups {
            assert!(g.iter().all(|i| part_of(i) == part_of(&g[0])), "{g:?} is cut");
        }
        assert_eq!(s, split(3, 64, 32));
        assert_ne!(s.train, split(4, 64, 32).train);
        // Larger training sets go on where smaller ones end, but for a group that did not fit.
        let small = split(3, 16, 32);
        assert!(small.train.iter().filter(|i| !s.train.contains(i)).count() <= 1, "{:?}", small.train);
        let all = SplitFile::new(Path::new("x"), "h", &items(&texts()), SplitBy::Groups, 0, [150, 50]);
        assert!(all.unwrap_err().to_string().contains("leave none"));
    }

    #[test]
    fn groups_that_do_not_make_up_a_number() {
        // Pairs only, and an odd number to train on: never full, and validation gets its items all the same.
        let pairs: Vec<String> = (0..100).map(|i| format!("topic{0} matter{0}", i / 2)).collect();
        let of = |texts: &[String], train, valid| {
            SplitFile::new(Path::new("x"), "h", &items(texts), SplitBy::Prompts, 0, [train, valid])
        };
        let s = of(&pairs, 31, 21).unwrap();
        assert_eq!((s.train.len(), s.valid.len(), s.test.len()), (30, 20, 50));
        assert!(of(&pairs, 1, 20).unwrap_err().to_string().contains("1 items to train on were asked for"));
        // One question in a hundred wordings.
        let alike: Vec<String> =
            (0..160).map(|i| if i < 100 { "topic matter".into() } else { format!("topic{i} matter{i}") }).collect();
        let error = of(&alike, 40, 40).unwrap_err().to_string();
        assert!(error.contains("the largest has 100 of the 160 items) give 20"), "{error}");
        assert_eq!(of(&alike, 40, 20).unwrap().test.len(), 100);
    }

    #[test]
    fn written_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("split.json");
        let s = split(0, 64, 32);
        s.save(&path).unwrap();
        assert_eq!(SplitFile::load(&path, "hash").unwrap(), s);
        // A file of 0.2.0 does not say what made its groups.
        let old = std::fs::read_to_string(&path).unwrap().replace("\"by\":\"groups\",", "");
        std::fs::write(&path, old).unwrap();
        assert_eq!(SplitFile::load(&path, "hash").unwrap(), SplitFile { by: SplitBy::Prompts, ..s.clone() });
        let error = |p: &Path, hash: &str| SplitFile::load(p, hash).unwrap_err().to_string();
        assert!(error(&path, "other").contains("SHA-256 hash"));
        let mut twice = s.clone();
        twice.valid[0] = twice.train[0];
        twice.save(&path).unwrap();
        assert!(error(&path, "hash").contains("is there twice"));
        twice.valid[0] = 200;
        twice.save(&path).unwrap();
        assert!(error(&path, "hash").contains("item 200 does not exist"));
        std::fs::write(&path, "{}").unwrap();
        assert!(error(&path, "hash").contains("no split file"));
    }
}
