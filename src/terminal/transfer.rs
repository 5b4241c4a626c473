//! The progress of a file from the network, on stderr: a bar in a terminal, a line now and then elsewhere.

use bidpo_fetch::Event;
use ggml_grad::memory::text;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// The time between two lines where there is no bar.
const QUIET: Duration = Duration::from_secs(10);

pub struct Transfer {
    name: String,
    bar: ProgressBar,
    said: Instant,
}

impl Transfer {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), bar: ProgressBar::hidden(), said: Instant::now() }
    }

    pub fn show(&mut self, event: Event<'_>) {
        let name = self.name.clone();
        match event {
            Event::Replaces(path) => self.say(&format!("{} is another file: fetching it again", path.display())),
            Event::Package(package) => self.say(&format!("{name}: pip fetches {package}")),
            Event::Begins { from, total } => {
                self.bar.finish_and_clear();
                let whole = total.map_or_else(String::new, |total| format!(" of {}", text(total)));
                let done = if from > 0 { format!("; {} are here already", text(from)) } else { String::new() };
                self.say(&format!("fetching {name}{whole}{done}"));
                if std::io::stderr().is_terminal() {
                    self.bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new).with_position(from);
                    let style =
                        ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
                    self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                    self.bar.reset_eta();
                }
            }
            Event::Bytes { done, total } => {
                self.bar.set_position(done);
                if self.bar.is_hidden() && self.said.elapsed() >= QUIET {
                    let whole = total.map_or_else(String::new, |total| format!(" of {}", text(total)));
                    self.say(&format!("{name}: {}{whole}", text(done)));
                }
            }
            Event::Restarts(reason) => self.say(&format!("{name}: {reason}; starting again")),
            Event::Breaks { reason, pause } => {
                self.bar.finish_and_clear();
                self.say(&format!("{name}: broken off ({reason}); trying again in {:.0} s", pause.as_secs_f64()));
            }
            _ => {}
        }
    }

    fn say(&mut self, line: &str) {
        self.said = Instant::now();
        self.bar.suspend(|| eprintln!("{line}"));
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
