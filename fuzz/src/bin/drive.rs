//! Fuzzing with a stable compiler: changed inputs for each reader, for a time, in a process of its own.
//!
//! `drive [--seconds N] [--seed S] [READER...]` (60 seconds for each reader of all) prints a line a reader. An input that ends
//! the process, panics, or takes more than ten seconds is kept in `fuzz/artifacts/READER`. `drive --seeds FOLDER` writes the
//! valid inputs as libFuzzer's corpora. `drive --input FILE READER` reads one input.
//!
//! Nothing measures which code an input reaches: an input that a reader accepts is a base of further ones.

use bidpo_fuzz::readers::{READERS, Reader, reader};
use bidpo_fuzz::{abort_on_panic, changed};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest time of one reading, in milliseconds.
const LONGEST: u64 = 10_000;
/// An input that takes longer is kept, though it is no fault.
const SLOW: Duration = Duration::from_secs(2);
/// Address space of a process in KiB: an input must not fill the memory.
const SPACE: u64 = 8 << 20;
/// Accepted inputs that are kept.
const POOL: usize = 256;
/// Largest input in bytes.
const LARGEST: usize = 1 << 19;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut take = |name: &str| {
        let at = args.iter().position(|a| a == name)?;
        let value = args.get(at + 1).cloned();
        args.drain(at..(at + 2).min(args.len()));
        value
    };
    let number = |text: Option<String>, default: u64| match text.map(|t| t.parse()) {
        None => default,
        Some(Ok(n)) => n,
        Some(Err(_)) => usage("--seconds and --seed take whole numbers"),
    };
    let seconds = number(take("--seconds"), 60);
    let seed = number(take("--seed"), 0);
    let (folder, input, state) = (take("--seeds"), take("--input"), take("--state"));
    let readers: Vec<&Reader> = match &args[..] {
        [] => READERS.iter().collect(),
        names => names.iter().map(|n| reader(n).unwrap_or_else(|| usage(&format!("{n} is no reader")))).collect(),
    };
    if let Some(folder) = folder {
        return write_seeds(Path::new(&folder), &readers);
    }
    match (input, state, &readers[..]) {
        (Some(file), _, [one]) => {
            let bytes = std::fs::read(&file).unwrap_or_else(|e| usage(&format!("{file}: {e}")));
            println!("{}: {}", one.name, if (one.read)(&bytes) { "accepted" } else { "refused" });
            ExitCode::SUCCESS
        }
        (None, Some(state), [one]) => work(one, Duration::from_secs(seconds), seed, Path::new(&state)),
        (None, None, _) => {
            let failed = readers.iter().filter(|reader| !watch(reader, seconds, seed)).count();
            if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        _ => usage("--input takes one reader"),
    }
}

fn usage(what: &str) -> ! {
    let names: Vec<&str> = READERS.iter().map(|r| r.name).collect();
    eprintln!("drive: {what}\nusage: drive [--seconds N] [--seed S] [--seeds FOLDER | --input FILE] [READER...]");
    eprintln!("readers: {}", names.join(", "));
    std::process::exit(2)
}

fn write_seeds(folder: &Path, readers: &[&Reader]) -> ExitCode {
    for reader in readers {
        let folder = folder.join(reader.name);
        std::fs::create_dir_all(&folder).expect("a folder for seeds");
        for seed in (reader.seeds)() {
            std::fs::write(folder.join(name_of(&seed)), seed).expect("a seed can be written");
        }
    }
    ExitCode::SUCCESS
}

fn name_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// Runs one reader in a process of its own. It returns whether nothing was found.
fn watch(reader: &Reader, seconds: u64, seed: u64) -> bool {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let state = folder.path().join("input");
    let this = std::env::current_exe().expect("the program's own path");
    let line = format!("ulimit -c 0; ulimit -v {SPACE}; exec \"$0\" \"$@\"");
    let mut child = Command::new("sh")
        .args(["-c", &line])
        .arg(this)
        .args(["--seconds", &seconds.to_string(), "--seed", &seed.to_string(), reader.name, "--state"])
        .arg(&state)
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .spawn()
        .expect("this program can be started");
    let status = child.wait().expect("its status");
    if status.success() {
        return true;
    }
    match std::fs::read(&state) {
        Ok(input) => {
            let path = keep(reader, "", &input);
            println!("{:<18} FAULT: {status}, input {}", reader.name, path.display());
        }
        Err(_) => println!("{:<18} FAULT: {status} before the first input", reader.name),
    }
    false
}

/// Writes an input into the reader's folder of artifacts. It returns its path.
fn keep(reader: &Reader, before: &str, input: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts").join(reader.name);
    std::fs::create_dir_all(&folder).expect("a folder for inputs");
    let path = folder.join(format!("{before}{}", name_of(input)));
    std::fs::write(&path, input).expect("an input can be written");
    path
}

/// Reads changed inputs for a time. Each input is in the file `state` before it is read.
fn work(reader: &Reader, time: Duration, seed: u64, state: &Path) -> ExitCode {
    let started = Instant::now();
    // When the reading of now began, in milliseconds since the start, plus 1.
    static BEGAN: AtomicU64 = AtomicU64::new(0);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let began = BEGAN.load(Ordering::Relaxed);
            if began > 0 && started.elapsed().as_millis() as u64 > began + LONGEST {
                eprintln!("an input takes more than {LONGEST} ms");
                std::process::abort();
            }
        }
    });
    abort_on_panic();
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ u64::from(name_of(reader.name.as_bytes()).as_bytes()[0]));
    let mut pool = (reader.seeds)();
    let seeds = pool.len();
    let read = |bytes: &[u8]| {
        std::fs::write(state, bytes).expect("the input can be written");
        BEGAN.store(started.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        let accepted = (reader.read)(bytes);
        BEGAN.store(0, Ordering::Relaxed);
        accepted
    };
    for (i, seed) in pool.iter().enumerate() {
        if !read(seed) {
            eprintln!("note: {}: seed {} of {seeds} is refused", reader.name, i + 1);
        }
    }
    let (mut inputs, mut accepted, mut slowest) = (0u64, 0u64, Duration::ZERO);
    while started.elapsed() < time {
        let base = &pool[rng.random_range(0..pool.len())];
        let Some(input) = changed(reader.form, base, rng.random()).filter(|input| input.len() <= LARGEST) else {
            continue;
        };
        let began = Instant::now();
        let taken = read(&input);
        let took = began.elapsed();
        slowest = slowest.max(took);
        if took > SLOW {
            println!(
                "{:<18} slow: {:.1} s, input {}",
                reader.name,
                took.as_secs_f64(),
                keep(reader, "slow-", &input).display()
            );
        }
        inputs += 1;
        if taken {
            accepted += 1;
            if pool.len() < POOL {
                pool.push(input);
            } else {
                let at = rng.random_range(seeds..POOL);
                pool[at] = input;
            }
        }
    }
    println!(
        "{:<18} {inputs:>8} inputs, {accepted:>7} accepted, slowest {:>6.1} ms, {:.0} s",
        reader.name,
        slowest.as_secs_f64() * 1e3,
        started.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}
