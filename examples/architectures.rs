//! Writes docs/architectures.md: what `bidpo check` measures on random models of every architecture, in every type of
//! weight. `make architectures` runs it; it takes half an hour on two cores. Arguments are names of families
//! and of types: these alone are checked, and the page holds these alone.

use bidpo_core::check::{LIMIT, SyntheticError, check_synthetic};
use ggml_grad::llama::{DType, LLAMA_CPP_SYS_VERSION};
use ggml_grad::synth::{Coverage, Family, architectures, families};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One check.
struct Case {
    family: &'static Family,
    dtype: DType,
    layer: usize,
}

/// Findings.
struct Found {
    passed: bool,
    exact: bool,
    relative_error: f64,
    cosine: f64,
    ops: BTreeSet<&'static str>,
}

fn run(case: &Case) -> Result<Found, SyntheticError> {
    let checks = check_synthetic(case.family, case.dtype, &[case.layer], false, 1)?;
    let engine = checks.engine.as_ref();
    let differences = engine.and_then(|e| e.differences.as_ref());
    Ok(Found {
        passed: checks.passed(),
        exact: engine.is_some_and(|e| e.exact() && e.zero_vector_is_noop()),
        relative_error: differences.map_or(f64::NAN, |d| d.relative_error),
        cosine: engine.and_then(|e| e.cosine_to_f32).unwrap_or(f64::NAN),
        ops: checks.survey.ops.keys().copied().collect(),
    })
}

/// Runs the cases on all cores, one thread each.
fn run_all(cases: &[Case]) -> Vec<Result<Found, SyntheticError>> {
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<Option<Result<Found, SyntheticError>>>> = Mutex::new(cases.iter().map(|_| None).collect());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(i) else { break };
                    let outcome = run(case);
                    let Case { family, dtype, layer } = case;
                    let words =
                        outcome.as_ref().map_or_else(|e| e.to_string(), |f| format!("{:.0e}", f.relative_error));
                    eprintln!("{} of {}: {} {} at {layer}: {words}", i + 1, cases.len(), family.name(), dtype.name());
                    found.lock().expect("no worker panics while it holds the lock")[i] = Some(outcome);
                }
            });
        }
    });
    let found = found.into_inner().expect("as above");
    found.into_iter().map(|f| f.expect("every case was run")).collect()
}

const INTRO: &str = "# Architectures and types of weights

<!-- Written by `make architectures`. Do not edit by hand. -->

bidpo lifts llama.cpp's own compute graph, so it knows no architectures, only ops. What follows was measured on small random
models (`bidpo synth`), one for each kind of architecture, with the checks that `bidpo check` runs on any model of yours:

- **logits**: the lifted graph's logits against `llama_decode`'s, without and with a vector; a vector of zeros against none.
  Equality of every bit is demanded.
- **gradient**: relative error of the gradient against central differences, in its own and six random directions, on an F32
  copy of the same model (the exact de-quantized weights), choices of experts held fixed. Where a model has kinks (ReLU) at the
  vector, another vector.
- **cosine** of the angle between the gradient through the type's own kernels, which round activations to 8 bits, and that of
  the F32 copy. This is a property of the type and of the model (a random mixture of experts changes its choices easily, a
  trained one less), not an error of the gradient; real models are in the README.

Not covered here: graphs on a GPU, real weights of these architectures (but for llama and gemma 3, which the tests train),
and models whose graph depends on their size. `bidpo check --model M.gguf` is the answer for a file you have.
";

fn cell(found: &Result<Found, SyntheticError>) -> String {
    match found {
        Err(e) => format!("error: {e}"),
        Ok(f) if f.passed => format!("{:.0e} / {:.4}", f.relative_error, f.cosine),
        Ok(f) => format!(
            "**FAILED**: {}{:.0e} / {:.4}",
            if f.exact { "" } else { "logits differ, " },
            f.relative_error,
            f.cosine
        ),
    }
}

/// One row for each architecture that llama.cpp knows, and the number of decoders that passed. `passed`: families whose checks
/// all passed, by name; `failed`: those with one that did not.
fn coverage(passed: &BTreeSet<&str>, failed: &BTreeSet<&str>) -> Result<String, std::fmt::Error> {
    let (mut verified, mut decoders) = (0, 0);
    let (mut rows, mut others) = (String::new(), String::new());
    for a in architectures() {
        let (state, models) = match &a.coverage {
            Coverage::NoDecoder(kind) => {
                writeln!(others, "- {}: {kind}", a.name)?;
                continue;
            }
            Coverage::Families(own) => {
                let names: Vec<&str> = own.iter().map(|f| f.name()).collect();
                let state = if names.iter().any(|n| failed.contains(n)) {
                    "**failed**"
                } else if names.iter().all(|n| passed.contains(n)) {
                    verified += 1;
                    "verified"
                } else {
                    "not in this run"
                };
                (state, names.join(", "))
            }
            Coverage::Refused(why) => ("refused", (*why).to_owned()),
            Coverage::NotTried(why) => ("not tried", (*why).to_owned()),
            Coverage::Unlisted => ("**not listed**", String::new()),
        };
        decoders += 1;
        writeln!(rows, "| {} | {state} | {models} |", a.name)?;
    }
    Ok(format!(
        "## Architectures of llama.cpp

**{verified} of {decoders} decoders** that llama.cpp of llama-cpp-sys-2 {LLAMA_CPP_SYS_VERSION} knows are trained with a verified gradient.

| `general.architecture` | gradient | random models, or the reason |
| --- | --- | --- |
{rows}
Known to llama.cpp by name, and no decoders that write text from left to right:

{others}"
    ))
}

/// What to check: the families and types named on the command line; all of the one where none is named.
fn wanted() -> Result<(Vec<&'static Family>, Vec<DType>), String> {
    let (mut chosen, mut types) = (Vec::new(), Vec::new());
    for name in std::env::args().skip(1) {
        match (families().iter().find(|f| f.name() == name), DType::from_name(&name)) {
            (Some(family), _) => chosen.push(family),
            (None, Some(dtype)) if DType::WEIGHTS.contains(&dtype) => types.push(dtype),
            _ => return Err(format!("{name} is no model family and no type of weight")),
        }
    }
    if chosen.is_empty() {
        chosen.extend(families());
    }
    if types.is_empty() {
        types.extend(DType::WEIGHTS);
    }
    Ok((chosen, types))
}

fn main() -> std::process::ExitCode {
    ggml_grad::llama::set_verbose(false);
    let (families, types) = match wanted() {
        Ok(wanted) => wanted,
        Err(message) => {
            eprintln!("{message}");
            return std::process::ExitCode::from(2);
        }
    };
    let (refused, trained): (Vec<&Family>, Vec<&Family>) = families.into_iter().partition(|f| f.is_refused());
    let mut cases = Vec::new();
    for &family in &trained {
        for &dtype in &types {
            // In F32 at every layer, where nothing but the rules can be wrong.
            let layers = if dtype == DType::F32 { family.layers() } else { &family.layers()[..1] };
            cases.extend(layers.iter().map(|&layer| Case { family, dtype, layer }));
        }
    }
    let found = run_all(&cases);
    let passed = found.iter().filter(|f| f.as_ref().is_ok_and(|f| f.passed)).count();
    let worst = found.iter().flatten().map(|f| f.relative_error).fold(0.0, f64::max);
    let mut ops: BTreeMap<&str, usize> = BTreeMap::new();
    let mut table: BTreeMap<(&str, String), String> = BTreeMap::new();
    let mut f32_rows: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (case, found) in cases.iter().zip(&found) {
        if case.dtype == DType::F32 {
            let text = match found {
                Ok(f) if f.passed => format!("{}: {:.0e}", case.layer, f.relative_error),
                other => format!("{}: {}", case.layer, cell(other)),
            };
            f32_rows.entry(case.family.name()).or_default().push(text);
        }
        if let Ok(f) = found
            && case.dtype == DType::F32
            && case.layer == case.family.layers()[0]
        {
            f.ops.iter().for_each(|op| *ops.entry(op).or_default() += 1);
        }
        if case.layer == case.family.layers()[0] {
            table.insert((case.family.name(), case.dtype.name()), cell(found));
        }
    }

    let names = |passed: bool| -> BTreeSet<&str> {
        let with = cases.iter().zip(&found).filter(|(_, f)| f.as_ref().is_ok_and(|f| f.passed) == passed);
        with.map(|(case, _)| case.family.name()).collect()
    };
    let mut out = String::from(INTRO);
    let write = |out: &mut String| -> std::fmt::Result {
        writeln!(
            out,
            "\n{passed} of {} checks passed (limit of the gradient's relative error {LIMIT:.0e}; the largest was",
            cases.len()
        )?;
        writeln!(
            out,
            "{worst:.1e}). llama.cpp of llama-cpp-sys-2 {LLAMA_CPP_SYS_VERSION}, {}.\n",
            std::env::consts::ARCH
        )?;
        writeln!(out, "{}", coverage(&names(true), &names(false))?)?;
        writeln!(out, "## Random models\n")?;
        writeln!(
            out,
            "Logits are equal in every row that gives a number. The numbers: layer, and relative error of the gradient in F32.\n"
        )?;
        writeln!(
            out,
            "| model | `general.architecture` | what it exercises | layer: gradient |\n| --- | --- | --- | --- |"
        )?;
        for f in &trained {
            let layers = f32_rows.get(f.name()).map(|r| r.join(", ")).unwrap_or_default();
            writeln!(out, "| {} | {} | {} | {layers} |", f.name(), f.arch(), f.exercises())?;
        }
        writeln!(out, "\nRefused at once, with the architecture's name:\n")?;
        for f in &refused {
            writeln!(out, "- {} ({}): {}", f.name(), f.arch(), f.exercises())?;
        }
        let ops: Vec<String> = ops.iter().map(|(op, n)| format!("{op} {n}")).collect();
        writeln!(out, "\nOps above the layer, with the number of these models that hold them: {}.\n", ops.join(", "))?;
        writeln!(out, "## Types of weights\n")?;
        writeln!(
            out,
            "Gradient / cosine; every matrix of the model in the type, where its rows allow it (otherwise Q8_0 or F32)."
        )?;
        for types in types.chunks(7) {
            let names: Vec<String> = types.iter().map(|t| t.name()).collect();
            writeln!(out, "\n| model | {} |\n| --- |{}", names.join(" | "), " --- |".repeat(names.len()))?;
            for f in &trained {
                let cells: Vec<&str> =
                    names.iter().map(|t| table.get(&(f.name(), t.clone())).map_or("", String::as_str)).collect();
                writeln!(out, "| {} | {} |", f.name(), cells.join(" | "))?;
            }
        }
        Ok(())
    };
    write(&mut out).expect("a string takes any text");
    print!("{out}");
    if passed == cases.len() { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE }
}
