//! Valid inputs of every kind, changed at random where their structure is: each reader gives a value or an error, soon, and
//! without much memory. The readers, inputs and changes are those of `fuzz/`.

use crate::fuzz::changed;
use crate::fuzz::readers::{READERS, Reader};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::time::{Duration, Instant};

/// Longest time of one reading.
const TIME: Duration = Duration::from_secs(10);
/// Most memory, in KiB, that all readings of some kinds of input add to the process.
const MEMORY: u64 = 1 << 20;

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Gives a reader its valid inputs, of which it accepts at least one, then changed ones.
fn mutate(reader: &Reader, cases: u32) {
    let seeds = (reader.seeds)();
    let accepted = seeds.iter().filter(|seed| (reader.read)(seed)).count();
    assert!(accepted > 0, "{}: none of {} valid inputs is accepted", reader.name, seeds.len());
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let result = runner.run(&(0..seeds.len(), any::<u64>()), |(seed, decisions)| {
        let Some(input) = changed(reader.form, &seeds[seed], decisions) else { return Ok(()) };
        let started = Instant::now();
        (reader.read)(&input);
        prop_assert!(started.elapsed() < TIME, "{:?}", started.elapsed());
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{}: {error}", reader.name));
}

/// The readers whose names begin so.
fn mutate_all(beginnings: &[&str], cases: u32) {
    let before = peak();
    let chosen: Vec<_> = READERS.iter().filter(|r| beginnings.iter().any(|b| r.name.starts_with(b))).collect();
    assert!(chosen.len() >= beginnings.len(), "{beginnings:?}");
    chosen.iter().for_each(|reader| mutate(reader, cases));
    let more = peak().saturating_sub(before);
    assert!(more < MEMORY, "{beginnings:?}: {more} KiB more");
}

const VECTORS: [&str; 2] = ["vector_", "model_"];
const ADAPTERS: [&str; 2] = ["adapter_", "ablation"];
// Parquet: its crate takes the memory that a damaged page asks for (docs/reliability.md), and is fuzzed by itself.
const DATA: [&str; 8] = ["pairs_json", "pairs_csv", "truthfulqa_", "choice", "mmlu", "mapping", "prompts", "gold"];
const RUNS: [&str; 4] = ["results", "split", "checkpoint", "cache"];
const TEXTS: [&str; 3] = ["template", "chat_line", "grammar"];
const REQUESTS: [&str; 1] = ["request"];

#[test]
fn every_reader_is_here() {
    let groups = [&VECTORS[..], &ADAPTERS, &DATA, &RUNS, &TEXTS, &REQUESTS, &["pairs_parquet"]].concat();
    for reader in READERS {
        assert!(groups.iter().any(|name| reader.name.starts_with(name)), "{} is in no test", reader.name);
    }
}

#[test]
fn vector_and_model_files() {
    mutate_all(&VECTORS, 200);
}

#[test]
fn adapters_and_weights_of_models() {
    mutate_all(&ADAPTERS, 200);
}

#[test]
fn files_of_pairs_and_questions() {
    mutate_all(&DATA, 100);
}

#[test]
fn files_of_runs() {
    mutate_all(&RUNS, 200);
}

#[test]
fn templates_and_chat_lines() {
    mutate_all(&TEXTS, 150);
}

#[test]
fn heads_and_bodies_of_requests() {
    mutate_all(&REQUESTS, 200);
}
