//! The part of a file that came so far, `NAME.part`, with a note about where it is from, `NAME.part.json`.

use ggml_grad::files::{FileError, hex, read_at_most, rename_into_place, sha256_of_bytes, write_atomically};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Where a part is from. The address may hold a secret: its hash is enough to know it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    url_sha256: String,
    /// What names the version of the server's file.
    pub(crate) validator: Option<String>,
    pub(crate) total: Option<u64>,
}

impl Origin {
    pub(crate) fn new(url: &str, validator: Option<String>, total: Option<u64>) -> Self {
        Self { url_sha256: sha256_of_bytes(url.as_bytes()), validator, total }
    }
}

/// The part, open for more.
pub(crate) struct Partial {
    path: PathBuf,
    note: PathBuf,
    file: File,
    hasher: Sha256,
    len: u64,
    /// What the note says, if it is about the same address.
    origin: Option<Origin>,
}

/// `path` with `suffix` behind its name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// No note is longer.
const MAX_NOTE: u64 = 1 << 16;

impl Partial {
    /// Opens what an earlier transfer from `url` left of `to`, or begins.
    pub(crate) fn open(to: &Path, url: &str) -> Result<Self, FileError> {
        let (path, note) = (beside(to, ".part"), beside(to, ".part.json"));
        let write = FileError::write(&path);
        if std::fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_file()) {
            return Err(write(std::io::Error::other("it is no regular file: remove it")));
        }
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(write)?;
        let (mut hasher, mut len, mut piece) = (Sha256::new(), 0, vec![0; 1 << 20]);
        loop {
            let n = file.read(&mut piece).map_err(FileError::read(&path))?;
            if n == 0 {
                break;
            }
            hasher.update(&piece[..n]);
            len += n as u64;
        }
        // A note that cannot be read is none: then nothing is known about the part.
        let origin = read_at_most(&note, MAX_NOTE).ok().and_then(|text| serde_json::from_slice::<Origin>(&text).ok());
        let origin = origin.filter(|o| o.url_sha256 == sha256_of_bytes(url.as_bytes()));
        Ok(Self { path, note, file, hasher, len, origin })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Notes where the part is from.
    pub(crate) fn set_origin(&mut self, origin: Origin) -> Result<(), FileError> {
        if self.origin.as_ref() != Some(&origin) {
            let text =
                serde_json::to_vec(&origin).map_err(std::io::Error::from).map_err(FileError::write(&self.note))?;
            write_atomically(&self.note, &text).map_err(FileError::write(&self.note))?;
            self.origin = Some(origin);
        }
        Ok(())
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all(bytes).map_err(FileError::write(&self.path))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Forgets everything that came.
    pub(crate) fn restart(&mut self) -> Result<(), FileError> {
        use std::io::Seek as _;
        let write = FileError::write(&self.path);
        self.file.set_len(0).map_err(write)?;
        self.file.rewind().map_err(write)?;
        self.hasher = Sha256::new();
        self.len = 0;
        Ok(())
    }

    /// The SHA-256 of what came, lower-case hex.
    pub(crate) fn sha256(&self) -> String {
        hex(&self.hasher.clone().finalize())
    }

    /// The first bytes.
    pub(crate) fn head(&self, n: u64) -> Result<Vec<u8>, FileError> {
        let mut head = Vec::new();
        let file = File::open(&self.path).map_err(FileError::read(&self.path))?;
        file.take(n).read_to_end(&mut head).map_err(FileError::read(&self.path))?;
        Ok(head)
    }

    /// Puts the complete file at its place.
    pub(crate) fn finish(self, to: &Path) -> Result<(), FileError> {
        self.file.sync_all().map_err(FileError::write(&self.path))?;
        rename_into_place(&self.path, to).map_err(FileError::write(to))?;
        // Without its part a note means nothing.
        let _ = std::fs::remove_file(&self.note);
        Ok(())
    }

    /// Removes the part.
    pub(crate) fn discard(self) {
        for path in [&self.path, &self.note] {
            let _ = std::fs::remove_file(path);
        }
    }
}
