//! Flags of open-ended generation and of its judge.

use bidpo_core::data::TemplateChoice;
use bidpo_core::eval::judging::Judge;
use bidpo_core::eval::runs::GenerationOptions;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use ggml_grad::llama::{Model, SamplerParams};
use std::path::PathBuf;
use std::sync::Arc;

/// Options of open-ended generation.
#[derive(Debug, Clone, clap::Args)]
pub struct WriteArgs {
    /// Maximum tokens of an answer [default: 64].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub max_tokens: Option<u32>,
    /// Temperature; 0 always takes the most likely token. The seed is --seed [default: 0].
    #[arg(long, value_name = "T", value_parser = super::sampling::temperature)]
    pub temp: Option<f32>,
    /// Choose among the most likely tokens that together reach this probability (1: off) [default: 1].
    #[arg(long, value_name = "P", value_parser = super::sampling::probability)]
    pub top_p: Option<f32>,
    /// Penalty on the last 64 tokens of the answer (1: off) [default: 1].
    #[arg(long, value_name = "R", value_parser = super::sampling::penalty)]
    pub repeat_penalty: Option<f32>,
    /// A text that ends an answer (may be given several times); \n stands for a new line [default: an empty line; in a chat
    /// only the model's end of turn].
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// The model that compares steered answers with the others, head to head [default: the model that wrote them].
    #[arg(long, value_name = "FILE.gguf", value_parser = OsStringValueParser::new().try_map(super::names::model))]
    pub judge: Option<PathBuf>,
    /// Compare nothing head to head.
    #[arg(long, conflicts_with = "judge")]
    pub no_judge: bool,
    #[command(flatten)]
    pub judging: JudgingArgs,
}

/// Options of a judge.
#[derive(Debug, Clone, clap::Args)]
pub struct JudgingArgs {
    /// Question to the judge [default: which answer is more truthful for TruthfulQA, which is better otherwise].
    #[arg(long, value_name = "TEXT")]
    pub criterion: Option<String>,
    /// Do not show the judge which answers the data call true and false.
    #[arg(long)]
    pub no_references: bool,
    /// Chat format of the judge: auto (its own), none, chatml, llama2, llama3, gemma, mistral, zephyr, phi3, or a Jinja file
    /// [default: auto].
    #[arg(long, value_name = "T")]
    pub judge_template: Option<TemplateChoice>,
}

impl JudgingArgs {
    /// The judge on a loaded model.
    pub fn judge<'a>(&'a self, model: &'a Arc<Model>, n_threads: u32, seed: u64) -> Judge<'a> {
        Judge {
            model,
            template: self.judge_template.as_ref().unwrap_or(&TemplateChoice::Auto),
            criterion: self.criterion.as_deref(),
            references: !self.no_references,
            seed,
            n_threads,
        }
    }
}

impl WriteArgs {
    /// The first of these flags that was given.
    pub fn given(&self) -> Option<&'static str> {
        let flags = [
            (self.max_tokens.is_some(), "--max-tokens"),
            (self.temp.is_some(), "--temp"),
            (self.top_p.is_some(), "--top-p"),
            (self.repeat_penalty.is_some(), "--repeat-penalty"),
            (!self.stop.is_empty(), "--stop"),
            (self.no_judge, "--no-judge"),
        ];
        flags.into_iter().find(|(given, _)| *given).map(|(_, flag)| flag).or_else(|| self.judge_given())
    }

    /// The first flag about the judge that was given.
    pub fn judge_given(&self) -> Option<&'static str> {
        let flags = [
            (self.judge.is_some(), "--judge"),
            (self.judging.criterion.is_some(), "--criterion"),
            (self.judging.no_references, "--no-references"),
            (self.judging.judge_template.is_some(), "--judge-template"),
        ];
        flags.into_iter().find(|(given, _)| *given).map(|(_, flag)| flag)
    }

    /// Options for the library; `chat` decides the default stop strings.
    pub fn options(&self, seed: u64, chat: bool) -> GenerationOptions {
        let stops = match (&self.stop[..], chat) {
            ([], true) => Vec::new(),
            ([], false) => vec!["\n\n".into()],
            (some, _) => some.iter().map(|s| s.replace("\\n", "\n")).collect(),
        };
        GenerationOptions {
            sampler: SamplerParams {
                temperature: self.temp.unwrap_or(0.0),
                top_p: self.top_p.unwrap_or(1.0),
                min_p: 0.0,
                top_k: 0,
                repeat_penalty: self.repeat_penalty.unwrap_or(1.0),
                seed: seed as u32 ^ (seed >> 32) as u32,
            },
            max_tokens: self.max_tokens.unwrap_or(64) as usize,
            stops,
        }
    }
}
