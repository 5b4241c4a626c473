//! A machine that is not ours alone: a step beside another program, and two trainings at once.

use super::children::Training;
use super::step::{Ready, Setting};
use super::{BenchError, Line, Measured, Name, Outcome, Rounds, Subject, alternate};
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Steps of each training.
const STEPS: usize = 4;

/// Sets a flag when it is dropped: a thread that waits for it ends however the scope is left.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` while a thread beside it does nothing but count.
fn beside_a_busy_thread<T>(work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut count = 0u64;
            while !done.load(Ordering::Relaxed) {
                count = black_box(count.wrapping_add(1));
                spin_loop();
            }
        });
        let _done = Done(&done);
        work()
    })
}

/// The step beside one thread of another program's over the step alone.
pub(super) fn step(s: &mut Subject<'_>) -> Result<Line, BenchError> {
    s.say("training step beside a busy program");
    let mut ready = Ready::new(&s.model, s.layer, &s.pairs, s.settings.threads, Setting::default())?;
    let stepper = std::cell::RefCell::new(ready.stepper());
    let step = || stepper.borrow_mut().step();
    let rounds =
        alternate(s.settings.rounds, &mut || Ok::<_, BenchError>(beside_a_busy_thread(step)?.wall), &mut || {
            Ok(step()?.wall)
        })?;
    Ok(Line {
        name: Name::Busy,
        what: format!(
            "one training step at layer {}, {} pairs, beside a thread that counts without end",
            s.layer,
            s.pairs.len()
        ),
        against: "the step alone".into(),
        unit: "ms",
        outcome: Outcome::Measured(Measured::of(&rounds)),
        limit: Name::Busy.limit(&s.model, s.layer),
    })
}

/// Two trainings at once, each with all threads, over one alone.
pub(super) fn together(s: &mut Subject<'_>) -> Result<Line, BenchError> {
    s.say("two trainings at once, and one alone");
    let training = Training::new(s, STEPS)?;
    // Training is what is compared, not what is measured after it.
    let options = ["--layer", &s.layer.to_string(), "--test", "0", "--random", "1"].map(str::to_owned);
    let seconds = |outputs: &[&str]| {
        let started = Instant::now();
        let children = outputs.iter().map(|out| training.start(out, &options)).collect::<Result<Vec<_>, _>>()?;
        // All are waited for, also where one failed.
        let ends: Vec<_> = children.into_iter().map(Training::end).collect();
        ends.into_iter().collect::<Result<(), _>>()?;
        Ok::<_, BenchError>(started.elapsed().as_secs_f64())
    };
    let rounds = Rounds::measure(s.settings.rounds, || {
        Ok::<_, BenchError>((seconds(&["a.gguf", "b.gguf"])?, seconds(&["c.gguf"])?))
    })?;
    Ok(Line {
        name: Name::Together,
        what: format!(
            "two processes `bidpo train --steps {STEPS}` at once, {} pairs, each with {} threads",
            s.pairs.len(),
            s.settings.threads
        ),
        against: "one such process".into(),
        unit: "s",
        outcome: Outcome::Measured(Measured::of(&rounds)),
        limit: Name::Together.limit(&s.model, s.layer),
    })
}
