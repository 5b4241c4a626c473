//! Preference pairs: a prompt, the answer to prefer, the answer to avoid.

use super::Prompt;
use super::forms::{Converted, Keys, Reading, SkippedRow, convert};
use super::source::{Source, SourceError};
use ggml_grad::files::display_name;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// One preference pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferencePair {
    /// The pair's `id`, else its row's number in the file, from 1.
    pub id: String,
    /// The prompt.
    pub prompt: Prompt,
    /// The answer to prefer.
    pub chosen: String,
    /// The answer to avoid; empty for an answer alone ([`ReadOptions::alone`]).
    pub rejected: String,
    /// Location: `file:line`.
    pub origin: String,
}

/// A file of preference pairs; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceSet {
    /// The pairs in file order.
    pub pairs: Vec<PreferencePair>,
    /// SHA-256 of the file's bytes, lower-case hex.
    pub sha256: String,
    /// The file's name, or the name of the built-in set.
    pub name: String,
    /// The file's form, what became of its columns, and the rows that are left out.
    pub reading: Reading,
}

/// How a file of preference pairs is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Names of columns, where they are not the usual ones.
    pub keys: Keys,
    /// The first row that cannot be read is an error. Otherwise such rows are left out and kept in
    /// [`Reading::skipped`], up to half of the rows.
    pub strict: bool,
    /// Rows with one answer are read too, as pairs whose rejected answer is empty: for an objective that needs no other.
    pub alone: bool,
}

/// An invalid file of preference pairs.
#[derive(Debug, thiserror::Error)]
pub enum PrefsError {
    /// The file cannot be read as rows.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A row is wrong, and rows may not be left out.
    #[error("{place}: {reason}")]
    Pair {
        /// `file:line`.
        place: String,
        /// The reason.
        reason: String,
    },
    /// More than half of the rows are wrong.
    #[error(
        "{place}: {reason}\n{bad} of {rows} rows of the file cannot be read as preference pairs, which is more than half"
    )]
    MostlyBad {
        /// Place of the first of them.
        place: String,
        /// Its reason.
        reason: String,
        /// Rows that cannot be read.
        bad: usize,
        /// All rows.
        rows: usize,
    },
    /// No row prefers one answer.
    #[error("{path}: no row prefers one answer (the first: {reason})")]
    Undecided {
        /// The file.
        path: PathBuf,
        /// The first row's reason.
        reason: String,
    },
    /// Rows have one labelled answer each, and no prompt has a good and a bad one.
    #[error(
        "{path}: each row has one answer and a label ({good} good, {bad} bad), and no prompt has an answer of each kind: the \
         objectives of bidpo compare two answers to the same prompt. Give pairs (prompt, chosen, rejected)"
    )]
    Unpaired {
        /// The file.
        path: PathBuf,
        /// Rows with a good answer.
        good: usize,
        /// Rows with a bad answer.
        bad: usize,
    },
    /// No built-in set has this name.
    #[error("no file and no built-in preference set is called {name:?} (built in: {})", PreferenceSet::BUILTIN.join(", "))]
    UnknownSet {
        /// The name asked for.
        name: String,
    },
    /// The file holds nothing.
    #[error("{path}: no preference pairs in it")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl PreferenceSet {
    /// Reads a file in any of the forms of `docs/data.md`. Rows that cannot be read are left out, and stand in
    /// [`Reading::skipped`].
    ///
    /// # Errors
    /// [`PrefsError`], naming the file and the line; also where more than half of the rows cannot be read.
    pub fn load(path: &Path) -> Result<Self, PrefsError> {
        Self::load_with(path, &ReadOptions::default())
    }

    /// Reads a file by its columns' names, or strictly.
    ///
    /// # Errors
    /// As [`PreferenceSet::load`]; with [`ReadOptions::strict`] the first row that cannot be read.
    pub fn load_with(path: &Path, options: &ReadOptions) -> Result<Self, PrefsError> {
        Self::of(&Source::load(path)?, display_name(path), options)
    }

    pub(super) fn of(source: &Source, name: String, options: &ReadOptions) -> Result<Self, PrefsError> {
        let Converted { pairs, reading, labelled } = convert(source, &options.keys, options.alone);
        let path = || source.path.clone();
        if let Some(SkippedRow { place, reason }) = reading.skipped.first().cloned() {
            let (bad, rows) = (reading.skipped.len(), reading.rows);
            if options.strict || rows == 1 {
                return Err(PrefsError::Pair { place, reason });
            }
            if 2 * bad > rows {
                return Err(PrefsError::MostlyBad { place, reason, bad, rows });
            }
        }
        if pairs.is_empty() {
            return Err(match (labelled, reading.undecided.first()) {
                (Some([good, bad]), _) => PrefsError::Unpaired { path: path(), good, bad },
                (None, Some(row)) => PrefsError::Undecided { path: path(), reason: row.reason.clone() },
                (None, None) => PrefsError::Empty { path: path() },
            });
        }
        let pair = |found: super::forms::Located| PreferencePair {
            id: found.id,
            prompt: found.draft.prompt,
            chosen: found.draft.chosen,
            rejected: found.draft.rejected,
            origin: found.place.of(&source.path),
        };
        Ok(Self { pairs: pairs.into_iter().map(pair).collect(), sha256: source.sha256.clone(), name, reading })
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Some prompts have no rejected answer.
    pub fn has_answers_alone(&self) -> bool {
        self.pairs.iter().any(|p| p.rejected.is_empty())
    }

    /// Never true for a set that was read.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Number of pairs whose prompt is an empty text: allowed, but seldom meant.
    pub fn n_empty_prompts(&self) -> usize {
        self.pairs.iter().filter(|p| matches!(&p.prompt, Prompt::Text(t) if t.trim().is_empty())).count()
    }

    /// Number of pairs that repeat an earlier one word for word. They are kept here; a split leaves them out
    /// ([`super::PairGroups`]).
    pub fn n_duplicates(&self) -> usize {
        let mut seen = HashSet::new();
        self.pairs.iter().filter(|p| !seen.insert((&p.prompt, &p.chosen, &p.rejected))).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Message;

    fn read(name: &str, bytes: &[u8]) -> Result<PreferenceSet, String> {
        let options = ReadOptions { strict: true, ..ReadOptions::default() };
        Source::parse(bytes.to_vec(), Path::new(name))
            .map_err(PrefsError::from)
            .and_then(|source| PreferenceSet::of(&source, name.into(), &options))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn all_spellings_give_the_same_pair() {
        let expected = |set: PreferenceSet| {
            let p = &set.pairs[0];
            assert_eq!((p.chosen.as_str(), p.rejected.as_str()), ("yes, \"b\"", "no"));
            (p.prompt.clone(), p.id.clone(), p.origin.clone())
        };
        let a = read("a.jsonl", br#"{"prompt": "q", "chosen": "yes, \"b\"", "rejected": "no", "topic": 3}"#).unwrap();
        assert_eq!(expected(a), (Prompt::Text("q".into()), "1".into(), "a.jsonl:1".into()));
        let b = b"\xef\xbb\xbf\r\n{\"question\": \"q\", \"matching\": \"yes, \\\"b\\\"\", \"not_matching\": \"no\", \"id\": 7}\r\n";
        assert_eq!(expected(read("b.jsonl", b).unwrap()), (Prompt::Text("q".into()), "7".into(), "b.jsonl:2".into()));
        let c = b"question,extra,matching,not_matching\nq,1,\"yes, \"\"b\"\"\",no\n";
        assert_eq!(expected(read("c.csv", c).unwrap()), (Prompt::Text("q".into()), "1".into(), "c.csv:2".into()));
        let m = br#"[{"id": "x", "messages": [{"role": "user", "content": "q"}], "rejected": "no",
                     "chosen": [{"role": "assistant", "content": "yes, \"b\""}]}]"#;
        let chat = Prompt::Messages(vec![Message::user("q")]);
        assert_eq!(expected(read("d.json", m).unwrap()), (chat, "x".into(), "d.json: item 1".into()));
    }

    #[test]
    fn mistakes_name_their_line() {
        let good = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
        let cases = [
            ("{\"prompt\": \"q\"", "not JSON (column 14)"),
            ("[1]", "a row must be a JSON object, this is a list"),
            (
                r#"{"prompt": "q", "chosen": "a", "reject": "b"}"#,
                "the key \"rejected\" is missing (found: \"prompt\", \"chosen\", \"reject\"); another one is named with --rejected-key",
            ),
            ("{}", "found: none"),
            (r#"{"prompt": "q", "chosen": " ", "rejected": "b"}"#, "\"chosen\" is empty"),
            (r#"{"prompt": "q", "chosen": "a", "rejected": ""}"#, "\"rejected\" is empty"),
            (r#"{"prompt": "q", "chosen": "a", "rejected": "a "}"#, "the same text"),
            (
                r#"{"prompt": 3, "chosen": "a", "rejected": "b"}"#,
                "\"prompt\" must be text or a list of messages, this is a number",
            ),
            (r#"{"prompt": "q", "chosen": null, "rejected": "b"}"#, "the key \"chosen\" is null"),
            (r#"{"prompt": [], "chosen": "a", "rejected": "b"}"#, "an empty list"),
            (
                r#"{"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}"#,
                "message 1: the key \"content\" is missing",
            ),
            (
                r#"{"prompt": [{"role": "boss", "content": "x"}], "chosen": "a", "rejected": "b"}"#,
                "unknown role \"boss\"",
            ),
            (r#"{"id": {}, "prompt": "q", "chosen": "a", "rejected": "b"}"#, "\"id\" must be text or a number"),
        ];
        for (line, expected) in cases {
            let error = read("f.jsonl", format!("{good}\n\n{line}\n").as_bytes()).unwrap_err();
            assert!(error.starts_with("f.jsonl:3: ") && error.contains(expected), "{line}\n{error}");
        }
        let error = read("f.jsonl", &[good.as_bytes(), b"\n\n{\"prompt\": \"\xff\"}"].concat()).unwrap_err();
        assert!(error.starts_with("f.jsonl:3: not UTF-8"), "{error}");
        let error = read("f.csv", b"prompt,chosen,rejected\nq,a,b\nq,a,b,c\n").unwrap_err();
        assert!(error.starts_with("f.csv:3: 4 fields where the header has 3"), "{error}");
        let error = read("f.csv", b"prompt,chosen,rejected\n\"q\nq\",a,b\nq,a,a\n").unwrap_err();
        assert!(error.starts_with("f.csv:4: chosen and rejected are the same text"), "{error}");
        let error = read("f.json", b"[\n{\"prompt\": 1},,]").unwrap_err();
        assert!(error.starts_with("f.json:2: not a JSON list"), "{error}");
    }

    #[test]
    fn bad_rows_are_left_out_up_to_half_of_the_file() {
        let load = |text: String| {
            let source = Source::parse(text.into_bytes(), Path::new("f.jsonl")).unwrap();
            PreferenceSet::of(&source, "f".into(), &ReadOptions::default()).map_err(|e| e.to_string())
        };
        let good = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
        let set = load(format!("{good}\r\n{{\r\n{good}\r\n{{\"prompt\": \"q\"}}\r\n")).unwrap();
        let skipped: Vec<_> = set.reading.skipped.iter().map(|s| s.place.as_str()).collect();
        assert_eq!((set.len(), set.reading.rows, skipped), (2, 4, vec!["f.jsonl:2", "f.jsonl:4"]));
        // Ids and origins are those of the rows.
        assert_eq!((set.pairs[1].id.as_str(), set.pairs[1].origin.as_str()), ("3", "f.jsonl:3"));
        let error = load(format!("{good}\n{{\n[]\n")).unwrap_err();
        assert!(
            error.starts_with("f.jsonl:2: not JSON")
                && error
                    .ends_with("2 of 3 rows of the file cannot be read as preference pairs, which is more than half"),
            "{error}"
        );
    }

    #[test]
    fn files_without_pairs() {
        assert_eq!(read("f.jsonl", b"\n \n").unwrap_err(), "f.jsonl: no preference pairs in it");
        assert_eq!(read("f.csv", b"prompt,chosen,rejected\n").unwrap_err(), "f.csv: no preference pairs in it");
        assert!(read("f.txt", b"x").unwrap_err().contains("unknown kind of file"));
        let missing = PreferenceSet::load(Path::new("no-such-file.jsonl")).unwrap_err().to_string();
        assert!(missing.contains("cannot read no-such-file.jsonl"), "{missing}");
    }

    #[test]
    fn repeated_pairs_stay_and_are_counted() {
        let line = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
        let set = read("f.jsonl", format!("{line}\n{line}\n{}\n", line.replace("\"b\"", "\"c\"")).as_bytes()).unwrap();
        assert_eq!((set.len(), set.n_duplicates(), set.n_empty_prompts()), (3, 1, 0));
        // sha256sum of the three bytes "abc": FIPS 180-2, appendix B.1.
        assert_eq!(
            ggml_grad::files::sha256_of_bytes(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
