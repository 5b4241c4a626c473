//! Files of pairs, questions and prompts.

use super::{file, told};
use bidpo_core::data::inspect::{PairText, inspect};
use bidpo_core::data::mapping::MappingFile;
use bidpo_core::data::truthfulqa::TruthfulQa;
use bidpo_core::data::{PreferenceSet, choice, mmlu};
use bidpo_core::extract::read_prompts;
use std::path::Path;

fn pairs(name: &str, bytes: &[u8]) -> bool {
    let Some(set) = told(PreferenceSet::load(&file(name, bytes))) else { return false };
    // What `data inspect` and `train` compute of it.
    inspect(&set.pairs.iter().map(PairText::from).collect::<Vec<_>>());
    true
}

pub(super) fn pairs_jsonl(bytes: &[u8]) -> bool {
    pairs("p.jsonl", bytes)
}

pub(super) fn pairs_json(bytes: &[u8]) -> bool {
    pairs("p.json", bytes)
}

pub(super) fn pairs_csv(bytes: &[u8]) -> bool {
    pairs("p.csv", bytes)
}

pub(super) fn pairs_parquet(bytes: &[u8]) -> bool {
    pairs("p.parquet", bytes)
}

fn truthfulqa(name: &str, bytes: &[u8]) -> bool {
    told(TruthfulQa::load(&file(name, bytes))).is_some()
}

pub(super) fn truthfulqa_csv(bytes: &[u8]) -> bool {
    truthfulqa("q.csv", bytes)
}

pub(super) fn truthfulqa_json(bytes: &[u8]) -> bool {
    truthfulqa("q.json", bytes)
}

/// Under the mapping of the set that it looks like, and under one that it does not.
pub(super) fn choice(bytes: &[u8]) -> bool {
    let path = file("c.jsonl", bytes);
    let under = |name: &&str| {
        let mapping = MappingFile::open(Path::new(name)).expect("a mapping of the program");
        let Some((set, _)) = told(choice::load_mapped(&path, name, &mapping)) else { return false };
        for item in &set.items {
            let wrong = item.choices.len() - item.answers.len();
            assert!(wrong > 0 && item.answers.iter().all(|&i| i < item.choices.len()), "{item:?}");
        }
        true
    };
    ["arc", "bigbench", "boolq", "hellaswag", "piqa", "winogrande"].iter().filter(|name| under(name)).count() > 0
}

/// Two files of one subject.
pub(super) fn mmlu(bytes: &[u8]) -> bool {
    file("dev/algebra_dev.csv", bytes);
    let test = file("test/algebra_test.csv", bytes);
    let folder = test.parent().and_then(Path::parent).expect("two folders");
    let Some(subjects) = told(mmlu::load(folder, true)) else { return false };
    assert!(subjects.iter().flat_map(|s| &s.test).all(|item| item.choices.len() == 4 && item.answers[0] < 4));
    true
}

pub(super) fn mapping(bytes: &[u8]) -> bool {
    let Some(mapping) = told(MappingFile::open(&file("mapping.json", bytes))) else { return false };
    let rows =
        br#"{"question":"Q","choices":{"text":["x","y"],"label":["A","B"]},"answerKey":"B","answer":true,"ctx":"C"}"#;
    told(choice::load_mapped(&file("rows.jsonl", rows), "mapping.json", &mapping));
    true
}

pub(super) fn prompts(bytes: &[u8]) -> bool {
    let read = ["x.jsonl", "x.csv", "x.txt"].map(|name| told(read_prompts(&file(name, bytes))).is_some());
    read.contains(&true)
}
