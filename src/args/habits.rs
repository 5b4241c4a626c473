//! Command lines as users of llama.cpp's programs write them. A name that differs there is read as ours; what bidpo does not have
//! is answered with what to do instead, never with an error about a value.

use super::llama_options::{Here, habit};
use Here::{Advice, LayerRange, Needless, Option as Same, ScaledAdapters, ScaledVectors, Vectors};
use clap::{Arg, Command};
use std::ffi::OsString;
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::Path;

/// A command line that bidpo cannot read as it is meant.
#[derive(Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The names of the subcommand that it is of.
    pub path: Vec<String>,
    /// What to do.
    pub hint: String,
}

/// Rewrites a command line with llama.cpp's names and values into bidpo's own. `args` begins with the program's name.
///
/// # Errors
/// [`Unknown`]: an option of llama.cpp that has no counterpart here.
pub fn translate(args: impl IntoIterator<Item = OsString>, root: &Command) -> Result<Vec<OsString>, Unknown> {
    let args: Vec<OsString> = args.into_iter().collect();
    let (mut out, mut command, mut path) = (Vec::new(), root, Vec::new());
    let mut rest = args.into_iter().peekable();
    out.extend(rest.next());
    let mut model_given = false;
    while let Some(arg) = rest.next() {
        let Some(text) = arg.to_str().map(str::to_owned) else {
            out.push(arg);
            continue;
        };
        if text == "--" {
            out.push(arg);
            out.extend(rest);
            break;
        }
        if let Some(sub) = command.find_subcommand(&text) {
            path.push(sub.get_name().to_owned());
            command = sub;
            out.push(arg);
            continue;
        }
        let (name, inline) = match text.split_once('=') {
            Some((name, value)) if text.starts_with("--") => (name.to_owned(), Some(OsString::from(value))),
            _ => (text.clone(), None),
        };
        // llama.cpp takes --n_predict for --n-predict.
        let known = |name: &str| own(command, root, name).is_some() || habit(name).is_some();
        let name = match name.strip_prefix("--").map(|n| format!("--{}", n.replace('_', "-"))) {
            Some(dashed) if !known(&name) && known(&dashed) => dashed,
            _ => name,
        };
        if let Some(own) = own(command, root, &name) {
            model_given |= own.get_long() == Some("model");
            push(&mut out, own, name, inline, &mut rest);
            continue;
        }
        let Some(habit) = habit(&name) else {
            let bare = !text.starts_with('-') && text.to_ascii_lowercase().ends_with(".gguf");
            let no_positional = command.get_positionals().next().is_none() && !command.has_subcommands();
            if let Some(model) = long(command, "model").filter(|_| bare && no_positional && !model_given) {
                model_given = true;
                push(&mut out, model, "--model".into(), Some(arg), &mut rest);
            } else {
                out.push(arg);
            }
            continue;
        };
        let unknown = |hint: String| Unknown { path: path.clone(), hint };
        let target = match habit {
            Same(target) => target,
            Vectors | ScaledVectors => "vector",
            ScaledAdapters => "lora",
            LayerRange => "layers",
            Needless(why) => {
                eprintln!("note: {name} is left out: {why}");
                continue;
            }
            Advice(advice) => return Err(unknown(format!("{name}: {advice}"))),
        };
        let Some(option) = long(command, target).or_else(|| long(root, target)) else {
            return Err(unknown(elsewhere(root, &name, target)));
        };
        let spelled = format!("--{target}");
        let mut value = || inline.clone().or_else(|| rest.next());
        match habit {
            Vectors => {
                for file in list(value()) {
                    out.extend([spelled.clone().into(), file]);
                }
            }
            ScaledVectors | ScaledAdapters => {
                let mut files = list(value());
                let scaled = |f: &OsString| f.to_str().is_some_and(|f| f.contains(':'));
                if let [file] = &mut files[..]
                    && !scaled(file)
                    && rest.peek().and_then(|s| s.to_str()).is_some_and(|s| s.parse::<f32>().is_ok())
                {
                    file.push(":");
                    file.push(rest.next().unwrap_or_default());
                }
                for file in files {
                    out.extend([spelled.clone().into(), file]);
                }
            }
            LayerRange => {
                let (from, to) = (value().unwrap_or_default(), rest.next().unwrap_or_default());
                out.push(format!("{spelled}={}-{}", from.to_string_lossy(), to.to_string_lossy()).into());
            }
            _ => push(&mut out, option, spelled, inline, &mut rest),
        }
    }
    Ok(out)
}

/// Puts an option of ours with its value, which follows in `rest` unless it was written behind `=`.
fn push(
    out: &mut Vec<OsString>,
    option: &Arg,
    name: String,
    inline: Option<OsString>,
    rest: &mut impl Iterator<Item = OsString>,
) {
    if !option.get_action().takes_values() {
        out.push(inline.map_or_else(|| name.clone().into(), |v| joined(&name, &v)));
        return;
    }
    let Some(value) = inline.clone().or_else(|| rest.next()) else {
        out.push(name.into());
        return;
    };
    match converted(option.get_long().unwrap_or_default(), &value) {
        Value::AsItIs if inline.is_some() => out.push(joined(&name, &value)),
        Value::AsItIs => out.extend([name.into(), value]),
        Value::Left => {}
        Value::Is(text) => out.extend([name.into(), text.into()]),
    }
}

fn joined(name: &str, value: &OsString) -> OsString {
    let mut text = OsString::from(format!("{name}="));
    text.push(value);
    text
}

enum Value {
    AsItIs,
    /// The option's default is what is meant.
    Left,
    Is(String),
}

/// Values with which llama.cpp says "no limit", "random" or "you choose".
fn converted(option: &str, value: &OsString) -> Value {
    let number: Option<i64> = value.to_str().and_then(|v| v.trim().parse().ok());
    match (option, number) {
        ("max-tokens", Some(..0)) => Value::Is(i32::MAX.to_string()),
        ("seed", Some(..0)) => {
            // The keys of a hasher are drawn from the system's entropy.
            let seed = std::collections::hash_map::RandomState::new().build_hasher().finish() as u32;
            eprintln!("note: seed {seed}");
            Value::Is(seed.to_string())
        }
        ("top-k", Some(..0)) => Value::Is("0".into()),
        ("ctx" | "threads", Some(..=0)) => Value::Left,
        ("gpu-layers", Some(..0)) => Value::Is("all".into()),
        ("gpu-layers", None) if value == "auto" => Value::Is("all".into()),
        ("host", None) if value == "localhost" => Value::Is("127.0.0.1".into()),
        _ => Value::AsItIs,
    }
}

/// The option of this command, or of all, that is written so. `-nVALUE` is one too.
fn own<'a>(command: &'a Command, root: &'a Command, name: &str) -> Option<&'a Arg> {
    let is = |a: &&Arg| {
        let long = name.strip_prefix("--").is_some_and(|n| {
            a.get_long() == Some(n) || a.get_all_aliases().is_some_and(|aliases| aliases.contains(&n))
        });
        let mut letters = name.chars().skip(1);
        long || (a.get_short().is_some() && a.get_short() == letters.next() && letters.next().is_none())
    };
    let dashed = name.len() > 1 && name.starts_with('-');
    command.get_arguments().chain(root.get_arguments()).filter(|_| dashed).find(is)
}

fn long<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|a| a.get_long() == Some(name))
}

/// Where an option is to be had that this command lacks.
fn elsewhere(root: &Command, name: &str, target: &str) -> String {
    let have: Vec<String> = root
        .get_subcommands()
        .filter(|c| !c.is_hide_set() && long(c, target).is_some())
        .map(|c| format!("bidpo {}", c.get_name()))
        .collect();
    format!("{name} is --{target} in bidpo, an option of: {}", have.join(", "))
}

/// The parts of a list with commas.
fn list(value: Option<OsString>) -> Vec<OsString> {
    let value = value.unwrap_or_default();
    match value.to_str() {
        Some(text) if !Path::new(text).exists() => text.split(',').map(OsString::from).collect(),
        // A name may hold a comma.
        _ => vec![value],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::Cli;
    use clap::CommandFactory as _;

    fn read(line: &str) -> Result<String, String> {
        let args = std::iter::once("bidpo").chain(line.split_whitespace()).map(OsString::from);
        let out = translate(args, &Cli::command()).map_err(|e| e.hint)?;
        Ok(out[1..].iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn command_lines_of_llama_cpp_are_read_as_ours() {
        for (theirs, ours) in [
            ("generate m.gguf -p Hi", "generate --model=m.gguf -p Hi"),
            ("generate -p m.gguf M.GGUF", "generate -p m.gguf --model=M.GGUF"),
            ("chat -m m.gguf -c 512 -sys hi", "chat -m m.gguf --ctx 512 --system hi"),
            ("chat -m m.gguf -c 0 -t -1", "chat -m m.gguf"),
            ("chat -m m.gguf --ctx_size 512 --threads=0", "chat -m m.gguf --ctx 512"),
            (
                "generate --n_predict=3 --max_tokens 4 -p --n_predict",
                "generate --max-tokens=3 --max-tokens 4 -p --n_predict",
            ),
            ("generate -m m.gguf -ngl 99 -f x", "generate -m m.gguf --gpu-layers 99 --prompt-file x"),
            ("generate -m m.gguf -ngl -1", "generate -m m.gguf --gpu-layers all"),
            ("generate --n-predict 3 --temperature 0.5", "generate --max-tokens 3 --temp 0.5"),
            ("generate -n -1", "generate -n 2147483647"),
            ("generate --max-tokens=-1 --top-k=-1", "generate --max-tokens 2147483647 --top-k 0"),
            ("generate --control-vector a.gguf,b.gguf", "generate --vector a.gguf --vector b.gguf"),
            ("generate --control-vector-scaled a.gguf:1.5", "generate --vector a.gguf:1.5"),
            ("generate --control-vector-scaled a.gguf -0.5 -n 2", "generate --vector a.gguf:-0.5 -n 2"),
            ("generate --lora a.gguf --lora-scaled b.gguf 0.5", "generate --lora a.gguf --lora b.gguf:0.5"),
            ("serve --lora-scaled a.gguf:0,b.gguf:1", "serve --lora a.gguf:0 --lora b.gguf:1"),
            ("generate --control-vector-layer-range 10 20", "generate --layers=10-20"),
            ("serve -np 2 --host localhost --port 80", "serve --slots 2 --host 127.0.0.1 --port 80"),
            ("generate --jinja -cnv -p Hi", "generate -p Hi"),
            // A value is never an option, and our own lines stay as they are.
            ("generate -p -c --prompt=-sys -n5 -s -1", "generate -p -c --prompt=-sys -n5 -s -1"),
            ("vector show a.gguf b.gguf", "vector show a.gguf b.gguf"),
            ("generate -- -c", "generate -- -c"),
            ("--verbose generate --scales=-1,0 -c 8", "--verbose generate --scales=-1,0 --ctx 8"),
        ] {
            assert_eq!(read(theirs).as_deref(), Ok(ours), "{theirs}");
        }
        let seed = read("generate --seed -1").unwrap();
        assert!(seed.strip_prefix("generate --seed ").unwrap().parse::<u32>().is_ok(), "{seed}");
    }

    #[test]
    fn what_bidpo_lacks_is_answered_with_what_to_do() {
        for (line, part) in [
            ("generate -hf a/b", "--model FILE.gguf"),
            ("chat -np 2", "--slots in bidpo, an option of: bidpo serve"),
            ("generate -b 512", "leave the option out"),
            ("bench --lora a.gguf", "an option of: bidpo"),
            ("serve --lora-init-without-apply", "--lora FILE:0"),
        ] {
            let hint = read(line).unwrap_err();
            assert!(hint.contains(part), "{line}: {hint}");
        }
    }
}
