//! `bin/bidpo` of an archive: runs the build of bidpo that is made for this CPU, `libexec/bidpo/bidpo-LEVEL` beside the folder it is
//! in, in its own place: same process, same arguments. `BIDPO_CPU` chooses a lower level, as it does for bidpo's own kernels.

mod levels;

use levels::Level;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The environment variable that forces the level down.
const VARIABLE: &str = "BIDPO_CPU";

/// Why no build can be run.
#[derive(Debug, thiserror::Error)]
enum LaunchError {
    #[error("finding this program's own file: {0}")]
    OwnFile(#[source] std::io::Error),
    #[error(
        "this CPU lacks {lacking}, which every build of the archive uses: compile bidpo from source on this machine"
    )]
    OldCpu { lacking: String },
    #[error(
        "no build for CPU level {wanted} or below is in {}: unpack the whole archive, bin/ beside libexec/, and link to bin/bidpo \
         instead of copying it", folder.display()
    )]
    NoBuild { wanted: &'static str, folder: PathBuf },
    #[error("running {}: {source}", file.display())]
    Run { file: PathBuf, source: std::io::Error },
}

fn main() -> ExitCode {
    launch().unwrap_or_else(|error| {
        eprintln!("bidpo: {error}");
        ExitCode::FAILURE
    })
}

/// Becomes the build for this CPU; returns only where it cannot.
fn launch() -> Result<ExitCode, LaunchError> {
    let own = std::env::current_exe().map_err(LaunchError::OwnFile)?;
    let prefix = own.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let all = levels::levels();
    let forced = std::env::var_os(VARIABLE);
    let file = choose(&all, &prefix.join("libexec/bidpo"), forced.as_ref().and_then(|v| v.to_str()), levels::has)?;
    run(&file)
}

/// The file of the highest level that this CPU has, that is not above the forced one, and that is there.
fn choose(
    all: &[Level],
    folder: &Path,
    forced: Option<&str>,
    has: impl Fn(&str) -> bool,
) -> Result<PathBuf, LaunchError> {
    let usable = levels::up_to(levels::of_cpu(all, &has), forced);
    let Some(wanted) = usable.last() else {
        let features = &all[0].features;
        let lacking: Vec<&str> = features.iter().copied().filter(|feature| !has(feature)).collect();
        return Err(LaunchError::OldCpu { lacking: lacking.join(", ") });
    };
    let file = usable.iter().rev().map(|level| levels::file(folder, level)).find(|file| file.is_file());
    file.ok_or_else(|| LaunchError::NoBuild { wanted: wanted.name, folder: folder.to_owned() })
}

/// Runs a program in the place of this one, under the name this one was called by.
#[cfg(unix)]
fn run(file: &Path) -> Result<ExitCode, LaunchError> {
    use std::os::unix::process::CommandExt as _;
    let mut args = std::env::args_os();
    let mut command = Command::new(file);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    Err(LaunchError::Run { file: file.to_owned(), source: command.args(args).exec() })
}

/// Runs a program and ends as it does.
#[cfg(not(unix))]
fn run(file: &Path) -> Result<ExitCode, LaunchError> {
    let status = Command::new(file).args(std::env::args_os().skip(1)).status();
    let status = status.map_err(|source| LaunchError::Run { file: file.to_owned(), source })?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_build_that_is_there_and_fits_is_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let all = levels::levels();
        let chosen = |forced: Option<&str>, lacking: &str| {
            choose(&all, folder.path(), forced, |feature| feature != lacking)
                .map(|file| file.file_name().unwrap().to_str().unwrap().to_owned())
        };
        let message = chosen(None, "").unwrap_err().to_string();
        assert!(message.contains("avx512-bf16") && message.contains(folder.path().to_str().unwrap()), "{message}");
        for level in ["plain", "avx2", "avx512-bf16"] {
            std::fs::write(folder.path().join(format!("bidpo-{level}")), "").unwrap();
        }
        assert_eq!(chosen(None, "").unwrap(), "bidpo-avx512-bf16");
        assert_eq!(chosen(None, "avx512bf16").unwrap(), "bidpo-avx2");
        assert_eq!(chosen(Some("avx512"), "").unwrap(), "bidpo-avx2");
        assert_eq!(chosen(Some("avx512"), "avx").unwrap(), "bidpo-plain");
        assert_eq!(chosen(Some("plain"), "").unwrap(), "bidpo-plain");
        assert_eq!(chosen(Some("sse"), "").unwrap(), "bidpo-avx512-bf16");
        let message = chosen(None, "ssse3").unwrap_err().to_string();
        assert!(message.contains("lacks ssse3,") && message.contains("from source"), "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_cannot_be_run_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bidpo-plain");
        std::fs::write(&file, "").unwrap();
        let message = run(&file).unwrap_err().to_string();
        assert!(message.contains("bidpo-plain") && message.contains("denied"), "{message}");
    }
}
