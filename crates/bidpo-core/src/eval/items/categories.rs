//! Categories of TruthfulQA's questions for `mc_task.json`, which has none, by the questions' text in the CSV.

use crate::data::truthfulqa::Question;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The file of the official repository that names categories.
const CSV: &str = "TruthfulQA.csv";

/// The CSV beside `data`, if it is there and is not `data` itself.
pub fn categories_beside(data: &Path) -> Option<PathBuf> {
    let csv = data.with_file_name(CSV);
    (csv != data && csv.is_file()).then_some(csv)
}

/// Gives `questions` without a category that of the question with the same text in `from`, whatever its case and spacing.
/// Returns the number of questions that got one.
pub fn add_categories(questions: &mut [Question], from: &[Question]) -> usize {
    let key = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let known: HashMap<String, &String> =
        from.iter().filter_map(|q| Some((key(&q.text), q.category.as_ref()?))).collect();
    let mut n = 0;
    for question in questions.iter_mut().filter(|q| q.category.is_none()) {
        if let Some(category) = known.get(&key(&question.text)) {
            question.category = Some((*category).clone());
            n += 1;
        }
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_found_by_their_text() {
        let question = |text: &str, category: Option<&str>| Question {
            text: text.into(),
            category: category.map(str::to_owned),
            mc1: Vec::new(),
            mc2: Vec::new(),
            binary: None,
        };
        let mut questions =
            [question("Is  it so?", None), question("Is it not?", None), question("Kept?", Some("Own"))];
        let from = [question("is it so?", Some("Law")), question("Kept?", Some("Other")), question("No?", Some("X"))];
        assert_eq!(add_categories(&mut questions, &from), 1);
        let categories: Vec<_> = questions.iter().map(|q| q.category.as_deref()).collect();
        assert_eq!(categories, [Some("Law"), None, Some("Own")]);
    }

    #[test]
    fn the_csv_is_found_beside_the_data() {
        let dir = tempfile::tempdir().unwrap();
        let (json, csv) = (dir.path().join("mc_task.json"), dir.path().join(CSV));
        assert_eq!(categories_beside(&json), None);
        std::fs::write(&csv, "").unwrap();
        assert_eq!(categories_beside(&json), Some(csv.clone()));
        assert_eq!(categories_beside(&csv), None);
    }
}
