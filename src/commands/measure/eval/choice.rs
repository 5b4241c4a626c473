//! `bidpo eval choice`.

use super::measure::{PromptKind, measure};
use crate::args::eval::{PromptArgs, RunArgs, SplitArgs, question_form};
use bidpo_core::data::choice::{load, load_mapped};
use bidpo_core::data::mapping::{AnswerAs, Mapping, MappingFile};
use bidpo_core::eval::items::{Benchmark, Protocol, part_name};
use bidpo_core::eval::prompt::QUESTION_FORM;
use bidpo_core::eval::task::{Choosing, DataFile, Task};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `bidpo eval choice`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The questions: JSON Lines, JSON, CSV or TSV with a header (also .gz, .zst), or Parquet.
    #[arg(long, short = 'd', value_name = "FILE")]
    data: PathBuf,
    /// Keys of a usual set: arc, bigbench, boolq, commonsenseqa, copa, gpqa, halueval, hellaswag, medmcqa, mmlu, mmlu-pro, openbookqa,
    /// piqa, race, sciq, siqa, winogrande; or a file of such keys.
    #[arg(long, value_name = "NAME|FILE.json", conflicts_with_all =
        ["question", "choices", "answer", "first", "labels", "scores", "answer_as", "category", "separator", "fixed"])]
    mapping: Option<PathBuf>,
    /// Column or key of the question; several are joined by a space. `a.b` reaches into an object.
    #[arg(long, value_name = "KEY", value_delimiter = ',', default_value = "question")]
    question: Vec<String>,
    /// Key of a list of choices (texts, objects with text and label, or choices with scores), or several columns with one
    /// choice each.
    #[arg(long, value_name = "KEY", value_delimiter = ',', required_unless_present_any = ["fixed", "mapping"])]
    choices: Vec<String>,
    /// Key of the right answer: an index, a letter, a label, true or false, the text itself; or one of the columns of
    /// --choices, which is then right in every question.
    #[arg(long, value_name = "KEY", default_value = "answer")]
    answer: String,
    /// Number of the first choice where answers are numbers.
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: usize,
    /// Key of the choices' labels, where the answer is one of them and the choices do not carry them.
    #[arg(long, value_name = "KEY")]
    labels: Option<String>,
    /// Key of a list of scores, one for each choice: the choices with the highest are right.
    #[arg(long, value_name = "KEY", conflicts_with_all = ["answer", "labels", "answer_as"])]
    scores: Option<String>,
    /// What an answer is that could be the text of one choice and the index or letter of another.
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with = "labels")]
    answer_as: Option<AnswerAsName>,
    /// Key of a category, by which uncertainty is clustered.
    #[arg(long, value_name = "KEY")]
    category: Option<String>,
    /// Take the first of several texts in a choice's cell; they are separated by this.
    #[arg(long, value_name = "TEXT")]
    separator: Option<String>,
    /// The same choices for every question: no,yes
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "choices")]
    fixed: Vec<String>,
    /// Show the choices as lettered options, in an order drawn by the seed for each question, and read the letter, instead
    /// of scoring each as a continuation.
    #[arg(long)]
    show_options: bool,
    /// Prompt format of a question: {question} is replaced by it, \n by a new line. The answer follows after one space
    /// [default: Q: {question}\nA:].
    #[arg(long = "prompt-format", alias = "form", value_name = "TEXT", conflicts_with = "show_options")]
    form: Option<String>,
    #[command(flatten)]
    split: SplitArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// The preset where --prompt gives none.
const PRESET: &str = "none";

/// How an answer is read that could be two.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum AnswerAsName {
    /// The text of the right choice.
    Text,
    /// Its index or letter.
    #[value(alias = "place")]
    Index,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let preset = args.prompt.prompt.as_deref().unwrap_or(PRESET);
    let form = question_form(args.form.as_deref(), QUESTION_FORM, preset)?;
    let mapping = Mapping {
        question: args.question,
        choices: args.choices,
        answer: args.answer,
        first: args.first,
        labels: args.labels,
        scores: args.scores,
        answer_as: args.answer_as.map(|a| match a {
            AnswerAsName::Text => AnswerAs::Text,
            AnswerAsName::Index => AnswerAs::Place,
        }),
        category: args.category,
        separator: args.separator,
        fixed: args.fixed,
    };
    let (set, mapping) = match &args.mapping {
        Some(name) => load_mapped(&args.data, &name.display().to_string(), &MappingFile::open(name)?)?,
        None => (load(&args.data, &mapping)?, mapping),
    };
    if let Some(first) = set.contradictions.first() {
        eprintln!(
            "bidpo: warning: {}: {} questions are left out, whose right answer is also a wrong one (the first on line {first})",
            args.data.display(),
            set.contradictions.len()
        );
    }
    let items = set.items;
    let data = DataFile::new(args.data)?;
    let selected = args.split.select(args.run.limit, items.len(), &data.sha256)?;
    let mut selection = selected.facts;
    selection["mapping"] = serde_json::json!(format!("{mapping:?}"));
    let kind = PromptKind {
        // Permuted: where one column is always right, in the data's order one letter would be.
        protocol: if args.show_options { Protocol::Letter } else { Protocol::Choice },
        form,
        preset: PRESET,
        has_splits: true,
    };
    let task = Task {
        name: "choice",
        benchmark: Benchmark::choice(&items, &selected.items),
        train: selected.train.as_ref().map(|t| Benchmark::choice(&items, t)),
        choose: selected.choose.map(|(part, which)| Choosing {
            part: part_name(part),
            benchmark: Benchmark::choice(&items, &which),
            protocol: kind.protocol,
            selection: serde_json::json!({ "part": part_name(part), "mapping": selection["mapping"] }),
        }),
        data: vec![data],
        selection,
    };
    measure(&args.run, &args.prompt, kind, task, None)
}
