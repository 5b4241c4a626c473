//! `bidpo demo`: the tour. A vector is trained on a small model, then dials are turned. Each step is a command of this program
//! that a reader may repeat.

use super::models::fetch_known;
use crate::args::names::{how_to_fetch, model_there};
use crate::args::outputs;
use crate::args::shipped::{VECTORS, write};
use crate::terminal::{interrupt, streams};
use anyhow::{Context as _, anyhow, bail};
use bidpo_fetch::models::{KNOWN, KnownModel};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;

/// The model of the tour, and of the vectors that it shows.
const MODEL: &KnownModel = &KNOWN[0];
/// A dial that is easy to see, and one behind a gate.
const STYLE: &str = "plain-vs-flowery.SmolLM2-135M-Instruct.Q4_1.gguf";
const GATED: &str = "flowery-food.SmolLM2-135M-Instruct.Q4_1.gguf";

/// Options of `bidpo demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Fetch the model first where it is not here, as `bidpo models fetch smollm2` does.
    #[arg(long)]
    fetch: bool,
    /// Folder of the trained vector, its card and the vectors that are shown.
    #[arg(long, short = 'o', value_name = "DIR", default_value = "bidpo-demo")]
    out: PathBuf,
    /// Stop training after so many steps [default: the end].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Maximum tokens of an answer.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=8192))]
    max_tokens: u32,
}

/// The files of the tour.
struct Tour<'a> {
    args: &'a Args,
    model: PathBuf,
    vector: PathBuf,
    style: PathBuf,
    gated: PathBuf,
}

/// A part of the tour: what is said before it, and commands of this program.
struct Part {
    title: &'static str,
    note: Option<&'static str>,
    commands: Vec<Vec<String>>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let model = match model_there(Path::new(MODEL.file)).map_err(|e| anyhow!(e))? {
        Some(path) => path,
        None if args.fetch => fetch_known(MODEL, None)?.0,
        None => bail!("{}: {}, and so does `bidpo demo --fetch` first", MODEL.name, how_to_fetch(MODEL)),
    };
    std::fs::create_dir_all(&args.out).with_context(|| format!("making the folder {}", args.out.display()))?;
    let shown = |file: &str| -> anyhow::Result<PathBuf> {
        outputs::check(&args.out.join(file), outputs::Kind::Vector, &[])?;
        let vector = VECTORS.iter().find(|v| v.file == file).context("a vector of the demo is not in this program")?;
        write(vector, &args.out).map_err(|e| anyhow!(e))
    };
    let (style, gated) = (shown(STYLE)?, shown(GATED)?);
    let tour = Tour { vector: args.out.join("misconceptions.gguf"), args: &args, model, style, gated };
    let stop = interrupt::stop_flag("the demo ends with this step")?;
    let program = std::env::current_exe().context("finding this program's own file")?;
    let called = std::env::args().next().unwrap_or_else(|| "bidpo".into());
    for part in tour.parts() {
        println!("\n{}\n", part.title);
        if let Some(note) = part.note {
            println!("{note}\n");
        }
        for command in part.commands {
            println!("$ {called} {}\n", command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
            streams::flush();
            let status = Command::new(&program).args(&command).status().context("starting this program again")?;
            if stop.load(Ordering::Relaxed) {
                return Ok(ExitCode::FAILURE);
            }
            if !status.success() {
                bail!("the demo ends: `bidpo {}` failed", command[0]);
            }
            println!();
        }
    }
    print!("{}", tour.farewell(&called));
    Ok(ExitCode::SUCCESS)
}

impl Tour<'_> {
    fn parts(&self) -> Vec<Part> {
        let part = |title, note, commands| Part { title, note, commands };
        let dials = |vector: &Path, scales: &str, prompts: &[&str]| {
            prompts.iter().map(|prompt| self.dial(vector, scales, prompt)).collect::<Vec<_>>()
        };
        let style = ["Describe a rainy morning.", "How do I make a cup of tea?", "What is the moon?"];
        let asked = [
            "Do penguins live at the North Pole?",
            "What causes the seasons on Earth?",
            "How does a refrigerator keep food cold?",
        ];
        let food = [
            "How do I make a grilled cheese sandwich?",
            "Tell me about strawberries.",
            "How do I clean a window?",
            "Why does ice float?",
        ];
        vec![
            part(
                "1. Train: 128 pairs of a true answer and a popular myth, on SmolLM2-135M-Instruct Q4_1, by gradient",
                None,
                vec![self.train()],
            ),
            part(
                "2. Three questions at three scales of that vector (percent of the residual norm)",
                Some(
                    "Do not expect a 135M model to become truthful: the table above says how far the vector moves it, and no \
                     further.",
                ),
                dials(&self.vector, "-1,0,1", &asked),
            ),
            part(
                "3. A dial that is easy to see: plain (-1) to flowery (+1), a vector that ships with bidpo",
                None,
                dials(&self.style, "-1,0,1", &style),
            ),
            part(
                "4. A dial with a gate: flowery about food, and about nothing else (scale 0 and scale 1.5)",
                None,
                dials(&self.gated, "0,1.5", &food),
            ),
        ]
    }

    fn train(&self) -> Vec<String> {
        let (model, vector) = (text(&self.model), text(&self.vector));
        let mut words: Vec<String> =
            ["train", "--model", &model, "--data", "misconceptions", "--output", &vector, "--fresh"]
                .map(str::to_owned)
                .into();
        words.extend(self.args.steps.into_iter().flat_map(|n| ["--steps".to_owned(), n.to_string()]));
        words
    }

    fn dial(&self, vector: &Path, scales: &str, prompt: &str) -> Vec<String> {
        let (model, vector, tokens) = (text(&self.model), text(vector), self.args.max_tokens.to_string());
        let scales = format!("--scales={scales}");
        let words = ["generate", "--model", &model, "--vector", &vector, &scales, "--columns", "--max-tokens", &tokens];
        words.into_iter().chain(["--repeat-penalty", "1.1", "--prompt", prompt]).map(str::to_owned).collect()
    }

    fn farewell(&self, bidpo: &str) -> String {
        let [model, vector, style, gated] =
            [&self.model, &self.vector, &self.style, &self.gated].map(|p| quoted(&text(p)));
        let card = quoted(&text(&self.vector.with_extension("md")));
        format!(
            "\n5. Now you

Chat, and turn the dial while you talk (/scale 1.5, /scale -1, /off, /help):

    {bidpo} chat --model {model} --vector {style} --scale 1

Where a gate opens, token by token (/gate after an answer):

    {bidpo} chat --model {model} --vector {gated} --scale 1

The vector without a gate in llama.cpp's own programs:

    llama-cli -m {model} --control-vector-scaled {style}:1.0

The vector you just trained, its card, and what is in the file:

    {vector}
    {card}
    {bidpo} vector show {vector}

A benchmark:

    {bidpo} data fetch truthfulqa
    {bidpo} eval truthfulqa --model {model} --data ~/.cache/bidpo/data/truthfulqa/mc_task.json --vector {vector} --limit 100
"
        )
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::Cli;
    use clap::CommandFactory as _;

    /// Every step is a command line that the program takes.
    #[test]
    fn the_tour_is_made_of_commands() {
        let args = Args { fetch: false, out: "demo out".into(), steps: Some(3), max_tokens: 4 };
        let at = |file: &str| args.out.join(file);
        let tour = Tour {
            model: "no/model.gguf".into(),
            vector: at("v.gguf"),
            style: at(STYLE),
            gated: at(GATED),
            args: &args,
        };
        let mut n = 0;
        for words in tour.parts().into_iter().flat_map(|part| part.commands) {
            let line = std::iter::once("bidpo".to_owned()).chain(words.clone());
            if let Err(error) = Cli::command().try_get_matches_from(line) {
                panic!("{words:?}: {error}");
            }
            n += 1;
        }
        assert_eq!(n, 11);
        for file in [STYLE, GATED] {
            assert!(VECTORS.iter().any(|v| v.file == file), "{file}");
        }
        let said = tour.farewell("bidpo");
        assert!(said.contains("--vector 'demo out/plain-vs-flowery") && said.contains("'demo out/v.md'"), "{said}");
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("--scales=-1,0,1"), "--scales=-1,0,1");
        assert_eq!(quoted("What's new?"), "'What'\\''s new?'");
        assert_eq!(quoted(""), "''");
    }
}
