//! Methods of dictionaries as values: Python finds `d.items` before the key `items`, and Jinja2 too.

use minijinja::value::{Object, ObjectRepr, Value, ValueKind};
use minijinja::{Environment, Error};
use std::sync::Arc;

/// `value.name` for a name of [`METHODS`] that is not called.
pub(super) const METHOD: &str = "__py_method";

/// The methods of Python's dictionaries.
pub(super) const METHODS: [&str; 11] =
    ["items", "keys", "values", "get", "copy", "pop", "popitem", "update", "setdefault", "clear", "fromkeys"];

pub(super) fn install(environment: &mut Environment<'_>) {
    environment.add_function(METHOD, |value: &Value, name: &str| -> Result<Value, Error> {
        match value.kind() {
            ValueKind::Map if !super::filters::is_namespace(value) => {
                Ok(Value::from_object(Method { of: value.clone(), name: name.to_owned() }))
            }
            _ => value.get_attr(name),
        }
    });
}

/// A method that is bound to its dictionary.
#[derive(Debug)]
struct Method {
    of: Value,
    name: String,
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &minijinja::State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        super::methods::call(state, &self.of, &self.name, args)
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<built-in method {} of dict object>", self.name)
    }
}
