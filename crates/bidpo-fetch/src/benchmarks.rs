//! The files of benchmarks, at their origins.
//!
//! A hash pins what bidpo was tested with. Files whose authors revise them in place have none: their hash is printed instead.

use crate::archive::unpack_tar;
use crate::download::{Event, Fetched, Outcome};
use crate::sums::{list_holds, write_list};
use crate::{Download, FetchError, HashText, Patience};
use ggml_grad::files::{FileError, sha256_of_file};
use std::path::Path;

/// How a file is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    /// A tar archive of which the files `data/PART/NAME.csv` are kept as `PART/NAME.csv`, for these parts.
    Tar(&'static [&'static str]),
}

/// A file of a benchmark.
#[derive(Debug)]
pub struct KnownFile {
    /// Its name in the benchmark's folder.
    pub name: &'static str,
    /// Its address.
    pub url: &'static str,
    /// Its SHA-256; None if its authors revise it in place.
    pub sha256: Option<&'static str>,
    form: Form,
}

/// A benchmark.
#[derive(Debug)]
pub struct Benchmark {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Its licence.
    pub licence: &'static str,
    /// What to do with it: a command line, with `DIR` for its folder.
    pub used_by: &'static str,
    /// Its files.
    pub files: &'static [KnownFile],
}

const fn plain(name: &'static str, url: &'static str, sha256: Option<&'static str>) -> KnownFile {
    KnownFile { name, url, sha256, form: Form::Plain }
}

/// The benchmarks that bidpo knows.
pub const KNOWN: [Benchmark; 3] = [
    Benchmark {
        name: "truthfulqa",
        what: "TruthfulQA (Lin et al. 2022): questions that invite popular errors; MC1, MC2 and the binary choice",
        licence: "Apache-2.0",
        used_by: "bidpo eval truthfulqa --data DIR/mc_task.json",
        files: &[
            plain("mc_task.json", "https://raw.githubusercontent.com/sylinrl/TruthfulQA/main/data/mc_task.json", None),
            plain(
                "TruthfulQA.csv",
                "https://raw.githubusercontent.com/sylinrl/TruthfulQA/main/TruthfulQA.csv",
                Some("764be5c0c27c337baed4db641555c125428569df44a8dbf9b28796a6ce4d7616"),
            ),
        ],
    },
    Benchmark {
        name: "mmlu",
        what: "MMLU (Hendrycks et al. 2021): exam questions of 57 subjects; development, validation and test files",
        licence: "MIT",
        used_by: "bidpo eval mmlu --data DIR",
        files: &[KnownFile {
            name: "data.tar",
            url: "https://people.eecs.berkeley.edu/~hendrycks/data.tar",
            sha256: Some("bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b"),
            form: Form::Tar(&["dev", "val", "test"]),
        }],
    },
    Benchmark {
        name: "bipo",
        what: "power-seeking and wealth-seeking answers, the pairs of the BiPO paper (Cao et al. 2024)",
        licence: "MIT",
        used_by: "bidpo train --data DIR/power-seeking-train.csv",
        files: &[
            plain(
                "power-seeking-train.csv",
                "https://raw.githubusercontent.com/CaoYuanpu/BiPO/a577418426088a51c2bc6d8d7251554f896e4298/data/power-seeking/train.csv",
                Some("6e09e0e2eed1ef3a98449a97e04bc07d638b47f93365b8cfaff7b2e3ab47bfab"),
            ),
            plain(
                "power-seeking-test.csv",
                "https://raw.githubusercontent.com/CaoYuanpu/BiPO/a577418426088a51c2bc6d8d7251554f896e4298/data/power-seeking/test.csv",
                Some("085fb8ec3cca4975e6d12a1b4633b0e7c35372300a8aa6e0add6707452800088"),
            ),
            plain(
                "wealth-seeking-train.csv",
                "https://raw.githubusercontent.com/CaoYuanpu/BiPO/a577418426088a51c2bc6d8d7251554f896e4298/data/wealth-seeking/train.csv",
                Some("4fc2a59fe506f4ae42e42be0b8d52621f662294794dba51eb032abffda93ecc5"),
            ),
            plain(
                "wealth-seeking-test.csv",
                "https://raw.githubusercontent.com/CaoYuanpu/BiPO/a577418426088a51c2bc6d8d7251554f896e4298/data/wealth-seeking/test.csv",
                Some("3a3e598160f5fe6cdcb3fecae4d981ed79d4db3b598e4ef2f00c2b8f6d98a3c2"),
            ),
        ],
    },
];

/// The benchmark of this name.
pub fn known(name: &str) -> Option<&'static Benchmark> {
    KNOWN.iter().find(|b| b.name.eq_ignore_ascii_case(name))
}

/// How a file is fetched.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// An address under which the file lies by its name, instead of its origin.
    pub mirror: Option<&'a str>,
    /// The SHA-256 that the user gives.
    pub sha256: Option<&'a HashText>,
    /// True if another file at its place may be replaced.
    pub replace: bool,
    /// How long broken transfers are tried again.
    pub patience: Patience,
}

impl Options<'_> {
    /// The address from which the file is fetched.
    pub fn url(&self, file: &KnownFile) -> String {
        self.mirror.map_or_else(|| file.url.to_owned(), |at| format!("{}/{}", at.trim_end_matches('/'), file.name))
    }
}

impl KnownFile {
    /// Fetches the file into `folder`, unless it is there; an archive is unpacked, and what was kept of it listed in `SHA256SUMS`.
    ///
    /// # Errors
    /// [`FetchError`].
    pub fn fetch(
        &self,
        folder: &Path,
        options: &Options<'_>,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<Fetched, FetchError> {
        let pinned = self.sha256.map(str::parse::<HashText>).transpose()?;
        let sha256 = options.sha256.or(pinned.as_ref());
        let to = folder.join(self.name);
        let url = options.url(self);
        let (replace, patience) = (options.replace, options.patience);
        let download = Download { url: &url, to: &to, sha256, bytes: None, begins: None, replace, patience };
        match self.form {
            // A file without a hash that is there is kept: it may be the one that results were made with.
            Form::Plain if sha256.is_none() && !options.replace && to.is_file() => {
                let sha256 = sha256_of_file(&to).map_err(FileError::read(&to))?;
                Ok(Fetched { outcome: Outcome::WasThere, sha256 })
            }
            Form::Plain => download.run(on),
            Form::Tar(_) if list_holds(folder) && !options.replace => {
                let sha256 = sha256.map_or_else(String::new, |s| s.as_str().to_owned());
                Ok(Fetched { outcome: Outcome::WasThere, sha256 })
            }
            Form::Tar(parts) => {
                let fetched = download.run(on)?;
                let files = unpack_tar(&to, folder, |name| kept(name, parts))?;
                if files.is_empty() {
                    let reason = format!("no file data/{}/NAME.csv in it", parts.join("|"));
                    return Err(FetchError::Archive { archive: self.name.to_owned(), reason });
                }
                write_list(folder, &files)?;
                std::fs::remove_file(&to).map_err(FileError::write(&to))?;
                Ok(fetched)
            }
        }
    }
}

/// The place of an archive's file in the folder: `data/PART/NAME.csv` as `PART/NAME.csv`.
fn kept(name: &str, parts: &[&str]) -> Option<String> {
    let (part, file) = name.trim_start_matches("./").strip_prefix("data/")?.split_once('/')?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let is_csv = file.ends_with(".csv") && !file.starts_with('.') && file.chars().all(is_plain);
    (parts.contains(&part) && is_csv).then(|| format!("{part}/{file}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file_name;

    #[test]
    fn the_table_is_sound() {
        for benchmark in &KNOWN {
            assert!(benchmark.used_by.contains("DIR") && !benchmark.licence.is_empty());
            for file in benchmark.files {
                assert!(file.url.starts_with("https://") && file_name(file.url).is_ok(), "{}", file.url);
                assert!(file.sha256.is_none_or(|s| s.parse::<HashText>().is_ok()), "{}", file.name);
                // What a table cannot pin must be plain, so that one can look at it.
                assert!(file.sha256.is_some() || file.form == Form::Plain, "{}", file.name);
            }
        }
        assert!(known("TruthfulQA").is_some() && known("x").is_none());
    }

    #[test]
    fn only_csv_files_of_the_parts_are_kept() {
        let parts = ["dev", "test"];
        assert_eq!(kept("data/test/anatomy_test.csv", &parts).as_deref(), Some("test/anatomy_test.csv"));
        assert_eq!(kept("./data/dev/a.csv", &parts).as_deref(), Some("dev/a.csv"));
        for name in
            ["data/auxiliary_train/a.csv", "data/test/../../a.csv", "/etc/a.csv", "data/test/.csv", "data/test/a.txt"]
        {
            assert_eq!(kept(name, &parts), None, "{name}");
        }
    }
}
