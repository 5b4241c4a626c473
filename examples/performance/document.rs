//! docs/performance.md.

use crate::Measured;
use crate::elsewhere;
use crate::fit::{Costs, Step};
use crate::plan::{Kind, SEVEN, SEVENTY, Sizes};
use bidpo_core::text::numbers::significant;
use ggml_grad::llama::{LLAMA_CPP_SYS_VERSION, cpu_features};
use ggml_grad::memory::text;
use serde_json::Value;
use std::fmt::Write;

const INTRO: &str = "# Performance

<!-- Written by `make bench`. Do not edit by hand. -->

Ratios are what counts: every figure of the first part is one of ours over one of llama.cpp's own (of the kinds: over our own step of
kind `add`), both measured in turns in one run. `bidpo bench --model M.gguf` does the same on your machine, with your model.
";

const BENCH: &str = "
The references, so that they can be judged:

- **prefill** is plain `llama_decode` in a context as llama.cpp's bench tool makes it: F16 cache, fused attention, passes of 512
  tokens, a thread pool of its own, no callback, logits of the last token only. Weights as they lie in the file and repacked by
  llama.cpp (its default), each sequence by itself and the tokens as one stream in sequences of 512: whatever is fastest here is
  the reference; the column says which it was.
- **generate**: greedy, the same prompt; llama.cpp unsteered, over plain or repacked weights, the faster; three times as many turns.
- **memory**, **lora-memory** (an adapter of rank 8 on the blocks above the layer) and **start** are measured on processes of their own,
  the page cache warm. The reference of `start` is a process
  that makes the calls of llama.cpp's `simple` example and nothing else.
- **truthfulqa**: the reference is the prefill of the unique tokens (preamble once, each question once, each distinct answer once).
- A step: eight pairs of two misconceptions each, about 100 tokens for each prompt with an answer, the examples captured before;
  the vector added for four of them and subtracted for the others, each four in one graph (rows at which their prompts begin alike
  are computed once there; the reference counts each pair's), forward, backward, optimizer.
- **busy**: a step while a thread beside it counts without end, in turns with one alone. On two cores a fair share of the machine would
  give 1.33.
- **together**: two processes that train, each with all threads, in turns with one. A fair share would give 2.
- **gate**, ..., **lowrank**: a step of that kind of intervention (rank 8) in turns with one of `add` on the same pairs.
- **lora**: a step of an adapter of rank 8 on the usual matrices of all blocks above the layer, in turns with one of `add`.
- **retained**: a step with four retained texts in turns with one without. The ratio is what a retained token adds to a step over what
  a token of the pairs takes.
- **pytorch**: in turns with PyTorch in a process of its own where benches/peers has installed it, else against its last times.
- **pytorch-lora**: the same with a step of an adapter of rank 8 by peft, on the same matrices.
";

const GROWTH: &str = "
## How it grows

Random models in the form of Llama (`bidpo synth`), all matrices Q4_K, vocabulary of 32,000; one pair, half of its tokens prompt.
A step is forward and backward pass; memory is what ggml plans for inputs and activations, beside the weights. Each point is a
process of its own, the best of three steps.
";

const MODEL: &str = "
## A cost model, and what it predicts

    seconds of a step = a * tokens * blocks above * weights of a block
                      + b * output rows * weights of the output matrix
                      + c * tokens^2 * blocks above * width
                      + d * tokens * blocks above * width
    bytes beside the model = 4 tokens * blocks above * (e * width + f * feed-forward width)
                      + g * 4 output rows * vocabulary + h * attention scores that are kept + i

Tokens are the unique ones of a pair; output rows those that predict a token of an answer. The constants are fitted to the points
above (least squares of the relative errors, none below zero); the points marked *held out* took no part.
";

fn number(value: &Value, path: &[&str]) -> f64 {
    path.iter().fold(value, |v, key| &v[*key]).as_f64().unwrap_or(f64::NAN)
}

pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 5400.0 => format!("{:.1} h", s / 3600.0),
        s if s >= 90.0 => format!("{:.1} min", s / 60.0),
        s => format!("{} s", significant(s)),
    }
}

pub fn write(bench: &Value, pytorch: Option<&Value>, measured: &[Measured], costs: &Costs) -> String {
    let mut out = String::from(INTRO);
    let parts = [
        machine(bench),
        ratios(bench),
        BENCH.into(),
        pytorch.map_or_else(String::new, peer),
        GROWTH.into(),
        points(measured),
        pictures(),
        MODEL.into(),
        constants(measured, costs),
        predictions(costs),
        elsewhere::predictions(costs),
        threads(bench, measured),
    ];
    parts.iter().for_each(|p| out += p);
    out
}

fn machine(bench: &Value) -> String {
    let features: Vec<&str> = cpu_features().iter().filter(|f| f.in_ggml).map(|f| f.name).collect();
    format!(
        "\nMachine: a virtual machine of {} cores, {}, {}; llama.cpp of llama-cpp-sys-2 {LLAMA_CPP_SYS_VERSION}; {} threads, {} \
         rounds.\n",
        bench["cores"],
        std::env::consts::ARCH,
        features.join(" "),
        bench["threads"],
        bench["rounds"]
    )
}

fn ratios(bench: &Value) -> String {
    let mut out = String::new();
    for model in bench["models"].as_array().into_iter().flatten() {
        let _ = write!(
            out,
            "\n## {}, layer {} of {}\n\n{} pairs, {} unique tokens ({} with each prompt counted twice).\n\n\
             | figure | ratio | over the rounds | at most | | ours / reference | what | reference |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- |\n",
            model["model"].as_str().unwrap_or("?"),
            model["layer"],
            model["n_layer"],
            model["n_pairs"],
            model["unique_tokens"],
            model["tokens"]
        );
        for line in model["lines"].as_array().into_iter().flatten() {
            let text = |key: &str| line[key].as_str().unwrap_or("").to_owned();
            let m = &line["outcome"]["measured"];
            if m.is_null() {
                let why = line["outcome"]["not_measured"].as_str().unwrap_or("");
                let _ = writeln!(out, "| {} | | | | not measured | {why} | {} | |", text("name"), text("what"));
                continue;
            }
            let ratio = |key: &str| number(m, &["ratio", key]);
            let _ = writeln!(
                out,
                "| {} | {:.3} | {:.3} to {:.3} | {} | {} | {} / {} {} | {} | {} |",
                text("name"),
                ratio("median"),
                ratio("min"),
                ratio("max"),
                line["limit"].as_f64().map_or_else(|| "-".into(), |l| format!("{l:.2}")),
                text("verdict").replace('_', " "),
                significant(number(m, &["ours", "median"])),
                significant(number(m, &["reference", "median"])),
                text("unit"),
                text("what"),
                text("against")
            );
        }
        let split = &model["split"];
        if !split.is_null() {
            let of = |key: &str| significant(number(split, &[key]));
            let _ = writeln!(
                out,
                "\nA step of {} ms: graph build {}, upload {}, forward {}, backward {}, results read {}, loss and optimizer {} ms. Outside \
                 ggml's computation, which alone uses all threads: {:.2} %.",
                of("wall"),
                of("build"),
                of("upload"),
                of("forward"),
                of("backward"),
                of("read"),
                of("optimizer"),
                100.0 * number(split, &["serial"])
            );
            let ops: Vec<String> = split["ops"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|op| {
                    format!(
                        "{} {:.0} ({})",
                        op["op"].as_str().unwrap_or("?"),
                        number(op, &["millis"]),
                        number(op, &["nodes"])
                    )
                })
                .collect();
            if !ops.is_empty() {
                let _ = writeln!(out, "The longest ops of one step, in ms (and how many nodes): {}.", ops.join(", "));
            }
        }
    }
    out
}

fn peer(p: &Value) -> String {
    let bytes = |key: &str| text(number(p, &[key]) as u64);
    format!(
        "\n**PyTorch** ({} with transformers {}, {} threads): BiPO's step on the same pairs and layer of {}, the model de-quantized \
         from the same file, policy and reference model, padded batch of {} rows: f32 {} s with a peak of {}, bf16 {} s with {}. \
         `benches/peers/run.sh` measures it; these are its times by itself, the line above may be of another run.\n",
        p["torch"].as_str().unwrap_or("?"),
        p["transformers"].as_str().unwrap_or("?"),
        p["threads"],
        p["model"].as_str().unwrap_or("?"),
        2 * p["n_pairs"].as_u64().unwrap_or(0),
        significant(number(p, &["f32_median_ms"]) / 1e3),
        bytes("f32_peak_bytes"),
        significant(number(p, &["bf16_median_ms"]) / 1e3),
        bytes("bf16_peak_bytes")
    )
}

fn points(measured: &[Measured]) -> String {
    let mut out = String::from(
        "\n| model | weights | blocks above | tokens | step, s | over prefill | capture over prefill | memory beside the model | peak of the \
         process |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for m in measured.iter().filter(|m| m.plan.kind != Kind::Threads) {
        let (p, plan) = (&m.point, &m.plan);
        let _ = writeln!(
            out,
            "| {} | {} | {} | {}{} | {} | {:.2} | {:.2} | {} | {} |",
            plan.model.name,
            text(p.weights),
            plan.model.above(plan.layer),
            plan.tokens,
            if plan.kind == Kind::HeldOut { " (held out)" } else { "" },
            significant(p.step),
            p.step / p.prefill,
            p.capture / p.prefill,
            text(p.step_bytes),
            text(p.peak)
        );
    }
    out
}

fn pictures() -> String {
    let mut out = String::new();
    for (file, what) in [
        ("time-tokens", "time of a step by tokens"),
        ("memory-tokens", "memory of a step by tokens"),
        ("time-layers", "time of a step by blocks above the layer"),
        ("memory-layers", "memory of a step by blocks above the layer"),
        ("time-size", "time of a step by weights above the layer"),
    ] {
        let _ = write!(out, "\n![{what}](performance/{file}.svg)\n");
    }
    out
}

fn constants(measured: &[Measured], costs: &Costs) -> String {
    let t = &costs.time;
    let speed = if t[0] > 0.0 { 4e3 / t[0] } else { f64::NAN };
    let mut out = format!(
        "\nTime: a = {:.2} ps ({speed:.0} GFLOP/s at four operations a weight: forward and backward), b = {:.2} ps, c = {:.3} ns, d = \
         {:.1} ns; b and d are small and not told apart well by these points. Memory: e = {:.2}, f = {:.2}, g = {:.2}, h = {:.2}, i = \
         {:.1} MB. A process's peak was at most {} above weights, captured pair and activations together.\n\n",
        t[0],
        t[1],
        t[2] / 1e3,
        t[3] / 1e3,
        costs.memory[0],
        costs.memory[1],
        costs.memory[2],
        costs.memory[3],
        1e3 * costs.memory[4],
        text(costs.rest as u64)
    );
    let error = |kind: Kind, f: &dyn Fn(&Measured) -> f64| {
        measured.iter().filter(|m| m.plan.kind == kind).map(|m| f(m).abs()).fold(0.0, f64::max)
    };
    let time = |m: &Measured| costs.seconds(&Step::of(m)) / m.point.step - 1.0;
    let memory = |m: &Measured| costs.bytes(&Step::of(m)) / m.point.step_bytes as f64 - 1.0;
    let _ = writeln!(
        out,
        "Largest relative error on the fitted points: time {:.0} %, memory {:.0} %. On the held-out points:\n\n\
         | model | blocks above | tokens | step measured | predicted | memory measured | predicted |\n\
         | --- | --- | --- | --- | --- | --- | --- |",
        100.0 * error(Kind::Fit, &time),
        100.0 * error(Kind::Fit, &memory)
    );
    for m in measured.iter().filter(|m| m.plan.kind == Kind::HeldOut) {
        let s = Step::of(m);
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} s | {} s ({:+.0} %) | {} | {} ({:+.0} %) |",
            s.model.name,
            s.model.above(s.layer),
            s.tokens,
            significant(m.point.step),
            significant(costs.seconds(&s)),
            100.0 * time(m),
            text(m.point.step_bytes),
            text(costs.bytes(&s) as u64),
            100.0 * memory(m)
        );
    }
    out
}

fn predictions(costs: &Costs) -> String {
    let mut out = String::from(
        "\n**Predictions, not measurements**, for this machine: a step of eight pairs of 160 unique tokens (100 of them answers), Q4_K, the \
         middle layer; an epoch of 128 such pairs. Peak: weights, activations of one pair, 128 captured pairs, and the most that \
         processes here needed beside these. The widest model measured is a 7B's; the 70B is an extrapolation in width (twice) and \
         blocks. Weights that do not fit into memory are refused before they are loaded: the 70B needs a machine with more \
         memory than this one, and the time is what such a machine would take with cores like these.\n\n\
         | model | weights | a step of 8 pairs | an epoch of 128 pairs | memory beside the weights | peak |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for model in [SEVEN, SEVENTY] {
        let step = Step { model, layer: model.n_layer / 2, tokens: 160.0, outputs: 100.0 };
        let (pair, bytes) = (costs.seconds(&step), costs.bytes(&step));
        // 4.5 bits a weight.
        let weights = model.params() * 4.5 / 8.0;
        let beside = bytes + captured(&model, 160.0, 128.0) + costs.rest;
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            model.name,
            text(weights as u64),
            duration(8.0 * pair),
            duration(128.0 * pair),
            text(beside as u64),
            text((weights + beside) as u64)
        );
    }
    out
}

/// Bytes of captured pairs: residual stream and mask, both f32.
fn captured(model: &Sizes, tokens: f64, pairs: f64) -> f64 {
    pairs * 4.0 * tokens * (model.n_embd as f64 + tokens)
}

/// Measured once, by hand, on a machine that `make bench` does not run on.
const SIXTEEN: &str = "
Sixteen threads were measured once, on a virtual machine of 16 cores of a Xeon with AVX512-BF16 (probably eight physical ones), with
a random model in SmolLM2's shape (1,752 tokens; `bidpo synth --arch llama --type q4_1 --layers 30 --embd 576 --heads 9 --kv-heads 3 --ff 1536 --vocab 49152 --ctx 2048 -o m.gguf`,
then `bidpo bench --model m.gguf --only step,threads --threads 16`): a step took 4.72 s with one thread and 0.60 to 0.69 s with 16, 6.8 to 7.8 times
less (serial outside ggml's computation 0.12 %, Karp-Flatt 9 %). llama.cpp's prefill of the same tokens took 7.0 s with two threads and
1.04 to 1.41 s with 16 in several runs, the step 2.7 s and 0.60 to 0.69 s: the ratio of the two rises from 0.38 to about 0.5. bidpo's kernels are dealt to
the threads in two dimensions; what remains are matrices of 192 to 576 columns, which do not divide well by 16.
";

fn threads(bench: &Value, measured: &[Measured]) -> String {
    let mut out = String::from(
        "\n## Threads\n\nSerial is what a step spends outside ggml's computation, at one thread: nothing there takes a lock, and no part of \
         it grows with the threads. Karp-Flatt is the serial fraction that would explain the measured speed-up alone; it also holds \
         what threads share (memory bandwidth, clock, other users of the machine) and ggml's own single-threaded nodes.\n\n\
         | model | 1 thread | all threads | speed-up | serial | Karp-Flatt | Amdahl at 16 threads, from serial | from Karp-Flatt |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let amdahl = |serial: f64| 1.0 / (serial + (1.0 - serial) / 16.0);
    let mut row = |name: &str, one: f64, all: f64, n: f64, serial: f64| {
        let speedup = one / all;
        let karp = if n > 1.0 { 100.0 * (1.0 / speedup - 1.0 / n) / (1.0 - 1.0 / n) } else { f64::NAN };
        let _ = writeln!(
            out,
            "| {name} | {} s | {} s ({n}) | {speedup:.2} | {:.2} % | {karp:.1} % | {:.1} | {:.1} |",
            significant(one),
            significant(all),
            100.0 * serial,
            amdahl(serial),
            amdahl(karp / 100.0)
        );
    };
    for model in bench["models"].as_array().into_iter().flatten().filter(|m| !m["threads"].is_null()) {
        let t = &model["threads"];
        let of = |key: &str| number(t, &[key, "median"]) / 1e3;
        let name = model["model"].as_str().unwrap_or("?");
        row(name, of("one"), of("all"), number(t, &["threads"]), number(t, &["serial"]));
    }
    for one in measured.iter().filter(|m| m.plan.kind == Kind::Threads) {
        let same = |m: &&Measured| {
            m.plan.kind == Kind::Fit
                && (m.plan.model, m.plan.layer, m.plan.tokens) == (one.plan.model, one.plan.layer, one.plan.tokens)
        };
        if let Some(all) = measured.iter().find(same) {
            let (a, b) = (&one.point, &all.point);
            row(one.plan.model.name, a.step, b.step, all.plan.threads as f64, a.serial / a.step);
        }
    }
    out += SIXTEEN;
    out
}
