//! Files inside wheels and tar archives.

use crate::FetchError;
use ggml_grad::files::{FileError, display_name, sha256_of_bytes, write_atomically};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

fn wrong(archive: &Path, reason: impl Into<String>) -> FetchError {
    FetchError::Archive { archive: display_name(archive), reason: reason.into() }
}

/// Writes a member of a zip archive, such as a wheel, to `out`, the file `path`.
pub(crate) fn copy_member(wheel: &Path, member: &str, out: &mut impl Write, path: &Path) -> Result<(), FetchError> {
    let file = File::open(wheel).map_err(FileError::read(wheel))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(|e| wrong(wheel, e.to_string()))?;
    let mut source = archive.by_name(member).map_err(|e| wrong(wheel, format!("{member}: {e}")))?;
    let mut piece = vec![0; 1 << 20];
    loop {
        let n = source.read(&mut piece).map_err(|e| wrong(wheel, format!("{member}: {e}")))?;
        if n == 0 {
            return Ok(());
        }
        out.write_all(&piece[..n]).map_err(FileError::write(path))?;
    }
}

/// No file of a benchmark is larger.
const MAX_MEMBER: u64 = 1 << 28;

/// Writes those files of a tar archive into `folder` for which `place` gives a path in it, and returns these paths with the files'
/// SHA-256. Links and devices are left out.
pub(crate) fn unpack_tar(
    tar: &Path,
    folder: &Path,
    place: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, FetchError> {
    let file = File::open(tar).map_err(FileError::read(tar))?;
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut written = Vec::new();
    for entry in archive.entries().map_err(|e| wrong(tar, e.to_string()))? {
        let entry = entry.map_err(|e| wrong(tar, e.to_string()))?;
        let name = entry.path().ok().and_then(|path| path.to_str().map(str::to_owned)).unwrap_or_default();
        let Some(to) = place(&name).filter(|_| entry.header().entry_type().is_file()) else { continue };
        let mut bytes = Vec::new();
        entry.take(MAX_MEMBER + 1).read_to_end(&mut bytes).map_err(|e| wrong(tar, format!("{name}: {e}")))?;
        if bytes.len() as u64 > MAX_MEMBER {
            return Err(wrong(tar, format!("{name} has more than {MAX_MEMBER} bytes")));
        }
        let path = folder.join(&to);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(FileError::write(parent))?;
        }
        write_atomically(&path, &bytes).map_err(FileError::write(&path))?;
        written.push((to, sha256_of_bytes(&bytes)));
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only plain files at the expected places are written, wherever the archive would have them.
    #[test]
    fn only_expected_files_leave_an_archive() {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("a.tar");
        let mut builder = tar::Builder::new(File::create(&tar).unwrap());
        let mut add = |name: &str, kind: tar::EntryType, text: &[u8]| {
            let mut header = tar::Header::new_ustar();
            // Not by set_path, which refuses what a hostile archive may hold.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_size(text.len() as u64);
            header.set_cksum();
            builder.append(&header, text).unwrap();
        };
        add("data/test/a_test.csv", tar::EntryType::Regular, b"one");
        add("data/../../evil.csv", tar::EntryType::Regular, b"evil");
        add("data/test/link.csv", tar::EntryType::Symlink, b"");
        add("data/notes.txt", tar::EntryType::Regular, b"notes");
        builder.finish().unwrap();
        drop(builder);
        let out = dir.path().join("out");
        let place = |name: &str| name.strip_prefix("data/test/").map(|rest| format!("test/{rest}"));
        let written = unpack_tar(&tar, &out, place).unwrap();
        assert_eq!(written, [("test/a_test.csv".to_owned(), sha256_of_bytes(b"one"))]);
        assert_eq!(std::fs::read(out.join("test/a_test.csv")).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(out.join("test")).unwrap().count(), 1);
        std::fs::write(
            &tar,
            b"no archive at all, but longer than a block of a tar file, which has five hundred and twelve bytes "
                .repeat(8),
        )
        .unwrap();
        assert!(matches!(unpack_tar(&tar, &out, place), Err(FetchError::Archive { .. })));
    }
}
