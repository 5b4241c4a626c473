//! Words that deny, and words at all: what surface rules, duplicates and inspections look at.

/// Words of a text: letters, digits and apostrophes, in lower case.
pub fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
}

/// True for a word that denies, in lower case.
pub fn is_negation(word: &str) -> bool {
    const WORDS: [&str; 12] =
        ["no", "not", "never", "none", "nothing", "nobody", "neither", "nor", "nowhere", "cannot", "without", "hardly"];
    WORDS.contains(&word) || word.ends_with("n't")
}

/// True for a text with a word that denies. A typographic apostrophe counts as a plain one.
pub fn is_negated(text: &str) -> bool {
    words(&text.replace('\u{2019}', "'")).iter().any(|w| is_negation(w))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negations_are_words() {
        for text in ["No.", "It can't be", "They aren\u{2019}t here.", "NOTHING happens"] {
            assert!(is_negated(text), "{text}");
        }
        for text in ["A knot", "Notice the northern note.", "", "I know"] {
            assert!(!is_negated(text), "{text}");
        }
    }
}
