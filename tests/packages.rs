//! Packages, around a stand-in for the program: `install.sh`, the wheel. The Python package, around the program itself.
//! `scripts/check_dist.sh` installs real ones in a bare root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const TOP: &str = env!("CARGO_MANIFEST_DIR");
const NAME: &str = "bidpo-9.9.9-x86_64-linux";

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The unpacked archive, with builds for `levels`. Its programs say their names.
fn tree(folder: &Path, levels: &[&str]) -> PathBuf {
    let tree = folder.join(NAME);
    write(&tree.join("bin/bidpo"), "#!/bin/sh\necho bidpo 9.9.9 \"$@\"\n", 0o755);
    for level in levels {
        write(&tree.join(format!("libexec/bidpo/bidpo-{level}")), &format!("#!/bin/sh\necho {level}\n"), 0o755);
    }
    write(&tree.join("share/man/man1/bidpo.1"), ".TH bidpo 1\n", 0o644);
    for name in ["LICENSE-APACHE", "LICENSE-MIT", "THIRD-PARTY.md"] {
        write(&tree.join("share/doc/bidpo").join(name), name, 0o644);
    }
    tree
}

/// Packs the tree, with SHA256SUMS beside the archive, and takes the tree away.
fn pack(folder: &Path, levels: &[&str]) -> PathBuf {
    let tree = tree(folder, levels);
    let script = format!("tar -czf {NAME}.tar.gz {NAME} && sha256sum {NAME}.tar.gz > SHA256SUMS");
    assert!(Command::new("sh").current_dir(folder).args(["-c", &script]).status().unwrap().success());
    std::fs::remove_dir_all(tree).unwrap();
    folder.join(format!("{NAME}.tar.gz"))
}

fn install(args: &[&str]) -> Output {
    Command::new("sh").arg(Path::new(TOP).join("scripts/install.sh")).args(args).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "{word} in {said}");
    }
}

/// What is under a folder, by path.
fn files(folder: &Path) -> Vec<String> {
    let found = Command::new("find").current_dir(folder).args([".", "-type", "f"]).output().unwrap();
    let mut files: Vec<_> = String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect();
    files.sort();
    files
}

#[cfg(target_arch = "x86_64")]
#[test]
fn an_archive_is_checked_and_installed() {
    let folder = tempfile::tempdir().unwrap();
    let archive = pack(folder.path(), &["plain", "avx2"]);
    let prefix = folder.path().join("a prefix");
    let args = ["--prefix", text(&prefix), text(&archive)];
    let done = install(&args);
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.contains("bidpo 9.9.9"), "{done:?}");
    let there = files(&prefix);
    for file in ["./bin/bidpo", "./libexec/bidpo/bidpo-avx2", "./libexec/bidpo/bidpo-plain", "./share/man/man1/bidpo.1"]
    {
        assert!(there.iter().any(|f| f == file), "{file} in {there:?}");
    }
    assert_eq!(there.len(), 7, "nothing else is left: {there:?}");
    assert_eq!(std::fs::metadata(prefix.join("bin/bidpo")).unwrap().permissions().mode() & 0o111, 0o111);
    // A version with other builds takes the place of this one's.
    pack(folder.path(), &["plain"]);
    assert!(install(&args).status.success());
    assert!(!files(&prefix).iter().any(|f| f.contains("avx2")));
    // By its hash alone, from another folder.
    let sums = std::fs::read_to_string(folder.path().join("SHA256SUMS")).unwrap();
    std::fs::remove_file(folder.path().join("SHA256SUMS")).unwrap();
    refused(&install(&args), &["SHA256SUMS", "--sha256"]);
    let hash = sums.split_whitespace().next().unwrap();
    assert!(install(&[&["--sha256", hash], &args[..]].concat()).status.success());
}

#[cfg(target_arch = "x86_64")]
#[test]
fn nothing_of_a_wrong_archive_is_installed() {
    let folder = tempfile::tempdir().unwrap();
    let archive = pack(folder.path(), &["plain"]);
    let prefix = folder.path().join("prefix");
    let args = ["--prefix", text(&prefix), text(&archive)];
    let mut bytes = std::fs::read(&archive).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&archive, bytes).unwrap();
    refused(&install(&args), &["SHA-256", "expected", "nothing was installed"]);
    std::fs::write(folder.path().join("SHA256SUMS"), "00  another.tar.gz\n").unwrap();
    refused(&install(&args), &["does not list", NAME]);
    refused(&install(&["--prefix", text(&prefix), text(&folder.path().join("none.tar.gz"))]), &["none.tar.gz"]);
    refused(&install(&["--prefix", text(&prefix), "--sha"]), &["--sha"]);
    refused(&install(&["--prefix", text(&prefix)]), &["which archive"]);
    assert_eq!(files(&prefix), [""; 0]);
    assert!(std::fs::read_dir(&prefix).unwrap().next().is_none(), "no folder is left");
}

/// pip installs the wheel: the program beside its builds, and the package that finds it.
#[test]
fn pip_installs_the_wheel() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path(), &["plain", "avx2"]);
    let wheel = |out: &str| {
        let out = folder.path().join(out);
        std::fs::create_dir(&out).unwrap();
        let script = Path::new(TOP).join("scripts/dist/wheel.py");
        let mut command = Command::new("python3");
        let Ok(done) = command.arg(script).arg(&tree).arg(&out).env("SOURCE_DATE_EPOCH", "1700000000").output() else {
            return None;
        };
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Some(PathBuf::from(String::from_utf8(done.stdout).unwrap().trim()))
    };
    let (Some(one), Some(two)) = (wheel("one"), wheel("two")) else {
        common::missing("python3 is not installed");
        return;
    };
    assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap(), "the same files give the same bytes");
    let at = folder.path().join("site");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--target"];
    let done =
        Command::new("python3").args(pip).args([&at, &one]).env("PIP_ROOT_USER_ACTION", "ignore").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let level = Command::new(at.join("libexec/bidpo/bidpo-avx2")).output().unwrap();
    assert_eq!(level.stdout, b"avx2\n", "builds can be run, where bin/bidpo looks for them");
    let code = "import bidpo; print(bidpo.program()); print(bidpo.run(['x y', '--z'], quiet=True), end='')";
    let mut python = Command::new("python3");
    let said = python.args(["-c", code]).env("PYTHONPATH", &at).env_remove("BIDPO_PROGRAM").output().unwrap();
    let expected = format!("{}\nbidpo 9.9.9 x y --z\n", at.join("bin/bidpo").display());
    assert_eq!(String::from_utf8_lossy(&said.stdout), expected, "{}", String::from_utf8_lossy(&said.stderr));
}

/// `python/tests`, with the program of this build.
#[test]
fn the_python_package_calls_the_program() {
    let Some(packages) = common::python_folder() else { return };
    let mut python = Command::new("python3");
    let path = [Path::new(TOP).join("python"), packages];
    python.arg(Path::new(TOP).join("python/tests/test_bidpo.py")).env("BIDPO_PROGRAM", env!("CARGO_BIN_EXE_bidpo"));
    python.env("PYTHONPATH", std::env::join_paths(path).unwrap()).env("PYTHONDONTWRITEBYTECODE", "1");
    python.env("BIDPO_THREADS", "1").env("BIDPO_NEUTRAL_PASSAGES", "2");
    let done = python.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && !said.contains("skipped"), "{said}");
}
