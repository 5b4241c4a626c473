//! TruthfulQA: the official files `mc_task.json` and `TruthfulQA.csv` (github.com/sylinrl/TruthfulQA), and the two sets into
//! which data hubs divide them (`multiple_choice`, `generation`).
//!
//! Lin, Hilton, Evans: "TruthfulQA: Measuring How Models Mimic Human Falsehoods" (arXiv 2109.07958). The CSV is the
//! January 2025 revision, which names one best incorrect answer for each question; the older CSV is read too, without
//! the binary setting.

use super::source::{Place, Row, Source, SourceError};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// An invalid TruthfulQA file.
#[derive(Debug, thiserror::Error)]
pub enum TruthfulQaError {
    /// The file cannot be read as rows.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The contents do not match the format.
    #[error("{path}: {place}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Line or item, and column.
        place: String,
        /// The reason, and what to do.
        reason: String,
    },
}

/// A possible answer and whether it is true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The answer as it follows `A: `.
    pub text: String,
    /// True answers are marked 1 in the official file.
    pub is_true: bool,
}

/// One question with the answers of each setting, in the file's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The question.
    pub text: String,
    /// Its category (the CSV only).
    pub category: Option<String>,
    /// MC1: exactly one true answer, at least one false.
    pub mc1: Vec<Choice>,
    /// MC2: at least one true answer and one false.
    pub mc2: Vec<Choice>,
    /// Binary: the best answer and the best incorrect answer (the 2025 CSV only).
    pub binary: Option<[Choice; 2]>,
}

impl Question {
    /// An answer that is listed as true and as false: neither can win against itself. The official CSV has some; they are
    /// scored as they stand, as the reference does.
    pub fn contradiction(&self) -> Option<&str> {
        [&self.mc1, &self.mc2].into_iter().find_map(|choices| {
            let truths: HashSet<&str> = choices.iter().filter(|c| c.is_true).map(|c| c.text.as_str()).collect();
            choices.iter().find(|c| !c.is_true && truths.contains(c.text.as_str())).map(|c| c.text.as_str())
        })
    }
}

/// A file of questions.
#[derive(Debug, Clone)]
pub struct TruthfulQa {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
    /// The questions, in file order; never empty.
    pub questions: Vec<Question>,
}

impl TruthfulQa {
    /// Reads a file in any of its forms, told by its columns.
    ///
    /// # Errors
    /// [`TruthfulQaError`], naming the file, the line or item, and the column.
    pub fn load(path: &Path) -> Result<Self, TruthfulQaError> {
        Self::of(&Source::load_table(path)?)
    }

    /// Reads the file if it has one of the forms; `None` for other files, and for those that cannot be read.
    ///
    /// # Errors
    /// As [`TruthfulQa::load`].
    pub fn recognized(path: &Path) -> Result<Option<Self>, TruthfulQaError> {
        match Source::load(path) {
            Ok(source) if form(&source).is_some() => Self::of(&source).map(Some),
            _ => Ok(None),
        }
    }

    fn of(source: &Source) -> Result<Self, TruthfulQaError> {
        let at = |place: String, reason: String| TruthfulQaError::Format { path: source.path.clone(), place, reason };
        let Some(form) = form(source) else {
            let reason = match first(source) {
                None => "there is no question in this file".to_owned(),
                Some(row) => format!(
                    "this is no file of TruthfulQA: one has \"mc1_targets\" and \"mc2_targets\", or the columns \"Question\", \
                     \"Best Answer\", \"Correct Answers\" and \"Incorrect Answers\"; `bidpo eval choice` reads other \
                     questions with choices; this file has {}",
                    row.keys().map(|k| format!("{:?}", shorten(k))).collect::<Vec<_>>().join(", ")
                ),
            };
            return Err(at("line 1".into(), reason));
        };
        let one = |row: &Row| -> Result<Question, TruthfulQaError> {
            let object = match &row.value {
                Ok(Value::Object(object)) => object,
                Ok(other) => return Err(at(place(row), format!("a question is an object, this is {other}"))),
                Err(reason) => return Err(at(place(row), reason.clone())),
            };
            let question = match form {
                Form::Targets => of_targets(object),
                Form::Answers(names) => of_answers(object, &names),
            };
            question
                .and_then(|q| {
                    check(&q).map(|()| q).map_err(|(setting, reason)| Fault { column: setting.into(), reason })
                })
                .map_err(|fault| at(format!("{}, {:?}", place(row), fault.column), fault.reason))
        };
        let questions = source.rows.iter().map(one).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { path: source.path.clone(), sha256: source.sha256.clone(), questions })
    }
}

/// Names of the columns of a file with lists of answers.
#[derive(Debug, Clone, Copy)]
struct Names {
    question: &'static str,
    category: &'static str,
    best: &'static str,
    best_incorrect: &'static str,
    correct: &'static str,
    incorrect: &'static str,
}

/// `TruthfulQA.csv`, and the set `generation` of data hubs.
const NAMES: [Names; 2] = [
    Names {
        question: "Question",
        category: "Category",
        best: "Best Answer",
        best_incorrect: "Best Incorrect Answer",
        correct: "Correct Answers",
        incorrect: "Incorrect Answers",
    },
    Names {
        question: "question",
        category: "category",
        best: "best_answer",
        best_incorrect: "best_incorrect_answer",
        correct: "correct_answers",
        incorrect: "incorrect_answers",
    },
];

/// The form of a file.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// `mc1_targets` and `mc2_targets`.
    Targets,
    /// Columns with the answers of each kind.
    Answers(Names),
}

fn first(source: &Source) -> Option<&Map<String, Value>> {
    source.rows.iter().find_map(|row| row.value.as_ref().ok()?.as_object())
}

fn form(source: &Source) -> Option<Form> {
    let row = first(source)?;
    if row.contains_key("mc1_targets") || row.contains_key("mc2_targets") {
        return Some(Form::Targets);
    }
    let fits = |n: &&Names| [n.question, n.best, n.correct, n.incorrect].iter().all(|name| row.contains_key(*name));
    NAMES.iter().find(fits).map(|names| Form::Answers(*names))
}

/// The place of a row; items of a list are counted from 0, as in the official file.
fn place(row: &Row) -> String {
    match row.place {
        Place::Line(n) => format!("line {n}"),
        Place::Item(n) => format!("item {} (counted from 0)", n - 1),
        Place::Row(n) => format!("row {n}"),
    }
}

/// An invalid column of a row.
struct Fault {
    column: String,
    reason: String,
}

fn fault(column: &str, reason: impl Into<String>) -> Fault {
    Fault { column: column.to_owned(), reason: reason.into() }
}

fn text(object: &Map<String, Value>, column: &str) -> Result<String, Fault> {
    let text = object.get(column).and_then(Value::as_str).map(str::trim);
    match text {
        None => Err(fault(column, "a text is missing here")),
        Some("") => Err(fault(column, "this is empty")),
        Some(text) => Ok(text.to_owned()),
    }
}

fn of_targets(object: &Map<String, Value>) -> Result<Question, Fault> {
    let category = object.get("category").and_then(Value::as_str).map(str::trim).filter(|c| !c.is_empty());
    Ok(Question {
        text: text(object, "question")?,
        category: category.map(str::to_owned),
        mc1: targets(object, "mc1_targets")?,
        mc2: targets(object, "mc2_targets")?,
        binary: None,
    })
}

/// A value, read from the text in a table's cell where it is written as JSON there.
fn in_cell(value: &Value) -> Cow<'_, Value> {
    let written = value.as_str().filter(|text| text.trim_start().starts_with(['[', '{']));
    match written.and_then(|text| serde_json::from_str(text).ok()) {
        Some(read) => Cow::Owned(read),
        None => Cow::Borrowed(value),
    }
}

/// Answers with their labels: `{"answer": 1, ...}`, or `{"choices": [...], "labels": [...]}`.
fn targets(object: &Map<String, Value>, column: &str) -> Result<Vec<Choice>, Fault> {
    let missing = || {
        fault(
            column,
            "an object of answer -> 0 or 1 (or of two lists, choices and labels; as JSON in a table) is missing here",
        )
    };
    let found = in_cell(object.get(column).unwrap_or(&Value::Null));
    let map = found.as_object().ok_or_else(missing)?;
    let list = |keys: [&str; 2]| keys.iter().find_map(|key| map.get(*key).and_then(Value::as_array));
    let labelled: Vec<(&str, &Value)> = match (list(["choices", "texts"]), list(["labels", "label"])) {
        (Some(choices), Some(labels)) => {
            if choices.len() != labels.len() {
                let reason = format!("there are {} choices and {} labels", choices.len(), labels.len());
                return Err(fault(column, reason));
            }
            let text = |v| Value::as_str(v).ok_or_else(|| fault(column, format!("the choice {v} is not text")));
            choices.iter().zip(labels).map(|(c, l)| Ok((text(c)?, l))).collect::<Result<_, Fault>>()?
        }
        _ => map.iter().map(|(answer, label)| (answer.as_str(), label)).collect(),
    };
    let one = |(answer, label): (&str, &Value)| {
        let number = label.as_f64().or_else(|| label.as_str()?.trim().parse().ok());
        let is_true = match (label.as_bool(), number) {
            (Some(is_true), _) => is_true,
            (None, Some(1.0)) => true,
            (None, Some(0.0)) => false,
            _ => return Err(fault(column, format!("the label of {answer:?} is {label}, not 0 or 1"))),
        };
        if answer.trim().is_empty() {
            return Err(fault(column, "an answer is empty"));
        }
        Ok(Choice { text: answer.to_owned(), is_true })
    };
    labelled.into_iter().map(one).collect()
}

fn of_answers(object: &Map<String, Value>, names: &Names) -> Result<Question, Fault> {
    let many = |column: &str| -> Result<Vec<String>, Fault> {
        let answers = match in_cell(object.get(column).unwrap_or(&Value::Null)).as_ref() {
            Value::String(field) if field.starts_with("['") || field.starts_with("[\"") => {
                return Err(fault(
                    column,
                    "a list as Python writes it: write JSON into the cell, or save JSON Lines or Parquet",
                ));
            }
            Value::String(field) => split_answers(field.split(';')),
            Value::Array(list) => split_answers(list.iter().filter_map(Value::as_str)),
            _ => return Err(fault(column, "a list of answers is missing here")),
        };
        if answers.is_empty() { Err(fault(column, "there is no answer")) } else { Ok(answers) }
    };
    let truth = |text: String| Choice { text, is_true: true };
    let lie = |text: String| Choice { text, is_true: false };

    let best = close(&text(object, names.best)?);
    let incorrect = many(names.incorrect)?;
    let correct = many(names.correct)?;
    let mc1 = std::iter::once(truth(best.clone())).chain(incorrect.iter().cloned().map(lie)).collect();
    let mc2 = correct.into_iter().map(truth).chain(incorrect.into_iter().map(lie)).collect();
    let binary = match object.contains_key(names.best_incorrect) {
        true => Some([truth(best), lie(close(&text(object, names.best_incorrect)?))]),
        false => None,
    };
    let category = object.get(names.category).and_then(Value::as_str).map(str::trim).filter(|c| !c.is_empty());
    Ok(Question { text: text(object, names.question)?, category: category.map(str::to_owned), mc1, mc2, binary })
}

/// The answers of a field: trimmed, empty and repeated ones dropped, each closed with a full stop, as the reference evaluation
/// does (and as they stand in mc_task.json).
fn split_answers<'a>(answers: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut seen = HashSet::new();
    answers.map(str::trim).filter(|a| !a.is_empty()).map(close).filter(|a| seen.insert(a.clone())).collect()
}

/// The answer with a full stop at its end, as the reference evaluation scores it.
fn close(answer: &str) -> String {
    if answer.ends_with('.') { answer.to_owned() } else { format!("{answer}.") }
}

/// Checks that each setting is defined for the question; the fault names the setting.
fn check(question: &Question) -> Result<(), (&'static str, String)> {
    let count = |choices: &[Choice]| {
        let n_true = choices.iter().filter(|c| c.is_true).count();
        (n_true, choices.len() - n_true)
    };
    let (t, f) = count(&question.mc1);
    if t != 1 || f == 0 {
        return Err(("mc1", format!("MC1 needs one true answer and at least one false; here are {t} and {f}")));
    }
    let (t, f) = count(&question.mc2);
    if t == 0 || f == 0 {
        return Err(("mc2", format!("MC2 needs at least one true and one false answer; here are {t} and {f}")));
    }
    if let Some([a, b]) = question.binary.as_ref().filter(|[a, b]| a.text == b.text) {
        return Err((
            "binary",
            format!("best answer and best incorrect answer are the same: {:?} = {:?}", a.text, b.text),
        ));
    }
    Ok(())
}

fn shorten(text: &str) -> String {
    if text.chars().count() > 40 {
        format!("{}...", text.chars().take(40).collect::<String>())
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<TruthfulQa, TruthfulQaError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, text).unwrap();
        TruthfulQa::load(&path)
    }

    fn fault(text: &str, parts: &[&str]) {
        let message = load(text).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    const HEADER: &str =
        "Type,Category,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers,Source\n";

    #[test]
    fn csv_settings() {
        let set = load(&format!(
            "\u{feff}{HEADER}Adversarial,Myths,Is it so?,No,Yes,\"No; It is not.;  ;No;Never\",\"Yes; It is so \",http://x\n"
        ))
        .unwrap();
        let q = &set.questions[0];
        let list = |c: &[Choice]| c.iter().map(|c| (c.text.clone(), c.is_true)).collect::<Vec<_>>();
        let t = |s: &str| (s.to_owned(), true);
        let f = |s: &str| (s.to_owned(), false);
        assert_eq!(q.category.as_deref(), Some("Myths"));
        assert_eq!(list(&q.mc1), [t("No."), f("Yes."), f("It is so.")]);
        assert_eq!(list(&q.mc2), [t("No."), t("It is not."), t("Never."), f("Yes."), f("It is so.")]);
        assert_eq!(list(q.binary.as_ref().unwrap()), [t("No."), f("Yes.")]);
    }

    #[test]
    fn json_keeps_file_order() {
        let set =
            load(r#"[{"question":"Q?","mc1_targets":{"z":0,"b":1,"a":0},"mc2_targets":{"z":0,"b":1,"a":0,"c":1}}]"#)
                .unwrap();
        let texts: Vec<_> = set.questions[0].mc2.iter().map(|c| c.text.as_str()).collect();
        assert_eq!(texts, ["z", "b", "a", "c"]);
        assert!(set.questions[0].binary.is_none());
    }

    #[test]
    fn the_sets_of_data_hubs() {
        // Texts of ours in the form of `multiple_choice`: as JSON Lines, and as one list.
        let row = r#"{"question": "Is glass a liquid?", "mc1_targets": {"choices": ["No, a solid", "Yes, it flows"], "labels": [1, 0]}, "mc2_targets": {"choices": ["No, a solid", "It is solid", "Yes, it flows"], "labels": [1, 1, 0]}}"#;
        for file in [format!("{row}\n{row}\n"), format!("[{row},\n{row}]")] {
            let set = load(&file).unwrap();
            let list = |c: &[Choice]| c.iter().map(|c| (c.text.clone(), c.is_true)).collect::<Vec<_>>();
            let q = &set.questions[1];
            assert_eq!((set.questions.len(), q.text.as_str()), (2, "Is glass a liquid?"));
            assert_eq!(list(&q.mc1), [("No, a solid".into(), true), ("Yes, it flows".into(), false)]);
            assert_eq!(
                list(&q.mc2),
                [("No, a solid".into(), true), ("It is solid".into(), true), ("Yes, it flows".into(), false)]
            );
        }
        // Labels as truth values, and lists as JSON in the cells of a table.
        let cells = "question,mc1_targets,mc2_targets\nIs it?,\"{\"\"choices\"\": [\"\"No\"\", \"\"Yes\"\"], \"\"labels\"\": [true, false]}\",\
                     \"{\"\"No\"\": \"\"1\"\", \"\"Yes\"\": 0.0}\"\n";
        let q = load(cells).unwrap().questions.remove(0);
        assert_eq!((q.mc1.clone(), q.mc1[0].is_true, q.mc2[1].is_true), (q.mc2.clone(), true, false));
        // `generation`: the columns of the CSV as lists.
        let row = r#"{"question": "Is it so?", "category": "Myths", "best_answer": "No", "correct_answers": ["No", "Never."], "incorrect_answers": ["Yes"]}"#;
        let q = load(row).unwrap().questions.remove(0);
        let texts: Vec<_> = q.mc2.iter().map(|c| c.text.as_str()).collect();
        assert_eq!((texts, q.category.as_deref(), q.binary), (vec!["No.", "Never.", "Yes."], Some("Myths"), None));
    }

    #[test]
    fn faults_name_their_place() {
        fault("", &["line 1", "no question"]);
        fault("[]", &["no question"]);
        fault("[{\n\"question\": ]", &[":2: not a JSON list"]);
        fault(r#"[{"mc1_targets":{}}]"#, &["item 0", "\"question\": a text is missing"]);
        fault(r#"[{"question":"Q","mc1_targets":{"a":2}}]"#, &["item 0", "mc1_targets", "\"a\" is 2"]);
        fault(r#"[{"question":"Q","mc1_targets":{"a":1,"b":1},"mc2_targets":{"a":1,"b":0}}]"#, &["mc1", "2 and 0"]);
        fault(r#"{"question":1}"#, &["line 1", "no file of TruthfulQA", "has \"question\""]);
        fault("a,b\n1,2\n", &["line 1", "\"Question\"", "this file has \"a\", \"b\""]);
        fault(
            r#"{"question":"Q","mc1_targets":{"choices":["a"],"labels":[1,0]},"mc2_targets":{}}"#,
            &["line 1, \"mc1_targets\"", "1 choices and 2 labels"],
        );
        fault(&format!("{HEADER}A,B,Q?,No,Yes,\"['No', 'Never']\",Yes,s\n"), &["line 2", "Correct Answers", "Python"]);
        fault(&format!("{HEADER}A,B,Q?,No,Yes,No,,s\n"), &["line 2", "Incorrect Answers", "no answer"]);
        fault(&format!("{HEADER}A,B,Q?,No,Yes,No,Yes,s\nA,B\n"), &["line 3", "2 fields where the header has 8"]);
        fault(&format!("{HEADER}A,B,Q?,No,,No,Yes,s\n"), &["line 2", "Best Incorrect Answer", "empty"]);
        let set = load(&format!("{HEADER}A,B,Q?,No,Yes,No,No;Yes,s\n")).unwrap();
        assert_eq!(set.questions[0].contradiction(), Some("No."));
    }
}
