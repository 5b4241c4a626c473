//! llama.cpp's options, and what each is here.

/// What one of llama.cpp's options is here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Here {
    /// An option of this long name, with the same value.
    Option(&'static str),
    /// `--vector`, each with its scale: `F:S,F:S`, and in earlier versions `F S`.
    ScaledVectors,
    /// `--vector`, a list with commas.
    Vectors,
    /// `--lora`, as `--vector`.
    ScaledAdapters,
    /// `--layers`; two values there.
    LayerRange,
    /// A switch that changes nothing here: why.
    Needless(&'static str),
    /// Something else: what to do.
    Advice(&'static str),
}

use Here::{Advice, LayerRange, Needless, Option as Same, ScaledAdapters, ScaledVectors, Vectors};

const OFFLINE: &str = "bidpo works offline and fetches nothing: give a file that you have with --model FILE.gguf";
const OWN_BATCHES: &str = "bidpo chooses the sizes of its batches itself: leave the option out";
const CACHE_TYPE: &str = "bidpo keeps keys and values in 16 bits: leave the option out";
const OWN_CACHE: &str = "bidpo keeps and reuses keys and values by itself: leave the option out";
const CORES: &str =
    "the operating system chooses the cores: use `taskset` or `numactl`, and -t N for the number of threads";
const PLACEMENT: &str =
    "bidpo places layers by --gpu-layers, --device, --split-mode and --tensor-split: leave the option out";
const POSITIONS: &str = "bidpo takes positions and sizes from the model's file: leave the option out";
const SAMPLING: &str = "bidpo samples by --temp, --top-k, --top-p, --min-p and --repeat-penalty: leave the option out";
const TEXT_ONLY: &str = "bidpo runs text models only";
const NO_DRAFT: &str = "bidpo has no speculative decoding: leave the option out";
const GRAMMARS: &str = "`bidpo serve` takes grammars in requests";
const VARIABLES: &str = "set the template's own variables, as in --template-set enable_thinking=false, or chat_template_kwargs in a request";
const LOG: &str = "--verbose shows llama.cpp's log: leave the option out, and redirect stderr to keep it";
const AS_WRITTEN: &str =
    "a text is taken as it is written: leave the option out, and make line breaks in your shell ($'a\\nb')";
const ADAPTERS: &str = "an adapter at scale 0 changes nothing: give --lora FILE:0";
const PAGE: &str = "the page and the API are one: leave the option out (--help has what can be set)";
const PROXY: &str = "put a proxy that does this before the server: leave the option out";
const PAIRS: &str = "`bidpo train --data FILE` learns from pairs of answers, `bidpo extract` writes activations";
const MEMORY: &str = "the operating system keeps the mapped model in memory: leave the option out";
const EMBEDDINGS: &str = "bidpo gives no embeddings: `bidpo extract` writes the residual stream";

/// llama.cpp's names, as of the version that bidpo links.
const HABITS: &[(&[&str], Here)] = &[
    (&["-c", "--ctx-size"], Same("ctx")),
    (&["-n", "--n-predict", "--predict"], Same("max-tokens")),
    (&["-ngl", "--gpu-layers", "--n-gpu-layers"], Same("gpu-layers")),
    (&["-dev"], Same("device")),
    (&["-sm"], Same("split-mode")),
    (&["-mg"], Same("main-gpu")),
    (&["-ts"], Same("tensor-split")),
    (&["-sys", "--system-prompt"], Same("system")),
    (&["-f", "--file"], Same("prompt-file")),
    (&["-np", "--parallel"], Same("slots")),
    (&["-a"], Same("alias")),
    (&["-r", "--reverse-prompt"], Advice("requests to `bidpo serve` choose it: \"stop\"")),
    (&["--temperature"], Same("temp")),
    (&["-v", "--log-verbose"], Same("verbose")),
    (&["--chat-template", "--chat-template-file"], Same("template")),
    (&["--control-vector"], Vectors),
    (&["--control-vector-scaled"], ScaledVectors),
    (&["--control-vector-layer-range"], LayerRange),
    (&["-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hft", "--hf-token", "-mu", "--model-url"], Advice(OFFLINE)),
    (&["-dr", "--docker-repo", "-cl", "--cache-list", "--models-preset", "--models-max"], Advice(OFFLINE)),
    (&["--offline"], Needless("bidpo is always offline")),
    (
        &["--models-dir", "--models-autoload", "--no-models-autoload"],
        Advice("`bidpo serve` runs one model: --model FILE.gguf"),
    ),
    (&["-b", "--batch-size", "-ub", "--ubatch-size", "--mtmd-batch-max-tokens"], Advice(OWN_BATCHES)),
    (&["-cb", "--cont-batching"], Needless("requests are always computed together")),
    (
        &["-nocb", "--no-cont-batching"],
        Advice("requests are always computed together: --slots 1 computes one at a time"),
    ),
    (&["-ctk", "--cache-type-k", "-ctv", "--cache-type-v"], Advice(CACHE_TYPE)),
    (&["-kvu", "--kv-unified", "-no-kvu", "--no-kv-unified", "--kv-unified-per-slot", "--swa-full"], Advice(OWN_CACHE)),
    (&["-ctxcp", "--ctx-checkpoints", "--swa-checkpoints", "-cms", "--checkpoint-min-step"], Advice(OWN_CACHE)),
    (&["-cram", "--cache-ram", "--cache-idle-slots", "--no-cache-idle-slots", "--cache-reuse"], Advice(OWN_CACHE)),
    (&["--cache-prompt"], Needless("the common beginning of prompts is always reused")),
    (&["--no-cache-prompt", "-sps", "--slot-prompt-similarity", "--slot-save-path"], Advice(OWN_CACHE)),
    (&["--prompt-cache", "--prompt-cache-all", "--prompt-cache-ro", "-dt", "--defrag-thold"], Advice(OWN_CACHE)),
    (&["-lcs", "--lookup-cache-static", "-lcd", "--lookup-cache-dynamic"], Advice(NO_DRAFT)),
    (&["--keep", "--context-shift"], Advice("bidpo never drops the beginning of a text: --ctx N sets how much fits")),
    (&["--no-context-shift"], Needless("the beginning of a text is never dropped")),
    (&["-C", "--cpu-mask", "-Cr", "--cpu-range", "--cpu-strict", "--prio", "--poll", "--numa"], Advice(CORES)),
    (&["-Cb", "--cpu-mask-batch", "-Crb", "--cpu-range-batch", "--cpu-strict-batch"], Advice(CORES)),
    (&["--prio-batch", "--poll-batch"], Advice(CORES)),
    (&["-tb", "--threads-batch"], Advice("one number holds for all work: -t N")),
    (&["--threads-http"], Advice("connections need no threads of their own: leave the option out")),
    (&["--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale"], Advice(POSITIONS)),
    (
        &["--yarn-orig-ctx", "--yarn-ext-factor", "--yarn-attn-factor", "--yarn-beta-slow", "--yarn-beta-fast"],
        Advice(POSITIONS),
    ),
    (&["-gan", "--grp-attn-n", "-gaw", "--grp-attn-w", "--override-kv"], Advice(POSITIONS)),
    (
        &["-kvo", "--kv-offload", "-nkvo", "--no-kv-offload", "--op-offload", "--no-op-offload", "--no-host"],
        Advice(PLACEMENT),
    ),
    (&["-ot", "--override-tensor", "-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe"], Advice(PLACEMENT)),
    (&["-ncffn", "--n-cpu-ffn", "-fit", "--fit", "-fitt", "--fit-target", "-fitc", "--fit-ctx"], Advice(PLACEMENT)),
    (&["-nr", "--no-repack"], Needless("weights are repacked only with --repack")),
    (&["--check-tensors"], Advice("every file is checked when it is opened; `bidpo check` computes with it")),
    (&["--mlock", "--no-mmap", "-lm", "--load-mode", "-lzm", "--lazy-mode"], Advice(MEMORY)),
    (&["--mmap"], Needless("files are always mapped")),
    (&["-fa", "--flash-attn"], Advice("bidpo chooses the kind of attention itself: leave the option out")),
    (&["--list-devices"], Advice("`bidpo doctor` lists devices")),
    (&["-sysf", "--system-prompt-file"], Advice("give the text itself: --system \"$(cat FILE)\"")),
    (&["-bf", "--binary-file"], Advice("give a text file: --prompt-file FILE")),
    (&["--lora", "--lora-scaled"], ScaledAdapters),
    (&["--lora-init-without-apply"], Advice(ADAPTERS)),
    (&["--grammar", "--grammar-file", "-j", "--json-schema", "-jf", "--json-schema-file"], Advice(GRAMMARS)),
    (
        &["-mm", "--mmproj", "-mmu", "--mmproj-url", "--mmproj-auto", "--mmproj-offload", "--no-mmproj-offload"],
        Advice(TEXT_ONLY),
    ),
    (&["--image", "--audio", "--video", "--image-min-tokens", "--image-max-tokens", "--media-path"], Advice(TEXT_ONLY)),
    (&["--video-fps", "--video-timestamp-interval", "--video-ffmpeg-dir", "-mv", "--model-vocoder"], Advice(TEXT_ONLY)),
    (&["--no-mmproj", "--no-mmproj-auto"], Needless("bidpo runs text models only")),
    (
        &["--samplers", "--sampler-seq", "--sampling-seq", "--ignore-eos", "--top-nsigma", "--top-n-sigma"],
        Advice(SAMPLING),
    ),
    (&["--xtc-probability", "--xtc-threshold", "--typical", "--typical-p", "-l", "--logit-bias"], Advice(SAMPLING)),
    (&["--dry-multiplier", "--dry-base", "--dry-allowed-length", "--dry-penalty-last-n"], Advice(SAMPLING)),
    (&["--dry-sequence-breaker", "--adaptive-target", "--adaptive-decay", "--dynatemp-range"], Advice(SAMPLING)),
    (
        &["--dynatemp-exp", "--mirostat", "--mirostat-lr", "--mirostat-ent", "-bs", "--backend-sampling"],
        Advice(SAMPLING),
    ),
    (&["--repeat-last-n", "--presence-penalty", "--frequency-penalty"], Advice(SAMPLING)),
    (
        &["--seed", "--temp", "--top-k", "--top-p", "--min-p", "--repeat-penalty"],
        Advice("this command samples nothing"),
    ),
    (&["--jinja"], Needless("templates are always rendered as Jinja")),
    (&["--no-jinja"], Advice("templates are always rendered as Jinja: leave the option out")),
    (&["--chat-template-kwargs", "-rea", "--reasoning", "--reasoning-effort", "--reasoning-budget"], Advice(VARIABLES)),
    (&["--reasoning-budget-message", "--reasoning-preserve", "--no-reasoning-preserve"], Advice(VARIABLES)),
    (&["--reasoning-format"], Advice("requests choose it: \"reasoning_format\"")),
    (&["--skip-chat-parsing", "--no-skip-chat-parsing"], Advice("requests choose it: \"reasoning_format\", \"tools\"")),
    (&["--prefill-assistant"], Needless("a chat that ends with the assistant's message is continued")),
    (&["-cnv", "--conversation"], Needless("`bidpo chat` is a conversation, `bidpo generate` one answer")),
    (&["-no-cnv", "--no-conversation", "-st", "--single-turn"], Needless("`bidpo generate` gives one answer")),
    (
        &["-i", "--interactive", "-if", "--interactive-first", "-co", "--color", "--no-warmup", "--warmup"],
        Needless(NOTHING),
    ),
    (
        &["--no-display-prompt", "-mli", "--multiline-input", "--simple-io", "--no-perf", "--no-escape"],
        Needless(NOTHING),
    ),
    (&["--no-show-timings", "--show-timings", "--perf"], Needless(NOTHING)),
    (
        &["--display-prompt", "--verbose-prompt", "-sp", "--special"],
        Advice("`bidpo template` shows a prompt's text and tokens"),
    ),
    (&["-e", "--escape", "--in-prefix-bos", "--in-prefix", "--in-suffix", "--spm-infill"], Advice(AS_WRITTEN)),
    (&["-ptc", "--print-token-count"], Advice("`bidpo chat` shows the number of tokens with /stats")),
    (&["-lv", "--verbosity", "--log-verbosity", "--log-disable", "--log-file", "--log-jsonl"], Advice(LOG)),
    (&["--no-log-jsonl", "--log-prompts-dir", "--log-colors", "--log-prefix", "--no-log-prefix"], Advice(LOG)),
    (&["--log-timestamps", "--no-log-timestamps"], Advice(LOG)),
    (&["-o", "--output", "--output-file"], Advice("results are printed: redirect them with > FILE")),
    (&["--embedding", "--embeddings", "--rerank", "--reranking", "--pooling", "--embd-normalize"], Advice(EMBEDDINGS)),
    (&["--positive-file", "--negative-file", "--pca-batch", "--pca-iter", "--method"], Advice(PAIRS)),
    (&["--tags", "--path", "--api-prefix", "--ui-config", "--webui-config", "--ui-config-file"], Advice(PAGE)),
    (&["--webui-config-file", "--ui-mcp-proxy", "--webui-mcp-proxy", "--no-ui-mcp-proxy"], Advice(PAGE)),
    (&["--no-webui-mcp-proxy", "--no-ui", "--no-webui", "--mcp-servers-config", "--mcp-servers-json"], Advice(PAGE)),
    (&["--tools", "--tools-runtime", "-ag", "--agent", "--server-base"], Advice(PAGE)),
    (&["--ui", "--webui", "-no-ag", "--no-agent", "--metrics", "--props", "--slots"], Needless("it is always so here")),
    (&["--no-slots"], Advice(PAGE)),
    (&["--ssl-key-file", "--ssl-cert-file", "--reuse-port", "--cors-origins", "--cors-methods"], Advice(PROXY)),
    (&["--cors-headers", "--cors-credentials", "--no-cors-credentials", "-to", "--timeout"], Advice(PROXY)),
    (&["--sse-ping-interval", "--sleep-idle-seconds"], Advice("bidpo chooses it itself: leave the option out")),
    (&["--host", "--port", "--api-key", "--api-key-file", "--alias"], Advice("it is an option of: bidpo serve")),
    (&["--usage"], Advice("--help shows all options")),
    (&["--completion-bash"], Advice("`bidpo completions bash` writes the script")),
];

const NOTHING: &str = "it changes nothing here";

/// Whole families of llama.cpp's names, by how they begin.
const FAMILIES: &[(&str, Here)] = &[
    ("--spec-", Advice(NO_DRAFT)),
    ("--no-spec-", Advice(NO_DRAFT)),
    ("--draft", Advice(NO_DRAFT)),
    ("--fim-", Advice(OFFLINE)),
    ("--gpt-oss-", Advice(OFFLINE)),
    ("--vision-", Advice(OFFLINE)),
    ("--embd-", Advice(OFFLINE)),
    ("--diffusion-", Advice(TEXT_ONLY)),
    ("--tts-", Advice(TEXT_ONLY)),
];

/// Letters of llama.cpp's options for a draft model.
const DRAFT_LETTERS: &[&str] = &[
    "-hfd", "-hfrd", "-td", "-tbd", "-Cd", "-Crd", "-Cbd", "-Crbd", "-ctkd", "-ctvd", "-otd", "-cmoed", "-ncmoed",
    "-devd", "-ngld", "-md",
];

/// What llama.cpp's option of this name is here; `None` for a name that it does not have.
pub(super) fn habit(name: &str) -> Option<Here> {
    let listed = HABITS.iter().find(|(names, _)| names.contains(&name)).map(|(_, here)| *here);
    let family = || FAMILIES.iter().find(|(start, _)| name.starts_with(start)).map(|(_, here)| *here);
    let draft = DRAFT_LETTERS.contains(&name) || (name.starts_with("--") && name.ends_with("-draft"));
    listed.or_else(family).or_else(|| draft.then_some(Advice(NO_DRAFT)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::Cli;
    use clap::CommandFactory as _;

    /// A habit that names an option of ours that is gone would be an error of its own.
    #[test]
    fn each_counterpart_is_an_option_of_a_command() {
        let root = Cli::command();
        let has = |c: &clap::Command, target: &str| c.get_arguments().any(|a| a.get_long() == Some(target));
        for (names, here) in HABITS {
            let Same(target) = here else { continue };
            assert!(has(&root, target) || root.get_subcommands().any(|c| has(c, target)), "{names:?}: --{target}");
        }
    }

    /// The names of the pinned llama.cpp's `common/arg.cpp` for its command line, server and control vector generator.
    #[test]
    fn every_option_of_llama_cpp_is_known() {
        let names = include_str!("../../tests/data/llama_cpp_options.txt");
        let known =
            ["-h", "--help", "--version", "-m", "--model", "-p", "--prompt", "-s", "-t", "--threads", "--verbose"];
        let unknown: Vec<&str> = names.lines().filter(|n| habit(n).is_none() && !known.contains(n)).collect();
        let root = Cli::command();
        let ours = |name: &str| {
            root.get_subcommands().any(|c| c.get_arguments().any(|a| a.get_long() == name.strip_prefix("--")))
        };
        let unknown: Vec<&str> = unknown.into_iter().filter(|n| !ours(n)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}
