//! Calls of other crates that may panic on damaged input: the panic becomes an error of ours.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Counts one guarded call for as long as it lives.
struct Inside;

impl Inside {
    fn enter() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// What `work` returns; `None` where it panicked. What it owned is dropped then.
pub fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    let _inside = Inside::enter();
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// A panic on this thread would now be caught by [`guarded`].
pub fn is_guarded() -> bool {
    DEPTH.get() > 0
}

/// Lets panics that [`guarded`] catches print nothing: they are reported as errors. Programs call this once.
pub fn quiet_guarded_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_guarded() {
            print(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_and_the_guard_ends_with_the_call() {
        assert_eq!(guarded(|| guarded(is_guarded)), Some(Some(true)));
        assert_eq!(guarded(|| -> u8 { std::panic::resume_unwind(Box::new(())) }), None);
        assert!(!is_guarded());
    }
}
