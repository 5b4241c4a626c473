//! The progress line of training: on stderr, a bar in a terminal, a line an epoch elsewhere.

use bidpo_core::engine::CacheUse;
use bidpo_core::text::numbers::fixed;
use bidpo_core::train::{Event, LayerStats, StepReport};
use ggml_grad::memory::text;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

/// What accuracies count, of pairs and of answers alone.
const PREFERENCES: &str = "preference accuracy";
const ANSWERS: &str = "answers more probable";

pub struct Progress {
    bar: ProgressBar,
    terminal: bool,
    /// More than one layer: there is no single norm to show.
    several: bool,
    /// What accuracies count.
    counted: &'static str,
    /// An adapter alone: its norm is no part of the residual stream's.
    matrices: bool,
    last: Option<StepReport>,
}

impl Progress {
    pub fn new() -> Self {
        Self {
            bar: ProgressBar::hidden(),
            terminal: std::io::stderr().is_terminal(),
            several: false,
            counted: PREFERENCES,
            matrices: false,
            last: None,
        }
    }

    fn start(&mut self, total: usize, template: &str) {
        self.bar.finish_and_clear();
        // indicatif draws on stderr and hides itself where that is no terminal.
        self.bar = ProgressBar::new(total as u64);
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
    }

    pub fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Memory(need) => {
                let batch = match need.joined_tokens {
                    tokens if tokens > need.longest => {
                        format!("{} over a batch of pairs (up to {tokens} tokens), ", text(need.joined_bytes))
                    }
                    _ => String::new(),
                };
                let at_once = match need.at_once_bytes {
                    bytes if bytes > need.joined_bytes.max(need.step_bytes) => {
                        format!("up to {} for what is computed at once, ", text(bytes))
                    }
                    _ => String::new(),
                };
                let retained = match need.retained_bytes {
                    0 => String::new(),
                    bytes => format!(", {} for the retained texts", text(bytes)),
                };
                eprintln!(
                    "additional memory: {} for a gradient over the longest pair ({} tokens), {batch}{at_once}up to {} for \
                     the traced pairs{retained}",
                    text(need.step_bytes),
                    need.longest,
                    text(need.captured_bytes)
                );
            }
            Event::Captured { done, total, .. } => {
                if *done == 1 {
                    self.start(*total, "reading the residual stream [{bar:24}] {pos}/{len} pairs, {eta} left");
                    if !self.terminal {
                        eprintln!("reading the residual stream of {total} pairs ...");
                    }
                }
                self.bar.set_position(*done as u64);
            }
            Event::Measuring { pairs } => {
                let text = format!("measuring on {pairs} test pairs");
                self.bar = ProgressBar::new_spinner().with_message(text.clone());
                self.bar.enable_steady_tick(Duration::from_millis(120));
                if !self.terminal {
                    eprintln!("{text} ...");
                }
            }
            Event::Notice(what) => self.bar.suspend(|| eprintln!("note: {what}")),
            Event::Cache { folder, used, rounding } => {
                self.bar.finish_and_clear();
                eprintln!("{}", cache_line(folder, used));
                if *rounding > 0.0 {
                    eprintln!(
                        "bf16 rounding of the cached residual streams moves the first pair's log-probabilities by up to \
                         {rounding:.2e} nats"
                    );
                }
            }
            Event::Ready(r) => {
                self.several = r.layers.len() > 1;
                self.counted = if r.alone { ANSWERS } else { PREFERENCES };
                self.matrices = r.adapter.is_some_and(|a| !a.with_vectors);
                self.bar.finish_and_clear();
                if r.agreement.relative == 0.0 {
                    eprintln!(
                        "lifted graph equals llama_decode on {} logits, with and without {}",
                        r.agreement.n_logits,
                        if r.adapter.is_some() { "an adapter" } else { "a vector" }
                    );
                } else {
                    eprintln!(
                        "lifted graph agrees with llama_decode on {} logits: they differ by {:.1e} of their standard \
                         deviation, the rounding of devices",
                        r.agreement.n_logits, r.agreement.relative
                    );
                }
                if let Some(adapter) = &r.adapter {
                    eprintln!("{}; learning rate {}", adapter.in_words(), adapter.lr);
                }
                let shown = |x: f64| if x < 1e-3 { format!("{x:.2e}") } else { fixed(x, 4) };
                let spread = |text: &dyn Fn(&LayerStats) -> String| match &r.layers[..] {
                    [first, .., last] if text(first) != text(last) => format!("{} to {}", text(first), text(last)),
                    layers => layers.first().map_or_else(String::new, text),
                };
                if self.matrices {
                    eprintln!(
                        "{} step{}; {:.1} MB of traced pairs",
                        r.total_steps,
                        if r.total_steps == 1 { "" } else { "s" },
                        r.cache_bytes as f64 / 1e6
                    );
                    self.start(r.total_steps, "[{bar:20}] {msg}");
                    return;
                }
                eprintln!(
                    "residual norm at {}: median {}, mean {}; learning rate {}, a step of {} % of that median{}; {} step{}; \
                     {:.1} MB of traced pairs",
                    if self.several { "the layers, first to last" } else { "the layer" },
                    spread(&|l| format!("{:.1}", l.median_norm)),
                    spread(&|l| format!("{:.1}", l.mean_norm)),
                    spread(&|l| shown(l.lr)),
                    spread(&|l| fixed(l.step_percent(r.n_embd), 2)),
                    if self.several { " at each" } else { "" },
                    r.total_steps,
                    if r.total_steps == 1 { "" } else { "s" },
                    r.cache_bytes as f64 / 1e6
                );
                self.start(r.total_steps, "[{bar:20}] {msg}");
            }
            Event::Seed { seed, number, of, steps } => {
                self.bar.suspend(|| eprintln!("seed {seed} ({number} of {of})"));
                self.start(*steps, "[{bar:20}] {msg}");
            }
            Event::Resumed { step } => {
                eprintln!("resuming after step {step}");
                self.bar.set_position(*step as u64);
            }
            Event::Retaining { texts, predictions, bytes } => self.bar.suspend(|| {
                eprintln!(
                    "retaining {texts} text{}: {predictions} predictions, {:.1} MB of traces",
                    if *texts == 1 { "" } else { "s" },
                    *bytes as f64 / 1e6
                );
            }),
            Event::Step(s) => {
                self.bar.set_message(self.line(s));
                self.bar.set_position(s.step as u64);
                self.last = Some(**s);
            }
            Event::Epoch(p) => {
                let text = format!(
                    "step {}: training loss {:.4}{}, {}",
                    p.step,
                    p.train_loss,
                    match (p.valid_loss, p.valid_accuracy) {
                        (Some(l), Some(a)) => format!(", validation loss {l:.4}, {} {:.1} %", self.counted, 100.0 * a),
                        _ => String::new(),
                    },
                    self.norm(p.norm, p.percent)
                );
                let text = match (p.retained_kl, p.retain_weight) {
                    (Some(kl), Some(weight)) => {
                        format!("{text}, retained texts KL {kl:.4} nats a token, weight {}", fixed(weight, 2))
                    }
                    _ => text,
                };
                if self.terminal {
                    self.bar.println(text);
                } else {
                    let speed = self.last.map_or(String::new(), |s| {
                        format!(", {:.0} tokens/s, {} left", s.tokens_per_second, clock(s.left))
                    });
                    eprintln!("{text}{speed}");
                }
            }
        }
    }

    fn line(&self, s: &StepReport) -> String {
        format!(
            "step {}/{} loss {:.3} margin {:+.2} {} {:.0} % {} {:.0} tokens/s {} left",
            s.step,
            s.total,
            s.loss,
            s.margin,
            self.counted,
            100.0 * s.accuracy,
            self.norm(s.norm, s.percent),
            s.tokens_per_second,
            clock(s.left)
        )
    }

    /// `|v| 6.13 (3.57 %)`, or with several layers the mean of their percentages.
    fn norm(&self, norm: f64, percent: f64) -> String {
        if self.matrices {
            return format!("|BA| {}", fixed(norm, 3));
        }
        let percent = fixed(percent, 2);
        if self.several { format!("|v| {percent} % (mean)") } else { format!("|v| {} ({percent} %)", fixed(norm, 2)) }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Pairs and bytes that a cache read and wrote.
pub fn cache_line(folder: &Path, used: &CacheUse) -> String {
    format!(
        "cache {}: {} pairs reused ({}), {} written ({})",
        folder.display(),
        used.reused,
        text(used.bytes_read),
        used.written,
        text(used.bytes_written)
    )
}

fn clock(d: Duration) -> String {
    let s = d.as_secs();
    if s >= 3600 {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    } else {
        format!("{}:{:02}", s / 60, s % 60)
    }
}
