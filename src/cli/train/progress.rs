//! The progress line of training: on stderr, a bar in a terminal, a line an epoch elsewhere.

use bidpo::train::{Event, StepReport};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

pub struct Progress {
    bar: ProgressBar,
    terminal: bool,
    median: f64,
    last: Option<StepReport>,
}

/// A spinner for a step without a count.
pub fn spinner(text: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(text.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    if !std::io::stderr().is_terminal() {
        eprintln!("{text} ...");
    }
    bar
}

impl Progress {
    pub fn new() -> Self {
        Self { bar: ProgressBar::hidden(), terminal: std::io::stderr().is_terminal(), median: 1.0, last: None }
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
            Event::Captured { done, total, .. } => {
                if *done == 1 {
                    self.start(*total, "reading the residual stream [{bar:24}] {pos}/{len} pairs, {eta} left");
                    if !self.terminal {
                        eprintln!("reading the residual stream of {total} pairs ...");
                    }
                }
                self.bar.set_position(*done as u64);
            }
            Event::Ready(r) => {
                self.median = r.median_norm;
                self.bar.finish_and_clear();
                eprintln!(
                    "lifted graph equals llama_decode on {} logits, with and without a vector",
                    r.agreement.n_logits
                );
                eprintln!(
                    "residual norm at the layer: median {:.1}, mean {:.1}; learning rate {}, a step of {} % of that median; {} step{}; {:.1} MB of captured \
                     examples",
                    r.median_norm,
                    r.mean_norm,
                    if r.lr < 1e-3 { format!("{:.2e}", r.lr) } else { figure(r.lr, 4) },
                    figure(100.0 * r.lr * (r.n_embd as f64).sqrt() / r.median_norm, 2),
                    r.total_steps,
                    if r.total_steps == 1 { "" } else { "s" },
                    r.cache_bytes as f64 / 1e6
                );
                self.start(r.total_steps, "[{bar:20}] {msg}");
            }
            Event::Resumed { step } => {
                eprintln!("going on after step {step}");
                self.bar.set_position(*step as u64);
            }
            Event::Step(s) => {
                self.bar.set_message(self.line(s));
                self.bar.set_position(s.step as u64);
                self.last = Some(**s);
            }
            Event::Epoch(p) => {
                let text = format!(
                    "step {}: training loss {:.4}{}, |v| {} ({} %)",
                    p.step,
                    p.train_loss,
                    match (p.valid_loss, p.valid_accuracy) {
                        (Some(l), Some(a)) => format!(", validation loss {l:.4}, wins {:.1} %", 100.0 * a),
                        _ => String::new(),
                    },
                    figure(p.norm, 2),
                    figure(100.0 * p.norm / self.median, 2)
                );
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
            "step {}/{} loss {:.3} margin {:+.2} wins {:.0} % |v| {} ({} %) {:.0} tokens/s {} left",
            s.step,
            s.total,
            s.loss,
            s.margin,
            100.0 * s.accuracy,
            figure(s.norm, 2),
            figure(100.0 * s.norm / self.median, 2),
            s.tokens_per_second,
            clock(s.left)
        )
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A figure with that many decimals, or as a power of ten where a run went astray and it has more than six digits.
pub fn figure(x: f64, decimals: usize) -> String {
    if x.abs() < 1e6 { format!("{x:.decimals$}") } else { format!("{x:.2e}") }
}

fn clock(d: Duration) -> String {
    let s = d.as_secs();
    if s >= 3600 {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    } else {
        format!("{}:{:02}", s / 60, s % 60)
    }
}
