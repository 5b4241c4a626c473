//! The preference sets that come with the program (see data/README.md).

use super::{PreferenceSet, PrefsError};
use std::path::Path;

/// Name, file and content of each built-in set.
const SETS: [(&str, &str, &str); 2] = [
    ("misconceptions", "misconceptions.jsonl", include_str!("../../../../data/misconceptions.jsonl")),
    ("plain-vs-flowery", "plain-vs-flowery.jsonl", include_str!("../../../../data/plain-vs-flowery.jsonl")),
];

impl PreferenceSet {
    /// Names of the built-in sets; the first is the default.
    pub const BUILTIN: [&'static str; 2] = [SETS[0].0, SETS[1].0];

    /// A set that comes with the program: `misconceptions` (true answer against popular myth) or `plain-vs-flowery`.
    ///
    /// # Errors
    /// [`PrefsError::UnknownSet`] for any other name.
    pub fn builtin(name: &str) -> Result<Self, PrefsError> {
        let (name, file, text) = SETS
            .into_iter()
            .find(|(known, _, _)| *known == name)
            .ok_or_else(|| PrefsError::UnknownSet { name: name.to_owned() })?;
        Self::parse(text.as_bytes(), Path::new(file), name.to_owned())
    }

    /// The file at `source` if there is one, else the built-in set of that name: what a `--data` flag takes.
    ///
    /// # Errors
    /// As [`PreferenceSet::load`]; [`PrefsError::UnknownSet`] for a bare word that is neither.
    pub fn open(source: &Path) -> Result<Self, PrefsError> {
        match source.to_str() {
            Some(name) if Self::BUILTIN.contains(&name) && !source.exists() => Self::builtin(name),
            // A bare word that is no file was meant as a name.
            Some(name) if source.extension().is_none() && source.components().count() == 1 && !source.exists() => {
                Err(PrefsError::UnknownSet { name: name.to_owned() })
            }
            _ => Self::load(source),
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
