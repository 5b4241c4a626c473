//! Macros with Jinja2's arguments: defaults that read other parameters, `varargs`, `kwargs` and `caller`.
//!
//! The rewriter makes of `macro f(x, y=1)` a macro `__m_f(x, y, varargs, kwargs, __given)` of minijinja, whose body sets the
//! defaults of parameters that were not given, and a value [`Macro`] called `f` that orders the arguments.

use super::collections::failed;
use super::python::Tuple;
use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Value};
use minijinja::{Environment, Error, State};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Makes a [`Macro`]: its name, the inner macro, the parameters, and which of `varargs`, `kwargs`, `caller` its body reads.
pub(super) const MACRO: &str = "__py_macro";

pub(super) fn install(environment: &mut Environment<'_>) {
    environment.add_function(MACRO, |name: String, inner: Value, parameters: Vec<String>, reads: Vec<String>| {
        Value::from_object(Macro { name, inner, parameters, reads })
    });
}

#[derive(Debug)]
struct Macro {
    name: String,
    inner: Value,
    parameters: Vec<String>,
    reads: Vec<String>,
}

impl Macro {
    fn reads(&self, what: &str) -> bool {
        self.reads.iter().any(|name| name == what)
    }
}

impl Object for Macro {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["name", "arguments", "catch_kwargs", "catch_varargs", "caller"])
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        Some(match key.as_str()? {
            "name" => Value::from(self.name.as_str()),
            "arguments" => Tuple::value(self.parameters.iter().map(|p| Value::from(p.as_str())).collect()),
            "catch_kwargs" => Value::from(self.reads("kwargs")),
            "catch_varargs" => Value::from(self.reads("varargs")),
            "caller" => Value::from(self.reads("caller")),
            _ => return None,
        })
    }

    fn call(self: &Arc<Self>, state: &State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let (given, named) = match args.split_last() {
            Some((last, before)) if last.is_kwargs() => (before, last.clone()),
            _ => (args, Value::from_object(BTreeMap::<String, Value>::new())),
        };
        let mut rest: Vec<(String, Value)> = Vec::new();
        for key in named.try_iter()? {
            rest.push((key.to_string(), named.get_item(&key)?));
        }
        let mut take = |name: &str| {
            let at = rest.iter().position(|(key, _)| key == name)?;
            Some(rest.remove(at).1)
        };
        let n = self.parameters.len();
        let mut values: Vec<Option<Value>> = given.iter().take(n).cloned().map(Some).collect();
        for name in &self.parameters[values.len()..] {
            values.push(take(name));
        }
        let caller =
            if self.reads("caller") && !self.parameters.iter().any(|p| p == "caller") { take("caller") } else { None };
        if let Some((name, _)) = rest.first().filter(|_| !self.reads("kwargs")) {
            return Err(failed(format!("macro {:?} takes no keyword argument {name:?}", self.name)));
        }
        if given.len() > n && !self.reads("varargs") {
            return Err(failed(format!("macro {:?} takes not more than {n} argument(s)", self.name)));
        }
        let was_given: Vec<bool> = values.iter().map(Option::is_some).collect();
        let mut passed: Vec<Value> = values.into_iter().map(Option::unwrap_or_default).collect();
        passed.push(Tuple::value(given.iter().skip(n).cloned().collect()));
        passed.push(rest.into_iter().collect());
        passed.push(Value::from(was_given));
        passed.extend(caller.map(|caller| Value::from(Kwargs::from_iter([("caller", caller)]))));
        self.inner.call(state, &passed)
    }
}

/// True if rewritten code reads a name: outside its string literals.
pub(super) fn mentions(code: &str, name: &str) -> bool {
    let (mut word, mut quoted, mut escaped) = (String::new(), false, false);
    for c in code.chars().chain([' ']) {
        if quoted {
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if c.is_alphanumeric() || c == '_' {
            word.push(c);
        } else {
            if word == name {
                return true;
            }
            word.clear();
            quoted = c == '"';
        }
    }
    false
}
