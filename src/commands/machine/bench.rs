//! `bidpo bench`: how fast, as ratios to llama.cpp itself.

use crate::args::names;
use crate::terminal::streams;
use anyhow::{Context as _, ensure};
use bidpo_core::bench::{
    Line, ModelReport, Name, OpTime, Outcome, Settings, Split, Threads, Verdict, bench, write_pairs,
};
use bidpo_core::check::middle_layer;
use bidpo_core::text::numbers::significant;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use ggml_grad::llama::{Model, ModelParams, cpu_features, default_threads};
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `bidpo bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The models, GGUF files, or parts of the names of some in $BIDPO_MODELS or ~/.cache/bidpo/models.
    #[arg(long, short = 'm', value_name = "FILE.gguf", required = true, num_args = 1.., value_parser =
        OsStringValueParser::new().try_map(names::model))]
    model: Vec<PathBuf>,
    /// Steered layer [default: the middle one].
    #[arg(long, short = 'l', value_name = "L")]
    layer: Option<usize>,
    /// Threads to compute with [default: the physical cores that it may use].
    #[arg(long, short = 't', value_name = "N", env = "BIDPO_THREADS", value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
    /// Rounds: bidpo and the reference are measured alternately, this many times each.
    #[arg(long, value_name = "N", default_value = "5", value_parser = rounds)]
    rounds: NonZeroUsize,
    /// Measure only these [default: all]: step, first-epoch (or capture), extract, truthfulqa, generate, memory, lora-memory, start,
    /// busy (a step beside a busy program), together (two trainings at once), kinds (steps of the kinds of interventions, one of which may be named alone: gate, lowrank, lora, ..., and retained texts),
    /// pytorch, pytorch-lora, threads.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only: Vec<Name>,
    /// TruthfulQA's mc_task.json, for the line `truthfulqa`.
    #[arg(long, value_name = "FILE")]
    truthfulqa: Option<PathBuf>,
    /// Number of its questions.
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    questions: u32,
    /// Result of benches/peers/run.sh, for the line `pytorch`.
    #[arg(long, value_name = "FILE.json")]
    pytorch: Option<PathBuf>,
    /// The Python of benches/peers/run.sh (target/peers/venv/bin/python): with it PyTorch's step is measured again, in turns
    /// with ours. Run in bidpo's own folder.
    #[arg(long, value_name = "PROGRAM", requires = "pytorch")]
    pytorch_python: Option<PathBuf>,
    /// Write the eight pairs of the (one) model as token ids, for benches/peers, and stop.
    #[arg(long, value_name = "FILE.json")]
    write_pairs: Option<PathBuf>,
    /// Exit with code 1 if a ratio is over its limit.
    #[arg(long)]
    strict: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn rounds(s: &str) -> Result<NonZeroUsize, String> {
    s.parse()
        .ok()
        .filter(|n: &NonZeroUsize| n.get() <= 1000)
        .ok_or_else(|| "must be a whole number from 1 to 1000".into())
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.write_pairs {
        ensure!(args.model.len() == 1, "--write-pairs writes the pairs of one model: give one --model");
        let model = Model::load(&args.model[0], &ModelParams::default())?;
        write_pairs(path, &model, args.layer.unwrap_or_else(|| middle_layer(&model)))?;
        eprintln!("wrote {}", path.display());
        return Ok(ExitCode::SUCCESS);
    }
    let threads = args.threads.unwrap_or_else(default_threads);
    let settings = Settings {
        layer: args.layer,
        threads,
        rounds: args.rounds,
        only: if args.only.is_empty() { Name::ALL.to_vec() } else { args.only.clone() },
        truthfulqa: args.truthfulqa.clone(),
        questions: args.questions as usize,
        pytorch: args.pytorch.clone(),
        pytorch_python: args.pytorch_python.clone(),
        program: std::env::current_exe().context("finding this program's own file")?,
    };
    let features = cpu_features().iter().filter(|f| f.in_ggml).map(|f| f.name).collect::<Vec<_>>().join(" ");
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if !args.json {
        println!("{threads} of {cores} cores; {features}; {} rounds, ours and the reference in turns", args.rounds);
    }
    let mut reports = Vec::new();
    for path in &args.model {
        let report = bench(path, &settings, &mut |text| eprintln!("bidpo: {text}"))?;
        if !args.json {
            print_report(&report);
        }
        reports.push(report);
    }
    let over = reports.iter().flat_map(|r| &r.lines).any(|l| l.verdict() == Verdict::Over);
    if args.json {
        let models: Vec<_> = reports.iter().map(to_json).collect::<anyhow::Result<_>>()?;
        let report = json!({
            "bidpo": env!("CARGO_PKG_VERSION"),
            "cpu_features": features,
            "cores": cores,
            "threads": threads,
            "rounds": args.rounds,
            "models": models,
        });
        streams::out_json(serde_json::to_string_pretty(&report)?);
    }
    Ok(if args.strict && over { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The report with a verdict for each line.
fn to_json(report: &ModelReport) -> anyhow::Result<serde_json::Value> {
    let mut value = serde_json::to_value(report)?;
    for (i, line) in report.lines.iter().enumerate() {
        value["lines"][i]["verdict"] = serde_json::to_value(line.verdict())?;
    }
    Ok(value)
}

fn print_report(r: &ModelReport) {
    println!(
        "\n{} ({}), {:.1} MB, layer {} of {}, {} threads; {} pairs, {} unique tokens ({} with each prompt twice)",
        r.model,
        r.description,
        r.bytes as f64 / 1e6,
        r.layer,
        r.n_layer,
        r.threads_used,
        r.n_pairs,
        r.unique_tokens,
        r.tokens
    );
    println!("{:<12} {:>7} {:>15} {:>6}  {:<13} ours / reference", "", "ratio", "rounds", "limit", "");
    r.lines.iter().for_each(print_line);
    if let Some(split) = &r.split {
        print_split(split);
    }
    if let Some(threads) = &r.threads {
        print_threads(threads);
    }
}

fn print_line(line: &Line) {
    let verdict = line.verdict().text();
    match &line.outcome {
        Outcome::NotMeasured(reason) => println!("{:<12} {verdict}: {reason}", line.name.text()),
        Outcome::Measured(m) => println!(
            "{:<12} {:>7.3} {:>15} {:>6}  {verdict:<13} {} / {} {}: {} / {}",
            line.name.text(),
            m.ratio.median,
            format!("[{:.3}, {:.3}]", m.ratio.min, m.ratio.max),
            line.limit.map_or_else(|| "-".into(), |l| format!("{l:.2}")),
            significant(m.ours.median),
            significant(m.reference.median),
            line.unit,
            line.what,
            line.against,
        ),
    }
}

fn print_split(s: &Split) {
    println!(
        "a step of {:.0} ms: graph build {:.1}, upload {:.1}, forward {:.0}, backward {:.0}, read {:.1}, optimizer {:.2}; \
         serial (outside ggml's computation) {:.2} %",
        s.wall,
        s.build,
        s.upload,
        s.forward,
        s.backward,
        s.read,
        s.optimizer,
        100.0 * s.serial
    );
    if !s.ops.is_empty() {
        println!("the longest ops of a step, ms: {}", OpTime::words(&s.ops));
    }
}

fn print_threads(t: &Threads) {
    print!(
        "threads      a step takes {:.0} ms with 1 thread, {:.0} ms with {}: {:.2} times faster; serial fraction outside \
         ggml's computation {:.2} %",
        t.one.median,
        t.all.median,
        t.threads,
        t.speedup,
        100.0 * t.serial
    );
    if let Some(e) = t.karp_flatt {
        print!(", {:.1} % by the speed-up itself (Karp-Flatt)", 100.0 * e);
    }
    println!("; Amdahl's limit at 16 threads {:.1}", t.at_16);
}
