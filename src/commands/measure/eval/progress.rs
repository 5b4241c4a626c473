//! A session on the terminal: progress bar, Ctrl-C, and on stderr how it ended.

use crate::terminal::interrupt::stop_flag;
use anyhow::Context as _;
use bidpo_core::eval::conditions::Condition;
use bidpo_core::eval::results::Manifest;
use bidpo_core::eval::runs::{Ended, Progress, Runner, Session};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;

/// Runs the conditions of a manifest, new or resumed from `out`. `place` stands before the error of an item.
pub fn run_session(
    place: &str,
    manifest: Manifest,
    out: Option<&Path>,
    conditions: &[Condition],
    runner: &dyn Runner,
) -> anyhow::Result<Ended> {
    let stop = stop_flag("Stopping after this batch; Ctrl-C again stops at once.")?;
    let mut session = Session::open(manifest, out, stop)?;
    let (resumed, wanted) = (session.resumed(), session.wanted());
    if resumed == wanted {
        eprintln!("All {wanted} results are there already; nothing is computed.");
    } else if resumed > 0 {
        eprintln!("Going on after {resumed} of {wanted} results of an earlier run.");
    }
    let bar = ProgressBar::new(wanted as u64).with_position(resumed as u64);
    bar.set_style(ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}, {per_sec:.1}, {eta} left")?);
    bar.reset_eta();
    let measured = session.run(conditions, runner, &mut |progress| match progress {
        Progress::Condition(name) => bar.set_message(name.to_owned()),
        Progress::Results(n) => bar.inc(n as u64),
    });
    measured.with_context(|| place.to_owned())?;
    bar.finish_and_clear();
    let (done, seconds) = (session.done() - resumed, bar.elapsed().as_secs_f64());
    if done > 0 {
        eprintln!("{done} results in {seconds:.1} s, {:.3} s each.", seconds / done as f64);
    }
    let file = session.file().map(|f| f.display().to_string());
    let ended = session.end()?;
    match (&ended, file) {
        (Ended::Interrupted { done, wanted }, Some(file)) => eprintln!(
            "Interrupted after {done} of {wanted} results. They are kept in {file}; the same command goes on from there."
        ),
        (Ended::Interrupted { done, wanted }, None) => {
            eprintln!("Interrupted after {done} of {wanted} results; nothing is kept without --out.");
        }
        (Ended::Complete { unfinished, .. }, Some(file)) if !unfinished.is_empty() => {
            let names: Vec<String> = unfinished.iter().map(|name| format!("{name:?}")).collect();
            eprintln!(
                "bidpo: {file}: left out of these figures, for an earlier run did not finish them: {}. The command that began \
                 them goes on with them.",
                names.join(", ")
            );
        }
        _ => {}
    }
    Ok(ended)
}
