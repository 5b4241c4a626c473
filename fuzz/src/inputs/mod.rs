//! Readers of everything that comes from outside, each as a function of bytes, with valid inputs and structure-aware changes
//! of them. Three programs call them: libFuzzer, the driver, and `tests/robust/mutated.rs`, which includes this folder.

pub mod edit;
pub mod forms;
pub mod readers;

/// A changed input by the decisions of a seed.
pub fn changed(form: forms::Form, bytes: &[u8], seed: u64) -> Option<Vec<u8>> {
    use rand::{RngCore, SeedableRng};
    let mut decisions = [0; 512];
    rand_chacha::ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut decisions);
    form.changed(bytes, &mut arbitrary::Unstructured::new(&decisions)).ok()
}
