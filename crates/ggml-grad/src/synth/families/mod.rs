//! The families. The facts (names of keys and tensors, shapes) are those of llama.cpp's `src/models/`.

mod channels;
mod experts;
mod gated;
mod gemma;
mod hybrids;
mod latent;
mod mixture;
mod plain;
mod recurrent;
mod refused;
mod renamed;
mod states;
mod unusual;

use super::builder::ModelBuilder;
use super::{Family, Refusal, Shape};
use std::sync::LazyLock;

const fn family(
    name: &'static str,
    arch: &'static str,
    shape: Shape,
    build: fn(&mut ModelBuilder<'_>),
    exercises: &'static str,
) -> Family {
    Family {
        name,
        arch,
        exercises,
        layers: &[1, 2],
        least_layers: 1,
        square: false,
        grouped: true,
        refused: None,
        variant: false,
        shape,
        build,
    }
}

impl Family {
    /// With layers to steer other than 1 and 2.
    const fn at(self, layers: &'static [usize]) -> Self {
        Self { layers, ..self }
    }

    /// With a smallest number of blocks: llama.cpp wants one of each kind.
    const fn at_least(self, least_layers: usize) -> Self {
        Self { least_layers, ..self }
    }

    /// Without GQA: one key-value head per query head.
    const fn ungrouped(self) -> Self {
        Self { grouped: false, ..self }
    }

    const fn square(self) -> Self {
        Self { square: true, ..self }
    }

    /// Made of parts that other families have: `make test` checks it at one layer only.
    const fn variant(self) -> Self {
        Self { variant: true, ..self }
    }

    const fn refused(self, why: Refusal) -> Self {
        Self { refused: Some(why), layers: &[], ..self }
    }
}

const DENSE: Shape = Shape::DENSE;
const MOE: Shape = Shape::MOE;

/// All families: those that bring an op or a shape of graph first, then their variants.
pub(super) static ALL: LazyLock<Vec<Family>> = LazyLock::new(|| {
    [FIRST, renamed::ALL, unusual::ALL, experts::ALL, latent::MORE, channels::ALL, hybrids::ALL].concat()
});

static FIRST: &[Family] = &[
    family("llama", "llama", DENSE, gated::llama, "RMSNorm, interleaved RoPE, SwiGLU, GQA"),
    family("llama3-rope", "llama", DENSE, gated::llama3_rope, "RoPE frequency factors, tied embedding"),
    family("mixtral", "llama", MOE, mixture::mixtral, "MoE: softmax router, top 2, renormalized weights"),
    family(
        "granite-swa",
        "granite_swa",
        DENSE.layers(4),
        gated::granite_swa,
        "SWA in every block but one, as mistral; attention sinks; granite's scales",
    ),
    family("qwen2", "qwen2", DENSE, gated::qwen2, "QKV biases").square(),
    family("qwen3", "qwen3", DENSE.heads(8, 2, 64), gated::qwen3, "QK-norm; heads wider than the residual stream"),
    family("gemma", "gemma", DENSE.heads(8, 1, 64), gemma::gemma, "scaled embedding, GeGLU, MQA"),
    family(
        "gemma2",
        "gemma2",
        DENSE.layers(4),
        gemma::gemma2,
        "soft-capped attention and logits, post-norms, SWA in every second block",
    ),
    family("gemma3", "gemma3", DENSE.layers(7), gemma::gemma3, "SWA in five of six blocks, two RoPE bases, QK-norm")
        .at(&[1, 3, 5]),
    family(
        "gemma3n",
        "gemma3n",
        DENSE.layers(6),
        gemma::gemma3n,
        "AltUp over four streams, per-layer embeddings, sparse activations",
    ),
    family(
        "gemma4",
        "gemma4",
        DENSE.layers(9),
        gemma::gemma4,
        "KV shared between blocks, two head widths, per-layer embeddings",
    )
    .at(&[2, 5])
    .at_least(3),
    family("phi2", "phi2", DENSE, plain::phi2, "LayerNorm, parallel attention and MLP, partial RoPE").square(),
    family("phi3", "phi3", DENSE, gated::phi3, "fused QKV and gate-up matrices, long and short RoPE factors").square(),
    family("olmo2", "olmo2", DENSE, gated::olmo2, "post-norm only, QK-norm over all heads").square(),
    family("olmo3", "olmo2", DENSE.layers(5), gated::olmo3, "olmo2 with SWA in three of four blocks").square(),
    family("granite", "granite", DENSE, gated::granite, "scales on embedding, residual, attention and logits"),
    family("stablelm", "stablelm", DENSE, gated::stablelm, "LayerNorm with a gated MLP, partial RoPE").square(),
    family(
        "stablelm-parallel",
        "stablelm",
        DENSE,
        gated::stablelm_parallel,
        "stablelm with QK-norm, parallel attention and MLP",
    )
    .square(),
    family(
        "gptneox",
        "gptneox",
        DENSE.heads(8, 8, 32),
        plain::gptneox,
        "parallel attention and MLP with a norm each, fused biased projections",
    )
    .square(),
    family("gpt2", "gpt2", Shape { n_ctx: 512, ..DENSE.heads(8, 8, 32) }, plain::gpt2, "learned positions, GELU")
        .square(),
    family("starcoder2", "starcoder2", DENSE, plain::starcoder2, "LayerNorm and biases everywhere, GQA").square(),
    family("falcon", "falcon", DENSE.heads(8, 1, 32), plain::falcon, "MQA, parallel attention and MLP").square(),
    family("falcon-two-norms", "falcon", DENSE, plain::falcon_two_norms, "falcon with GQA and a second norm").square(),
    family(
        "command-r",
        "command-r",
        DENSE,
        gated::command_r,
        "LayerNorm without bias, parallel attention and MLP, scaled logits",
    )
    .square(),
    family(
        "cohere2",
        "cohere2",
        DENSE.layers(5),
        gated::cohere2,
        "command-r with SWA and RoPE in three of four blocks",
    )
    .square(),
    family("bloom", "bloom", DENSE.heads(8, 8, 32), plain::bloom, "ALiBi, norm on the embedding").square(),
    family("mpt", "mpt", DENSE.heads(8, 8, 32), plain::mpt, "ALiBi, clamped projections, no biases").square(),
    family("qwen2moe", "qwen2moe", MOE, mixture::qwen2moe, "MoE with a gated shared expert").square(),
    family("qwen3moe", "qwen3moe", MOE, mixture::qwen3moe, "MoE, QK-norm"),
    family(
        "olmoe",
        "olmoe",
        MOE.heads(8, 8, 32),
        mixture::olmoe,
        "MoE with weights that are not renormalized, QK-norm over all heads",
    )
    .square()
    .ungrouped(),
    family(
        "deepseek2",
        "deepseek2",
        MOE.heads(8, 8, 32).layers(4).experts(8, 2),
        latent::deepseek2,
        "MLA, sigmoid router with bias and groups, shared expert, dense first block",
    )
    .ungrouped(),
    family(
        "deepseek2-lite",
        "deepseek2",
        MOE.heads(8, 8, 32),
        latent::lite,
        "MLA without a latent query, softmax router",
    )
    .ungrouped(),
    family(
        "deepseek2-unsplit",
        "deepseek2",
        MOE.heads(8, 8, 32),
        latent::unsplit,
        "MLA expanded to heads, as in older files",
    )
    .ungrouped(),
    family(
        "gpt-oss",
        "gpt-oss",
        MOE.layers(4),
        mixture::gpt_oss,
        "attention sinks, biased experts with clamped SwiGLU, YaRN, SWA in every second block",
    ),
    family("grok", "grok", MOE, mixture::grok, "GELU experts, soft-capped attention, post-norms").square(),
    family(
        "llama4",
        "llama4",
        MOE.layers(6).experts(4, 1),
        mixture::llama4,
        "expert weights applied before the experts, every second block dense, NoPE in one of four",
    )
    .at_least(4),
    family("nemotron", "nemotron", DENSE, plain::nemotron, "squared ReLU, LayerNorm with 1 added to its weights")
        .square(),
    family("arcee", "arcee", DENSE, plain::arcee, "squared ReLU with RMSNorm"),
    family("orion", "orion", DENSE, gated::orion, "llama with LayerNorm").square(),
    family(
        "baichuan",
        "baichuan",
        DENSE.heads(8, 8, 32),
        gated::baichuan,
        "llama without positions (llama.cpp applies RoPE at depth 32 only)",
    )
    .square(),
    family("refact", "refact", DENSE, gated::refact, "ALiBi with a gated MLP"),
    family("smollm3", "smollm3", DENSE.layers(5), gated::smollm3, "NoPE in one of four blocks"),
    family(
        "glm4",
        "glm4",
        DENSE,
        gated::glm4,
        "pre- and post-norms, fused gate-up matrix, partial RoPE (half of the head)",
    )
    .square(),
    family("olmo", "olmo", DENSE, gated::olmo, "LayerNorm without weights, clamped projections").square(),
    family("openelm", "openelm", DENSE.layers(4), gated::openelm, "blocks of different widths"),
    family("bitnet", "bitnet", DENSE, gated::bitnet, "norms inside the sublayers, a scale per matrix").square(),
    family("starcoder", "starcoder", Shape { n_ctx: 512, ..DENSE.heads(8, 1, 32) }, plain::gpt2, "gpt2 with MQA")
        .square(),
    family("apertus", "apertus", DENSE, plain::apertus, "xIELU, QK-norm"),
    family("minicpm3", "minicpm3", DENSE.heads(8, 8, 32), latent::minicpm3, "MLA in a dense model, scaled residual")
        .ungrouped(),
    family("granitemoe", "granitemoe", MOE, mixture::granitemoe, "granite with MoE and a shared expert"),
    family(
        "smallthinker",
        "smallthinker",
        MOE.layers(5),
        mixture::smallthinker,
        "router before the attention, ReLU experts, RoPE in three of four blocks",
    )
    .at_least(2),
    family("hunyuan-moe", "hunyuan-moe", MOE, mixture::hunyuan_moe, "QK-norm after RoPE, a shared expert"),
    family("dbrx", "dbrx", MOE, mixture::dbrx, "MoE with LayerNorm, clamped projections").square(),
    family("arctic", "arctic", MOE, mixture::arctic, "dense MLP in parallel with the experts").square(),
    family(
        "afmoe",
        "afmoe",
        MOE.layers(5),
        mixture::afmoe,
        "gated attention, pre- and post-norms, SWA in three of four blocks, shared expert",
    ),
    family("mamba", "mamba", DENSE, recurrent::mamba, "recurrent: selective scans, no attention at all"),
    family("mamba2", "mamba2", DENSE, recurrent::mamba2, "recurrent: scans of heads in groups, grouped norm"),
    family(
        "jamba",
        "jamba",
        DENSE.layers(4),
        recurrent::jamba,
        "hybrid: scans with norms, attention in every second block",
    )
    .square()
    .at_least(2),
    family(
        "falcon-h1",
        "falcon-h1",
        DENSE,
        recurrent::falcon_h1,
        "hybrid: scans and attention side by side in each block",
    ),
    family(
        "granite-hybrid",
        "granitehybrid",
        DENSE.layers(4),
        recurrent::granite_hybrid,
        "hybrid: Mamba 2 with granite's scales, attention in every second block",
    )
    .at_least(2),
    family(
        "nemotron-h",
        "nemotron_h",
        DENSE.layers(6),
        recurrent::nemotron_h,
        "hybrid: a block is a scan, an attention or an MLP; vectors act behind MLPs only",
    )
    .at(&[1, 3])
    .at_least(4),
    family(
        "lfm2",
        "lfm2",
        DENSE.layers(4),
        recurrent::lfm2,
        "hybrid: short gated convolutions, attention in every second block",
    )
    .square()
    .at_least(2),
    family("rwkv6", "rwkv6", DENSE, states::rwkv6, "recurrent: matrix states with a decay of each token, token shift"),
    family(
        "rwkv7",
        "rwkv7",
        DENSE,
        states::rwkv7,
        "recurrent: matrix states with a generalized delta rule, value residual",
    ),
    family(
        "qwen3next",
        "qwen3next",
        MOE.layers(4),
        states::qwen3next,
        "hybrid: gated delta nets, gated attention in every second block, MoE with a shared expert",
    )
    .at_least(2),
    family("t5", "t5", DENSE.heads(8, 8, 32).layers(2), refused::t5, "encoder and decoder")
        .square()
        .refused(Refusal::EncoderDecoder)
        .ungrouped(),
    family("plamo2", "plamo2", DENSE.layers(4), refused::plamo2, "hybrid: scans with norms, fused QKV, post-norms")
        .at_least(2)
        .refused(Refusal::NoControlVectors),
];
