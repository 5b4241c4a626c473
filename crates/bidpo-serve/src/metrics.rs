//! Counters for Prometheus.

use crate::engine::job::Usage;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Labels of a counted answer to an HTTP request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HttpLabels {
    /// The route, not the path that was asked for: a client must not be able to make labels.
    pub route: String,
    /// The status.
    pub status: u16,
}

/// All that is counted.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<HttpLabels, Counter>,
    finished: Counter,
    failed: Counter,
    cancelled: Counter,
    rejected: Counter,
    prompt_tokens: Counter,
    reused_tokens: Counter,
    generated_tokens: Counter,
    batches: Counter,
    batch_rows: Counter,
    slots: Gauge,
    running: Gauge,
    waiting: Gauge,
    queue_seconds: Histogram,
    first_token_seconds: Histogram,
    token_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new(n_slots: usize) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.005, 2.0, 16));
        let m = Self {
            registry: Registry::with_prefix("bidpo"),
            requests: Family::default(),
            finished: Counter::default(),
            failed: Counter::default(),
            cancelled: Counter::default(),
            rejected: Counter::default(),
            prompt_tokens: Counter::default(),
            reused_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            batches: Counter::default(),
            batch_rows: Counter::default(),
            slots: Gauge::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            queue_seconds: seconds(),
            first_token_seconds: seconds(),
            token_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
        };
        let mut r = Registry::with_prefix("bidpo");
        r.register("http_requests", "Answers to HTTP requests", m.requests.clone());
        r.register("jobs_finished", "Sequences computed to their end", m.finished.clone());
        r.register("jobs_failed", "Sequences that ended with an error", m.failed.clone());
        r.register("jobs_cancelled", "Sequences given up because the client left", m.cancelled.clone());
        r.register("jobs_rejected", "Sequences refused because the queue was full", m.rejected.clone());
        r.register("prompt_tokens", "Prompt tokens computed", m.prompt_tokens.clone());
        r.register("prompt_tokens_reused", "Prompt tokens found in the KV cache", m.reused_tokens.clone());
        r.register("generated_tokens", "Tokens generated", m.generated_tokens.clone());
        r.register("generation_batches", "Batches that held next tokens of answers", m.batches.clone());
        r.register("generation_batch_rows", "Rows of those batches", m.batch_rows.clone());
        r.register("jobs_running", "Sequences being computed", m.running.clone());
        r.register("jobs_waiting", "Sequences in the queue", m.waiting.clone());
        m.slots.set(n_slots as i64);
        r.register("slots", "Sequences that can be computed at once", m.slots.clone());
        let s = Unit::Seconds;
        r.register_with_unit("queue_time", "Time in the queue", s.clone(), m.queue_seconds.clone());
        r.register_with_unit(
            "first_token_time",
            "Time from request to first token",
            s.clone(),
            m.first_token_seconds.clone(),
        );
        r.register_with_unit(
            "token_time",
            "Time of a generated token, mean over its answer",
            s,
            m.token_seconds.clone(),
        );
        Self { registry: r, ..m }
    }

    /// The OpenMetrics text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// Sequences that can be computed at once.
    pub(crate) fn n_slots(&self) -> i64 {
        self.slots.get()
    }

    pub(crate) fn answered(&self, route: String, status: u16) {
        self.requests.get_or_create(&HttpLabels { route, status }).inc();
    }

    pub(crate) fn rejected(&self, n: usize) {
        self.rejected.inc_by(n as u64);
    }

    pub(crate) fn load(&self, running: usize, waiting: usize) {
        self.running.set(running as i64);
        self.waiting.set(waiting as i64);
    }

    pub(crate) fn cancelled(&self, n: usize) {
        self.cancelled.inc_by(n as u64);
    }

    /// Tokens of an answer that nobody waited for any more.
    pub(crate) fn abandoned(&self, n_generated: usize) {
        self.generated_tokens.inc_by(n_generated as u64);
    }

    pub(crate) fn failed(&self) {
        self.failed.inc();
    }

    pub(crate) fn batch(&self, rows: usize) {
        self.batches.inc();
        self.batch_rows.inc_by(rows as u64);
    }

    pub(crate) fn prompt(&self, n_tokens: usize) {
        self.prompt_tokens.inc_by(n_tokens as u64);
    }

    pub(crate) fn finished(&self, usage: &Usage) {
        self.finished.inc();
        self.reused_tokens.inc_by(usage.n_reused as u64);
        self.generated_tokens.inc_by(usage.n_generated as u64);
        self.queue_seconds.observe(usage.waited.as_secs_f64());
        self.first_token_seconds.observe((usage.waited + usage.prompt_time).as_secs_f64());
        if usage.n_generated > 0 {
            self.token_seconds.observe(usage.answer_time.as_secs_f64() / usage.n_generated as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::new(4);
        metrics.answered("/v1/models".into(), 200);
        metrics.prompt(7);
        let second = Duration::from_secs(1);
        let usage = Usage { n_prompt: 9, n_reused: 2, n_generated: 5, waited: second, ..Usage::default() };
        metrics.finished(&usage);
        let text = metrics.text();
        for line in [
            "bidpo_http_requests_total{route=\"/v1/models\",status=\"200\"} 1",
            "bidpo_prompt_tokens_total 7",
            "bidpo_prompt_tokens_reused_total 2",
            "bidpo_generated_tokens_total 5",
            "bidpo_slots 4",
            "bidpo_queue_time_seconds_sum 1.0",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
