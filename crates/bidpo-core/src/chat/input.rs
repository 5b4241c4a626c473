//! Input of several lines.

/// Delimiter of a multi-line block.
const FENCE: &str = "\"\"\"";

/// True once `text` needs no further line: it is neither inside a `"""` block nor ends with a backslash.
pub fn is_complete(text: &str) -> bool {
    match block(text) {
        Some(rest) => rest.trim_end().ends_with(FENCE),
        None => !text.ends_with('\\'),
    }
}

/// The lines as the person means them: without the `"""` around a block, or the backslashes at the ends of lines.
/// Inside a block a backslash is a backslash.
pub fn joined(text: &str) -> String {
    if let Some(rest) = block(text) {
        let inside = rest.trim_end();
        let inside = inside.strip_suffix(FENCE).unwrap_or(inside);
        // A block that starts with a slash is text: commands are one line, outside of blocks.
        let text = inside.trim_matches('\n');
        return if text.starts_with('/') { format!(" {text}") } else { text.to_owned() };
    }
    let text = text.replace("\\\n", "\n");
    text.strip_suffix('\\').map_or(text.clone(), ToOwned::to_owned)
}

/// The text after the opening fence.
fn block(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix(FENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backslash_goes_on() {
        assert!(is_complete("one line") && is_complete("") && is_complete("a\nb"));
        assert!(!is_complete("one\\") && !is_complete("one\\\ntwo\\"));
        assert_eq!(joined("one\\\ntwo\\\nthree"), "one\ntwo\nthree");
        assert_eq!(joined("the end of the input\\"), "the end of the input");
        assert_eq!(joined("C:\\x is fine"), "C:\\x is fine");
    }

    #[test]
    fn a_block_ends_where_it_says() {
        assert!(!is_complete("\"\"\"") && !is_complete("\"\"\"one\\\n\ntwo"));
        let block = "\"\"\"one\\\n\n  two \"quoted\"\n\"\"\" ";
        assert!(is_complete(block));
        assert_eq!(joined(block), "one\\\n\n  two \"quoted\"");
        assert_eq!(joined("\"\"\"all in one\"\"\""), "all in one");
        assert_eq!(joined("\"\"\"\n/scale 2\n\"\"\""), " /scale 2");
        assert_eq!(joined("\"\"\"never closed\n"), "never closed");
    }
}
