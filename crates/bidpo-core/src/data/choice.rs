//! Multiple-choice questions from any data file, by a mapping from its columns to question, choices and answer.

mod choices;

use super::LineError;
use super::mapping::{AnswerAs, Mapping, MappingError, MappingFile, find};
use super::source::{Source, SourceError};
use choices::{Choices, best, labels, scalar};
use ggml_grad::files::FileError;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChoiceItem {
    /// The question.
    pub question: String,
    /// The choices, at least two.
    pub choices: Vec<String>,
    /// Indices of the correct choices: at least one, and not all.
    pub answers: Vec<usize>,
    /// A category, where the mapping names its column.
    pub category: Option<String>,
}

/// An invalid file of multiple-choice questions.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The file cannot be read as rows.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The mapping is invalid, or does not fit.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// A line of a table without a mapping (MMLU) is invalid.
    #[error(transparent)]
    Line(#[from] LineError),
    /// A row does not match the mapping.
    #[error("{place}: {reason}")]
    Row {
        /// `file:line`.
        place: String,
        /// The reason.
        reason: String,
    },
    /// The file as a whole is invalid.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

/// A file of questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChoiceSet {
    /// The questions; never empty.
    pub items: Vec<ChoiceItem>,
    /// Lines that were skipped because their correct answer is also one of the incorrect ones.
    pub contradictions: Vec<usize>,
}

/// Reads a file of rows: JSON Lines, JSON, CSV, TSV or Parquet.
///
/// # Errors
/// [`ChoiceError`], naming the line: nothing is skipped but [`ChoiceSet::contradictions`].
pub fn load(path: &Path, mapping: &Mapping) -> Result<ChoiceSet, ChoiceError> {
    let source = Source::load(path)?;
    of(&source, mapping)
}

/// Reads a file by the form of a mapping file that it has; also that form.
///
/// # Errors
/// [`ChoiceError`], as [`load`]; also where the file has none of the forms.
pub fn load_mapped(path: &Path, name: &str, mapping: &MappingFile) -> Result<(ChoiceSet, Mapping), ChoiceError> {
    let source = Source::load(path)?;
    let mapping = mapping.form(name, &source)?;
    Ok((of(&source, &mapping)?, mapping))
}

fn of(source: &Source, mapping: &Mapping) -> Result<ChoiceSet, ChoiceError> {
    let path = &source.path;
    let mut items = Vec::new();
    for row in &source.rows {
        let read = row.value.as_ref().map_err(Clone::clone).and_then(|value| item(value, mapping));
        items
            .push((row.place.number(), read.map_err(|reason| ChoiceError::Row { place: row.place.of(path), reason })?));
    }
    let contradicts = |c: &ChoiceItem| {
        let right = |i: &usize| c.answers.contains(i);
        (0..c.choices.len())
            .any(|i| right(&i) && (0..c.choices.len()).any(|j| !right(&j) && c.choices[j] == c.choices[i]))
    };
    let contradictions = items.iter().filter(|(_, c)| contradicts(c)).map(|(line, _)| *line).collect();
    let items: Vec<ChoiceItem> = items.into_iter().map(|(_, c)| c).filter(|c| !contradicts(c)).collect();
    if items.is_empty() {
        return Err(ChoiceError::File { path: path.to_owned(), reason: "there is no question in it".into() });
    }
    Ok(ChoiceSet { items, contradictions })
}

fn text(value: &Value, key: &str) -> Result<String, String> {
    match find(value, key)? {
        Value::String(s) if s.trim().is_empty() => Err(format!("{key:?} is empty")),
        Value::String(s) => Ok(s.trim().to_owned()),
        Value::Number(n) => Ok(n.to_string()),
        other => Err(format!("{key:?} must be text, this is {other}")),
    }
}

fn item(value: &Value, m: &Mapping) -> Result<ChoiceItem, String> {
    let question: Vec<String> = m.question.iter().map(|k| text(value, k)).collect::<Result<_, _>>()?;
    let Choices { texts: mut choices, labels, right } = match &m.choices[..] {
        [] => Choices::plain(m.fixed.clone()),
        [one] => Choices::read(value, one)?,
        several => Choices::plain(several.iter().map(|k| text(value, k)).collect::<Result<_, _>>()?),
    };
    if let Some(separator) = m.separator.as_deref().filter(|s| !s.is_empty()) {
        for choice in &mut choices {
            *choice = choice.split(separator).next().unwrap_or_default().trim().to_owned();
        }
    }
    if choices.len() < 2 {
        return Err(format!("there are {} choices; two or more are needed", choices.len()));
    }
    let right = match &m.scores {
        Some(key) => Some(best(&scores(value, key, choices.len())?)),
        None => right,
    };
    let answers = match (right, m.choices.iter().position(|k| *k == m.answer)) {
        (Some(right), _) => right,
        (None, Some(i)) if m.choices.len() > 1 => vec![i],
        _ => answers(value, m, &choices, labels.as_deref())?,
    };
    if answers.len() == choices.len() {
        return Err(format!("all {} choices are right: there is nothing to choose", choices.len()));
    }
    let category = m.category.as_ref().map(|k| text(value, k)).transpose()?;
    Ok(ChoiceItem { question: question.join(" "), choices, answers, category })
}

fn scores(value: &Value, key: &str, n: usize) -> Result<Vec<f64>, String> {
    let found = find(value, key)?;
    let list = found.as_array().ok_or_else(|| format!("{key:?} must be a list of scores, this is {found}"))?;
    if list.len() != n {
        return Err(format!("{key:?} has {} scores for {n} choices", list.len()));
    }
    let one = |v: &Value| v.as_f64().ok_or_else(|| format!("{key:?} holds {v}, which is no number"));
    list.iter().map(one).collect()
}

/// The places of the right choices: of one answer, or of each in a list.
fn answers(value: &Value, m: &Mapping, choices: &[String], carried: Option<&[Value]>) -> Result<Vec<usize>, String> {
    match find(value, &m.answer)? {
        Value::Array(list) if !list.is_empty() => {
            let each = list.iter().map(|one| answer(value, one, m, choices, carried));
            let mut places = each.collect::<Result<Vec<_>, _>>()?;
            places.sort_unstable();
            places.dedup();
            Ok(places)
        }
        one => Ok(vec![answer(value, &one, m, choices, carried)?]),
    }
}

/// A letter or a number with what is put around it: `(b)`, `B.`; in capitals.
fn bare(text: &str) -> String {
    text.trim_matches(|c: char| c.is_whitespace() || "().:[]".contains(c)).to_ascii_uppercase()
}

/// The place of the label `s`: as it stands, the text of that choice, or without case and brackets where that is one label only.
fn labelled(labels: &[Value], s: &str, text: Option<usize>) -> Option<usize> {
    let labels: Vec<Option<String>> = labels.iter().map(scalar).collect();
    let exact = labels.iter().position(|l| l.as_deref() == Some(s));
    exact.or(text).or_else(|| {
        let mut alike = (0..labels.len()).filter(|&i| labels[i].as_deref().is_some_and(|l| bare(l) == bare(s)));
        alike.next().filter(|_| alike.next().is_none() && !bare(s).is_empty())
    })
}

/// The place of one right choice.
fn answer(
    value: &Value,
    found: &Value,
    m: &Mapping,
    choices: &[String],
    carried: Option<&[Value]>,
) -> Result<usize, String> {
    let n = choices.len();
    let no = || Err(format!("{:?} is {found}, which names none of the {n} choices", m.answer));
    let Some(s) = scalar(found) else { return no() };
    let text = choices.iter().position(|c| *c == s);
    if let Some(key) = &m.labels {
        let held = find(value, key)?;
        let labels =
            labels(&held).ok_or_else(|| format!("{key:?} must be a list of labels, or of choices with labels"))?;
        // Only labels that have a choice.
        return labelled(&labels[..labels.len().min(n)], &s, None).map_or_else(no, Ok);
    }
    let number = s.parse::<usize>().ok().and_then(|i| i.checked_sub(m.first)).filter(|&i| i < n);
    // Labels that the choices carry are not a question of place; with --answer-as text they are not looked at.
    if let Some(labels) = carried.filter(|_| m.answer_as.is_none()) {
        let digits = labels.iter().any(|l| scalar(l).is_some_and(|l| bare(&l).parse::<usize>().is_ok()));
        let place = number.filter(|_| !digits);
        return labelled(&labels[..labels.len().min(n)], &s, text).or(place).map_or_else(no, Ok);
    }
    if let Value::Bool(b) = found {
        return if n == 2 { Ok(usize::from(*b)) } else { no() };
    }
    // A small letter and one in brackets are places where they are no text.
    let letter = if text.is_some() { s.clone() } else { bare(&s) };
    let place = match letter.as_bytes() {
        [c @ b'A'..=b'Z'] => Some(usize::from(c - b'A')).filter(|&i| i < n),
        _ => number,
    };
    match (text, place, m.answer_as) {
        (Some(text), Some(place), None) if text != place => Err(format!(
            "{:?} is {found}: that is the text of choice {} and the {} of choice {} ({:?}); say which is meant with --labels \
             or with --answer-as text or place",
            m.answer,
            text + 1,
            if s.parse::<usize>().is_ok() { "number" } else { "letter" },
            place + 1,
            choices[place]
        )),
        (Some(i), _, None | Some(AnswerAs::Text)) | (_, Some(i), None | Some(AnswerAs::Place)) => Ok(i),
        (_, _, Some(AnswerAs::Text)) => no(),
        _ if n == 2 && s.eq_ignore_ascii_case("true") => Ok(1),
        _ if n == 2 && s.eq_ignore_ascii_case("false") => Ok(0),
        _ => no(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(question: &str, choices: &[&str], answer: &str) -> Mapping {
        Mapping {
            question: vec![question.into()],
            choices: choices.iter().map(|c| (*c).into()).collect(),
            answer: answer.into(),
            first: 0,
            labels: None,
            scores: None,
            answer_as: None,
            category: None,
            separator: None,
            fixed: Vec::new(),
        }
    }

    fn read(name: &str, content: &str, m: &Mapping) -> Result<Vec<ChoiceItem>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        load(&path, m).map(|s| s.items).map_err(|e| e.to_string().replace(&format!("{}/", dir.path().display()), ""))
    }

    fn one(name: &str, content: &str, m: &Mapping) -> (String, Vec<String>, Vec<usize>) {
        let i = read(name, content, m).unwrap().remove(0);
        (i.question, i.choices, i.answers)
    }

    #[test]
    fn forms_of_well_known_sets() {
        let strings = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        // ARC
        let mut m = mapping("question", &["choices.text"], "answerKey");
        m.labels = Some("choices.label".into());
        let arc = r#"{"question":"Q","choices":{"text":["x","y"],"label":["1","2"]},"answerKey":"2"}"#;
        assert_eq!(one("a.jsonl", arc, &m), ("Q".into(), strings(&["x", "y"]), vec![1]));
        // HellaSwag
        let m = mapping("ctx", &["endings"], "label");
        assert_eq!(one("h.jsonl", r#"{"ctx":"C","endings":["x","y","z"],"label":"2"}"#, &m).2, [2]);
        // PIQA, whose label is a number
        let m = mapping("goal", &["sol1", "sol2"], "label");
        assert_eq!(one("p.jsonl", r#"{"goal":"G","sol1":"x","sol2":"y","label":1}"#, &m).2, [1]);
        // Winogrande counts from 1
        let m = Mapping { first: 1, ..mapping("sentence", &["option1", "option2"], "answer") };
        assert_eq!(one("w.csv", "sentence,option1,option2,answer\nS _,x,y,1\n", &m).2, [0]);
        // BoolQ
        let m = Mapping {
            question: strings(&["passage", "question"]),
            fixed: strings(&["no", "yes"]),
            ..mapping("", &[], "answer")
        };
        let boolq = r#"{"passage":"P.","question":"q","answer":true}"#;
        assert_eq!(one("b.jsonl", boolq, &m), ("P. q".into(), strings(&["no", "yes"]), vec![1]));
        // Natural Questions with a false answer: the first of several true ones
        let m = Mapping { separator: Some(";".into()), ..mapping("question", &["answer", "false_answer"], "answer") };
        let nq = "question,answer,false_answer\nwho,A; B,C\n";
        assert_eq!(one("n.csv", nq, &m), ("who".into(), strings(&["A", "C"]), vec![0]));
        // The text of the right choice, and a letter
        let m = mapping("q", &["c"], "a");
        assert_eq!(one("t.jsonl", r#"{"q":"Q","c":["x","y"],"a":"y"}"#, &m).2, [1]);
        assert_eq!(one("t.jsonl", r#"{"q":"Q","c":["x","y"],"a":"B"}"#, &m).2, [1]);
    }

    #[test]
    fn an_answer_that_could_be_two_is_refused() {
        let m = mapping("q", &["c"], "a");
        let sum = r#"{"q":"1 + 1","c":["1","2","0"],"a":"2"}"#;
        let error = read("f.jsonl", &format!("{sum}\n"), &m).unwrap_err();
        assert!(error.starts_with("f.jsonl:1: ") && error.contains("text of choice 2"), "{error}");
        assert!(error.contains("number of choice 3 (\"0\")") && error.contains("--answer-as"), "{error}");
        let with = |answer_as| Mapping { answer_as: Some(answer_as), ..m.clone() };
        assert_eq!(one("f.jsonl", sum, &with(AnswerAs::Text)).2, [1]);
        assert_eq!(one("f.jsonl", sum, &with(AnswerAs::Place)).2, [2]);
        let letters = r#"{"q":"Which vitamin?","c":["B","C","A"],"a":"A"}"#;
        assert!(read("f.jsonl", letters, &m).unwrap_err().contains("letter of choice 1 (\"B\")"));
        let number = r#"{"q":"1 + 1","c":["1","2","0"],"a":2}"#;
        assert!(read("f.jsonl", number, &m).unwrap_err().contains("text of choice 2"));
        // Both readings the same, or one of them out of range.
        assert_eq!(one("f.jsonl", r#"{"q":"Q","c":["0","1"],"a":"1"}"#, &m).2, [1]);
        assert_eq!(one("f.jsonl", r#"{"q":"Q","c":["20","10"],"a":"10"}"#, &m).2, [1]);
        // Only the asked-for reading counts.
        assert!(read("f.jsonl", r#"{"q":"Q","c":["x","y"],"a":"1"}"#, &with(AnswerAs::Text)).is_err());
        assert!(read("f.jsonl", r#"{"q":"Q","c":["x","y"],"a":"y"}"#, &with(AnswerAs::Place)).is_err());
    }

    #[test]
    fn a_number_is_looked_up_among_the_labels() {
        let m = Mapping { labels: Some("l".into()), ..mapping("q", &["c"], "a") };
        for labels in [r#"["1","2"]"#, "[1,2]"] {
            for answer in ["1", "\"1\""] {
                let line = format!(r#"{{"q":"Q","c":["x","y"],"l":{labels},"a":{answer}}}"#);
                assert_eq!(one("f.jsonl", &line, &m).2, [0], "{line}");
            }
        }
        let error = read("f.jsonl", r#"{"q":"Q","c":["x","y"],"l":["1","2"],"a":0}"#, &m).unwrap_err();
        assert!(error.contains("\"a\" is 0, which names none"), "{error}");
    }

    #[test]
    fn labels_and_marks_however_choices_carry_them() {
        let m = mapping("q", &["c"], "a");
        for (choices, answer) in [
            (r#"[{"text": "iron", "label": "1"}, {"text": "wood", "label": "2"}]"#, "\"1\""),
            (r#"[{"text": "iron", "label": 1}, {"text": "wood", "label": 2}]"#, "1.0"),
            (r#"[{"option": "A", "text": "iron"}, {"option": "B", "text": "wood"}]"#, "\"a\""),
            (r#"[{"option": "iron"}, {"option": "wood"}]"#, "\"(A)\""),
            (r#"[{"A": "iron"}, {"B": "wood"}]"#, "\"A.\""),
            (r#"[["1", "iron"], ["2", "wood"]]"#, "1"),
            (r#"["1. iron", "2. wood"]"#, "1"),
            (r#"["(a) iron", "(b) wood"]"#, "\"A\""),
            (r#"{"A": "iron", "B": "wood", "C": null}"#, "0"),
            (r#"{"labels": ["x", "y"], "choices": ["iron", "wood"]}"#, "\"x\""),
            (r#"["iron", "wood"]"#, "[\"a\"]"),
            (r#"[{"text": "iron", "is_correct": true}, {"text": "wood", "is_correct": false}]"#, "null"),
        ] {
            let (_, texts, places) = one("f.jsonl", &format!(r#"{{"q":"Q","c":{choices},"a":{answer}}}"#), &m);
            assert!(places == [0] && texts[0].ends_with("iron") && texts.len() == 2, "{choices}: {texts:?} {places:?}");
        }
        // The key of the choices as that of their labels; two right ones; no answer where marks say it.
        let m = Mapping { labels: Some("c".into()), ..mapping("q", &["c"], "a") };
        let three = r#"[{"text":"x","label":"1"},{"text":"y","label":"2"},{"text":"z","label":"3"}]"#;
        assert_eq!(one("f.jsonl", &format!(r#"{{"q":"Q","c":{three},"a":["3","1"]}}"#), &m).2, [0, 2]);
        let marked = r#"{"q":"Q","c":[{"text":"x","correct":false},{"text":"y","correct":true}]}"#;
        assert_eq!(one("f.jsonl", marked, &mapping("q", &["c"], "a")).2, [1]);
        // Labels that are numbers are never places.
        let m = mapping("q", &["c"], "a");
        assert!(read("f.jsonl", r#"{"q":"Q","c":["1) x","2) y"],"a":0}"#, &m).unwrap_err().contains("names none"));
    }

    #[test]
    fn faults_name_their_line() {
        let m = mapping("q", &["c"], "a");
        let good = r#"{"q":"Q","c":["x","y"],"a":0}"#;
        for (line, expected) in [
            ("{", "not JSON"),
            (r#"{"c":["x","y"],"a":0}"#, "\"q\" is missing (found: c, a)"),
            (r#"{"q":" ","c":["x","y"],"a":0}"#, "\"q\" is empty"),
            (r#"{"q":"Q","c":"x","a":0}"#, "\"c\" must be a list"),
            (r#"{"q":"Q","c":["x"],"a":0}"#, "there are 1 choices"),
            (r#"{"q":"Q","c":["x","y"],"a":2}"#, "\"a\" is 2, which names none of the 2 choices"),
            (r#"{"q":"Q","c":["x","y"],"a":"maybe"}"#, "\"maybe\""),
        ] {
            let error = read("f.jsonl", &format!("{good}\n\n{line}\n"), &m).unwrap_err();
            assert!(error.starts_with("f.jsonl:3: ") && error.contains(expected), "{error}");
        }
        // Items whose answer is right and wrong at once are skipped with a message.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.jsonl");
        std::fs::write(&path, format!("{good}\n{}\n", r#"{"q":"Q","c":["x","y","x"],"a":0}"#)).unwrap();
        let set = load(&path, &m).unwrap();
        assert_eq!((set.items.len(), set.contradictions), (1, vec![2]));
        assert!(read("f.csv", "q,c\n", &m).unwrap_err().contains("no question"));
        assert!(read("f.txt", "x", &m).unwrap_err().contains("unknown kind of file"));
        assert!(read("f.csv", "q,b,a\nQ,x,0\n", &m).unwrap_err().starts_with("f.csv:2: \"c\" is missing"));
        assert!(read("f.csv", "q,b,a\r\nQ,x,0\r\n", &m).unwrap_err().starts_with("f.csv:2: "));
    }
}
