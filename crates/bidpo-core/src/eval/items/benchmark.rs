//! Items to measure, from whatever data they come.

use super::item::Item;
use super::protocol::Protocol;
use crate::data::choice::ChoiceItem;
use crate::data::mmlu::Subject;
use crate::data::truthfulqa::Question;
use crate::eval::results::Answer;

/// What stands before the items of a group, by the benchmark's own definition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// A separate first line; may be empty.
    pub header: String,
    /// Solved examples.
    pub shots: Vec<Item>,
}

/// Items and what stands before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Benchmark {
    /// The items.
    pub items: Vec<Item>,
    /// Their groups, at least one.
    pub groups: Vec<Group>,
}

impl Benchmark {
    /// One group with nothing before its items.
    pub fn plain(items: Vec<Item>) -> Self {
        Self { items, groups: vec![Group::default()] }
    }

    /// TruthfulQA's questions under a protocol; `None` for a question that the file does not define it for (pair and
    /// binary need the best incorrect answer of the January 2025 file).
    pub fn truthfulqa(questions: &[Question], which: &[usize], protocol: Protocol) -> Option<Self> {
        let item = |&index: &usize| {
            let q = &questions[index];
            let answers = truthfulqa_answers(q, protocol)?;
            Some(Item { index, question: q.text.clone(), category: q.category.clone(), answers, group: 0 })
        };
        which.iter().map(item).collect::<Option<Vec<_>>>().map(Self::plain)
    }

    /// Questions of any multiple-choice data.
    pub fn choice(items: &[ChoiceItem], which: &[usize]) -> Self {
        let item = |&index: &usize| {
            let c = &items[index];
            let answers = c.choices.iter().enumerate().map(|(i, t)| Answer::new(t, c.answers.contains(&i)));
            let (question, category) = (c.question.clone(), c.category.clone());
            Item { index, question, category, answers: answers.collect(), group: 0 }
        };
        Self::plain(which.iter().map(item).collect())
    }

    /// MMLU's subjects (Hendrycks et al. 2021, arXiv 2009.03300), up to `limit` questions of each, after its first `shots`
    /// development questions and the reference's header line.
    pub fn mmlu(subjects: &[Subject], shots: usize, limit: usize) -> Self {
        let mut items = Vec::new();
        let mut groups = Vec::new();
        let mut index = 0;
        for (group, subject) in subjects.iter().enumerate() {
            let words = subject.name.replace('_', " ");
            let item = |index: usize, c: &ChoiceItem| Item {
                index,
                question: c.question.clone(),
                category: Some(subject.name.clone()),
                answers: c.choices.iter().enumerate().map(|(i, t)| Answer::new(t, c.answers.contains(&i))).collect(),
                group,
            };
            groups.push(Group {
                header: format!("The following are multiple choice questions (with answers) about {words}."),
                shots: subject.dev.iter().take(shots).enumerate().map(|(i, c)| item(i, c)).collect(),
            });
            items.extend(subject.test.iter().take(limit).enumerate().map(|(i, c)| item(index + i, c)));
            index += subject.test.len();
        }
        Self { items, groups }
    }
}

/// The answers of a question that a protocol scores, each text once for each pair of labels.
fn truthfulqa_answers(q: &Question, protocol: Protocol) -> Option<Vec<Answer>> {
    let mut answers: Vec<Answer> = Vec::new();
    let with_label = |answers: &mut Vec<Answer>| {
        answers.extend(q.mc2.iter().map(|c| Answer::new(&c.text, c.is_true)));
    };
    match protocol {
        Protocol::Pair | Protocol::Binary => {
            let pair = q.binary.as_ref()?;
            answers.extend(pair.iter().map(|c| Answer::new(&c.text, c.is_true)));
        }
        Protocol::Mc2 | Protocol::Mc3 => with_label(&mut answers),
        Protocol::Mc1 => {
            let mc1 = |c: &crate::data::truthfulqa::Choice| Answer {
                text: c.text.clone(),
                label: None,
                mc1: Some(c.is_true),
            };
            answers.extend(q.mc1.iter().map(mc1));
        }
        Protocol::Letter => {
            answers.extend(q.mc1.iter().map(|c| Answer::new(&c.text, c.is_true)));
        }
        _ => {
            with_label(&mut answers);
            for c in &q.mc1 {
                match answers.iter_mut().find(|a| a.text == c.text && a.label == Some(c.is_true) && a.mc1.is_none()) {
                    Some(answer) => answer.mc1 = Some(c.is_true),
                    None => answers.push(Answer { text: c.text.clone(), label: None, mc1: Some(c.is_true) }),
                }
            }
        }
    }
    Some(answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::truthfulqa::Choice;

    fn question() -> Question {
        let list = |l: &[(&str, bool)]| l.iter().map(|&(t, is_true)| Choice { text: t.into(), is_true }).collect();
        Question {
            text: "Q?".into(),
            category: None,
            mc1: list(&[("best", true), ("lie", false), ("only in mc1", false)]),
            mc2: list(&[("best", true), ("also true", true), ("lie", false)]),
            binary: None,
        }
    }

    #[test]
    fn answers_of_the_protocols() {
        let answers = |p| {
            let b = Benchmark::truthfulqa(&[question()], &[0], p)?;
            Some(b.items[0].answers.iter().map(|a| (a.text.clone(), a.label, a.mc1)).collect::<Vec<_>>())
        };
        let a = |t: &str, label, mc1| (t.to_owned(), label, mc1);
        assert_eq!(
            answers(Protocol::Mc).unwrap(),
            [
                a("best", Some(true), Some(true)),
                a("also true", Some(true), None),
                a("lie", Some(false), Some(false)),
                a("only in mc1", None, Some(false))
            ]
        );
        assert_eq!(answers(Protocol::Letter).unwrap().len(), 3);
        assert_eq!(answers(Protocol::Binary), None);
    }

    #[test]
    fn letters_are_shuffled_by_seed_and_item() {
        let mut item = Benchmark::truthfulqa(&[question()], &[0], Protocol::Letter).unwrap().items.remove(0);
        item.answers = (0..8).map(|i| Answer::new(i.to_string(), i == 0)).collect();
        let order = |item: &Item, seed| Protocol::Letter.orders(item, seed)[0].clone().unwrap();
        assert_eq!(order(&item, 1), order(&item, 1));
        assert_ne!(order(&item, 1), order(&item, 2));
        let other = Item { index: 5, ..item.clone() };
        assert_ne!(order(&item, 1), order(&other, 1));
        assert_eq!(Protocol::Binary.orders(&item, 1).len(), 2);
    }
}
