//! Flags of the commands that generate text.

use super::template::VariableArgs;
use bidpo_core::data::TemplateChoice;
use ggml_grad::llama::SamplerParams;

/// Sampling options.
#[derive(Debug, Clone, clap::Args)]
pub struct SamplingArgs {
    /// Temperature; 0 is greedy decoding.
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    pub temp: f32,
    /// Sample from the most likely tokens whose total probability reaches P (1: off).
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = probability)]
    pub top_p: f32,
    /// Skip tokens whose probability is below P times that of the most likely token (0: off).
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = probability)]
    pub min_p: f32,
    /// Sample from the K most likely tokens (0: off).
    #[arg(long, value_name = "K", default_value_t = 40, value_parser = clap::value_parser!(i32).range(0..))]
    pub top_k: i32,
    /// Penalty on the last 64 tokens of the answer (1: off).
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = penalty)]
    pub repeat_penalty: f32,
    /// Sampling seed; the same seed gives the same answer.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u32,
}

impl SamplingArgs {
    pub fn params(&self) -> SamplerParams {
        SamplerParams {
            temperature: self.temp,
            top_p: self.top_p,
            min_p: self.min_p,
            top_k: self.top_k,
            repeat_penalty: self.repeat_penalty,
            seed: self.seed,
        }
    }
}

/// Chat format and context.
#[derive(Debug, Clone, clap::Args)]
pub struct PromptArgs {
    /// Chat format: auto (the model's own), none, chatml, llama2, llama3, gemma, mistral, zephyr, phi3, or a Jinja file.
    #[arg(long, value_name = "T", default_value_t = TemplateChoice::Auto)]
    pub template: TemplateChoice,
    #[command(flatten)]
    pub variables: VariableArgs,
    /// System message.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Context size in tokens [default: the model's training context, at most 4096].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(8..=1_048_576))]
    pub ctx: Option<u32>,
}

fn number(text: &str, ok: impl Fn(f32) -> bool, want: &str) -> Result<f32, String> {
    text.parse::<f32>().ok().filter(|&x| x.is_finite() && ok(x)).ok_or_else(|| format!("must be a number {want}"))
}

pub fn temperature(text: &str) -> Result<f32, String> {
    number(text, |x| (0.0..=100.0).contains(&x), "from 0 to 100")
}

pub fn probability(text: &str) -> Result<f32, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "from 0 to 1")
}

pub fn penalty(text: &str) -> Result<f32, String> {
    number(text, |x| x > 0.0 && x <= 10.0, "above 0 and at most 10")
}
