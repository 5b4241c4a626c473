//! Flags that say how preference pairs are read, and what is said about the reading.

use bidpo_core::data::{Keys, PreferenceSet, PrefsError, ReadOptions, Reading, SkippedRow};
use serde_json::{Value, json};
use std::path::Path;

/// Options of reading preference pairs.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DataArgs {
    /// Column of the prompt, where it has no usual name; a.b reaches into an object, a.0 into a list.
    #[arg(long, value_name = "KEY")]
    pub prompt_key: Option<String>,
    /// Column of the answer to prefer.
    #[arg(long, value_name = "KEY")]
    pub chosen_key: Option<String>,
    /// Column of the answer to avoid.
    #[arg(long, value_name = "KEY")]
    pub rejected_key: Option<String>,
    /// Column of the system message.
    #[arg(long, value_name = "KEY")]
    pub system_key: Option<String>,
    /// Stop at the first row that cannot be used, instead of leaving such rows out (up to half of all) and listing them.
    #[arg(long)]
    pub strict: bool,
}

/// Rows that are listed one by one.
const LISTED: usize = 10;

impl DataArgs {
    /// The options for the library.
    pub fn options(&self) -> ReadOptions {
        let keys = Keys {
            prompt: self.prompt_key.clone(),
            chosen: self.chosen_key.clone(),
            rejected: self.rejected_key.clone(),
            system: self.system_key.clone(),
        };
        ReadOptions { keys, strict: self.strict, alone: false }
    }

    /// Reads a file or a built-in set, and says on stderr how.
    ///
    /// # Errors
    /// [`PrefsError`].
    pub fn open(&self, source: &Path) -> Result<PreferenceSet, PrefsError> {
        Self::told(source, &self.options())
    }

    /// As [`DataArgs::open`]; rows with one answer are read too, for an objective that needs no other.
    ///
    /// # Errors
    /// [`PrefsError`].
    pub fn open_alone(&self, source: &Path) -> Result<PreferenceSet, PrefsError> {
        Self::told(source, &ReadOptions { alone: true, ..self.options() })
    }

    fn told(source: &Path, options: &ReadOptions) -> Result<PreferenceSet, PrefsError> {
        let set = PreferenceSet::open_with(source, options)?;
        // What the columns of a built-in set are is in its own documentation.
        if source.exists() {
            tell(&set);
        }
        Ok(set)
    }
}

/// Says how a file was read: form, columns, rows that are left out.
fn tell(set: &PreferenceSet) {
    let Reading { format, rows, forms, columns, unused, skipped, undecided, repeated, implicit, markup, unpaired } =
        &set.reading;
    let form = match &forms[..] {
        [one] => format!("{:?}", one.name),
        several => several
            .iter()
            .map(|f| format!("{:?} ({} row{})", f.name, f.rows, plural(f.rows)))
            .collect::<Vec<_>>()
            .join(", "),
    };
    let n = set.len();
    eprintln!("{}: {n} pair{} from {rows} row{} ({format}), form {form}", set.name, plural(n), plural(*rows));
    let columns: Vec<_> = columns.iter().map(|c| format!("{} -> {}", c.column, c.becomes())).collect();
    eprintln!("{}: {}", set.name, columns.join(", "));
    if !unused.is_empty() {
        let name = |column: &String| if column.is_empty() { "(one without a name)".to_owned() } else { column.clone() };
        let names: Vec<String> = unused.iter().map(name).collect();
        eprintln!("note: {}: column{} not used: {}", set.name, plural(names.len()), names.join(", "));
    }
    if *repeated > 0 {
        eprintln!(
            "note: {}: the answers of {repeated} pair{} began with the prompt, which was taken from them",
            set.name,
            plural(*repeated)
        );
    }
    if *implicit > 0 {
        eprintln!(
            "note: {}: {implicit} pair{} without a prompt: what both texts begin with became the prompt, as TRL splits them",
            set.name,
            plural(*implicit)
        );
    }
    if let Some(mark) = markup {
        eprintln!(
            "note: {}: it holds markup of a chat template ({mark}), which is plain text under a chat template; under `--template \
             none` it is taken as written",
            set.name
        );
    }
    if *unpaired > 0 {
        eprintln!(
            "note: {}: {unpaired} row{} with one labelled answer make{} no pair with another row of the same prompt and {} left out",
            set.name,
            plural(*unpaired),
            if *unpaired == 1 { "s" } else { "" },
            if *unpaired == 1 { "is" } else { "are" }
        );
    }
    list(undecided, *rows, "rows prefer neither answer and are left out");
    list(skipped, *rows, "rows cannot be read and are left out (--strict stops at the first)");
}

pub(crate) fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// Lists rows that are left out, the first ten with place and reason.
pub fn list(left_out: &[SkippedRow], rows: usize, what: &str) {
    if left_out.is_empty() {
        return;
    }
    eprintln!("warning: {} of {rows} {what}:", left_out.len());
    for row in left_out.iter().take(LISTED) {
        eprintln!("  {}: {}", row.place, row.reason);
    }
    if left_out.len() > LISTED {
        eprintln!("  ... and {} more", left_out.len() - LISTED);
    }
}

/// How a file was read, for `--json`.
pub fn reading_json(reading: &Reading) -> Value {
    let Reading { format, rows, forms, columns, unused, skipped, undecided, repeated, implicit, markup, unpaired } =
        reading;
    let rows_json = |rows: &[SkippedRow]| -> Value {
        let listed: Vec<_> =
            rows.iter().take(LISTED).map(|r| json!({ "place": r.place, "reason": r.reason })).collect();
        json!({ "count": rows.len(), "first": listed })
    };
    json!({
        "format": format,
        "rows": rows,
        "form": forms.first().map(|f| f.name),
        "forms": forms.iter().map(|f| json!({ "name": f.name, "rows": f.rows })).collect::<Vec<_>>(),
        "columns": columns.iter().map(|c| (c.column.clone(), Value::from(c.becomes()))).collect::<serde_json::Map<_, _>>(),
        "unused": unused,
        "skipped": rows_json(skipped),
        "undecided": rows_json(undecided),
        "repeated": repeated,
        "implicit": implicit,
        "markup": markup,
        "unpaired": unpaired,
    })
}
