//! `bidpo generate`: one prompt, one answer, or one answer for each scale.

use crate::args::sampling::{PromptArgs, SamplingArgs};
use crate::args::steering::{Scale, SteeringArgs, measure_residual_norms, say_strength};
use crate::args::template::say_notes;
use crate::terminal::columns::{side_by_side, terminal_width};
use crate::terminal::interrupt::Interrupt;
use crate::terminal::streams;
use anyhow::{Context as _, bail, ensure};
use bidpo_core::chat::{GenerateOptions, Generation, Generator, GeneratorParams, StopReason, printable};
use bidpo_core::data::{Message, Prompt, Think};
use bidpo_core::steer::{ScaledVector, combine};
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Most bytes of a prompt on stdin: more than any model's context.
const MOST_PROMPT: u64 = 1 << 26;

/// Options of `bidpo generate`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("input").required(true))]
pub struct Args {
    #[command(flatten)]
    model: crate::args::ModelArgs,
    /// The prompt; "-" reads it from stdin.
    #[arg(long, short = 'p', value_name = "TEXT", group = "input", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file that holds the prompt; "-" is stdin. A final newline is dropped.
    #[arg(long, value_name = "FILE", group = "input")]
    prompt_file: Option<PathBuf>,
    #[command(flatten)]
    how: PromptArgs,
    #[command(flatten)]
    steering: SteeringArgs,
    /// Generate one answer for each scale, applied to all vectors, or to all adapters where there is no vector: -1,0,1 or
    /// -5%,0,5%.
    #[arg(
        long = "scales",
        value_name = "S,S,...",
        value_delimiter = ',',
        allow_hyphen_values = true,
        requires = "steers",
        conflicts_with = "scales"
    )]
    sweep: Vec<Scale>,
    /// With --scales: print the answers side by side, in columns.
    #[arg(long, requires = "sweep", conflicts_with = "json")]
    columns: bool,
    /// Maximum number of tokens to generate.
    #[arg(long = "max-tokens", short = 'n', value_name = "MAX", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Print JSON on stdout: one object, or an array of objects with --scales.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let text = prompt_text(&args)?;
    ensure!(!text.trim().is_empty(), "the prompt is empty: say something with --prompt or --prompt-file");
    let model = args.model.load()?;
    let template = args.how.variables.open(&model, &args.how.template, Think::Auto)?;
    let prompt = match &args.how.system {
        None => Prompt::Text(text),
        Some(system) => Prompt::Messages(vec![Message::system(system), Message::user(text)]),
    };
    let tokens = template.encode_prompt(&model, &prompt)?;
    say_notes(&template, 0);
    let mut steering = args.steering.load(&model, Some(&template), args.model.threads())?;
    if args.sweep.iter().any(|s| matches!(s, Scale::Percent(_))) {
        for dial in &mut steering.dials {
            measure_residual_norms(dial, &model, args.model.threads())?;
        }
    }

    // One run for each scale of --scales; otherwise one, with the scales of --scale.
    let mut runs: Vec<(Option<Scale>, Vec<ScaledVector>)> = vec![(None, steering.dials.clone())];
    if !args.sweep.is_empty() {
        runs =
            args.sweep.iter().map(|s| Ok((Some(*s), at_scale(&steering.dials, *s)?))).collect::<anyhow::Result<_>>()?;
    }
    for (_, dials) in &runs {
        combine(dials, steering.layers.as_ref(), &model)?; // a bad scale is found before the first answer, not after it
        say_strength(dials, steering.layers.as_ref());
    }

    // A context for this prompt and its answer: llama.cpp zeroes the cache, whatever of it is used.
    let enough = (tokens.len() + args.max_tokens as usize).min(Generator::default_context(&model)) as u32;
    let params = GeneratorParams { n_ctx: args.how.ctx.unwrap_or(enough), n_threads: args.model.threads() };
    let mut generator = Generator::new(&model, &params)?;
    let interrupt = Interrupt::install(Duration::ZERO)?;
    let options = GenerateOptions {
        sampler: args.sampling.params(),
        max_tokens: args.max_tokens as usize,
        interrupt: interrupt.stop.clone(),
    };
    let streams = !args.json && !args.columns;
    let terminal = std::io::stdout().is_terminal();
    let (mut answers, mut headings, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    let mut interrupted = false;
    for (i, (scale, dials)) in runs.iter().enumerate() {
        generator.set_steering(combine(dials, steering.layers.as_ref(), &model)?)?;
        if let Some(scale) = scale.filter(|_| streams) {
            println!("{}=== scale {}", if i > 0 { "\n" } else { "" }, label(scale, dials));
        }
        let answer = interrupt.during(|| {
            generator.generate(&tokens, &options, &mut |piece| {
                if streams {
                    // A file gets the text as it is; a terminal would obey what is in it.
                    if terminal {
                        print!("{piece}");
                    } else {
                        streams::out_bytes(piece.as_bytes());
                    }
                    streams::flush();
                }
            })
        })?;
        if streams {
            println!();
            report(&answer);
        }
        // Narrow columns: the unit is said by `--scales` without columns, and in the documentation.
        headings.extend(scale.map(|s| format!("scale {}", label(s, dials).replace(" of the residual norm", ""))));
        texts.push(printable(&answer.text));
        answers.push(json(&answer, dials));
        interrupted = answer.stop == StopReason::Interrupted;
        if interrupted {
            break;
        }
    }
    if args.columns {
        print!("{}", side_by_side(&headings, &texts, terminal_width()));
    }
    if args.json {
        let value = if args.sweep.is_empty() { answers.remove(0) } else { serde_json::Value::Array(answers) };
        streams::out_json(format_args!("{value:#}"));
    }
    Ok(if interrupted { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn prompt_text(args: &Args) -> anyhow::Result<String> {
    let stdin = || {
        let mut bytes = Vec::new();
        std::io::stdin().take(MOST_PROMPT + 1).read_to_end(&mut bytes).context("cannot read the prompt from stdin")?;
        if bytes.len() as u64 > MOST_PROMPT {
            bail!("the prompt on stdin has more than {MOST_PROMPT} bytes: give a shorter one");
        }
        String::from_utf8(bytes).context("the prompt on stdin is not UTF-8 text")
    };
    let text = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) if text == "-" => stdin()?,
        (Some(text), _) => return Ok(text.clone()),
        (None, Some(file)) if file.as_os_str() == "-" => stdin()?,
        (None, Some(file)) => ggml_grad::files::read_text(file)
            .with_context(|| format!("cannot read the prompt from {}", file.display()))?,
        (None, None) => String::new(), // clap asks for one of the two
    };
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

/// The same vectors, all at `scale`; of adapters alone, these.
fn at_scale(dials: &[ScaledVector], scale: Scale) -> anyhow::Result<Vec<ScaledVector>> {
    let of_vectors = dials.iter().any(|d| d.vector.adapter.is_none());
    dials
        .iter()
        .map(|d| {
            if of_vectors && d.vector.adapter.is_some() {
                return Ok(d.clone());
            }
            let factor = scale.factor(&d.vector).with_context(|| d.name.clone())?;
            Ok(ScaledVector { scale: factor, ..d.clone() })
        })
        .collect()
}

/// `1.5`, or `1.5 (7.5 % of the residual norm)` where the file knows that norm.
fn label(scale: Scale, dials: &[ScaledVector]) -> String {
    match scale {
        Scale::Percent(p) => format!("{p}%"),
        Scale::Factor(f) => match dials {
            [one] => match one.vector.percent_of_scale(f) {
                Some(p) => format!("{f} ({p:.1} % of the residual norm)"),
                None => f.to_string(),
            },
            _ => f.to_string(),
        },
    }
}

/// Prints speed and stop reason on stderr.
fn report(answer: &Generation) {
    eprintln!(
        "bidpo: {} tokens at {:.1} tokens/s after a prompt of {} tokens at {:.1} tokens/s; {}",
        answer.tokens.len(),
        answer.tokens_per_second(),
        answer.n_prompt,
        answer.prompt_tokens_per_second(),
        answer.stop
    );
}

/// Everything but the times, so that the same command prints the same bytes.
fn json(answer: &Generation, dials: &[ScaledVector]) -> serde_json::Value {
    let vectors: Vec<_> = dials
        .iter()
        .map(|d| {
            let mut value = serde_json::json!({
                "name": d.name,
                "scale": d.scale,
                "percent_of_residual_norm": d.vector.percent_of_scale(d.scale),
            });
            if d.vector.adapter.is_some() {
                value["kind"] = "lora".into();
            }
            value
        })
        .collect();
    serde_json::json!({
        "text": answer.text,
        "stop": answer.stop,
        "vectors": vectors,
        "n_prompt_tokens": answer.n_prompt,
        "n_tokens": answer.tokens.len(),
        "tokens": answer.tokens,
    })
}
