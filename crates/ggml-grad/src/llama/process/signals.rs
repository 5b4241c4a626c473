//! Signals that a handler from elsewhere cannot treat: a hangup that was ignored at start, and a bus error.

#[cfg(unix)]
pub use unix::keeping_ignored_hangup;
#[cfg(unix)]
pub(in crate::llama) use unix::name_mapped_file;

/// Elsewhere there is no hangup.
#[cfg(not(unix))]
pub fn keeping_ignored_hangup<T>(install: impl FnOnce() -> T) -> T {
    install()
}

/// Elsewhere there is no bus error.
#[cfg(not(unix))]
pub(in crate::llama) fn name_mapped_file(_: &std::path::Path) {}

#[cfg(unix)]
mod unix {
    use std::ffi::{c_int, c_void};
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicPtr, Ordering};

    const SIGHUP: c_int = 1;
    const SIGBUS: c_int = if cfg!(any(target_os = "linux", target_os = "android")) { 7 } else { 10 };
    /// C's `SIG_IGN`.
    const IGNORE: usize = 1;

    unsafe extern "C" {
        fn signal(number: c_int, handler: usize) -> usize;
        fn write(file: c_int, bytes: *const c_void, n: usize) -> isize;
        fn _exit(code: c_int) -> !;
    }

    /// Installs handlers. A hangup that was ignored before (`nohup`) is ignored afterwards, whatever was installed.
    pub fn keeping_ignored_hangup<T>(install: impl FnOnce() -> T) -> T {
        // SAFETY: C's function, with handlers that C gave or knows.
        let ignored = unsafe {
            let before = signal(SIGHUP, IGNORE);
            if before != IGNORE {
                signal(SIGHUP, before);
            }
            before == IGNORE
        };
        let result = install();
        if ignored {
            // SAFETY: as above.
            unsafe { signal(SIGHUP, IGNORE) };
        }
        result
    }

    /// The last words of a bus error; never freed, since a handler may be reading it.
    static WORDS: AtomicPtr<String> = AtomicPtr::new(std::ptr::null_mut());

    /// Only calls that are safe in a signal handler: no allocation, no lock.
    extern "C" fn on_bus_error(_: c_int) {
        let words = WORDS.load(Ordering::Acquire);
        // SAFETY: NULL, or a string that is never freed.
        if let Some(words) = unsafe { words.as_ref() } {
            // SAFETY: the bytes of a live string. Nothing can be done about a failure.
            let _ = unsafe { write(2, words.as_ptr().cast::<c_void>(), words.len()) };
        }
        // SAFETY: ends the process.
        unsafe { _exit(1) }
    }

    /// Has a bus error say that `file` may be the cause: its pages are read where it is mapped, and a file that was cut short
    /// since has none there.
    pub(crate) fn name_mapped_file(file: &Path) {
        static FILES: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let mut files = FILES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let name = file.display().to_string();
        if files.contains(&name) {
            return;
        }
        files.push(name);
        let words = format!(
            "bidpo: {} was cut short while in use, or its disk failed: put the whole file back and start again\n",
            files.join(" or ")
        );
        WORDS.store(Box::into_raw(Box::new(words)), Ordering::Release);
        if files.len() == 1 {
            // SAFETY: a function that lives forever, and calls nothing that a handler may not.
            unsafe { signal(SIGBUS, on_bus_error as *const () as usize) };
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        extern "C" fn nothing(_: c_int) {}

        #[test]
        fn an_ignored_hangup_stays_ignored() {
            let handler = nothing as *const () as usize;
            // SAFETY: C's function, with handlers that live forever.
            let install = || unsafe { signal(SIGHUP, handler) };
            // SAFETY: as above.
            let now = || unsafe { signal(SIGHUP, handler) };
            let before = now();
            keeping_ignored_hangup(install);
            assert_eq!(now(), handler);
            // SAFETY: as above.
            unsafe { signal(SIGHUP, IGNORE) };
            keeping_ignored_hangup(install);
            assert_eq!(now(), IGNORE);
            // SAFETY: the handler that was there.
            unsafe { signal(SIGHUP, before) };
        }
    }
}
