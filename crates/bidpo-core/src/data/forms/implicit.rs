//! Forms without a prompt of their own: what both dialogues share, or what both texts begin with.

use super::columns::{Role, Row, may, must};
use super::pairs::{CHOSEN, REJECTED, SYSTEM, read};
use super::turns::{join, last_answer, with_system};
use super::{Draft, Fault, Form, Reader, dialogue, messages, start};
use crate::data::Prompt;

/// The form of texts that are split where they part: only of files all of whose rows have it.
pub(super) const AS_TEXT: &str = "TRL, implicit prompt as text";

pub(super) fn forms() -> Vec<Form> {
    let form = |name, only_if: fn(&Row<'_>) -> bool, reader| Form {
        name,
        columns: vec![
            may(Role::System, &SYSTEM),
            must(Role::Chosen, &CHOSEN),
            must(Role::Rejected, &REJECTED),
            may(Role::Id, &["id"]),
        ],
        only_if: Some(only_if),
        reader: Reader::Row(reader),
    };
    vec![
        form(
            "TRL, implicit prompt",
            |row| {
                [Role::Chosen, Role::Rejected].iter().all(|r| row.cell(*r).is_some_and(|c| messages::is_chat(c.value)))
            },
            read,
        ),
        form(
            "dialogues as text (HH-RLHF)",
            |row| texts(row).is_some_and(|texts| texts.iter().any(|text| dialogue::any_turns(text).is_some())),
            dialogues,
        ),
        form("TRL, implicit prompt as text", |row| texts(row).is_some_and(|texts| shared(texts).is_some()), split),
    ]
}

fn texts<'a>(row: &Row<'a>) -> Option<[&'a str; 2]> {
    let text = |role| row.cell(role)?.value.as_str();
    Some([text(Role::Chosen)?, text(Role::Rejected)?])
}

/// Dialogues as text, under any marks.
fn dialogues(row: &Row<'_>) -> Result<Vec<Draft>, Fault> {
    let one = |role| {
        let cell = row.needed(role)?;
        let text = cell.value.as_str().unwrap_or_default();
        let turns = dialogue::any_turns(text)
            .ok_or_else(|| format!("{:?} is not a dialogue as the other answer is: {:?}", cell.name, start(text)))?;
        last_answer(cell.name, turns.map_err(|reason| format!("{:?}: {reason}", cell.name))?)
    };
    Ok(vec![join(row, one(Role::Chosen)?, one(Role::Rejected)?)?])
}

/// Where two texts part, as TRL splits them (`extract_prompt`): at the first character that differs, a space before it with the
/// answers; where one text is the beginning of the other, before the shorter one's last character. In bytes of the first text.
/// `None` where they share less than two words.
fn shared([chosen, rejected]: [&str; 2]) -> Option<usize> {
    let differs = chosen.char_indices().zip(rejected.chars()).find(|((_, a), b)| a != b);
    let at = match differs {
        Some(((at, _), _)) if chosen[..at].ends_with(' ') => at - 1,
        Some(((at, _), _)) => at,
        None => {
            let n = chosen.chars().count().min(rejected.chars().count());
            chosen.char_indices().nth(n.checked_sub(1)?)?.0
        }
    };
    chosen[..at].trim().contains(char::is_whitespace).then_some(at)
}

fn split(row: &Row<'_>) -> Result<Vec<Draft>, Fault> {
    let parts = texts(row).and_then(|texts| Some((texts, shared(texts)?)));
    let ([chosen, rejected], at) = parts.ok_or_else(|| "chosen and rejected share no beginning".to_owned())?;
    if chosen.trim() == rejected.trim() {
        return Err(
            format!("chosen and rejected are the same text ({:?}): there is nothing to prefer", start(chosen)).into()
        );
    }
    let prompt = with_system(Prompt::Text(chosen[..at].to_owned()), row)?;
    let [chosen, rejected] = [chosen, rejected].map(|text| text[at..].to_owned());
    for (role, text) in [("chosen", &chosen), ("rejected", &rejected)] {
        if text.trim().is_empty() {
            return Err(format!(
                "{role} is nothing but the beginning that both share: give it an answer, or a prompt column"
            )
            .into());
        }
    }
    Ok(vec![Draft { prompt, chosen, rejected, prompt_repeated: false, prompt_shared: true }])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What TRL's `extract_prompt` gives, computed by hand from its rule.
    #[test]
    fn texts_part_where_trl_splits_them() {
        let split = |a: &'static str, b: &'static str| shared([a, b]).map(|at| [&a[..at], &a[at..], &b[at..]]);
        assert_eq!(split("The sky is blue.", "The sky is green."), Some(["The sky is", " blue.", " green."]));
        assert_eq!(split("A word: no", "A word: yes"), Some(["A word:", " no", " yes"]));
        assert_eq!(split("Ein Stück: gut", "Ein Stück: ganz"), Some(["Ein Stück: g", "ut", "anz"]));
        assert_eq!(split("It is so.", "It is so. Yes."), Some(["It is so", ".", ". Yes."]));
        for (a, b) in [("Yes.", "No."), ("Yes, it is.", "Yes, so"), ("", ""), ("a", "a"), ("\u{e9}", "")] {
            assert_eq!(shared([a, b]), None, "{a}");
        }
    }
}
