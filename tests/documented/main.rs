//! The commands of README and of docs/ run as they stand there: every block of `sh` and of `console` (its lines with `$`), in
//! order, in a folder with a small random model and small files under the names that the page uses. Long runs are cut by
//! `programs/bidpo`; programs that are not ours are stood in for by others of `programs/`.
#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

#[path = "../common/mod.rs"]
mod common;
mod folder;
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The repository.
const TOP: &str = env!("CARGO_MANIFEST_DIR");

/// A block of commands.
#[derive(Debug)]
struct Block {
    /// Line of the page at which it begins.
    line: usize,
    script: String,
}

/// The blocks of a page that hold commands. Of a console's block the lines after `$ ` and their continuations.
fn blocks(page: &str) -> Vec<Block> {
    let mut out = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(language) = line.strip_prefix("```").filter(|l| !l.is_empty()) else { continue };
        let body: Vec<&str> = lines.by_ref().map(|(_, l)| l).take_while(|l| *l != "```").collect();
        let script = match language {
            "sh" => body.join("\n"),
            "console" => typed(&body),
            _ => continue,
        };
        if !script.trim().is_empty() {
            out.push(Block { line: at + 1, script });
        }
    }
    out
}

/// What a person typed in a console: lines after `$ `, while they end with a backslash or a quote is open. Prompts of other
/// machines (`machine-b$ `) are left out: tests/devices.rs has several.
fn typed(lines: &[&str]) -> String {
    let mut out = String::new();
    let mut open = false;
    for line in lines {
        let typed = if open { Some(*line) } else { line.strip_prefix("$ ") };
        if let Some(typed) = typed {
            out += typed;
            out += "\n";
            open = typed.ends_with('\\') || out.matches('\'').count() % 2 == 1;
        }
    }
    out
}

/// Runs all blocks of a page.
fn run(page: &str) {
    let text = std::fs::read_to_string(Path::new(TOP).join(page)).unwrap();
    let blocks = blocks(&text);
    assert!(!blocks.is_empty(), "{page} has no commands: take its test away");
    let folder = folder::folder();
    let mut server = None;
    for Block { line, script } in blocks {
        println!("--- {page}:{line}\n{script}");
        if script.starts_with("bidpo serve") {
            server = Some(server::Server::start(folder.path(), &script));
            continue;
        }
        let output = shell(folder.path(), server.as_ref()).arg(&script).output().unwrap();
        let (said, results) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        println!("{results}{said}");
        assert!(output.status.success(), "{page}:{line}: {}\n{script}\n{said}", output.status);
    }
    if let Some(server) = server {
        server.stop();
    }
}

/// A shell in the folder that ends at the first command that fails, with our program and the stand-ins in its path.
fn shell(folder: &Path, server: Option<&server::Server>) -> Command {
    let mut command = Command::new("bash");
    command.current_dir(folder).stdin(Stdio::null()).args(["-euo", "pipefail", "-c"]);
    let programs = Path::new(TOP).join("tests/documented/programs");
    let path = std::env::join_paths(
        [programs].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    command.env("PATH", path.unwrap()).env("BIDPO_PROGRAM", env!("CARGO_BIN_EXE_bidpo")).env("BIDPO_TOP", TOP);
    command.env("BIDPO_MODELS", folder.join("models")).env("XDG_CACHE_HOME", folder.join("cache")).env("HOME", folder);
    command.env("BIDPO_THREADS", "1").env("BIDPO_NEUTRAL_PASSAGES", "2").env("SLURM_ARRAY_TASK_ID", "1");
    if let Some(server) = server {
        command.env("BIDPO_ADDRESS", server.address());
    }
    command
}

macro_rules! pages {
    ($($name:ident: $page:literal,)*) => {
        const PAGES: &[&str] = &[$($page),*];
        $(
            #[test]
            fn $name() {
                run($page);
            }
        )*
    };
}

pages! {
    readme: "README.md",
    contributing: "CONTRIBUTING.md",
    chat: "docs/chat.md",
    check: "docs/check.md",
    data: "docs/data.md",
    devices: "docs/devices.md",
    evaluation: "docs/evaluation.md",
    interventions: "docs/interventions.md",
    models: "docs/models.md",
    server_page: "docs/server.md",
    synth: "docs/synth.md",
    templates: "docs/templates.md",
    training: "docs/training.md",
    vector_file: "docs/vector-file.md",
}

/// All pages.
fn all_pages() -> Vec<PathBuf> {
    let docs = std::fs::read_dir(Path::new(TOP).join("docs")).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<PathBuf> = docs.filter(|p| p.extension().is_some_and(|e| e == "md")).collect();
    all.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "data/README.md"].map(|p| Path::new(TOP).join(p)));
    all.sort();
    all
}

#[test]
fn no_page_with_commands_is_forgotten() {
    for path in all_pages() {
        let name = path.strip_prefix(TOP).unwrap().to_str().unwrap().to_owned();
        let has = !blocks(&std::fs::read_to_string(&path).unwrap()).is_empty();
        assert_eq!(has, PAGES.contains(&name.as_str()), "{name}: add it to `pages!`, or take it away");
    }
}

/// Options in running text (`bidpo train --kind gate`) are options of that command.
#[test]
fn options_in_running_text_exist() {
    let mut help = BTreeMap::new();
    let mut seen = 0;
    for path in all_pages() {
        for (at, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
            for code in line.split('`').skip(1).step_by(2).filter_map(|c| c.strip_prefix("bidpo ")) {
                let at = format!("{}:{}: `bidpo {code}`", path.display(), at + 1);
                let words: Vec<&str> = code.split_whitespace().collect();
                let is_name = |w: &&str| !w.starts_with('-') && w.chars().all(|c| c.is_lowercase() || c == '-');
                let command: Vec<&str> = words.iter().copied().take_while(is_name).collect();
                let known = (1..=command.len().min(2)).rev().find_map(|n| {
                    let text = help.entry(command[..n].join(" ")).or_insert_with(|| help_of(&command[..n]));
                    text.clone()
                });
                let Some(known) = known else {
                    assert!(code.starts_with('-'), "{at}: there is no such command");
                    continue;
                };
                for option in words.iter().filter(|w| w.starts_with("--") && w.len() > 2) {
                    let name = option.split(['=', ',', '.', ';', ')']).next().unwrap();
                    assert!(
                        known.split(|c: char| !(c.is_alphanumeric() || c == '-')).any(|w| w == name),
                        "{at}: {name}"
                    );
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 20, "{seen} options seen");
}

/// The long help of a command, `None` where there is no such command.
fn help_of(command: &[&str]) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_bidpo")).args(command).arg("--help").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // `bidpo vector show` has its own page; an unknown second word is an argument of the first's.
    let usage = format!("bidpo {}", command.join(" "));
    (output.status.success() && text.contains(&usage)).then_some(text)
}
