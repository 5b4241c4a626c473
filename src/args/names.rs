//! Models and vectors by name: `--model smollm2`, `--vector plain-vs-flowery`. A path that exists is meant first.

use super::shipped;
use anyhow::anyhow;
use bidpo_core::eval::conditions::OtherVector;
use bidpo_fetch::models::known;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The model file that `--model` means, told on stderr where it was looked up. A value that names none is the path of a missing
/// file, which the load reports; the name of a model that can be fetched is answered with how.
pub fn model(value: OsString) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    let found = find(&path, None, &model_folders())?;
    match path.to_str().and_then(known).filter(|_| found.is_none() && !path.exists()) {
        Some(known) => Err(how_to_fetch(known)),
        None => Ok(told("model", &path, found)),
    }
}

/// What to do for want of a model that bidpo knows.
pub fn how_to_fetch(known: &bidpo_fetch::models::KnownModel) -> String {
    format!(
        "this model is not here yet: `bidpo models fetch {}` fetches it ({}, licence {})",
        known.name,
        ggml_grad::memory::text(known.bytes),
        known.licence
    )
}

/// The file that a name stands for among the models, or the path itself where there is a file.
pub fn model_there(name: &Path) -> Result<Option<PathBuf>, String> {
    Ok(find(name, None, &model_folders())?.or_else(|| name.is_file().then(|| name.to_owned())))
}

/// The folder into which models are fetched: the first of those in which they are looked up.
pub fn models_folder() -> Option<PathBuf> {
    model_folders().into_iter().next()
}

/// The GGUF files in the folders of models.
pub fn model_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in model_folders() {
        let mut names = ggufs(&folder);
        names.sort();
        files.extend(
            names.iter().map(|name| folder.join(name)).filter(|path| !files.contains(path)).collect::<Vec<_>>(),
        );
    }
    files
}

/// The folder in which bidpo keeps what can be made or fetched again.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache"))).map(|cache| cache.join("bidpo"))
}

/// The vector file that `--vector` means on this model, told on stderr where it was looked up.
pub fn vector(path: &Path, model: &Path) -> anyhow::Result<PathBuf> {
    let of = model.file_stem().map(|s| s.to_string_lossy().into_owned());
    let found = find_vector(path, of.as_deref()).map_err(|e| anyhow!("{}: {e}", path.display()))?;
    Ok(told("vector", path, found))
}

/// The vector file that a command without a model means.
pub fn any_vector(value: OsString) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    let found = find_vector(&path, None)?;
    Ok(told("vector", &path, found))
}

/// A vector's file in one of the folders, else one that comes inside the program.
fn find_vector(path: &Path, of: Option<&str>) -> Result<Option<PathBuf>, String> {
    match find(path, of, &vector_folders())? {
        None => bare_name(path).map_or(Ok(None), |name| shipped::vector(name, of)),
        found => Ok(found),
    }
}

/// The vectors of `--compare` with their files.
pub fn others(others: &[OtherVector], model: &Path) -> anyhow::Result<Vec<OtherVector>> {
    others.iter().map(|other| Ok(OtherVector { path: vector(&other.path, model)?, ..other.clone() })).collect()
}

fn vector_folders() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("vectors")];
    folders.extend(model_folders());
    // Beside an installed program, and beside target/release of a clone.
    if let Some(program) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        folders.extend([program.join("../share/bidpo/vectors"), program.join("../../vectors")]);
    }
    folders
}

fn told(what: &str, asked: &Path, found: Option<PathBuf>) -> PathBuf {
    if let Some(found) = &found {
        eprintln!("bidpo: {what} {}: {}", asked.display(), found.display());
    }
    found.unwrap_or_else(|| asked.to_owned())
}

/// Folders in which models lie, the user's first.
fn model_folders() -> Vec<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let folders = [
        set("BIDPO_MODELS"),
        set("XDG_CACHE_HOME").map(|d| d.join("bidpo/models")),
        set("HOME").map(|d| d.join(".cache/bidpo/models")),
    ];
    folders.into_iter().flatten().collect()
}

/// The text of a value that may be a name: no path, and no file.
fn bare_name(path: &Path) -> Option<&str> {
    path.to_str().filter(|n| !n.is_empty() && !n.contains(['/', '\\']) && !path.exists())
}

/// The file that a name stands for; `None` for a path, and for the name of no file. Of several, the one that also holds the name
/// `of` a model: vectors are named SET.MODEL.gguf.
fn find(path: &Path, of: Option<&str>, folders: &[PathBuf]) -> Result<Option<PathBuf>, String> {
    let Some(name) = bare_name(path) else { return Ok(None) };
    // The first folder that holds it: a file of ./vectors is meant before one of the same name elsewhere.
    for folder in folders {
        if let Some(one) = one_of(name, of, &ggufs(folder), &folder.display().to_string())? {
            return Ok(Some(folder.join(one)));
        }
    }
    Ok(None)
}

/// The one of `files`, which are in `place`, that a name stands for.
pub(super) fn one_of(name: &str, of: Option<&str>, files: &[String], place: &str) -> Result<Option<String>, String> {
    let mut found = matching(name, files);
    found.sort();
    if let Some(of) = of.map(str::to_lowercase).filter(|_| found.len() > 1) {
        let ours: Vec<String> = found.iter().filter(|f| f.to_lowercase().contains(&of)).cloned().collect();
        found = if ours.is_empty() { found } else { ours };
    }
    match &found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        several => Err(format!(
            "{} files of {place} have this in their name: {}; give more of the name, or a path",
            several.len(),
            several.join(", ")
        )),
    }
}

/// Names of the GGUF files in a folder; none where it cannot be read.
fn ggufs(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.map(|e| e.path()).filter(|p| p.is_file());
    let ggufs = files.filter(|p| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")));
    ggufs.filter_map(|p| p.file_name().and_then(OsStr::to_str).map(str::to_owned)).collect()
}

/// Files of this name, else those that begin with it, else those that contain it; case does not count. A name with its ending is
/// a whole name: `m.gguf` is not `gemma-q4_k_m.gguf`.
fn matching(name: &str, files: &[String]) -> Vec<String> {
    let name = name.to_lowercase();
    let whole = name.strip_suffix(".gguf");
    let stem = |file: &str| file.to_lowercase().trim_end_matches(".gguf").to_owned();
    let that = |is: &dyn Fn(&str) -> bool| -> Vec<String> { files.iter().filter(|f| is(&stem(f))).cloned().collect() };
    let mut found = that(&|s| s == whole.unwrap_or(&name));
    if whole.is_none() {
        for is in [&(|s: &str| s.starts_with(&name)) as &dyn Fn(&str) -> bool, &|s: &str| s.contains(&name)] {
            if found.is_empty() {
                found = that(is);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for (folder, file) in [
            (0, "SmolLM2-135M-Instruct.Q4_1.gguf"),
            (0, "gemma-3-270m-q4_k_m.gguf"),
            (0, "gemma-3-270m.gguf"),
            (0, "notes.md"),
            (1, "smollm2-other.gguf"),
            (1, "qwen-a.gguf"),
            (1, "qwen-b.gguf"),
        ] {
            std::fs::write(folders[folder].path().join(file), "").unwrap();
        }
        let paths = folders.each_ref().map(|f| f.path().to_owned());
        let found = |name: &str| find(Path::new(name), None, &paths);
        for (name, folder, file) in [
            ("smollm2", 0, "SmolLM2-135M-Instruct.Q4_1.gguf"),
            ("135m-instruct", 0, "SmolLM2-135M-Instruct.Q4_1.gguf"),
            ("SMOLLM2-135M-instruct.q4_1.GGUF", 0, "SmolLM2-135M-Instruct.Q4_1.gguf"),
            ("gemma-3-270m", 0, "gemma-3-270m.gguf"),
            ("other", 1, "smollm2-other.gguf"),
        ] {
            assert_eq!(found(name), Ok(Some(paths[folder].join(file))), "{name}");
        }
        let several = found("qwen").unwrap_err();
        assert!(several.contains("2 files") && several.contains("qwen-a.gguf, qwen-b.gguf"), "{several}");
        for missing in ["llama", "m.gguf", "notes", "./smollm2", ""] {
            assert_eq!(found(missing), Ok(None), "{missing}");
        }
        let of = |model: &str| find(Path::new("qwen"), Some(model), &paths);
        assert_eq!(of("QWEN-B"), Ok(Some(paths[1].join("qwen-b.gguf"))), "the one for this model");
        assert!(of("llama").is_err());
    }
}
