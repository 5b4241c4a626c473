//! Python packages, fetched by pip: the one client that knows where this machine takes packages from.

use crate::FetchError;
use ggml_grad::files::FileError;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Downloads a package's wheel into an empty `folder`. pip's messages go to stderr.
pub(crate) fn wheel(package: &'static str, folder: &Path) -> Result<PathBuf, FetchError> {
    let python = ["python3", "python"].into_iter().find(|python| {
        let pip =
            Command::new(python).args(["-m", "pip", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        pip.is_ok_and(|status| status.success())
    });
    let Some(python) = python else { return Err(FetchError::NoPip { package }) };
    let done = Command::new(python)
        .args([
            "-m",
            "pip",
            "--disable-pip-version-check",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
        ])
        .arg(folder)
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    if !done.is_ok_and(|status| status.success()) {
        return Err(FetchError::Pip { package });
    }
    let entries = std::fs::read_dir(folder).map_err(FileError::read(folder))?;
    let wheel = entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "whl"));
    wheel.ok_or_else(|| FetchError::Archive { archive: package.to_owned(), reason: "pip brought no wheel".into() })
}
