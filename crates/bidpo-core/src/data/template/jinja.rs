//! Jinja as chat templates use it: minijinja set up the way Hugging Face's `apply_chat_template` sets up Jinja2.

use super::{Message, TemplateError, date};
use minijinja::value::{Rest, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::Serialize;

const NAME: &str = "chat";

/// A compiled template with the vocabulary's texts it may write.
#[derive(Debug)]
pub(super) struct JinjaTemplate {
    environment: Environment<'static>,
    name: String,
    source: String,
    bos: String,
    eos: String,
}

impl JinjaTemplate {
    pub(super) fn new(name: &str, source: String, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        // Python's string and dictionary methods: .strip(), .split(), .get(), .items(), ...
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: &str| date::strftime(format, date::now()));
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, without_generation_tags(&source))
            .map_err(|e| TemplateError::Syntax { name: name.to_owned(), reason: reason(&e) })?;
        Ok(Self { environment, name: name.to_owned(), source, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let failed = |e: Error| TemplateError::Render { name: self.name.clone(), reason: reason(&e) };
        // Hugging Face passes tools and documents as None, and templates ask `is not none`.
        let none = Value::from(());
        self.environment
            .get_template(NAME)
            .map_err(failed)?
            .render(context! {
                messages => messages,
                add_generation_prompt => add_generation_prompt,
                bos_token => self.bos,
                eos_token => self.eos,
                tools => none,
                documents => none,
            })
            .map_err(failed)
    }
}

/// minijinja's error with its line, and without the template's text.
fn reason(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
    match error.line() {
        Some(line) if error.kind() != ErrorKind::InvalidOperation => format!("{what} (line {line})"),
        _ => what,
    }
}

fn raise_exception(message: Rest<String>) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.join(" ")))
}

/// JSON as Python's `json.dumps(ensure_ascii=False)` writes it (minijinja's own filter escapes for HTML).
fn tojson(value: &Value, options: minijinja::value::Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut out = Vec::new();
    if let Some(n) = indent {
        let spaces = " ".repeat(n.min(16));
        let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(failed)?;
    } else {
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonSpacing)).map_err(failed)?;
    }
    Ok(Value::from(String::from_utf8_lossy(&out).into_owned()))
}

/// `", "` and `": "` between the parts, on one line.
struct PythonSpacing;

impl serde_json::ser::Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

/// Turns Hugging Face's `{% generation %}` ... `{% endgeneration %}` (marks for training masks, no effect on the text)
/// into blocks that every Jinja knows.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start..].find("%}").map(|i| start + i) else { break };
        let inner = &rest[start + 2..end];
        let tag = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out += &rest[..start + 2];
        match tag {
            "generation" => out += &inner.replace("generation", "if true"),
            "endgeneration" => out += &inner.replace("endgeneration", "endif"),
            _ => out += inner,
        }
        out += "%}";
        rest = &rest[end + 2..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, TemplateError> {
        let chat = [Message::user(" a<b \"q\" \n"), Message::assistant("x</think>\n y")];
        JinjaTemplate::new("test", source.to_owned(), "<s>", "</s>")?.render(&chat, true)
    }

    #[test]
    fn blocks_are_trimmed_as_hugging_face_does() {
        assert_eq!(render("A\n  {% if true %}\nB\n  {% endif %}\nC").unwrap(), "A\nB\nC");
    }

    #[test]
    fn python_methods_and_loop_controls() {
        assert_eq!(render("{{ messages[1].content.split('</think>')[-1].strip() }}").unwrap(), "y");
        assert_eq!(render("{{ messages[0]['content'].strip().startswith('a<') }}").unwrap().to_lowercase(), "true");
        assert_eq!(render("{% for m in messages %}{{ m.get('role') }}{% break %}{% endfor %}").unwrap(), "user");
        assert_eq!(render("{{ bos_token }}{{ eos_token }}{{ tools is none }}").unwrap().to_lowercase(), "<s></s>true");
    }

    #[test]
    fn json_is_not_escaped_for_html() {
        assert_eq!(render("{{ messages[0].content | tojson }}").unwrap(), r#"" a<b \"q\" \n""#);
        assert_eq!(render("{{ {'a': [1, 2]} | tojson }}").unwrap(), r#"{"a": [1, 2]}"#);
    }

    #[test]
    fn generation_tags_have_no_effect() {
        assert_eq!(render("a {%- generation -%} b {%- endgeneration %} c").unwrap(), "ab c");
    }

    #[test]
    fn errors_are_the_templates_own() {
        let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
        assert!(error.contains("roles must alternate") && error.contains("test"), "{error}");
        let error = render("{% if %}").unwrap_err();
        assert!(matches!(error, TemplateError::Syntax { .. }), "{error}");
    }
}
