//! Usual sets of questions in the forms of their authors and of data hubs (tests/cases/eval, texts of ours), by the mappings that
//! come with the program: question, choices and right answer, as each set's own documentation says.

#![allow(clippy::unwrap_used)] // a failure there is the message

use bidpo_core::data::choice::load_mapped;
use bidpo_core::data::mapping::MappingFile;
use bidpo_core::data::truthfulqa::{Choice, TruthfulQa};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

struct Case {
    file: &'static str,
    mapping: &'static str,
    question: &'static str,
    choices: &'static [&'static str],
    right: usize,
}

const fn case(
    file: &'static str,
    mapping: &'static str,
    question: &'static str,
    choices: &'static [&'static str],
    right: usize,
) -> Case {
    Case { file, mapping, question, choices, right }
}

const CASES: &[Case] = &[
    case("arc.jsonl", "arc", "Which of these is a fruit?", &["a brick", "a pear", "a stone", "a leaf"], 1),
    case("arc-ai2.jsonl", "arc", "Which of these is a fruit?", &["a brick", "a pear", "a stone", "a leaf"], 1),
    case("hellaswag.jsonl", "hellaswag", "Which of these is a fruit?", &["a brick", "a pear", "a stone", "a leaf"], 1),
    case("piqa.jsonl", "piqa", "Which of these is a fruit?", &["a brick", "a pear"], 1),
    case("boolq.jsonl", "boolq", "A pear grows on a tree. is a pear a fruit", &["no", "yes"], 1),
    case("boolq-superglue.jsonl", "boolq", "A brick is burnt clay. is a brick a fruit", &["no", "yes"], 0),
    case(
        "winogrande.jsonl",
        "winogrande",
        "The pear lay beside the brick, and _ was eaten.",
        &["the brick", "the pear"],
        1,
    ),
    case("mmlu.jsonl", "mmlu", "Which of these is a fruit?", &["a brick", "a pear", "a stone", "a leaf"], 1),
    case("mmlu-pro.jsonl", "mmlu-pro", "Which of these is a fruit?", &["a brick", "a pear", "a stone", "a leaf"], 1),
    case("bigbench.json", "bigbench", "Which of these is a fruit?", &["a brick", "a pear", "a stone", "a leaf"], 1),
    case(
        "bigbench-hub.jsonl",
        "bigbench",
        "Which of these is a fruit?",
        &["a brick", "a pear", "a stone", "a leaf"],
        1,
    ),
    case(
        "commonsenseqa.jsonl",
        "commonsenseqa",
        "Which of these is a fruit?",
        &["a brick", "a pear", "a stone", "a leaf"],
        1,
    ),
    case(
        "openbookqa.jsonl",
        "openbookqa",
        "Which of these is a fruit?",
        &["a brick", "a pear", "a stone", "a leaf"],
        1,
    ),
    case(
        "race.jsonl",
        "race",
        "Someone eats a pear. Which of these is a fruit?",
        &["a brick", "a pear", "a stone", "a leaf"],
        1,
    ),
    case("sciq.jsonl", "sciq", "Which of these is a fruit?", &["a pear", "a brick", "a stone", "a leaf"], 0),
    case("siqa.jsonl", "siqa", "Alex is hungry. Which of these is a fruit?", &["a brick", "a pear", "a stone"], 1),
    case("copa.jsonl", "copa", "Alex was hungry. effect", &["Alex ate a brick.", "Alex ate a pear."], 1),
    case("gpqa.csv", "gpqa", "Which of these is a fruit?", &["a pear", "a brick", "a stone", "a leaf"], 0),
    case("medmcqa.jsonl", "medmcqa", "Which of these is a fruit?", &["a brick", "a pear", "a stone", "a leaf"], 1),
    case("halueval.jsonl", "halueval", "A pear grows on a tree. Which of these is a fruit?", &["a pear", "a brick"], 0),
    case(
        "halueval-labels.jsonl",
        "halueval",
        "A pear grows on a tree. Which of these is a fruit? a brick",
        &["no", "yes"],
        1,
    ),
    #[cfg(feature = "parquet")]
    case("arc.parquet", "arc", "Which of these is a fruit?", &["a brick", "a pear", "a stone", "a leaf"], 1),
    #[cfg(feature = "parquet")]
    case(
        "hellaswag.parquet",
        "hellaswag",
        "Which of these is a fruit?",
        &["a brick", "a pear", "a stone", "a leaf"],
        1,
    ),
    #[cfg(feature = "parquet")]
    case("boolq.parquet", "boolq", "A pear grows on a tree. is a pear a fruit", &["no", "yes"], 1),
];

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/eval").join(file)
}

#[test]
fn every_set_is_read_right() {
    for Case { file, mapping, question, choices, right } in CASES {
        let mapping_file = MappingFile::open(Path::new(mapping)).unwrap();
        let (set, _) = load_mapped(&path(file), mapping, &mapping_file).unwrap_or_else(|e| panic!("{file}: {e}"));
        let item = &set.items[0];
        assert_eq!((item.question.as_str(), &item.answers), (*question, &vec![*right]), "{file}");
        assert_eq!(item.choices, *choices, "{file}");
    }
    let tried: BTreeSet<&str> = CASES.iter().map(|c| c.mapping).collect();
    assert_eq!(tried, MappingFile::BUILTIN.into_iter().collect(), "each mapping has a file");
}

#[test]
fn truthfulqa_as_hubs_have_it() {
    let list = |c: &[Choice]| c.iter().map(|c| (c.text.clone(), c.is_true)).collect::<Vec<_>>();
    let t = |s: &str| (s.to_owned(), true);
    let f = |s: &str| (s.to_owned(), false);
    let question = "Is glass a liquid?";
    for file in ["truthfulqa-choice.jsonl", "truthfulqa-choice.json", "mc_task.json"] {
        let set = TruthfulQa::load(&path(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let q = &set.questions[0];
        assert_eq!((set.questions.len(), q.text.as_str()), (1, question), "{file}");
        assert_eq!(list(&q.mc1), [t("No, a solid."), f("Yes, it flows.")], "{file}");
        assert_eq!(list(&q.mc2), [t("No, a solid."), t("It is solid."), f("Yes, it flows.")], "{file}");
    }
    #[cfg(feature = "parquet")]
    {
        let set = TruthfulQa::load(&path("truthfulqa-choice.parquet")).unwrap();
        assert_eq!(list(&set.questions[0].mc1), [t("No, a solid."), f("Yes, it flows.")]);
    }
    for file in ["truthfulqa-generation.jsonl", "TruthfulQA.csv"] {
        let q = TruthfulQa::load(&path(file)).unwrap_or_else(|e| panic!("{file}: {e}")).questions.remove(0);
        assert_eq!((q.text.as_str(), q.category.as_deref()), (question, Some("Matter")), "{file}");
        assert_eq!(list(&q.mc2), [t("No, a solid."), t("It is solid."), f("Yes, it flows.")], "{file}");
    }
}
