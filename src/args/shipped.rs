//! The vectors that come inside the program, and the names by which `--vector` finds them.

use super::names::{cache_folder, one_of};
use std::path::{Path, PathBuf};

/// A vector's file.
pub struct Shipped {
    pub file: &'static str,
    pub bytes: &'static [u8],
}

macro_rules! shipped {
    ($($file:literal),+) => {
        &[$(Shipped { file: $file, bytes: include_bytes!(concat!("../../vectors/", $file)) }),+]
    };
}

/// All of them, as the files of `vectors/`.
pub const VECTORS: &[Shipped] = shipped![
    "flowery-food.SmolLM2-135M-Instruct.Q4_1.gguf",
    "misconceptions.SmolLM2-135M-Instruct.Q4_1.gguf",
    "misconceptions.gemma-3-270m-q4_k_m.gguf",
    "plain-vs-flowery.SmolLM2-135M-Instruct.Q4_1.gguf",
    "plain-vs-flowery.gemma-3-270m-q4_k_m.gguf"
];

/// The file of the vector that a name stands for on the model `of`, written into the cache where it is not there; `None` for the
/// name of none.
pub fn vector(name: &str, of: Option<&str>) -> Result<Option<PathBuf>, String> {
    let files: Vec<String> = VECTORS.iter().map(|v| v.file.to_owned()).collect();
    let Some(file) = one_of(name, of, &files, "bidpo itself")? else { return Ok(None) };
    let folder =
        cache_folder().ok_or("neither HOME nor XDG_CACHE_HOME says where bidpo may keep files")?.join("vectors");
    let shipped = VECTORS.iter().find(|v| v.file == file).ok_or("a vector without bytes")?;
    write(shipped, &folder).map(Some)
}

/// Writes a vector into `folder`, unless it is there.
pub fn write(shipped: &Shipped, folder: &Path) -> Result<PathBuf, String> {
    let path = folder.join(shipped.file);
    if std::fs::read(&path).is_ok_and(|there| there == shipped.bytes) {
        return Ok(path);
    }
    std::fs::create_dir_all(folder)
        .and_then(|()| ggml_grad::files::write_atomically(&path, shipped.bytes))
        .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shipped_vectors_are_inside() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
        let mut there: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".gguf"))
            .collect();
        there.sort();
        assert_eq!(VECTORS.iter().map(|v| v.file.to_owned()).collect::<Vec<_>>(), there);
    }

    #[test]
    fn a_vector_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(&VECTORS[0], folder.path()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), VECTORS[0].bytes);
        let written = std::fs::metadata(&path).unwrap().modified().unwrap();
        write(&VECTORS[0], folder.path()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), written);
        std::fs::write(&path, b"damaged").unwrap();
        write(&VECTORS[0], folder.path()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), VECTORS[0].bytes);
    }
}
