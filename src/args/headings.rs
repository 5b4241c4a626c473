//! The headings of help pages: options that several commands share stand under one of their group, a command's own ones under
//! `Options`. One table, since clap's own headings reach over the options that follow a group.

use clap::{Arg, Command};

/// Heading, and the long names of the options below it, in every command that loads a model.
const SHARED: &[(&str, &[&str])] = &[
    ("Model", &["model", "threads", "repack", "allow-swap"]),
    ("Devices", &["gpu-layers", "device", "split-mode", "main-gpu", "tensor-split", "rpc"]),
    ("Steering", &["vector", "vectors", "lora", "scale", "scales", "layer", "layers", "convention"]),
    (
        "Prompt",
        &[
            "prompt",
            "prompt-file",
            "prompt-format",
            "template",
            "template-set",
            "think",
            "system",
            "system-prompts",
            "ctx",
            "shots",
            "few-shot",
            "train-limit",
        ],
    ),
    ("Sampling", &["max-tokens", "temp", "top-p", "min-p", "top-k", "repeat-penalty", "stop"]),
    ("Judge", &["judge", "no-judge", "criterion", "no-references", "judge-template"]),
    ("Baselines", &["baselines", "compare", "random", "same-norm-only"]),
    ("Output", &["output", "out", "json", "columns", "shard"]),
];

/// Command, heading and options where a command has its own sections, or another meaning.
const OF_COMMANDS: &[(&str, &str, &[&str])] = &[
    ("chat", "Sampling", &["seed"]),
    ("generate", "Sampling", &["seed"]),
    ("extract", "Options", &["layers"]),
    ("check", "Options", &["layer", "layers"]),
    (
        "train",
        "Data",
        &["data", "prompt-key", "chosen-key", "rejected-key", "system-key", "strict", "val", "test", "split-by"],
    ),
    (
        "train",
        "Optimization",
        &[
            "objective",
            "beta",
            "lr",
            "schedule",
            "warmup",
            "weight-decay",
            "batch",
            "epochs",
            "steps",
            "seed",
            "seeds",
            "clip",
            "patience",
            "choose-by",
            "renorm",
        ],
    ),
    ("train", "Baselines", &["baseline-prompt"]),
    (
        "train",
        "Checkpoint, cache and kernels",
        &["resume", "fresh", "checkpoint-every", "cache", "cache-type", "forward", "backward"],
    ),
    ("sweep", "Price", &["mmlu", "per-subject", "text", "windows", "budget"]),
    ("sweep", "Data", &["data", "categories", "split", "limit"]),
    ("serve", "Listening", &["host", "port", "alias", "grace"]),
    ("serve", "Limits", &["slots", "ctx", "queue", "max-body", "max-prompt", "max-output"]),
    ("serve", "Access", &["api-key", "api-key-file", "cors-origin", "allow-host"]),
];

/// Puts every option of the command and of its subcommands under its heading.
pub fn grouped(command: Command) -> Command {
    let loads_a_model = command.get_arguments().any(|arg| arg.get_long() == Some("gpu-layers"));
    let name = command.get_name().to_owned();
    let command = command.mut_args(|arg| {
        let heading = heading(&name, &arg).filter(|_| loads_a_model);
        // No heading: the section `Options`.
        arg.help_heading(heading)
    });
    command.mut_subcommands(grouped)
}

fn heading(command: &str, arg: &Arg) -> Option<&'static str> {
    let flag = arg.get_long()?;
    let own = OF_COMMANDS.iter().find(|(of, _, flags)| *of == command && flags.contains(&flag)).map(|(_, h, _)| *h);
    let shared = || SHARED.iter().find(|(_, flags)| flags.contains(&flag)).map(|(h, _)| *h);
    own.or_else(shared).filter(|h| *h != "Options")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Every command, with its path.
    fn all(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
        let path = format!("{path} {}", command.get_name());
        command.get_subcommands().for_each(|c| all(c, &path, found));
        found.push((path, command.clone()));
    }

    #[test]
    fn each_group_holds_its_own_options() {
        let mut commands = Vec::new();
        all(&grouped(crate::commands::Cli::command()), "", &mut commands);
        let mut seen = Vec::new();
        for (path, command) in &commands {
            for arg in command.get_arguments() {
                let Some(flag) = arg.get_long() else { continue };
                seen.push((command.get_name().to_owned(), flag.to_owned()));
                for (heading, flags) in SHARED.iter().filter(|(h, _)| ["Devices", "Sampling", "Judge"].contains(h)) {
                    let here = arg.get_help_heading() == Some(heading);
                    assert!(
                        !here || flags.contains(&flag) || flag == "seed",
                        "{path}: --{flag} stands under {heading}"
                    );
                }
            }
        }
        let known = |flag: &str| seen.iter().any(|(_, f)| f == flag);
        // Names that commands are about to have may stand in the shared rows; a command's own rows hold real options.
        for (command, _, flags) in OF_COMMANDS {
            for flag in *flags {
                assert!(seen.contains(&((*command).to_owned(), (*flag).to_owned())), "{command} has no --{flag}");
            }
        }
        assert!(known("gpu-layers") && known("vector"));
    }
}
