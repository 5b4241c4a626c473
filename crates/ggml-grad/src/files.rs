//! Files: atomic writes, hashes, names for display, and errors that name the path.

use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
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

/// Start of the names of temporary files.
const TEMPORARY: &str = ".bidpo-";
/// A temporary file that nobody has touched for so long, and that no process has locked, was left by a killed one.
const STALE: Duration = Duration::from_secs(60);

/// The file that writing to `path` makes or replaces: where `path` is a symbolic link, the file that it leads to.
///
/// # Errors
/// A directory, a device, a pipe or a socket is never replaced; a link may lead in a circle.
pub fn destination(path: &Path) -> std::io::Result<PathBuf> {
    let mut at = path.to_owned();
    for _ in 0..40 {
        match std::fs::symlink_metadata(&at) {
            Ok(meta) if meta.is_symlink() => {
                let to = std::fs::read_link(&at)?;
                at = if to.is_absolute() { to } else { directory(&at).join(to) };
            }
            Ok(meta) if meta.is_file() => return Ok(at),
            Ok(meta) if meta.is_dir() => return Err(std::io::Error::other("it is a directory")),
            Ok(_) => return Err(std::io::Error::other("it is a device, a pipe or a socket: give a regular file")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(at),
            Err(e) => return Err(e),
        }
    }
    Err(std::io::Error::other("its symbolic links lead in a circle"))
}

/// A temporary file in the directory of `path`'s [`destination`], to be renamed by [`persist`] when it is complete. It has the
/// permissions of any new file, and is locked: a later run removes those that are not.
///
/// # Errors
/// The system's: no such directory, no permission; those of [`destination`].
pub fn temporary_beside(path: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    #[cfg(unix)]
    {
        // The system takes the user's umask off.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let temporary = builder.tempfile_in(directory(&destination(path)?))?;
    // A file system without locks leaves stale files behind, and no more.
    let _ = temporary.as_file().try_lock();
    Ok(temporary)
}

/// Renames a finished temporary file to `path`'s [`destination`], with the permissions of the file it replaces, and syncs the
/// folder, so that the new name outlives a power cut.
///
/// # Errors
/// The system's; `path` is then unchanged.
pub fn persist(temporary: NamedTempFile, path: &Path) -> std::io::Result<()> {
    let path = destination(path)?;
    if let Ok(meta) = std::fs::metadata(&path) {
        temporary.as_file().set_permissions(meta.permissions())?;
    }
    temporary.persist(&path).map_err(|e| e.error)?;
    sync_folder_of(&path);
    Ok(())
}

/// As [`persist`], for a finished file that the caller has synced.
///
/// # Errors
/// The system's; `path` is then unchanged.
pub fn rename_into_place(finished: &Path, path: &Path) -> std::io::Result<()> {
    let path = destination(path)?;
    if let Ok(meta) = std::fs::metadata(&path) {
        std::fs::set_permissions(finished, meta.permissions())?;
    }
    std::fs::rename(finished, &path)?;
    sync_folder_of(&path);
    Ok(())
}

/// Some file systems cannot sync a folder; the file itself was synced.
fn sync_folder_of(path: &Path) {
    #[cfg(unix)]
    let _ = std::fs::File::open(directory(path)).and_then(|folder| folder.sync_all());
    #[cfg(not(unix))]
    let _ = path;
}

/// Removes the temporary files in a folder that killed processes left.
fn remove_stale(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes());
        let age = || entry.metadata().ok().filter(std::fs::Metadata::is_file)?.modified().ok()?.elapsed().ok();
        if is_ours
            && age().is_some_and(|age| age > STALE)
            && std::fs::File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok())
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// True if both paths lead to one file.
pub fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let of = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
        of(a).is_some_and(|id| of(b) == Some(id))
    }
    #[cfg(not(unix))]
    {
        let of = |path: &Path| std::fs::canonicalize(path).ok();
        of(a).is_some_and(|path| of(b) == Some(path))
    }
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// The system's; a larger file (a device may never end).
pub fn read_at_most(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(std::io::Error::other(format!(
            "it holds more than {limit} bytes, the most that such a file may have"
        )));
    }
    Ok(bytes)
}

/// The most bytes that are read from a pipe or a device.
const MAX_STREAM: u64 = 1 << 28;

/// Reads a whole file. A regular file may have any size; a pipe or a device, which may never end, at most 256 MiB.
///
/// # Errors
/// The system's; a longer stream.
pub fn read_whole(path: &Path) -> std::io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.is_file() { std::fs::read(path) } else { read_at_most(path, MAX_STREAM) }
}

/// Reads a whole file of UTF-8 text, as [`read_whole`].
///
/// # Errors
/// The system's; a longer stream; [`std::io::ErrorKind::InvalidData`] for other bytes.
pub fn read_text(path: &Path) -> std::io::Result<String> {
    String::from_utf8(read_whole(path)?)
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::InvalidData, "stream did not contain valid UTF-8"))
}

/// A file that says that a process is at work; locked until it is dropped, then removed. The lock of a killed process is free.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    _file: std::fs::File,
}

impl LockFile {
    /// Takes the lock; None where another process holds it.
    ///
    /// # Errors
    /// The system's.
    pub fn take(path: &Path) -> std::io::Result<Option<Self>> {
        loop {
            let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            match file.try_lock() {
                Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
                // A file system without locks: the run is no less safe than without them.
                Ok(()) | Err(std::fs::TryLockError::Error(_)) => {}
            }
            // The one before may have removed the file between the two calls.
            #[cfg(unix)]
            {
                use std::os::unix::fs::MetadataExt;
                let ours = file.metadata()?;
                if !std::fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
                    continue;
                }
            }
            return Ok(Some(Self { path: path.to_owned(), _file: file }));
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
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

/// Checks, before any long work, that a result can be written to `path`, and removes what killed runs left beside it.
///
/// # Errors
/// The reason it cannot: no such directory, no permission, no regular file at `path`.
pub fn check_writable(path: &Path) -> std::io::Result<()> {
    let destination = destination(path)?;
    let directory = directory(&destination);
    if !directory.is_dir() {
        return Err(std::io::Error::other(format!("there is no directory {}", directory.display())));
    }
    remove_stale(directory);
    // The text of tempfile's error names the temporary file, which the user did not ask for; its kind says enough.
    temporary_beside(&destination).map(drop).map_err(|e| {
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

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_nothing_but_files_is_replaced() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("folder")).unwrap();
        symlink("folder/target", at("link")).unwrap();
        symlink("link", at("link2")).unwrap();
        symlink("circle", at("circle")).unwrap();
        for text in ["one", "two"] {
            write_atomically(&at("link2"), text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(at("folder/target")).unwrap(), text);
            assert!(at("link2").is_symlink() && at("link").is_symlink());
        }
        assert!(same_file(&at("link2"), &at("folder/target")) && !same_file(&at("link2"), &at("missing")));
        let refused = |path: &Path| write_atomically(path, b"x").unwrap_err().to_string();
        assert!(refused(Path::new("/dev/null")).contains("device"));
        assert!(refused(&at("folder")).contains("directory") && refused(&at("circle")).contains("circle"));
        assert!(check_writable(Path::new("/dev/null")).is_err());
        // A file's permissions stay; a new one has those of any other new file.
        std::fs::set_permissions(at("folder/target"), std::fs::Permissions::from_mode(0o640)).unwrap();
        write_atomically(&at("link"), b"three").unwrap();
        let mode = |name: &str| std::fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
        write_atomically(&at("new"), b"").unwrap();
        std::fs::write(at("plain"), b"").unwrap();
        assert_eq!((mode("folder/target"), mode("new")), (0o640, mode("plain")));
    }

    #[test]
    fn what_killed_runs_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let old = std::time::SystemTime::now() - Duration::from_secs(3600);
        let make = |name: &str| {
            let file = std::fs::File::create(dir.path().join(name)).unwrap();
            file.set_modified(old).unwrap();
            file
        };
        let held = make(".bidpo-held");
        held.lock().unwrap();
        drop((make(".bidpo-left"), make("other")));
        std::fs::write(dir.path().join(".bidpo-young"), b"").unwrap();
        check_writable(&dir.path().join("out")).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".bidpo-held", ".bidpo-young", "other"]);
    }

    #[test]
    fn a_lock_is_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = LockFile::take(&path).unwrap().unwrap();
        assert!(LockFile::take(&path).unwrap().is_none());
        drop(held);
        assert!(!path.exists());
        assert!(LockFile::take(&path).unwrap().is_some());
    }

    #[test]
    fn reading_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("four");
        std::fs::write(&path, b"four").unwrap();
        assert_eq!(read_at_most(&path, 4).unwrap(), b"four");
        assert!(read_at_most(&path, 3).unwrap_err().to_string().contains("more than 3 bytes"));
        #[cfg(unix)]
        assert!(read_at_most(Path::new("/dev/zero"), 1000).is_err());
    }
}
