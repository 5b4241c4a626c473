//! `bidpo doctor`: CPU features, devices and settings of this build and machine, with advice where performance is lost.

use crate::terminal::streams;
use ggml_grad::graph::cpu_level;
use ggml_grad::llama::{self, CpuFeature};
use serde_json::json;
use std::process::ExitCode;

/// The CPU level that this program was compiled for, where it comes from an archive (`scripts/dist.sh`).
const BUILD_LEVEL: Option<&str> = option_env!("BIDPO_BUILD_LEVEL");
/// The commit it was compiled from, where the build says so.
const COMMIT: Option<&str> = option_env!("BIDPO_COMMIT");

/// Options of `bidpo doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Workers (`bidpo worker`) whose devices are listed too.
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', env = "BIDPO_RPC")]
    rpc: Vec<String>,
    /// Print JSON on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let features = llama::cpu_features();
    let threads = llama::default_threads();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let setting = std::env::var("BIDPO_THREADS").ok();
    for worker in args.rpc.iter().filter(|w| !w.is_empty()) {
        llama::connect_worker(worker)?;
    }
    let devices = llama::devices();
    let kernels = cpu_level();
    let warnings: Vec<String> = [
        // An archive's build of a lower level is no fault where it was asked for.
        (BUILD_LEVEL.is_none() || std::env::var_os("BIDPO_CPU").is_none())
            .then(|| slow_build(&features, BUILD_LEVEL))
            .flatten(),
        cfg!(debug_assertions)
            .then(|| "this is a debug build: training is many times slower; use `cargo build --release`".to_owned()),
        thread_advice(setting.as_deref(), threads, cores),
        kernels.as_ref().err().map(|e| format!("{e}; the variable is ignored here, other commands refuse it")),
    ]
    .into_iter()
    .flatten()
    .collect();
    if args.json {
        let report = json!({
            "bidpo": env!("CARGO_PKG_VERSION"),
            "commit": COMMIT,
            "build_level": BUILD_LEVEL,
            "llama_cpp_sys_2": llama::LLAMA_CPP_SYS_VERSION,
            "ggml": llama::ggml_version(),
            "ggml_commit": llama::ggml_commit(),
            "target": target(),
            "cargo_features": cargo_features(),
            "backends": llama::backends(),
            "devices": devices.iter().map(|d| json!({
                "name": d.name, "description": d.description, "kind": d.kind,
                "memory_free": d.free, "memory_total": d.total,
            })).collect::<Vec<_>>(),
            "threads": threads,
            "cores": cores,
            "cpu_features": features.iter().map(|f| json!({
                "name": f.name, "cpu": f.in_cpu, "ggml": f.in_ggml, "bidpo": f.in_bidpo,
            })).collect::<Vec<_>>(),
            "kernel_level": kernels.as_ref().ok().map(|level| level.name()),
            "system_info": llama::system_info(),
            "warnings": warnings,
        });
        streams::out_json(serde_json::to_string_pretty(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    print!("{}", about_build());
    for d in &devices {
        println!(
            "device      {}: {} ({}), {} of {} GiB free",
            d.name,
            d.description,
            d.kind,
            gib(d.free),
            gib(d.total)
        );
    }
    let source = if setting.is_some() { "BIDPO_THREADS" } else { "default" };
    println!("threads     {threads} ({source}; this process may use {cores} cores)");
    print!("{}", about_cpu(&features));
    println!();
    if warnings.is_empty() {
        println!("No problem found.");
    }
    for warning in &warnings {
        println!("WARNING: {warning}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What `--version --verbose` prints: the build, and what it makes of this CPU.
pub fn build() -> String {
    format!("{}{}", about_build(), about_cpu(&llama::cpu_features()))
}

/// Lines about the program, llama.cpp and its backends.
fn about_build() -> String {
    let of = |commit: Option<&str>| commit.map_or_else(String::new, |c| format!(" (commit {c})"));
    let level = BUILD_LEVEL.map_or_else(String::new, |level| format!("build       for CPU level {level}\n"));
    format!(
        "bidpo       {}{}, {}, cargo features: {}\n{level}llama.cpp   from llama-cpp-sys-2 {}, ggml {}{}\nbackends    {}\n",
        env!("CARGO_PKG_VERSION"),
        of(COMMIT),
        target(),
        or_none(cargo_features()),
        llama::LLAMA_CPP_SYS_VERSION,
        llama::ggml_version(),
        of(llama::ggml_commit().as_deref()),
        llama::backends().join(", ")
    )
}

/// Lines about the vector extensions of the CPU, and which of them are used.
fn about_cpu(features: &[CpuFeature]) -> String {
    let line = |label: &str, has: &dyn Fn(&CpuFeature) -> bool| {
        format!("{label:<11} {}\n", or_none(features.iter().filter(|&f| has(f)).map(|f| f.name).collect()))
    };
    let kernels = cpu_level().map_or_else(
        |_| String::new(),
        |level| {
            let forced = if std::env::var_os("BIDPO_CPU").is_some() { "BIDPO_CPU" } else { "the CPU's highest" };
            format!("kernels     {level} ({forced})\n")
        },
    );
    line("this CPU", &|f| f.in_cpu)
        + &line("ggml uses", &|f| f.in_ggml)
        + &line("bidpo uses", &|f| f.in_bidpo)
        + &kernels
}

fn or_none(list: Vec<&str>) -> String {
    if list.is_empty() { "none".to_owned() } else { list.join(" ") }
}

fn target() -> String {
    format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)
}

/// The cargo features compiled in.
fn cargo_features() -> Vec<&'static str> {
    [("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal")), ("vulkan", cfg!(feature = "vulkan"))]
        .into_iter()
        .filter_map(|(name, on)| on.then_some(name))
        .collect()
}

fn gib(bytes: usize) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 30))
}

/// The warning for a build that leaves vector extensions of this processor unused. `level` is that of an archive's build.
fn slow_build(features: &[CpuFeature], level: Option<&str>) -> Option<String> {
    let unused = |used: fn(&CpuFeature) -> bool| -> Vec<&str> {
        features.iter().filter(|f| f.in_cpu && !used(f)).map(|f| f.name).collect()
    };
    let ggml = unused(|f| f.in_ggml);
    if let Some(level) = level {
        return (!ggml.is_empty()).then(|| {
            format!(
                "this is the build for CPU level {level}; ggml does without {}, which this CPU has: no build of the archive \
                 uses just what this CPU has, one from source does (docs/install.md)",
                ggml.join(", ")
            )
        });
    }
    if !ggml.is_empty() {
        return Some(format!(
            "ggml was compiled without {}, which this CPU has: everything is slower, without AVX2 about five times. \
             Build inside the repository, where .cargo/config.toml says target-cpu=native; if the environment sets \
             RUSTFLAGS, that file is ignored: add `-C target-cpu=native` to RUSTFLAGS. Then `cargo clean -p \
             llama-cpp-sys-2 && cargo build --release`",
            ggml.join(", ")
        ));
    }
    let bidpo = unused(|f| f.in_bidpo);
    (!bidpo.is_empty()).then(|| {
        format!(
            "bidpo's own code was compiled without {}, which this CPU has: training is slower. Build with \
             `-C target-cpu=native` (.cargo/config.toml, or RUSTFLAGS where that is set)",
            bidpo.join(", ")
        )
    })
}

/// A warning about the number of threads, if there is one.
fn thread_advice(setting: Option<&str>, threads: u32, cores: usize) -> Option<String> {
    if let Some(text) = setting.filter(|t| !t.parse::<u32>().is_ok_and(|n| (1..=512).contains(&n))) {
        return Some(format!("BIDPO_THREADS is {text:?}: it must be a number from 1 to 512"));
    }
    (threads as usize > cores).then(|| {
        format!(
            "{threads} threads on {cores} cores: ggml's threads wait for each other after each node, so this is slower than {cores} threads"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_build_is_told_what_to_do() {
        let feature = |name, in_ggml, in_bidpo| CpuFeature { name, in_cpu: true, in_ggml, in_bidpo };
        let absent = CpuFeature { name: "AVX512", in_cpu: false, in_ggml: false, in_bidpo: false };
        let from_source = |features: &[CpuFeature]| slow_build(features, None);
        assert_eq!(from_source(&[feature("AVX", true, true), absent]), None);
        let text = from_source(&[feature("AVX", false, false), feature("AVX2", false, true), absent]).unwrap();
        assert!(text.contains("without AVX, AVX2, which this CPU has") && !text.contains("AVX512"), "{text}");
        assert!(text.contains("RUSTFLAGS") && text.contains("config.toml"), "{text}");
        let text = from_source(&[feature("AVX", true, false)]).unwrap();
        assert!(text.contains("bidpo's own code"), "{text}");
        // A build of an archive is not compiled again.
        let lacking = [feature("AVX2", true, true), feature("AVX512", false, false)];
        let text = slow_build(&lacking, Some("avx2")).unwrap();
        assert!(text.contains("level avx2") && text.contains("AVX512") && !text.contains("cargo clean"), "{text}");
        assert_eq!(slow_build(&lacking[..1], Some("avx2")), None);
    }

    #[test]
    fn threads() {
        assert_eq!(thread_advice(None, 2, 2), None);
        assert_eq!(thread_advice(Some("1"), 1, 2), None);
        assert!(thread_advice(Some("many"), 2, 2).unwrap().contains("\"many\""));
        assert!(thread_advice(Some("8"), 8, 2).unwrap().contains("8 threads on 2 cores"));
    }
}
