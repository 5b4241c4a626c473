//! The preference sets that come with the program (see data/README.md).

use super::source::Source;
use super::{PreferenceSet, PrefsError, ReadOptions};
use std::path::Path;

/// A built-in set.
struct Builtin {
    name: &'static str,
    file: &'static str,
    text: &'static str,
    /// The system prompt that a vector trained on the set is compared with.
    baseline_prompt: &'static str,
}

const SETS: [Builtin; 2] = [
    Builtin {
        name: "misconceptions",
        file: "misconceptions.jsonl",
        text: include_str!("../../data/misconceptions.jsonl"),
        baseline_prompt: "Answer with what is really true according to science and reliable sources, even where many \
                          people believe something else.",
    },
    Builtin {
        name: "plain-vs-flowery",
        file: "plain-vs-flowery.jsonl",
        text: include_str!("../../data/plain-vs-flowery.jsonl"),
        baseline_prompt: "Answer in flowery, ornate, poetic language.",
    },
];

impl PreferenceSet {
    /// Names of the built-in sets; the first is the default.
    pub const BUILTIN: [&'static str; 2] = [SETS[0].name, SETS[1].name];

    /// A set that comes with the program: `misconceptions` (true answer against popular myth) or `plain-vs-flowery`.
    ///
    /// # Errors
    /// [`PrefsError::UnknownSet`] for any other name.
    pub fn builtin(name: &str) -> Result<Self, PrefsError> {
        let set =
            SETS.iter().find(|set| set.name == name).ok_or_else(|| PrefsError::UnknownSet { name: name.to_owned() })?;
        let source = Source::parse(set.text.as_bytes().to_vec(), Path::new(set.file))?;
        Self::of(&source, name.to_owned(), &ReadOptions::default())
    }

    /// The system prompt that a vector trained on the built-in set of this name is compared with.
    pub fn builtin_baseline_prompt(name: &str) -> Option<&'static str> {
        SETS.iter().find(|set| set.name == name).map(|set| set.baseline_prompt)
    }

    /// The file at `source` if there is one, else the built-in set of that name: what a `--data` flag takes.
    ///
    /// # Errors
    /// As [`PreferenceSet::load`]; [`PrefsError::UnknownSet`] for a bare word that is neither.
    pub fn open(source: &Path) -> Result<Self, PrefsError> {
        Self::open_with(source, &ReadOptions::default())
    }

    /// As [`PreferenceSet::open`], with options for a file.
    ///
    /// # Errors
    /// As [`PreferenceSet::open`] and [`PreferenceSet::load_with`].
    pub fn open_with(source: &Path, options: &ReadOptions) -> Result<Self, PrefsError> {
        match source.to_str() {
            Some(name) if Self::BUILTIN.contains(&name) && !source.exists() => Self::builtin(name),
            // A bare word that is no file was meant as a name.
            Some(name) if source.extension().is_none() && source.components().count() == 1 && !source.exists() => {
                Err(PrefsError::UnknownSet { name: name.to_owned() })
            }
            _ => Self::load_with(source, options),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_sets_are_found_by_name() {
        for name in PreferenceSet::BUILTIN {
            let set = PreferenceSet::open(Path::new(name)).unwrap();
            assert_eq!((set.name.as_str(), set.n_duplicates()), (name, 0));
            assert_eq!(set.pairs[0].origin, format!("{name}.jsonl:1"));
        }
        let error = PreferenceSet::builtin("myths").unwrap_err().to_string();
        assert!(error.contains("\"myths\"") && error.contains("misconceptions"), "{error}");
    }
}
