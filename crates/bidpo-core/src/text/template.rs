//! Files from Jinja templates that are kept beside the code: reports and cards.

use super::{Table, numbers};
use minijinja::value::ViaDeserialize;
use minijinja::{AutoEscape, Environment, Output, State, UndefinedBehavior, Value};
use serde::Serialize;

/// A template that does not fit its data. Templates are constants, so this is an error of the program.
#[derive(Debug, thiserror::Error)]
#[error("internal: template {name}: {source:#}")]
pub struct TemplateFileError {
    /// Name of the template.
    pub name: &'static str,
    /// Reason, with the line.
    pub source: minijinja::Error,
}

/// Renders a template with `data`. A name that ends in `.html` turns escaping on ([`escape`]; `|safe` turns it off for a
/// value). A block tag takes its line with it, an undefined name is an error. Filters beside Jinja's: `fixed(decimals)`,
/// `signed(decimals)`, `significant`, `percent` (of a fraction), `p_value`, and for a [`Table`] `table` (padded Markdown)
/// and `compact` (Markdown without padding).
///
/// # Errors
/// [`TemplateFileError`] for a template that is malformed or names what `data` lacks.
pub fn render(name: &'static str, source: &str, data: impl Serialize) -> Result<String, TemplateFileError> {
    let fail = |source| TemplateFileError { name, source };
    environment().render_named_str(name, source, data).map_err(fail)
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_keep_trailing_newline(true);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_auto_escape_callback(|name| if name.ends_with(".html") { AutoEscape::Html } else { AutoEscape::None });
    env.set_formatter(format);
    env.add_filter("fixed", |x: f64, decimals: usize| numbers::fixed(x, decimals));
    env.add_filter("signed", |x: f64, decimals: usize| format!("{x:+.decimals$}"));
    env.add_filter("significant", numbers::significant);
    env.add_filter("percent", numbers::percent);
    env.add_filter("p_value", numbers::p_value);
    env.add_filter("table", |table: ViaDeserialize<Table>| table.markdown());
    env.add_filter("compact", |table: ViaDeserialize<Table>| table.compact());
    env
}

/// Writes a value: [`escape`]d in HTML, where minijinja's own escaping would also replace `'` and `/`.
fn format(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    match value.as_str() {
        Some(text) if state.auto_escape() == AutoEscape::Html && !value.is_safe() => {
            out.write_str(&escape(text)).map_err(minijinja::Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Text as it may stand in HTML and in attributes between double quotes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn html_is_escaped_and_markdown_is_not() {
        let data = json!({ "text": "<a/> & 'b'", "x": 0.25 });
        let source = "{{ text }} {{ text|safe }}\n  {% if x > 0 %}\n{{ x|percent }} {{ x|signed(1) }}\n{% endif %}\n";
        let render = |name| render(name, source, &data).unwrap();
        assert_eq!(render("a.html"), "&lt;a/&gt; &amp; 'b' <a/> & 'b'\n25.0 % +0.2\n");
        assert_eq!(render("a.md"), "<a/> & 'b' <a/> & 'b'\n25.0 % +0.2\n");
    }

    #[test]
    fn tables_and_missing_names() {
        let table = Table::new(["a"]).with([vec!["b".to_owned()]]);
        let text = render("a.md", "{{ t|table }}{{ t|compact }}", json!({ "t": table })).unwrap();
        assert_eq!(text, "| a |\n| - |\n| b |\n| a |\n| --- |\n| b |\n");
        let error = render("a.md", "{{ missing }}", json!({})).unwrap_err().to_string();
        assert!(error.contains("template a.md") && error.contains("undefined"), "{error}");
    }
}
