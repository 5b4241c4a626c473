//! Files: atomic writes, hashes, names for display, and errors that name the path.

use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// The operation on a file that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAccess {
    /// Opening or reading.
    Read,
    /// Creating, writing or renaming.
    Write,
}

impl std::fmt::Display for FileAccess {
    /// `read` or `write`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// An I/O error with the path it concerns: `cannot read data.jsonl: No such file or directory (os error 2)`.
///
/// [`FileError::read`] and [`FileError::write`] serve as `map_err`'s argument:
///
/// ```
/// use ggml_grad::files::FileError;
/// # let path = std::path::Path::new("no/such/file");
/// let error = std::fs::read(path).map_err(FileError::read(path)).unwrap_err();
/// assert!(error.to_string().starts_with("cannot read no/such/file: "));
/// ```
#[derive(Debug, thiserror::Error)]
#[error("cannot {access} {}: {source}", path.display())]
pub struct FileError {
    /// The file or directory.
    pub path: PathBuf,
    /// The operation that failed.
    pub access: FileAccess,
    /// The system's reason.
    pub source: std::io::Error,
}

impl FileError {
    /// Turns the error of reading `path` into a [`FileError`].
    pub fn read(path: &Path) -> impl Fn(std::io::Error) -> Self + Copy {
        Self::of(path, FileAccess::Read)
    }

    /// Turns the error of writing `path` into a [`FileError`].
    pub fn write(path: &Path) -> impl Fn(std::io::Error) -> Self + Copy {
        Self::of(path, FileAccess::Write)
    }

    fn of(path: &Path, access: FileAccess) -> impl Fn(std::io::Error) -> Self + Copy {
        move |source| Self { path: path.to_owned(), access, source }
    }
}

/// The file's name for display, without its directories; the whole path where it ends in none (`..`, `/`).
pub fn display_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The directory that holds `path`: `.` for a bare name.
fn directory(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// A temporary file in the directory of `path`, to be renamed by [`persist`] when it is complete.
///
/// # Errors
/// The system's: no such directory, no permission.
pub fn temporary_beside(path: &Path) -> std::io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(".bidpo-").tempfile_in(directory(path))
}

/// Renames a finished temporary file to `path`, with the permissions of the file it replaces, or `rw-r--r--`.
///
/// # Errors
/// The system's; `path` is then unchanged.
pub fn persist(temporary: NamedTempFile, path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        // tempfile creates 0600; results are meant to be shared like any other file the user makes.
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).map_or(0o644, |m| m.permissions().mode() & 0o777);
        temporary.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
    }
    temporary.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Writes `bytes` to `path` through a temporary file in the same directory, synced before it is renamed. A reader, or a
/// crash, never meets half of the file.
///
/// # Errors
/// The system's; `path` is then unchanged.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut temporary = temporary_beside(path)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    persist(temporary, path)
}

/// Checks, before any long work, that a result can be written to `path`.
///
/// # Errors
/// The reason it cannot: no such directory, a directory at `path`, no permission.
pub fn check_writable(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Err(std::io::Error::other("it is a directory"));
    }
    let directory = directory(path);
    if !directory.is_dir() {
        return Err(std::io::Error::other(format!("there is no directory {}", directory.display())));
    }
    // The text of tempfile's error names the temporary file, which the user did not ask for; its kind says enough.
    temporary_beside(path).map(drop).map_err(|e| {
        std::io::Error::other(format!("no file can be created in the directory {} ({})", directory.display(), e.kind()))
    })
}

/// SHA-256 of some bytes, lower-case hex.
pub fn sha256_of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file, lower-case hex, read in pieces.
///
/// # Errors
/// The system's, when the file cannot be read.
pub fn sha256_of_file(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher)?;
    Ok(hex(&hasher.finalize()))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_for_display_have_one_default() {
        assert_eq!(display_name(Path::new("/models/a.gguf")), "a.gguf");
        assert_eq!(display_name(Path::new("a.gguf")), "a.gguf");
        assert_eq!(display_name(Path::new("..")), "..");
    }

    #[test]
    fn errors_name_path_and_operation() {
        let path = Path::new("no/such/directory/file");
        let read = std::fs::read(path).map_err(FileError::read(path)).unwrap_err();
        assert_eq!(read.access, FileAccess::Read);
        assert!(read.to_string().starts_with("cannot read no/such/directory/file: "), "{read}");
        let write = write_atomically(path, b"x").map_err(FileError::write(path)).unwrap_err();
        assert!(write.to_string().starts_with("cannot write no/such/directory/file: "), "{write}");
    }
}
