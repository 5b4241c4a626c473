//! `bidpo eval truthfulqa`.

use anyhow::{Context as _, bail};
use bidpo::data::truthfulqa::{Question, TruthfulQa};
use bidpo::eval::items::{Correct, Item, ItemAnswer, ItemBaseline, ItemsFile};
use bidpo::eval::summary::summarize;
use bidpo::eval::truthfulqa::{Job, Protocol, prefix, qa_preamble};
use bidpo::eval::{AnswerScore, ScoreError, Scorer, ScorerParams};
use bidpo::files::sha256_of_bytes;
use bidpo::layers::Layers;
use bidpo::llama::Model;
use bidpo::steer::ControlVector;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::report;
use crate::cli::ModelArgs;
use crate::cli::steering::{Steering, SteeringArgs};

/// Options of `bidpo eval truthfulqa`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The official mc_task.json or TruthfulQA.csv.
    #[arg(long, short = 'd', value_name = "FILE")]
    data: PathBuf,
    /// What to measure.
    #[arg(long, short = 'p', value_enum)]
    protocol: ProtocolName,
    /// What stands before each question: the reference's six pairs, nothing, or a text file.
    #[arg(long, value_name = "qa|none|FILE", default_value = "qa")]
    preamble: String,
    /// Only the first N questions.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[command(flatten)]
    steering: SteeringArgs,
    /// Do not run the unsteered model beside the steered one.
    #[arg(long)]
    no_baseline: bool,
    /// Write one JSON line a question to this file.
    #[arg(long, short = 'o', value_name = "FILE.jsonl")]
    out: Option<PathBuf>,
    /// Print the figures as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ProtocolName {
    /// The best answer above every false one.
    Mc1,
    /// The share of the true answers in the probability of all.
    Mc2,
    /// The best answer above the best incorrect one (CSV of January 2025 only).
    Binary,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Mc1 => Self::Mc1,
            ProtocolName::Mc2 => Self::Mc2,
            ProtocolName::Binary => Self::Binary,
        }
    }
}

/// A vector in use: what to apply, and how to name it.
struct Steered {
    /// `None` at scale 0.
    control: Option<ControlVector>,
    /// `honest x 1.5, layers 10-20`.
    words: String,
    /// `{"vector": [...], "scale": [...], "layers": ...}`.
    facts: Value,
}

impl Steered {
    /// `None` where no vector was asked for.
    fn new(args: &SteeringArgs, steering: &Steering, model: &Model) -> anyhow::Result<Option<Self>> {
        if steering.dials.is_empty() {
            return Ok(None);
        }
        let mut words: Vec<String> = steering.dials.iter().map(|d| format!("{} x {}", d.name, d.scale)).collect();
        let layers = steering.layers.as_ref().map(Layers::to_string);
        words.extend(layers.as_ref().map(|l| format!("layers {l}")));
        let files: Vec<String> = args.vectors.iter().map(|p| file_name(p)).collect();
        let scales: Vec<f32> = steering.dials.iter().map(|d| d.scale).collect();
        Ok(Some(Self {
            control: steering.control_vector(model)?,
            words: words.join(", "),
            facts: json!({ "vector": files, "scale": scales, "layers": layers }),
        }))
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let protocol = Protocol::from(args.protocol);
    let preamble = read_preamble(&args.preamble)?;
    let set = TruthfulQa::load(&args.data)?;
    let n = args.limit.map_or(set.questions.len(), |l| (l as usize).min(set.questions.len()));
    let questions = &set.questions[..n];
    for question in questions {
        if let Some(answer) = question.contradiction() {
            let (data, text) = (args.data.display(), &question.text);
            eprintln!("bidpo: warning: {data}: {text:?} lists the answer {answer:?} as true and as false");
        }
    }
    if questions.iter().any(|q| protocol.choices(q).is_none()) {
        bail!(
            "{}: the binary setting is not defined in this file, which names no best incorrect answer; use TruthfulQA.csv \
             of the January 2025 revision (column \"Best Incorrect Answer\")",
            args.data.display()
        );
    }
    if let Some(out) = &args.out {
        bidpo::files::check_writable(out).with_context(|| format!("cannot write --out {}", out.display()))?;
    }
    let model = args.model.load()?;
    let steered = Steered::new(&args.steering, &args.steering.load(&model)?, &model)?;
    let with_baseline = steered.is_some() && !args.no_baseline;

    let settings = settings(&args, &model, &set, protocol, &preamble, n, steered.as_ref())?;
    let (mut file, mut items) = match &args.out {
        Some(out) => {
            let (file, items) = ItemsFile::open(out, &settings)?;
            (Some(file), items)
        }
        None => (None, Vec::new()),
    };
    if items.len() > n {
        bail!("internal: more items done than asked for");
    }
    if !items.is_empty() {
        eprintln!("Going on after {} of {n} questions of an interrupted run.", items.len());
    }

    let scorer = |control: Option<ControlVector>| -> anyhow::Result<Scorer> {
        let params = ScorerParams { n_threads: args.model.threads(), ..ScorerParams::default() };
        let mut scorer = Scorer::new(&model, params, control)?;
        scorer.set_prefix(&prefix(&preamble))?;
        Ok(scorer)
    };
    let mut main = scorer(steered.as_ref().and_then(|s| s.control.clone()))?;
    let mut baseline = if with_baseline { Some(scorer(None)?) } else { None };

    let stop = stop_on_ctrl_c()?;
    let progress = progress_bar(n, items.len());
    let start = Instant::now();
    let before = items.len();
    let job = Job::new(&[protocol], questions)?;
    let named = |error: ScoreError| match error {
        ScoreError::Request { request, source } => {
            let (data, text) = (args.data.display(), &questions[request].text);
            anyhow::Error::new(*source).context(format!("question {} of {data} ({text:?})", request + 1))
        }
        other => other.into(),
    };
    // The plan is that of all questions, so that a run that goes on after an interruption packs them as the first one did:
    // the same sums, to the last bit.
    let plan = main.plan(&job.requests()).map_err(named)?;
    for pack in 0..plan.n_packs() {
        let in_pack = plan.requests(pack);
        if in_pack.end <= before {
            continue;
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (first, last) = (in_pack.start + 1, in_pack.end);
        let place = || format!("questions {first} to {last} of {}", args.data.display());
        let scores = main.run_pack(&plan, pack).map_err(named).with_context(place)?;
        if let Some(reason) = main.slow_head().filter(|_| items.len() == before) {
            eprintln!("Log-probabilities are taken from llama.cpp's logits, which is slower: {reason}.");
        }
        let unsteered = match &mut baseline {
            Some(scorer) => Some(scorer.run_pack(&plan, pack).map_err(named).with_context(place)?),
            None => None,
        };
        for (i, index) in in_pack.enumerate().filter(|&(_, index)| index >= before) {
            let unsteered = unsteered.as_ref().map(|u| &u[i][..]);
            let item = one_item(&job, protocol, index, &questions[index], &scores[i], unsteered)
                .with_context(|| format!("question {} of {}", index + 1, args.data.display()))?;
            if let Some(file) = &mut file {
                file.push(&item)?;
            }
            items.push(item);
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    let done = items.len() - before;
    if done > 0 {
        eprintln!(
            "{done} question{} in {seconds:.1} s, {:.2} s each.",
            if done == 1 { "" } else { "s" },
            seconds / done as f64
        );
    }

    let interrupted = items.len() < n;
    match file {
        Some(file) if interrupted => eprintln!(
            "Interrupted after {} of {n} questions. They are kept in {}; the same command goes on from there.",
            items.len(),
            file.partial().display()
        ),
        Some(file) => file.finish()?,
        None if interrupted => eprintln!("Interrupted after {} of {n} questions.", items.len()),
        None => {}
    }
    if let Some(summary) = summarize(&items) {
        let model_name = file_name(model.path());
        let run = report::Run {
            benchmark: "TruthfulQA",
            protocol: protocol.name(),
            model: &model_name,
            preamble: &args.preamble,
            steering: steered.as_ref().map_or("", |s| s.words.as_str()),
            asked: n,
        };
        if args.json {
            let mut rest = json!({ "model": model_name, "data": file_name(&set.path), "data_sha256": set.sha256 });
            if let (Some(rest), Some(facts)) = (rest.as_object_mut(), facts(steered.as_ref()).as_object()) {
                rest.extend(facts.clone());
            }
            rest["asked"] = json!(n);
            rest["complete"] = json!(!interrupted);
            println!("{}", report::to_json(&run, &summary, rest));
        } else {
            print!("{}", report::text(&run, &summary));
        }
    }
    Ok(if interrupted { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One question's result, steered and unsteered, from the scores of its answers.
fn one_item(
    job: &Job<'_>,
    protocol: Protocol,
    index: usize,
    question: &Question,
    steered: &[AnswerScore],
    unsteered: Option<&[AnswerScore]>,
) -> anyhow::Result<Item> {
    let run = |scores: &[AnswerScore]| -> anyhow::Result<(Vec<AnswerScore>, Correct)> {
        if scores.iter().any(|s| !s.logprob.is_finite()) {
            bail!("the model's log-probabilities are not finite: is the scale of the vector far too large?");
        }
        job.outcomes(index, scores)?.pop().context("internal: a job without a protocol")
    };
    let (scores, correct) = run(steered)?;
    let baseline = match unsteered {
        Some(scores) => {
            let (scores, correct) = run(scores)?;
            Some(ItemBaseline { correct, logprobs: scores.iter().map(|s| s.logprob).collect() })
        }
        None => None,
    };
    let choices = protocol.choices(question).unwrap_or_default();
    let answers = choices
        .iter()
        .zip(&scores)
        .map(|(c, s)| ItemAnswer {
            answer: c.text.clone(),
            label: u8::from(c.is_true),
            logprob: s.logprob,
            n_tokens: s.n_tokens,
        })
        .collect();
    Ok(Item {
        index,
        question: question.text.clone(),
        category: question.category.clone(),
        protocol: protocol.name().into(),
        correct,
        answers,
        baseline,
    })
}

/// The preamble's text, without blank space at its end; empty for `none`.
fn read_preamble(name: &str) -> anyhow::Result<String> {
    match name {
        "qa" => Ok(qa_preamble()),
        "none" => Ok(String::new()),
        file => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("--preamble {file}: neither qa, none nor a text file that can be read"))?;
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text).trim_end();
            if text.is_empty() {
                bail!("--preamble {file}: the file is empty; use --preamble none for no preamble");
            }
            Ok(text.to_owned())
        }
    }
}

/// What makes two runs the same run: an interrupted one goes on only under equal settings.
fn settings(
    args: &Args,
    model: &Arc<Model>,
    set: &TruthfulQa,
    protocol: Protocol,
    preamble: &str,
    n: usize,
    steered: Option<&Steered>,
) -> anyhow::Result<Value> {
    let meta = std::fs::metadata(model.path())?;
    let modified = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    let control = steered.map_or(Value::Null, |s| {
        let bytes = |c: &ControlVector| c.data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        json!(
            s.control
                .as_ref()
                .map_or_else(|| json!("nothing"), |c| json!([c.first, c.last, sha256_of_bytes(&bytes(c))]))
        )
    });
    Ok(json!({
        "bidpo": env!("CARGO_PKG_VERSION"),
        "model": file_name(model.path()),
        "model_bytes": meta.len(),
        "model_time": modified.map(|t| t.as_secs()),
        "data_sha256": set.sha256,
        "protocol": protocol.name(),
        "preamble_sha256": sha256_of_bytes(preamble.as_bytes()),
        "limit": n,
        "threads": args.model.threads(),
        "baseline": !args.no_baseline,
        "vector": control,
    }))
}

fn facts(steered: Option<&Steered>) -> Value {
    steered.map_or_else(|| json!({ "vector": null, "scale": null, "layers": null }), |s| s.facts.clone())
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

/// A flag that the first Ctrl-C sets; the second one ends the process.
fn stop_on_ctrl_c() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(1);
        }
        eprintln!("\nStopping after these questions; Ctrl-C again stops at once.");
    })
    .context("cannot watch for Ctrl-C")?;
    Ok(stop)
}

/// On stderr, hidden where that is no terminal.
fn progress_bar(n: usize, done: usize) -> ProgressBar {
    let bar = ProgressBar::new(n as u64).with_position(done as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} questions, {per_sec:.1}, {eta} left") {
        bar.set_style(style);
    }
    bar.reset_eta();
    bar
}
