//! `bidpo template`: what a model sees of a chat or of a preference pair, as text and as tokens.

use crate::args::ModelFile;
use crate::args::data::DataArgs;
use crate::args::template::{VariableArgs, say_notes};
use crate::terminal::streams;
use bidpo_core::chat::printable;
use bidpo_core::data::{ChatTemplate, PreferencePair, Prompt, ShownText, TemplateChoice, Think};
use bidpo_core::train::with_system_prompt;
use ggml_grad::llama::Model;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Question and answer where no other text is given.
const EXAMPLE: [&str; 2] = ["Why is the sky blue?", "Air scatters blue light more than red light."];

/// Options of `bidpo template`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelFile,
    /// Preference pairs, in any form of docs/data.md, or a built-in set: shows prompt, chosen and rejected as `train` takes
    /// them. Without --data and --prompt, an example is shown.
    #[arg(long, short = 'd', value_name = "FILE|NAME", conflicts_with_all = ["prompt", "answers"])]
    data: Option<PathBuf>,
    #[command(flatten)]
    read: DataArgs,
    /// The number of pairs that are shown, from the first on.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "data", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// A user's message.
    #[arg(long, short = 'p', value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// An answer to --prompt, as `train` and `eval` take it; can be repeated. Without it the prompt is that of `generate`.
    #[arg(long = "answer", value_name = "TEXT", requires = "prompt", allow_hyphen_values = true)]
    answers: Vec<String>,
    /// System message, in place of the pairs' own.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Chat template: auto (the model's own), none, a known name, or a Jinja file.
    #[arg(long, default_value = "auto", value_name = "T")]
    template: TemplateChoice,
    #[command(flatten)]
    variables: VariableArgs,
    /// Thoughts in answers, as in `train`: auto, skip or keep.
    #[arg(long, default_value_t = Think::Auto, value_name = "auto|skip|keep")]
    think: Think,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// A chat to show.
struct Case {
    /// Place in the file.
    origin: Option<String>,
    prompt: Prompt,
    answers: Vec<Answer>,
}

struct Answer {
    label: &'static str,
    text: String,
}

/// A part of a chat as the model sees it.
struct Part {
    label: &'static str,
    shown: ShownText,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let model = args.model.vocabulary()?;
    let template = args.variables.open(&model, &args.template, args.think)?;
    let cases = args.cases()?;
    let mut shown = Vec::new();
    for case in &cases {
        let parts = parts(&model, &template, case);
        let named = |e: anyhow::Error| case.origin.iter().fold(e, |e, origin| e.context(origin.clone()));
        shown.push(parts.map_err(named)?);
    }
    say_notes(&template, 0);
    if args.json {
        streams::out_json(format_args!("{:#}", as_json(&template, &cases, &shown)));
        return Ok(ExitCode::SUCCESS);
    }
    println!("template: {}", printable(&template.described()));
    let variables = template.variables();
    println!("variables: {}", if variables.is_empty() { "none".to_owned() } else { variables.join(", ") });
    if let Some(marks) = template.thought_marks() {
        println!("thoughts: {} ... {}", printable(&marks.open), printable(&marks.close));
    }
    for (case, parts) in cases.iter().zip(&shown) {
        print_case(case, parts);
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn cases(&self) -> anyhow::Result<Vec<Case>> {
        let told = |prompt: Prompt| match &self.system {
            Some(system) => with_system_prompt(&prompt, system),
            None => prompt,
        };
        if let Some(data) = &self.data {
            let pairs = self.read.open(data)?.pairs;
            let case = |pair: PreferencePair| Case {
                origin: Some(pair.origin),
                prompt: told(pair.prompt),
                answers: vec![
                    Answer { label: "chosen", text: pair.chosen },
                    Answer { label: "rejected", text: pair.rejected },
                ],
            };
            return Ok(pairs.into_iter().take(self.limit as usize).map(case).collect());
        }
        let (prompt, answers) = match &self.prompt {
            Some(prompt) => (prompt.clone(), self.answers.clone()),
            None => (EXAMPLE[0].to_owned(), vec![EXAMPLE[1].to_owned()]),
        };
        let answers = answers.into_iter().map(|text| Answer { label: "response", text }).collect();
        Ok(vec![Case { origin: None, prompt: told(Prompt::Text(prompt)), answers }])
    }
}

/// The prompt, and each response.
fn parts(model: &Model, template: &ChatTemplate, case: &Case) -> anyhow::Result<Vec<Part>> {
    let answers: Vec<&str> = case.answers.iter().map(|a| a.text.as_str()).collect();
    let chat = template.show(model, &case.prompt, &answers)?;
    let responses = case.answers.iter().zip(chat.responses).map(|(a, shown)| Part { label: a.label, shown });
    Ok(std::iter::once(Part { label: "prompt", shown: chat.prompt }).chain(responses).collect())
}

fn print_case(case: &Case, parts: &[Part]) {
    if let Some(origin) = &case.origin {
        println!("\n{}", printable(origin));
    }
    for Part { label, shown } in parts {
        println!("\n--- {label}: {} tokens\n{}", shown.tokens.len(), printable(&shown.text));
    }
    for Part { label, shown } in parts {
        println!("\n--- tokens of the {label}");
        for token in &shown.tokens {
            let mark = if token.control { "  control" } else { "" };
            println!("{:>8}  {:?}{mark}", token.id, token.text);
        }
    }
}

fn as_json(template: &ChatTemplate, cases: &[Case], shown: &[Vec<Part>]) -> Value {
    let chat = |(case, parts): (&Case, &Vec<Part>)| {
        let part = |p: &Part| json!({"part": p.label, "text": p.shown.text, "tokens": p.shown.tokens});
        json!({"origin": case.origin, "parts": parts.iter().map(part).collect::<Vec<_>>()})
    };
    let settings = template.settings();
    json!({
        "template": template.name(),
        "template_sha256": template.sha256(),
        "variables": template.variables(),
        "set": settings.variables,
        "think": settings.think.to_string(),
        "thoughts": template.thought_marks().map(|m| json!({"open": m.open, "close": m.close})),
        "notes": template.notes(),
        "chats": cases.iter().zip(shown).map(chat).collect::<Vec<_>>(),
    })
}
