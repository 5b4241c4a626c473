//! `bidpo synth`: random models for tests and benchmarks.

use anyhow::Context as _;
use ggml_grad::llama::DType;
use ggml_grad::synth::{self, Family, Shape};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `bidpo synth`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// List the model families and weight types, then exit.
    #[arg(long, conflicts_with_all = ["arch", "out"])]
    list: bool,
    /// Model family (see --list).
    #[arg(long, value_name = "NAME", required_unless_present = "list")]
    arch: Option<String>,
    /// Weight type (see --list).
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_k")]
    dtype: String,
    /// Output file.
    #[arg(long, short = 'o', value_name = "FILE.gguf", required_unless_present = "list")]
    out: Option<PathBuf>,
    /// Seed of the weights.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    sizes: Sizes,
}

/// Sizes that replace the family's defaults.
#[derive(Debug, clap::Args)]
struct Sizes {
    /// Number of blocks [this and the sizes below: default of the family].
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Width of the residual stream.
    #[arg(long, value_name = "N")]
    embd: Option<usize>,
    /// Number of query heads.
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Number of key-value heads.
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Width of a head [where the heads together are as wide as the stream: that width over the heads].
    #[arg(long, value_name = "N")]
    head_dim: Option<usize>,
    /// Inner width of the feed-forward network, in a mixture that of one expert.
    #[arg(long, value_name = "N")]
    ff: Option<usize>,
    /// Tokens in the vocabulary.
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// Context length.
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// Experts.
    #[arg(long, value_name = "N")]
    experts: Option<usize>,
    /// Experts that a token takes.
    #[arg(long, value_name = "N")]
    experts_used: Option<usize>,
}

impl Sizes {
    fn over(&self, family: &Family) -> Shape {
        let own = family.shape();
        let n_embd = self.embd.unwrap_or(own.n_embd);
        let n_head = self.heads.unwrap_or(own.n_head);
        let derived = if family.is_square() && n_head > 0 { n_embd / n_head } else { own.head_dim };
        // A model whose heads each have their own keys keeps that when it gets other heads.
        let n_head_kv = if own.n_head_kv == own.n_head { n_head } else { own.n_head_kv };
        Shape {
            n_layer: self.layers.unwrap_or(own.n_layer),
            n_embd,
            n_head,
            n_head_kv: self.kv_heads.unwrap_or(n_head_kv),
            head_dim: self.head_dim.unwrap_or(derived),
            n_ff: self.ff.unwrap_or(own.n_ff),
            n_vocab: self.vocab.unwrap_or(own.n_vocab),
            n_ctx: self.ctx.unwrap_or(own.n_ctx),
            n_expert: self.experts.unwrap_or(own.n_expert),
            n_expert_used: self.experts_used.unwrap_or(own.n_expert_used),
        }
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let types = DType::WEIGHTS.map(|t| t.name().to_lowercase()).join(", ");
    let (Some(arch), Some(out)) = (&args.arch, &args.out) else {
        for f in synth::families() {
            let refused = if f.is_refused() { " (bidpo refuses it)" } else { "" };
            println!("{:<18} {:<12} {}{refused}", f.name(), f.arch(), f.exercises());
        }
        println!("types: {types}");
        return Ok(ExitCode::SUCCESS);
    };
    let family = synth::family(arch)?;
    let dtype = DType::from_name(&args.dtype)
        .with_context(|| format!("there is no type {} of weights; ggml has {types}", args.dtype))?;
    let shape = args.sizes.over(family);
    crate::args::outputs::check(out, crate::args::outputs::Kind::RandomModel, &[])?;
    synth::write(out, family, &shape, dtype, args.seed)?;
    let size = std::fs::metadata(out).map_or(0, |m| m.len());
    println!("{}: a random {} model in {}, {} bytes", out.display(), family.name(), dtype.name(), size);
    Ok(ExitCode::SUCCESS)
}
