//! From the rows of a file to pairs, with an account of what became of every row and column.

use super::columns::{Column, Row};
use super::labelled::{self, Labelled, Paired};
use super::naming::{Named, named};
use super::{Draft, Fault, Form, Keys, Reader, Role, implicit, kind, table};
use crate::data::message::{ROLE_KEYS, TEXT_KEYS, is_message};
use crate::data::source::{Place, Source};
use serde_json::{Map, Value};
use std::collections::HashSet;

/// A form that rows of the file have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormUse {
    /// Its name.
    pub name: &'static str,
    /// Rows that have it.
    pub rows: usize,
}

/// A column, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnUse {
    /// Its name, or its path.
    pub column: String,
    /// Its role.
    pub role: Role,
    /// The prompt is in the same column, before the answer.
    pub with_prompt: bool,
}

impl ColumnUse {
    /// What became of it, in words.
    pub fn becomes(&self) -> String {
        if self.with_prompt { format!("prompt and {}", self.role.name()) } else { self.role.name().to_owned() }
    }
}

/// A row that gives no pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedRow {
    /// `file:line`.
    pub place: String,
    /// The reason.
    pub reason: String,
}

/// How a file was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// Format and compression, in words.
    pub format: String,
    /// Rows of the file.
    pub rows: usize,
    /// Forms of the rows, the most frequent first.
    pub forms: Vec<FormUse>,
    /// Columns that were used.
    pub columns: Vec<ColumnUse>,
    /// Columns with values that were not used.
    pub unused: Vec<String>,
    /// Rows that cannot be read as pairs.
    pub skipped: Vec<SkippedRow>,
    /// Rows that prefer neither answer.
    pub undecided: Vec<SkippedRow>,
    /// Pairs whose answers began with the prompt, which was taken from them.
    pub repeated: usize,
    /// Pairs without a prompt of their own, whose prompt is what both texts begin with.
    pub implicit: usize,
    /// Markup of a chat template that a prompt or an answer holds as text.
    pub markup: Option<&'static str>,
    /// Rows with one labelled answer (KTO) that make no pair with another row.
    pub unpaired: usize,
}

/// A pair with its place.
pub(in crate::data) struct Located {
    pub(in crate::data) place: Place,
    pub(in crate::data) id: String,
    pub(in crate::data) draft: Draft,
}

/// What the rows of a file become.
pub(in crate::data) struct Converted {
    pub(in crate::data) pairs: Vec<Located>,
    pub(in crate::data) reading: Reading,
    /// Rows with good and with bad answers, where rows have one labelled answer each.
    pub(in crate::data) labelled: Option<[usize; 2]>,
}

/// A row that is an object, and its form's place in the table.
struct Formed<'a> {
    object: &'a Map<String, Value>,
    form: Option<usize>,
}

/// Reads the rows.
pub(in crate::data) fn convert(source: &Source, keys: &Keys, alone: bool) -> Converted {
    let forms = table(keys, alone);
    let mut account = Account::new(&forms);
    // The form of each row; faults are described when the file's own form is known.
    let formed = |object| Formed { object, form: form_of(object, &forms) };
    let Named { values, paths } = named(source, keys, |object| form_of(object, &forms).is_some());
    let mut objects: Vec<Result<Formed<'_>, String>> =
        values.iter().map(|value| object(value.as_deref()).map(formed)).collect();
    // In a file of another form, a row without a prompt lacks it: its texts are not split.
    let is_split = |row: &Formed<'_>| row.form.is_some_and(|form| forms[form].name == implicit::AS_TEXT);
    if objects.iter().flatten().any(|row| row.form.is_some() && !is_split(row)) {
        objects.iter_mut().flatten().filter(|row| is_split(row)).for_each(|row| row.form = None);
    }
    objects.iter().flatten().for_each(|row| account.note(row.object, row.form));
    let usual = account.usual();

    let mut pairs: Vec<(usize, Located)> = Vec::new();
    // Forms whose verdicts one row shows to be unclear in all rows.
    let mut unclear: Vec<(usize, String)> = Vec::new();
    let mut answers: Vec<Labelled> = Vec::new();
    let mut reading = Reading { format: source.to_string(), rows: source.rows.len(), ..Reading::default() };
    for (i, row) in source.rows.iter().enumerate() {
        let read = match &objects[i] {
            Err(reason) => Err(Fault::Bad(reason.clone())),
            Ok(Formed { object, form: None }) => Err(Fault::Bad(missing(object, &forms, usual))),
            Ok(Formed { object, form: Some(form) }) => read(object, &forms[*form], i, &mut answers),
        };
        let skipped = |reason| SkippedRow { place: row.place.of(&source.path), reason };
        match read {
            Ok(drafts) => {
                let id = id_of(&objects[i], i);
                for (k, draft) in drafts.into_iter().enumerate() {
                    let id = if k == 0 { id.clone() } else { format!("{id}.{}", k + 1) };
                    pairs.push((i, Located { place: row.place, id, draft }));
                }
            }
            Err(Fault::Unclear(reason)) => {
                if let Ok(Formed { form: Some(form), .. }) = objects[i] {
                    unclear.push((form, reason.clone()));
                }
                reading.skipped.push(skipped(reason));
            }
            Err(Fault::Bad(reason)) => reading.skipped.push(skipped(reason)),
            Err(Fault::NoPreference(reason)) => reading.undecided.push(skipped(reason)),
        }
    }
    for (form, reason) in unclear {
        let is_of = |(i, _): &(usize, Located)| matches!(objects[*i], Ok(Formed { form: Some(f), .. }) if f == form);
        let (of_form, others) = pairs.into_iter().partition(is_of);
        pairs = others;
        for (_, located) in of_form {
            reading.skipped.push(SkippedRow { place: located.place.of(&source.path), reason: reason.clone() });
        }
    }
    let labelled = (!answers.is_empty()).then(|| {
        let Paired { pairs: found, counts, unpaired } = labelled::pair(answers);
        let located =
            |(i, draft): (usize, Draft)| (i, Located { place: source.rows[i].place, id: id_of(&objects[i], i), draft });
        pairs.extend(found.into_iter().map(located));
        pairs.sort_by_key(|(i, _)| *i);
        reading.unpaired = unpaired;
        counts
    });
    let count = |what: fn(&Draft) -> bool| pairs.iter().filter(|(_, p)| what(&p.draft)).count();
    reading.repeated = count(|draft| draft.prompt_repeated);
    reading.implicit = count(|draft| draft.prompt_shared);
    reading.markup = pairs.iter().find_map(|(_, p)| p.draft.markup());
    account.finish(&mut reading);
    reading.columns.iter_mut().for_each(|c| c.column = paths.of(&c.column));
    reading.unused.iter_mut().for_each(|name| *name = paths.of(name));
    Converted { pairs: pairs.into_iter().map(|(_, located)| located).collect(), reading, labelled }
}

fn object<'a>(value: Result<&'a Value, &String>) -> Result<&'a Map<String, Value>, String> {
    match value {
        Ok(Value::Object(object)) => Ok(object),
        Ok(Value::Array(list)) if list.iter().all(|item| !item.is_object()) => Err(format!(
            "a row must be a JSON object, this is a list of {}: say which item is which, as with --prompt-key 0 --chosen-key 1 \
             --rejected-key 2",
            list.len()
        )),
        Ok(other) => Err(format!("a row must be a JSON object, this is {}", kind(other))),
        Err(reason) => Err(reason.clone()),
    }
}

/// The first form of the table that the row has.
fn form_of(object: &Map<String, Value>, forms: &[Form]) -> Option<usize> {
    forms.iter().position(|form| Row::new(object, &form.columns).is_ok_and(|row| form.only_if.is_none_or(|f| f(&row))))
}

/// The pairs of a row; an answer with its label goes to `answers`.
fn read(object: &Map<String, Value>, form: &Form, i: usize, answers: &mut Vec<Labelled>) -> Result<Vec<Draft>, Fault> {
    let row = Row::new(object, &form.columns).map_err(|column| Fault::Bad(lacks(object, column)))?;
    if let Some(cell) = row.cell(Role::Id).filter(|c| !matches!(c.value, Value::String(_) | Value::Number(_))) {
        return Err(Fault::Bad(format!("{:?} must be text or a number, this is {}", cell.name, kind(cell.value))));
    }
    match form.reader {
        Reader::Row(read) => read(&row),
        Reader::Labelled => {
            answers.push(labelled::read(&row, i)?);
            Ok(Vec::new())
        }
    }
}

/// The row's `id`, else its number in the file, from 1.
fn id_of(row: &Result<Formed<'_>, String>, i: usize) -> String {
    match row.as_ref().ok().and_then(|row| row.object.get("id")) {
        Some(Value::String(s)) if !s.trim().is_empty() => s.clone(),
        Some(Value::Number(n)) => n.to_string(),
        _ => (i + 1).to_string(),
    }
}

fn found(object: &Map<String, Value>) -> String {
    let found = object.keys().map(|k| format!("{k:?}")).collect::<Vec<_>>().join(", ");
    if found.is_empty() { "none".into() } else { found }
}

fn lacks(object: &Map<String, Value>, column: &Column) -> String {
    let name = column.names.first().map_or("", String::as_str);
    let what = if object.contains_key(name) { "null" } else { "missing" };
    let flag = match column.role {
        Role::Prompt => "; another one is named with --prompt-key",
        Role::Chosen => "; another one is named with --chosen-key",
        Role::Rejected => "; another one is named with --rejected-key",
        Role::Verdict => "; answers of which one is always the better are named with --chosen-key and --rejected-key",
        _ => "",
    };
    format!("the key {name:?} is {what} (found: {}){flag}", found(object))
}

/// Why the row has no form: what it lacks of the form that the file's rows usually have, or of the nearest one.
fn missing(object: &Map<String, Value>, forms: &[Form], usual: Option<usize>) -> String {
    if let Some(form) = usual.map(|i| &forms[i])
        && let Err(column) = Row::new(object, &form.columns)
    {
        return lacks(object, column);
    }
    let lacking = |form: &Form| -> Vec<Column> {
        let has = |column: &Column| column.names.iter().any(|name| super::columns::find(object, name).is_some());
        form.columns.iter().filter(|c| c.needed && !has(c)).cloned().collect()
    };
    // The last forms are the general ones.
    let has_answer = |form: &Form| {
        let has = |name: &String| super::columns::find(object, name).is_some();
        form.columns.iter().any(|c| c.role.is_answer() && c.names.iter().any(has))
    };
    let near = forms.iter().rev().filter(|f| has_answer(f)).map(lacking).filter(|columns| columns.len() == 1).flatten();
    // Of several, one that lacks the prompt; then one that lacks an answer; then one that lacks the verdict.
    let nearest = near.enumerate().min_by_key(|(i, column)| {
        let rank = match column.role {
            Role::Prompt => 0,
            Role::Chosen | Role::Rejected => 1,
            Role::Verdict => 2,
            _ => 3,
        };
        (rank, *i)
    });
    match nearest {
        Some((_, column)) => lacks(object, &column),
        _ => format!(
            "no form of preference data has these columns (found: {}): name them with --prompt-key, --chosen-key and \
             --rejected-key",
            found(object)
        ),
    }
}

/// Counts of forms, and columns with their roles.
struct Account<'f> {
    forms: &'f [Form],
    counts: Vec<usize>,
    columns: Vec<ColumnUse>,
    used: HashSet<String>,
    seen: Vec<String>,
    known: HashSet<String>,
    /// Keys of messages that were not used.
    inside: Vec<String>,
}

impl<'f> Account<'f> {
    fn new(forms: &'f [Form]) -> Self {
        Self {
            forms,
            counts: vec![0; forms.len()],
            columns: Vec::new(),
            used: HashSet::new(),
            seen: Vec::new(),
            known: HashSet::new(),
            inside: Vec::new(),
        }
    }

    fn note(&mut self, object: &Map<String, Value>, form: Option<usize>) {
        if let Some(form) = form {
            self.counts[form] += 1;
            let cells = Row::new(object, &self.forms[form].columns).map_or_else(|_| Vec::new(), |row| row.cells);
            let alone = cells.iter().all(|c| c.role != Role::Prompt);
            for cell in cells {
                self.look_inside(cell.name, cell.value);
                let with_prompt = alone && cell.role.is_answer();
                if self.used.insert(cell.name.to_owned()) {
                    self.columns.push(ColumnUse { column: cell.name.to_owned(), role: cell.role, with_prompt });
                }
            }
        }
        for (name, value) in object.iter().filter(|(_, v)| !is_empty(v)) {
            if self.known.contains(name) && !value.is_object() {
                continue;
            }
            self.see(name.clone());
            // Beside a path into an object there may be other values.
            for (key, _) in value.as_object().into_iter().flatten().filter(|(_, v)| !is_empty(v)) {
                self.see(format!("{name}.{key}"));
            }
        }
    }

    /// Notes what messages hold besides role and text, such as thoughts.
    fn look_inside(&mut self, column: &str, value: &Value) {
        let messages = match value {
            Value::Array(list) => &list[..],
            other => std::slice::from_ref(other),
        };
        for message in messages.iter().filter(|m| is_message(m)).filter_map(Value::as_object) {
            let other = |key: &str| !ROLE_KEYS.contains(&key) && !TEXT_KEYS.contains(&key);
            for (key, _) in message.iter().filter(|(key, value)| other(key) && !is_empty(value)) {
                let name = format!("{column}[].{key}");
                if !self.inside.contains(&name) {
                    self.inside.push(name);
                }
            }
        }
    }

    fn see(&mut self, name: String) {
        if self.known.insert(name.clone()) {
            self.seen.push(name);
        }
    }

    /// The form that most rows have.
    fn usual(&self) -> Option<usize> {
        let most = *self.counts.iter().max()?;
        if most == 0 { None } else { self.counts.iter().position(|&n| n == most) }
    }

    fn finish(self, reading: &mut Reading) {
        let Self { forms, counts, columns, used, seen, inside: of_messages, .. } = self;
        reading.forms = forms
            .iter()
            .zip(&counts)
            .filter(|(_, n)| **n > 0)
            .map(|(f, n)| FormUse { name: f.name, rows: *n })
            .collect();
        reading.forms.sort_by_key(|f| std::cmp::Reverse(f.rows));
        let inside = |name: &str| used.iter().any(|u| u.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')));
        let is_unused = |name: &String| match name.split_once('.') {
            _ if used.contains(name) || inside(name) => false,
            // A key of an object: only where another key of it is used.
            Some((outer, _)) => inside(outer) && !used.contains(outer),
            None => true,
        };
        reading.unused = seen.into_iter().filter(is_unused).chain(of_messages).collect();
        reading.columns = columns;
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.trim().is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
