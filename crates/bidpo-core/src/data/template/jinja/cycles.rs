//! Jinja2's `cycler` and `joiner`.

use super::collections::failed;
use minijinja::value::{Object, ObjectRepr, Rest, Value, from_args};
use minijinja::{Environment, Error, ErrorKind, State};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) fn install(environment: &mut Environment<'_>) {
    environment.add_function("cycler", |items: Rest<Value>| match items.0.is_empty() {
        true => Err(failed("cycler: at least one item is needed")),
        false => Ok(Value::from_object(Cycler { items: items.0, next: AtomicUsize::new(0) })),
    });
    environment.add_function("joiner", |between: Option<Value>| {
        Value::from_object(Joiner { between: between.unwrap_or_else(|| Value::from(", ")), calls: AtomicUsize::new(0) })
    });
}

/// Items in turn.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    /// Place of the present item.
    next: AtomicUsize,
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.items[self.next.load(Ordering::Relaxed)].clone())
    }

    fn call_method(self: &Arc<Self>, _: &State<'_, '_>, method: &str, args: &[Value]) -> Result<Value, Error> {
        from_args::<()>(args)?;
        let at = self.next.load(Ordering::Relaxed);
        match method {
            "next" => {
                self.next.store((at + 1) % self.items.len(), Ordering::Relaxed);
                Ok(self.items[at].clone())
            }
            "reset" => {
                self.next.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// A text from its second call on.
#[derive(Debug)]
struct Joiner {
    between: Value,
    calls: AtomicUsize,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        from_args::<()>(args)?;
        let first = self.calls.fetch_add(1, Ordering::Relaxed) == 0;
        Ok(if first { Value::from("") } else { self.between.clone() })
    }
}
