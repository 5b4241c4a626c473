//! Where a vector or an adapter came from.

use ggml_grad::llama::GgufValue;
use std::collections::BTreeMap;

/// Provenance of a vector or an adapter: the `bidpo.*` keys of its file. All are optional, since files of other tools have none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Provenance {
    /// Key (without the `bidpo.` prefix) and value, in key order.
    pub entries: BTreeMap<String, GgufValue>,
}

impl Provenance {
    /// Sets a text.
    pub fn set_str(&mut self, key: &str, value: impl Into<String>) {
        self.entries.insert(key.to_owned(), GgufValue::Str(value.into()));
    }

    /// Sets an integer.
    pub fn set_int(&mut self, key: &str, value: i64) {
        self.entries.insert(key.to_owned(), GgufValue::Int(value));
    }

    /// Sets a number.
    pub fn set_float(&mut self, key: &str, value: f64) {
        self.entries.insert(key.to_owned(), GgufValue::Float(value));
    }

    /// A text entry.
    pub fn str(&self, key: &str) -> Option<&str> {
        match self.entries.get(key)? {
            GgufValue::Str(s) => Some(s),
            _ => None,
        }
    }

    /// A number, whichever numeric type the file used.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.entries.get(key)? {
            GgufValue::Float(x) => Some(*x),
            GgufValue::Int(n) => Some(*n as f64),
            _ => None,
        }
    }
}
