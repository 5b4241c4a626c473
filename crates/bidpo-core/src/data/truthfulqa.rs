//! TruthfulQA: the official files `mc_task.json` and `TruthfulQA.csv` (github.com/sylinrl/TruthfulQA).
//!
//! Lin, Hilton, Evans: "TruthfulQA: Measuring How Models Mimic Human Falsehoods" (arXiv 2109.07958). The CSV is the
//! January 2025 revision, which names one best incorrect answer for each question; the older CSV is read too, without
//! the binary setting.

use super::decode;
use ggml_grad::files::FileError;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// An invalid TruthfulQA file.
#[derive(Debug, thiserror::Error)]
pub enum TruthfulQaError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] FileError),
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
    /// Reads `mc_task.json` (told by its first character, `[`) or `TruthfulQA.csv`.
    ///
    /// # Errors
    /// [`TruthfulQaError`], naming the file, the line or item, and the column.
    pub fn load(path: &Path) -> Result<Self, TruthfulQaError> {
        let bytes = std::fs::read(path).map_err(FileError::read(path))?;
        let sha256 = ggml_grad::files::sha256_of_bytes(&bytes);
        let at = |place: &str, reason: String| TruthfulQaError::Format {
            path: path.to_owned(),
            place: place.to_owned(),
            reason,
        };
        let text = decode(&bytes).map_err(|e| at(&format!("line {}", e.line), "this is not UTF-8 text".into()))?;
        let questions = match text.trim_start().chars().next() {
            None => return Err(at("line 1", "the file is empty".into())),
            Some('[') => from_json(text),
            Some('{') => {
                return Err(at(
                    "line 1",
                    "this is not mc_task.json, which is a list: it starts with \"[\", not with \"{\"".into(),
                ));
            }
            Some(_) => from_csv(text),
        }
        .map_err(|(place, reason)| at(&place, reason))?;
        if questions.is_empty() {
            return Err(at("line 1", "there is no question in this file".into()));
        }
        Ok(Self { path: path.to_owned(), sha256, questions })
    }
}

type Fault = (String, String);

fn from_json(text: &str) -> Result<Vec<Question>, Fault> {
    let items: Vec<serde_json::Value> = serde_json::from_str(text)
        .map_err(|e| (format!("line {}, column {}", e.line(), e.column()), format!("this is not valid JSON: {e}")))?;
    items.iter().enumerate().map(|(i, item)| json_question(i, item)).collect()
}

fn json_question(i: usize, item: &serde_json::Value) -> Result<Question, Fault> {
    let place = |field: &str| format!("item {i} (counted from 0), {field:?}");
    let text = item
        .get("question")
        .and_then(|q| q.as_str())
        .map(str::trim)
        .filter(|q| !q.is_empty())
        .ok_or_else(|| (place("question"), "a question is missing here".to_owned()))?;
    let targets = |field: &str| -> Result<Vec<Choice>, Fault> {
        let map = item
            .get(field)
            .and_then(|t| t.as_object())
            .ok_or_else(|| (place(field), "an object of answer -> 0 or 1 is missing here".to_owned()))?;
        map.iter()
            .map(|(answer, label)| {
                let is_true = match label.as_u64() {
                    Some(1) => true,
                    Some(0) => false,
                    _ => return Err((place(field), format!("the label of {answer:?} is {label}, not 0 or 1"))),
                };
                if answer.trim().is_empty() {
                    return Err((place(field), "an answer is empty".to_owned()));
                }
                Ok(Choice { text: answer.clone(), is_true })
            })
            .collect()
    };
    let question = Question {
        text: text.to_owned(),
        category: None,
        mc1: targets("mc1_targets")?,
        mc2: targets("mc2_targets")?,
        binary: None,
    };
    check(&question).map_err(|(field, reason)| (place(&format!("{field}_targets")), reason))?;
    Ok(question)
}

fn from_csv(text: &str) -> Result<Vec<Question>, Fault> {
    let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
    let csv_fault = |e: &csv::Error| {
        let line = e.position().map_or(1, csv::Position::line);
        (format!("line {line}"), format!("this is not valid CSV: {e}"))
    };
    let headers = reader.headers().map_err(|e| csv_fault(&e))?.clone();
    let find = |name: &str| headers.iter().position(|h| h.trim() == name);
    let need = |name: &str| {
        find(name).ok_or_else(|| {
            let have = headers.iter().map(|h| format!("{:?}", shorten(h))).collect::<Vec<_>>().join(", ");
            ("line 1".to_owned(), format!("column {name:?} is missing; TruthfulQA.csv has it, this file has {have}"))
        })
    };
    let (c_question, c_best) = (need("Question")?, need("Best Answer")?);
    let (c_correct, c_incorrect) = (need("Correct Answers")?, need("Incorrect Answers")?);
    let (c_category, c_best_incorrect) = (find("Category"), find("Best Incorrect Answer"));

    let mut questions = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| csv_fault(&e))?;
        let line = record.position().map_or(0, csv::Position::line);
        let place = |column: usize| format!("line {line}, column {:?}", headers.get(column).unwrap_or_default());
        let one = |column: usize| -> Result<String, Fault> {
            let field = record.get(column).unwrap_or_default().trim();
            if field.is_empty() { Err((place(column), "this is empty".into())) } else { Ok(field.to_owned()) }
        };
        let many = |column: usize| -> Result<Vec<String>, Fault> {
            let answers = split_answers(record.get(column).unwrap_or_default());
            if answers.is_empty() { Err((place(column), "there is no answer".into())) } else { Ok(answers) }
        };
        let truth = |text: String| Choice { text, is_true: true };
        let lie = |text: String| Choice { text, is_true: false };

        let best = close(&one(c_best)?);
        let incorrect = many(c_incorrect)?;
        let correct = many(c_correct)?;
        let mc1 = std::iter::once(truth(best.clone())).chain(incorrect.iter().cloned().map(lie)).collect();
        let mc2 = correct.into_iter().map(truth).chain(incorrect.into_iter().map(lie)).collect();
        let binary = match c_best_incorrect {
            Some(column) => Some([truth(best), lie(close(&one(column)?))]),
            None => None,
        };
        let category = c_category.and_then(|c| record.get(c)).map(str::trim).filter(|c| !c.is_empty());
        let question = Question { text: one(c_question)?, category: category.map(str::to_owned), mc1, mc2, binary };
        check(&question).map_err(|(_, reason)| (format!("line {line}"), reason))?;
        questions.push(question);
    }
    Ok(questions)
}

/// The answers of a field: separated by `;`, trimmed, empty and repeated ones dropped, each closed with a full stop,
/// as the reference evaluation does (and as they stand in mc_task.json).
fn split_answers(field: &str) -> Vec<String> {
    let mut seen = HashSet::new();
    field.split(';').map(str::trim).filter(|a| !a.is_empty()).map(close).filter(|a| seen.insert(a.clone())).collect()
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
    fn faults_name_their_place() {
        fault("", &["line 1", "empty"]);
        fault("[]", &["no question"]);
        fault("[{\n\"question\": ]", &["line 2", "JSON"]);
        fault(r#"[{"mc1_targets":{}}]"#, &["item 0", "question"]);
        fault(r#"[{"question":"Q","mc1_targets":{"a":2}}]"#, &["item 0", "mc1_targets", "\"a\" is 2"]);
        fault(
            r#"[{"question":"Q","mc1_targets":{"a":1,"b":1},"mc2_targets":{"a":1,"b":0}}]"#,
            &["mc1_targets", "2 and 0"],
        );
        fault(r#"{"question":1}"#, &["is a list"]);
        fault("a,b\n1,2\n", &["line 1", "\"Question\" is missing", "\"a\""]);
        fault(&format!("{HEADER}A,B,Q?,No,Yes,No,,s\n"), &["line 2", "Incorrect Answers", "no answer"]);
        fault(&format!("{HEADER}A,B,Q?,No,Yes,No,Yes,s\nA,B\n"), &["line 3", "CSV"]);
        fault(&format!("{HEADER}A,B,Q?,No,,No,Yes,s\n"), &["line 2", "Best Incorrect Answer", "empty"]);
        let set = load(&format!("{HEADER}A,B,Q?,No,Yes,No,No;Yes,s\n")).unwrap();
        assert_eq!(set.questions[0].contradiction(), Some("No."));
    }
}
