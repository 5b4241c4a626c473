//! Fuzzing: [`inputs`] for libFuzzer (`fuzz_targets`) and for the driver (`src/bin/drive.rs`).

pub mod inputs;

pub use inputs::{changed, readers};

/// A target of libFuzzer for the reader of this name.
#[cfg(feature = "libfuzzer")]
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            $crate::run($name, bytes);
        });
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
            match $crate::another($name, &data[..size], seed) {
                Some(file) if file.len() <= most.min(data.len()) => {
                    data[..file.len()].copy_from_slice(&file);
                    file.len()
                }
                _ => libfuzzer_sys::fuzzer_mutate(data, size, most),
            }
        });
    };
}

/// Gives an input to the reader of this name.
#[cfg(feature = "libfuzzer")]
pub fn run(name: &str, bytes: &[u8]) {
    static HOOK: std::sync::Once = std::sync::Once::new();
    // In the place of libFuzzer's, which also ends the process for another crate's panic that becomes an error.
    HOOK.call_once(abort_on_panic);
    let reader = readers::reader(name).expect("the target's name is a reader's");
    (reader.read)(bytes);
}

/// A changed input, in three of four cases; else libFuzzer changes it.
#[cfg(feature = "libfuzzer")]
pub fn another(name: &str, bytes: &[u8], seed: u32) -> Option<Vec<u8>> {
    if seed.is_multiple_of(4) {
        return None;
    }
    let reader = readers::reader(name)?;
    changed(reader.form, bytes, u64::from(seed))
}

/// Lets every panic end the process, also one that the program would catch. The exception is a panic in the code of another
/// crate whose calls are guarded: it is known to happen with damaged files.
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let foreign = panic.location().is_some_and(|at| at.file().contains("/registry/src/"));
        if !(foreign && bidpo_core::guard::is_guarded()) {
            print(panic);
            std::process::abort();
        }
    }));
}
