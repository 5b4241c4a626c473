//! Jinja as chat templates use it: minijinja set up the way Hugging Face's `apply_chat_template` sets up Jinja2 (an immutable
//! sandbox, `trim_blocks`, `lstrip_blocks`, loop controls), with limits on the work of a rendering.

mod attributes;
mod budget;
mod collections;
mod cycles;
mod fields;
mod filters;
mod format;
mod json;
mod macros;
mod methods;
mod ops;
mod order;
mod python;
mod rewrite;
mod source;
mod strings;
#[cfg(test)]
mod tests;

use super::engine::MessageForm;
use super::variables::{GIVEN, OWN};
use super::{Message, TemplateError, date};
use crate::data::ToolCall;
use budget::{MAX_SOURCE, MAX_STEPS, charge};
use jiff::Timestamp;
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;

const NAME: &str = "chat";
/// Names that templates know without being given them.
const FUNCTIONS: [&str; 13] = [
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
    "dict",
    "cycler",
    "joiner",
    "lipsum",
    "debug",
    "loop",
    "caller",
    "varargs",
    "kwargs",
];
/// Depth of macro calls and loops.
const MAX_CALLS: usize = 200;
/// Bytes of stack for compiling and rendering: a template may nest as deep as it is long.
const STACK: usize = 256 << 20;

/// A compiled template with the vocabulary's texts it may write.
#[derive(Debug)]
pub(super) struct JinjaTemplate {
    environment: Environment<'static>,
    name: String,
    source: String,
    bos: String,
    eos: String,
    /// Variables that it reads beside the chat, sorted.
    variables: Vec<String>,
}

impl JinjaTemplate {
    pub(super) fn new(name: &str, source: String, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        Self::at(name, source, bos, eos, None)
    }

    /// As [`JinjaTemplate::new`], for a template that asks for the date: `clock`, or the present.
    fn at(name: &str, source: String, bos: &str, eos: &str, clock: Option<Timestamp>) -> Result<Self, TemplateError> {
        let syntax = |reason: String| TemplateError::Syntax { name: name.to_owned(), reason };
        if source.len() > MAX_SOURCE {
            return Err(syntax(format!("it has {} bytes, more than {MAX_SOURCE}", source.len())));
        }
        let compiled = with_stack(|| compile(&source, clock)).map_err(syntax)?;
        let (environment, variables) = compiled.map_err(|e| syntax(reason(&e)))?;
        Ok(Self { environment, name: name.to_owned(), source, bos: bos.to_owned(), eos: eos.to_owned(), variables })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Names of the variables that the template reads beside the chat itself, sorted.
    pub(super) fn variables(&self) -> &[String] {
        &self.variables
    }

    /// The chat as text.
    pub(super) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        form: MessageForm,
        variables: &Map<String, Json>,
    ) -> Result<String, TemplateError> {
        let failed = |reason: String| TemplateError::Render { name: self.name.clone(), reason };
        let rendered =
            with_stack(|| self.render_here(messages, add_generation_prompt, form, variables)).map_err(failed)?;
        rendered.map_err(|e| failed(reason(&e)))
    }

    fn render_here(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        form: MessageForm,
        variables: &Map<String, Json>,
    ) -> Result<String, Error> {
        // Hugging Face passes tools and documents as None, and templates ask `is not none`.
        let none = Value::from(());
        let mut names: BTreeMap<&str, Value> = BTreeMap::from([
            ("messages", form.calls.styled(messages).iter().map(|m| value_of(m, form)).collect()),
            ("bos_token", Value::from(self.bos.as_str())),
            ("eos_token", Value::from(self.eos.as_str())),
            ("tools", none.clone()),
            ("documents", none),
        ]);
        names.extend(variables.iter().map(|(name, value)| (name.as_str(), Value::from_serialize(value))));
        names.insert("add_generation_prompt", Value::from(add_generation_prompt));
        self.environment.get_template(NAME)?.render(Value::from_serialize(names))
    }
}

/// A message as templates read it. Published templates call a thought by three names.
fn value_of(message: &Message, form: MessageForm) -> Value {
    let tools = &message.tools;
    let content = match form.parts {
        _ if form.calls.null_content && !tools.calls.is_empty() && message.content.is_empty() => Json::Null,
        true => json!([{"type": "text", "text": message.content}]),
        false => json!(message.content),
    };
    let mut fields = json!({"role": message.role, "content": content});
    if let Some(thought) = &message.reasoning_content {
        for name in ["reasoning_content", "reasoning", "thinking"] {
            fields[name] = json!(thought);
        }
    }
    if !tools.calls.is_empty() {
        let arguments = |c: &ToolCall| match form.calls.text_arguments {
            true => json!(Json::Object(c.arguments.clone()).to_string()),
            false => json!(c.arguments),
        };
        let call = |c: &ToolCall| json!({"id": c.id, "type": "function", "function": {"name": c.name, "arguments": arguments(c)}});
        fields["tool_calls"] = tools.calls.iter().map(call).collect();
    }
    for (key, value) in [("tool_call_id", &tools.call_id), ("name", &tools.name)] {
        if let Some(value) = value {
            fields[key] = json!(value);
        }
    }
    Value::from_serialize(fields)
}

/// The template in an environment of its own.
fn compile(source: &str, clock: Option<Timestamp>) -> Result<(Environment<'static>, Vec<String>), Error> {
    let mut environment = Environment::new();
    environment.set_keep_trailing_newline(true);
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_recursion_limit(MAX_CALLS);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(write_value);
    environment.add_function("raise_exception", raise_exception);
    let now = move || clock.unwrap_or_else(date::now);
    environment.add_function("strftime_now", move |format: &str| date::strftime(format, now()));
    // minijinja's own, not Jinja2's.
    for extra in ["zip", "chain", "lines"] {
        environment.remove_filter(extra);
    }
    ops::install(&mut environment);
    filters::install(&mut environment);
    collections::install(&mut environment);
    attributes::install(&mut environment);
    order::install(&mut environment);
    macros::install(&mut environment);
    cycles::install(&mut environment);
    let rewritten = rewrite::rewrite(&source::prepared(source))?;
    environment.add_template_owned(NAME, rewritten.source)?;
    let own = |name: &String| {
        let name = name.as_str();
        name.starts_with("__")
            || rewritten.macros.iter().any(|m| m == name)
            || FUNCTIONS.contains(&name)
            || OWN.contains(&name)
            || GIVEN.contains(&name)
    };
    let read = environment.get_template(NAME)?.undeclared_variables(false);
    let mut variables: Vec<String> = read.into_iter().filter(|name| !own(name)).collect();
    variables.sort();
    Ok((environment, variables))
}

/// Runs `work` on a stack that no template within its limits can fill. A panic of the engine's own is an error of the template,
/// not of the program. No thread: its start takes longer than a rendering.
fn with_stack<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    crate::guard::guarded(|| stacker::grow(STACK, work)).ok_or_else(|| "the template engine failed on it".into())
}

/// Writes what `{{ ... }}` shows: `str()` of the value, counted.
fn write_value(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let failed = |_| Error::from(ErrorKind::WriteFailure);
    match value.as_str().filter(|_| value.kind() == ValueKind::String) {
        Some(text) => {
            charge(state, text.len())?;
            out.write_str(text).map_err(failed)
        }
        None => {
            let text = python::str_of(value)?;
            charge(state, text.len())?;
            out.write_str(&text).map_err(failed)
        }
    }
}

/// minijinja's error with its line, and without the template's text.
fn reason(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return format!("it takes more than {MAX_STEPS} steps, which no chat needs: rendering was stopped");
    }
    let what = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
    match error.line() {
        Some(line) if error.kind() != ErrorKind::InvalidOperation => format!("{what} (line {line})"),
        _ => what,
    }
}

fn raise_exception(message: Rest<String>) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.join(" ")))
}
