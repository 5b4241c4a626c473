//! Results item by item: one JSON line each, kept on disk as they are made.

use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// One answer of an item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemAnswer {
    /// The answer.
    pub answer: String,
    /// 1 true, 0 false.
    pub label: u8,
    /// Sum of its tokens' natural log-probabilities, nats.
    pub logprob: f64,
    /// Number of its tokens.
    pub n_tokens: usize,
}

/// Right or wrong (mc1, binary), or the mass on true answers (mc2).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Correct {
    /// mc1, binary.
    Right(bool),
    /// mc2: 0 to 1.
    Mass(f64),
}

impl Correct {
    /// As a number to average.
    pub fn value(self) -> f64 {
        match self {
            Self::Right(right) => f64::from(u8::from(right)),
            Self::Mass(mass) => mass,
        }
    }
}

/// The same item on the unsteered model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemBaseline {
    /// As [`Item::correct`].
    pub correct: Correct,
    /// Log-probabilities in the order of [`Item::answers`], nats.
    pub logprobs: Vec<f64>,
}

/// One line of the results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Place in the data file, from 0.
    pub index: usize,
    /// The question.
    pub question: String,
    /// Its category, where the file gives one.
    pub category: Option<String>,
    /// `mc1`, `mc2` or `binary`.
    pub protocol: String,
    /// The result.
    pub correct: Correct,
    /// The answers in file order.
    pub answers: Vec<ItemAnswer>,
    /// The unsteered model on the same item, where it was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<ItemBaseline>,
}

/// What can go wrong with a results file.
#[derive(Debug, thiserror::Error)]
pub enum ItemsError {
    /// The file cannot be read or written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("{0} is being written by another bidpo: wait for it, or give another --out")]
    Busy(PathBuf),
    /// The interrupted run was another one.
    #[error(
        "{path} holds the items of an interrupted run with other settings ({what}): give those settings to go on with it, \
         or move the file away, or give another --out"
    )]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// The interrupted run's file is damaged.
    #[error("{path}, line {line}: {reason}; move the file away to start afresh")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// A results file in the making: items are appended to `FILE.partial` as they finish, and `FILE` appears, whole, at the
/// end. After an interruption the same run finds its items in `FILE.partial` and goes on after them.
#[derive(Debug)]
pub struct ItemsFile {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    lines: Vec<String>,
}

impl ItemsFile {
    /// Opens `FILE.partial`, new or of an earlier run with the same `settings` (a JSON object), and gives the items that
    /// are done.
    ///
    /// # Errors
    /// [`ItemsError`].
    pub fn open(path: &Path, settings: &serde_json::Value) -> Result<(Self, Vec<Item>), ItemsError> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let write = |source| ItemsError::Write { path: partial.clone(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&partial).map_err(write)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ItemsError::Busy(partial)),
            // Some file systems know no locks; the run is no less safe than without them.
            Err(TryLockError::Error(_)) => {}
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(write)?;
        // A line cut short by a crash was not finished: it is written again.
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        let text = String::from_utf8_lossy(&bytes[..whole]).into_owned();
        let header = settings.to_string();
        let mut items = Vec::new();
        let mut lines = Vec::new();
        for (i, line) in text.lines().enumerate() {
            if i == 0 {
                if line != header {
                    return Err(ItemsError::OtherRun { path: partial, what: differing(line, settings) });
                }
                continue;
            }
            let damaged = |reason| ItemsError::Damaged { path: partial.clone(), line: i + 1, reason };
            let item: Item = serde_json::from_str(line).map_err(|e| damaged(format!("this is no item: {e}")))?;
            if item.index + 1 != i {
                return Err(damaged(format!("item {} is out of order", item.index)));
            }
            items.push(item);
            lines.push(line.to_owned());
        }
        file.set_len(whole as u64).map_err(write)?;
        file.seek(std::io::SeekFrom::End(0)).map_err(write)?;
        if whole == 0 {
            file.write_all(format!("{header}\n").as_bytes()).map_err(write)?;
        }
        Ok((Self { path: path.to_owned(), partial, file, lines }, items))
    }

    /// The file that holds the items until the end.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Keeps one more item.
    ///
    /// # Errors
    /// [`ItemsError::Write`].
    pub fn push(&mut self, item: &Item) -> Result<(), ItemsError> {
        let write = |source| ItemsError::Write { path: self.partial.clone(), source };
        let line = serde_json::to_string(item).map_err(|e| write(std::io::Error::other(e)))?;
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(write)?;
        self.lines.push(line);
        Ok(())
    }

    /// Writes the results file and removes `FILE.partial`.
    ///
    /// # Errors
    /// [`ItemsError::Write`], with `FILE.partial` still there.
    pub fn finish(self) -> Result<(), ItemsError> {
        let text: String = self.lines.iter().flat_map(|l| [l.as_str(), "\n"]).collect();
        crate::files::write_atomically(&self.path, text.as_bytes())
            .map_err(|source| ItemsError::Write { path: self.path.clone(), source })?;
        std::fs::remove_file(&self.partial).map_err(|source| ItemsError::Write { path: self.partial.clone(), source })
    }
}

/// The names of the settings that differ between a run's first line and this run.
fn differing(line: &str, settings: &serde_json::Value) -> String {
    let old: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    let (Some(old), Some(new)) = (old.as_object(), settings.as_object()) else {
        return "its first line does not say which".into();
    };
    let names: Vec<&str> = new.iter().filter(|&(k, v)| old.get(k) != Some(v)).map(|(k, _)| k.as_str()).collect();
    if names.is_empty() { "of another version".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn item(index: usize) -> Item {
        Item {
            index,
            question: "Q?".into(),
            category: None,
            protocol: "mc2".into(),
            correct: Correct::Mass(0.1 + index as f64 / 3.0),
            answers: vec![ItemAnswer { answer: "A".into(), label: 1, logprob: -1.0 / 3.0, n_tokens: 2 }],
            baseline: None,
        }
    }

    #[test]
    fn goes_on_after_an_interruption() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, cut) = (dir.path().join("whole.jsonl"), dir.path().join("cut.jsonl"));
        let settings = json!({"model": "m", "scale": 1.5});
        let (mut file, done) = ItemsFile::open(&whole, &settings).unwrap();
        assert!(done.is_empty());
        (0..3).for_each(|i| file.push(&item(i)).unwrap());
        file.finish().unwrap();

        let (mut file, _) = ItemsFile::open(&cut, &settings).unwrap();
        (0..2).for_each(|i| file.push(&item(i)).unwrap());
        let partial = file.partial().to_owned();
        assert!(matches!(ItemsFile::open(&cut, &settings), Err(ItemsError::Busy(_))));
        drop(file);
        // A crash in the middle of a line.
        let mut bytes = std::fs::read(&partial).unwrap();
        bytes.extend(b"{\"index\":2,\"ques");
        std::fs::write(&partial, bytes).unwrap();

        let other = ItemsFile::open(&cut, &json!({"model": "m", "scale": 2})).unwrap_err().to_string();
        assert!(other.contains("(scale)"), "{other}");
        let (mut file, done) = ItemsFile::open(&cut, &settings).unwrap();
        assert_eq!(done, [item(0), item(1)]);
        file.push(&item(2)).unwrap();
        file.finish().unwrap();
        assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&cut).unwrap());
        assert!(!partial.exists());
    }
}
