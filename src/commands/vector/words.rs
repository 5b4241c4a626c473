//! Values of files as text.

use ggml_grad::llama::GgufValue;

/// A metadata value.
pub fn value_text(value: &GgufValue) -> String {
    match value {
        GgufValue::Str(s) => clean(s),
        GgufValue::Int(n) => n.to_string(),
        GgufValue::Float(x) => significant(*x),
        GgufValue::Bool(b) => b.to_string(),
        GgufValue::Other(kind) => format!("({kind})"),
    }
}

/// A file's text without the characters that would steer the terminal.
pub fn clean(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Five significant digits, no trailing zeros; the exact value is in the JSON.
pub fn significant(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return x.to_string();
    }
    if !(1e-4..1e7).contains(&x.abs()) {
        return format!("{x:.4e}");
    }
    let digits = (4 - x.abs().log10().floor() as i32).max(0) as usize;
    let text = format!("{x:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        let cases =
            [(174.03219, "174.03"), (0.1, "0.1"), (5.0, "5"), (6560.0, "6560"), (0.0, "0"), (1e-9, "1.0000e-9")];
        for (x, expected) in cases {
            assert_eq!(significant(x), expected);
        }
    }

    #[test]
    fn a_file_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
    }
}
