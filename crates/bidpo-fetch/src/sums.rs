//! Hashes beside files, as `sha256sum` writes and checks them.

use crate::HashText;
use crate::partial::beside;
use ggml_grad::files::{FileError, display_name, read_at_most, sha256_of_file, write_atomically};
use std::path::{Path, PathBuf};

/// The list of a folder's files.
const LIST: &str = "SHA256SUMS";
/// No list is longer.
const MAX_LIST: u64 = 1 << 20;

fn record(path: &Path) -> PathBuf {
    beside(path, ".sha256")
}

/// Hash and name in each line.
fn parse(text: &str) -> impl Iterator<Item = (HashText, &str)> {
    text.lines().filter_map(|line| {
        let (hash, name) = line.split_once([' ', '\t'])?;
        Some((hash.parse().ok()?, name.trim_start_matches([' ', '*'])))
    })
}

/// The SHA-256 that was recorded for a file, in `FILE.sha256`.
pub fn recorded(path: &Path) -> Option<HashText> {
    let text = read_at_most(&record(path), MAX_LIST).ok()?;
    let text = String::from_utf8(text).ok()?;
    let name = display_name(path);
    parse(&text).find(|(_, of)| *of == name).map(|(hash, _)| hash)
}

/// Records the SHA-256 of a file in `FILE.sha256`.
///
/// # Errors
/// The record cannot be written.
pub fn write_record(path: &Path, sha256: &str) -> Result<(), FileError> {
    let record = record(path);
    let line = format!("{sha256}  {}\n", display_name(path));
    write_atomically(&record, line.as_bytes()).map_err(FileError::write(&record))
}

/// Writes the list of a folder's files.
pub(crate) fn write_list(folder: &Path, files: &[(String, String)]) -> Result<(), FileError> {
    let path = folder.join(LIST);
    let lines: String = files.iter().map(|(name, sha256)| format!("{sha256}  {name}\n")).collect();
    write_atomically(&path, lines.as_bytes()).map_err(FileError::write(&path))
}

/// True if the folder has a list and all files of it are unchanged.
pub(crate) fn list_holds(folder: &Path) -> bool {
    let text = read_at_most(&folder.join(LIST), MAX_LIST).ok().and_then(|text| String::from_utf8(text).ok());
    let Some(text) = text else { return false };
    let files: Vec<_> = parse(&text).collect();
    let same =
        |(hash, name): &(HashText, &str)| sha256_of_file(&folder.join(name)).is_ok_and(|found| found == hash.as_str());
    !files.is_empty() && files.len() == text.lines().count() && files.iter().all(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_those_of_sha256sum() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m 1.gguf");
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(recorded(&path), None);
        let sha256 = sha256_of_file(&path).unwrap();
        write_record(&path, &sha256).unwrap();
        assert_eq!(recorded(&path).unwrap().as_str(), sha256);
        let check = std::process::Command::new("sha256sum").args(["-c", "m 1.gguf.sha256"]).current_dir(&dir).output();
        // An oracle where it is installed: everywhere but on a few systems.
        if let Ok(check) = check {
            assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
        }
        write_list(dir.path(), &[("m 1.gguf".into(), sha256)]).unwrap();
        assert!(list_holds(dir.path()));
        std::fs::write(&path, b"abd").unwrap();
        assert!(!list_holds(dir.path()));
    }
}
