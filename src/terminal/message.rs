//! Errors as one line of text.

use bidpo_core::chat::printable;

/// An error and its causes in one line, without anything that steers a terminal: files are quoted in it. A cause that the text before it already spells out is not said twice: the
/// library's messages are whole sentences that name their source.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.ends_with(&cause) {
            if !text.is_empty() {
                text += ": ";
            }
            text += &cause;
        }
    }
    printable(&text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::Error::new(ggml_grad::llama::LlamaError::File(ggml_grad::files::FileError {
            path: "m.gguf".into(),
            access: ggml_grad::files::FileAccess::Read,
            source: std::io::Error::other("no such thing"),
        }));
        assert_eq!(message(&error), "cannot read m.gguf: no such thing");
        assert_eq!(message(&error.context("loading")), "loading: cannot read m.gguf: no such thing");
        assert_eq!(message(&anyhow::anyhow!("a\u{1b}]0;b\u{7}")), "a\\u{1b}]0;b\\u{7}");
    }
}
