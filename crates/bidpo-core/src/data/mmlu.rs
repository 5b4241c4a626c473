//! MMLU from its official files: folders `dev` and `test` with one CSV a subject (Hendrycks et al. 2021, arXiv 2009.03300;
//! github.com/hendrycks/test).
//!
//! A row holds question, four choices and the answer, a letter. Copies in circulation with a header line, or with the
//! answer as an index from 0, are read too.

use super::LineError;
use super::choice::{ChoiceError, ChoiceItem};
use super::text_file::LineCounter;
use ggml_grad::files::FileError;
use std::path::{Path, PathBuf};

/// A subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its name, as in the file names: `high_school_biology`.
    pub name: String,
    /// Development questions, to be shown solved.
    pub dev: Vec<ChoiceItem>,
    /// Test questions.
    pub test: Vec<ChoiceItem>,
    /// The files, test first.
    pub files: Vec<PathBuf>,
}

/// Reads all subjects of `folder`, by name. `dev` is only read if `with_dev`.
///
/// # Errors
/// [`ChoiceError`], naming file and line; a directory without test files, a subject without its development file.
pub fn load(folder: &Path, with_dev: bool) -> Result<Vec<Subject>, ChoiceError> {
    let test = folder.join("test");
    let entries = std::fs::read_dir(&test).map_err(FileError::read(&test))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(FileError::read(&test))?;
        if let Some(name) = entry.file_name().to_str().and_then(|n| n.strip_suffix("_test.csv")) {
            names.push(name.to_owned());
        }
    }
    if names.is_empty() {
        let reason = "there is no SUBJECT_test.csv in it; give the directory that holds MMLU's dev and test".into();
        return Err(ChoiceError::File { path: test, reason });
    }
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let test_file = test.join(format!("{name}_test.csv"));
            let mut subject =
                Subject { test: read(&test_file)?, dev: Vec::new(), files: vec![test_file], name: name.clone() };
            if with_dev {
                let dev_file = folder.join("dev").join(format!("{name}_dev.csv"));
                subject.dev = read(&dev_file)?;
                subject.files.push(dev_file);
            }
            Ok(subject)
        })
        .collect()
}

fn read(path: &Path) -> Result<Vec<ChoiceItem>, ChoiceError> {
    let bytes = ggml_grad::files::read_whole(path).map_err(FileError::read(path))?;
    let at = LineError::of(path);
    let wrong = |line, reason| ChoiceError::from(at(line, reason));
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&bytes[..]);
    let mut items = Vec::new();
    let mut lines = LineCounter::new(&bytes);
    for record in reader.records() {
        let record = record.map_err(|e| at(lines.line_of_record(e.position()), format!("not CSV in UTF-8: {e}")))?;
        let line = lines.line_of_record(record.position());
        if record.len() != 6 {
            return Err(wrong(line, format!("{} fields; a question, four choices and the answer are 6", record.len())));
        }
        let fields: Vec<&str> = record.iter().map(str::trim).collect();
        // Not only at the top: samples of such copies have their header among the rows.
        if fields[0].eq_ignore_ascii_case("question") && fields[5].eq_ignore_ascii_case("answer") {
            continue;
        }
        let answer = match fields[5] {
            "A" | "0" => 0,
            "B" | "1" => 1,
            "C" | "2" => 2,
            "D" | "3" => 3,
            other => return Err(wrong(line, format!("the answer is {other:?}; A, B, C or D (or 0 to 3) is needed"))),
        };
        if let Some(empty) = fields.iter().position(|f| f.is_empty()) {
            return Err(wrong(line, format!("field {} is empty", empty + 1)));
        }
        items.push(ChoiceItem {
            question: fields[0].to_owned(),
            choices: fields[1..5].iter().map(|c| (*c).to_owned()).collect(),
            answers: vec![answer],
            category: None,
        });
    }
    if items.is_empty() {
        return Err(ChoiceError::File { path: path.to_owned(), reason: "there is no question in it".into() });
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn official_files_and_copies() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["dev", "test"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("test/b_test.csv", "\"Q, one\",w,x,y,z,C\n");
        write("test/a_test.csv", "question,choice0,choice1,choice2,choice3,answer\nQ,w,x,y,z,3\n");
        let subjects = load(dir.path(), false).unwrap();
        let seen: Vec<_> = subjects.iter().map(|s| (s.name.as_str(), s.test[0].answers[0])).collect();
        assert_eq!(seen, [("a", 3), ("b", 2)]);
        assert_eq!(subjects[1].test[0].question, "Q, one");
        assert!(load(dir.path(), true).unwrap_err().to_string().contains("a_dev.csv"));
        for (row, expected) in [("Q,w,x,y,z", "5 fields"), ("Q,w,x,y,z,E", "\"E\""), ("Q,w,,y,z,A", "field 3 is empty")]
        {
            write("test/a_test.csv", &format!("Q,w,x,y,z,A\n{row}\n"));
            let error = load(dir.path(), false).unwrap_err().to_string();
            assert!(error.contains("a_test.csv:2") && error.contains(expected), "{error}");
        }
        assert!(load(&dir.path().join("dev"), false).is_err());
    }
}
