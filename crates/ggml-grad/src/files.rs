//! Writing files so that a reader, or a crash, never meets half of one.

use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::Path;
use tempfile::NamedTempFile;

/// Renames a finished temporary file to `path`, with the permissions a plainly created file would have.
pub fn persist(temporary: NamedTempFile, path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        // tempfile creates 0600; results are meant to be shared like any other file the user makes. The umask cannot
        // be read without changing it, so the mode is taken from a file made the plain way.
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).map_or(0o644, |m| m.permissions().mode() & 0o777);
        temporary.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
    }
    temporary.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Writes `bytes` to `path` through a temporary file in the same folder, synced before it is renamed.
///
/// # Errors
/// The system's, with nothing changed at `path`.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut temporary = tempfile::Builder::new().prefix(".bidpo-").tempfile_in(folder)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    persist(temporary, path)
}

/// Finds out, before any long work, whether a result can be written to `path`.
///
/// # Errors
/// The reason it cannot: no such folder, a folder in its place, no permission.
pub fn check_writable(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Err(std::io::Error::other("it is a folder"));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    if !folder.is_dir() {
        return Err(std::io::Error::other(format!("there is no folder {}", folder.display())));
    }
    // tempfile's own message names the temporary file, which nobody asked for: the kind says enough.
    let probe = tempfile::Builder::new().prefix(".bidpo-").tempfile_in(folder);
    probe.map(drop).map_err(|e| {
        std::io::Error::other(format!("no file can be made in the folder {} ({})", folder.display(), e.kind()))
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
