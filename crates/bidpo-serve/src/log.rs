//! Lines for whoever runs the server.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Distinct lines about ignored fields; clients choose the names, so there is an end to them.
const MAX_NAMES: usize = 100;

/// Where the lines go: the command prints them on stderr.
#[derive(Clone)]
pub struct LogSink(Arc<dyn Fn(&str) + Send + Sync>);

impl LogSink {
    /// A sink that calls `write` with each line.
    pub fn new(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }
}

impl std::fmt::Debug for LogSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogSink")
    }
}

/// The server's log.
#[derive(Debug)]
pub(super) struct Log {
    sink: LogSink,
    /// Names of fields that a line was written about.
    named: Mutex<HashSet<String>>,
}

impl Log {
    pub(crate) fn new(sink: LogSink) -> Self {
        Self { sink, named: Mutex::default() }
    }

    /// Writes one line.
    pub(crate) fn line(&self, text: &str) {
        (self.sink.0)(text);
    }

    /// Writes a line about fields that were ignored, each name once while the server runs.
    pub(crate) fn ignored(&self, names: &[String]) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<&str> = names
            .iter()
            .filter(|n| named.len() < MAX_NAMES && named.insert((*n).clone()))
            .map(String::as_str)
            .collect();
        if !new.is_empty() {
            self.line(&format!(
                "ignored unknown parameters of a request: {} (--strict-api refuses such requests; said once a name)",
                new.join(", ")
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_logged_once() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let log = Log::new(LogSink::new({
            let lines = Arc::clone(&lines);
            move |l| lines.lock().unwrap().push(l.to_owned())
        }));
        log.ignored(&["a".into(), "b".into()]);
        log.ignored(&["a".into()]);
        (0..300).for_each(|i| log.ignored(&[format!("c{i}")]));
        let lines = lines.lock().unwrap();
        assert!(lines[0].contains("a, b") && lines[1].contains("c0"), "{lines:?}");
        assert_eq!(lines.len(), 1 + MAX_NAMES - 2);
    }
}
