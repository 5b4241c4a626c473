//! What benchmarks share that are answered in the model's own words: options, and the judge.

use super::common::RunArgs;
use super::session::{Session, manifest};
use crate::args::ModelArgs;
use anyhow::{Context as _, anyhow};
use bidpo_core::data::{ChatTemplate, TemplateChoice};
use bidpo_core::eval::ScorerParams;
use bidpo_core::eval::analysis::{Analysis, analyse};
use bidpo_core::eval::conditions::condition::STEERED;
use bidpo_core::eval::items::Protocol;
use bidpo_core::eval::judging::pairwise::{HELPFUL, PairwiseComparison, TRUTHFUL, matches};
use bidpo_core::eval::prompt::{Preset, QUESTION_FORM, Style};
use bidpo_core::eval::report;
use bidpo_core::eval::results::{Run, Shard};
use bidpo_core::eval::runs::GenerationOptions;
use bidpo_core::eval::runs::Measurement;
use ggml_grad::llama::{Model, SamplerParams};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Options of answers that the model writes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Written answers")]
pub struct WriteArgs {
    /// The most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub max_tokens: u32,
    /// Temperature; 0 always takes the most likely token. The seed is --seed.
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = crate::args::sampling::temperature)]
    pub temp: f32,
    /// Choose among the most likely tokens that together reach this probability (1: off).
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = crate::args::sampling::probability)]
    pub top_p: f32,
    /// Penalty on the last 64 tokens of the answer (1: off).
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = crate::args::sampling::penalty)]
    pub repeat_penalty: f32,
    /// A text that ends an answer (may be given several times); \n stands for a new line [default: an empty line; in a chat
    /// only the model's end of turn].
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// The model that compares steered answers with the others, head to head [default: the model that wrote them].
    #[arg(long, value_name = "FILE.gguf")]
    pub judge: Option<PathBuf>,
    /// Compare nothing head to head.
    #[arg(long, conflicts_with = "judge")]
    pub no_judge: bool,
    #[command(flatten)]
    pub judging: JudgingArgs,
}

/// How a judge is asked.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Judge")]
pub struct JudgingArgs {
    /// What the judge is asked [default: which answer is more truthful for TruthfulQA, which is better otherwise].
    #[arg(long, value_name = "TEXT")]
    pub criterion: Option<String>,
    /// Do not show the judge which answers the data call true and false.
    #[arg(long)]
    pub no_references: bool,
    /// Chat format of the judge: auto (its own), none, chatml, llama2, llama3, gemma, mistral, zephyr, phi3, or a Jinja file.
    #[arg(long, value_name = "T", default_value_t = TemplateChoice::Auto)]
    pub judge_template: TemplateChoice,
}

impl WriteArgs {
    /// The library's options.
    pub fn options(&self, seed: u64, chat: bool) -> GenerationOptions {
        let stops = match (&self.stop[..], chat) {
            ([], true) => Vec::new(),
            ([], false) => vec!["\n\n".into()],
            (some, _) => some.iter().map(|s| s.replace("\\n", "\n")).collect(),
        };
        GenerationOptions {
            sampler: SamplerParams {
                temperature: self.temp,
                top_p: self.top_p,
                min_p: 0.0,
                top_k: 0,
                repeat_penalty: self.repeat_penalty,
                seed: seed as u32 ^ (seed >> 32) as u32,
            },
            max_tokens: self.max_tokens as usize,
            stops,
        }
    }
}

/// A judge, loaded.
pub struct Judge<'a> {
    /// The model that judges.
    pub model: &'a Arc<Model>,
    /// Its options.
    pub args: &'a ModelArgs,
    /// How it is asked.
    pub judging: &'a JudgingArgs,
    /// For the order in which nothing is drawn yet, and for the manifest.
    pub seed: u64,
}

/// Where the judgements of a results file are kept: `results.judged.jsonl` beside `results.jsonl`.
pub fn judged_file(results: &Path) -> PathBuf {
    results.with_extension("judged.jsonl")
}

impl Judge<'_> {
    fn style(&self) -> anyhow::Result<Style> {
        let template = ChatTemplate::new(self.model, &self.judging.judge_template)?;
        // A model without a template is asked in plain text.
        let preset = if template.is_none() {
            Preset::Plain { name: "none".into(), preamble: String::new() }
        } else {
            Preset::Chat(Box::new(template))
        };
        Ok(Style { preset, form: QUESTION_FORM.into(), protocol: Protocol::Judge, seed: self.seed })
    }

    /// Puts a run's steered answers against each other condition's. `None` if it was interrupted.
    pub fn judge(&self, run: &Run, out: Option<&Path>) -> anyhow::Result<Option<Analysis>> {
        let of_truthfulqa = run.manifest.protocol == Protocol::Generate.name();
        let default = if of_truthfulqa { TRUTHFUL } else { HELPFUL };
        let criterion = self.judging.criterion.as_deref().unwrap_or(default).trim();
        let references = of_truthfulqa && !self.judging.no_references;
        let file = run.files.first().map_or("the results".into(), |f| f.display().to_string());
        let matches = matches(run, criterion, references).map_err(|e| anyhow!("{file}: {e}"))?;
        let style = self.style()?;
        let mut m = manifest(self.args, self.model, self.seed)?;
        m.benchmark = run.manifest.benchmark.clone();
        m.protocol = Protocol::Judge.name().into();
        m.data = run.manifest.data.clone();
        m.prompt = style.facts();
        m.prompt["criterion"] = json!(criterion);
        m.prompt["references"] = json!(references);
        m.prompt["same_model"] = json!(m.model.sha256 == run.manifest.model.sha256);
        m.selection = run.manifest.selection.clone();
        m.selection["answers_of"] = json!({
            "model": run.manifest.model,
            "prompt": run.manifest.prompt,
            "seed": run.manifest.seed,
            "steered": run.manifest.condition(STEERED),
        });
        m.items = run.manifest.items;
        m.conditions = matches.iter().map(|x| x.condition().manifest()).collect();
        if m.prompt["same_model"] == true {
            eprintln!(
                "bidpo: warning: the judge is the model that wrote the answers; --judge FILE.gguf names a stronger one. Models \
                 prefer their own answers, and one that does not know an answer cannot judge it."
            );
        }
        let mut session = Session::resume(m, out)?;
        for x in &matches {
            if !self.one(x, &style, &mut session).with_context(|| file.clone())? {
                break;
            }
        }
        if !session.close() {
            return Ok(None);
        }
        Ok(Some(analyse(&session.into_run()?)?))
    }

    fn one(
        &self,
        x: &PairwiseComparison,
        style: &Style,
        session: &mut Session,
    ) -> Result<bool, super::session::SessionError> {
        let measurement = Measurement {
            model: self.model,
            benchmark: &x.benchmark,
            style,
            shard: Shard::WHOLE,
            params: ScorerParams { n_threads: self.args.threads(), ..ScorerParams::default() },
        };
        let condition = x.condition();
        let done = session.done(&condition.name);
        measurement
            .run(&condition, &done, &mut |records| session.push(records.into_iter().map(|r| x.record(r)).collect()))
    }
}

/// Ends a run of written answers: puts the steered ones before the judge, and prints both.
pub fn judge_own(run: &RunArgs, write: &WriteArgs, session: Session, model: Arc<Model>) -> anyhow::Result<ExitCode> {
    let whole = match session.whole(run)? {
        Ok(whole) => whole,
        Err(code) => return Ok(code),
    };
    let written = analyse(&whole)?;
    let pairs = whole.under(STEERED).is_some() && whole.manifest.conditions.len() > 1;
    let judged = if write.no_judge || !pairs {
        None
    } else {
        let args = ModelArgs { model: write.judge.clone().unwrap_or(run.model.model.clone()), ..run.model.clone() };
        let judge_model = match &write.judge {
            Some(_) => {
                drop(model);
                args.load()?
            }
            None => model,
        };
        let judge = Judge { model: &judge_model, args: &args, judging: &write.judging, seed: run.seed };
        match judge.judge(&whole, run.out_file().map(|f| judged_file(&f)).as_deref())? {
            Some(analysis) => Some(analysis),
            None => return Ok(ExitCode::FAILURE),
        }
    };
    if run.json {
        let mut object = report::json(&written);
        if let Some(judged) = &judged {
            object["judged"] = report::json(judged);
        }
        println!("{object}");
    } else {
        print!("{}", report::markdown(&written));
        if let Some(judged) = &judged {
            print!("\n{}", report::markdown(judged));
        }
    }
    Ok(ExitCode::SUCCESS)
}
