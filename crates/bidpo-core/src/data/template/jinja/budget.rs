//! Limits on the work of one rendering. A chat template is code from a stranger: it may loop, and it may double a string
//! in every turn of a loop.

use minijinja::value::{Object, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Instructions that one rendering may execute. Ten thousand messages take about a third.
pub(super) const MAX_STEPS: u64 = 10_000_000;
/// Bytes that a template's source may have. The longest published ones have about 50 KB.
pub(super) const MAX_SOURCE: usize = 256 << 10;
/// Bytes of one string that a template may make beside what it is given.
const MAX_STRING: usize = 16 << 20;
/// Values in one list or mapping that a template may make, nested ones included, each as often as it is reached.
pub(super) const MAX_ITEMS: usize = 1 << 20;
/// Bytes that a value counts as, in the sum of all that a rendering makes or goes through.
const VALUE_BYTES: usize = 16;
/// Bytes of all values that one rendering may make, compare or search, those included that it drops again.
const MAX_BYTES: u64 = 2 << 30;
/// Nesting of lists and mappings.
pub(super) const MAX_DEPTH: usize = 100;

const KEY: &str = "budget";

#[derive(Debug, Default)]
struct Spent {
    bytes: AtomicU64,
}

impl Object for Spent {}

/// A template went beyond a limit.
fn exceeded(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("it {what}: no chat needs that much, so rendering was stopped"))
}

/// Checks the length of a string that the rendering is about to make.
///
/// # Errors
/// It exceeds the limit.
pub(super) fn check_len(len: usize) -> Result<(), Error> {
    if len > MAX_STRING {
        return Err(exceeded(&format!("makes a text of {len} bytes (the limit is {MAX_STRING})")));
    }
    Ok(())
}

/// Counts a string of `len` bytes that the rendering is about to make.
///
/// # Errors
/// The string, or the sum of all work, exceeds its limit.
pub(super) fn charge(state: &State<'_, '_>, len: usize) -> Result<(), Error> {
    check_len(len)?;
    spend(state, len)
}

/// Counts work on `bytes` bytes.
///
/// # Errors
/// The sum of all work exceeds its limit.
pub(super) fn spend(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    let spent: Arc<Spent> = state.get_or_set_temp_object(KEY, Spent::default);
    let before = spent.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    if before.saturating_add(bytes as u64) > MAX_BYTES {
        return Err(exceeded(&format!("makes or reads values of more than {MAX_BYTES} bytes in all")));
    }
    Ok(())
}

/// Counts going through a value: a string by its bytes, a list or mapping by all values in it. The same list may stand in
/// a list several times, so a few short statements make one whose values could not be counted in a lifetime.
///
/// # Errors
/// It is nested too deep or holds too many values, or the sum exceeds its limit.
pub(super) fn charge_value(state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => charge(state, text.len()),
        None => spend(state, weight(value)? * VALUE_BYTES),
    }
}

/// Values within a value, itself included.
fn weight(value: &Value) -> Result<usize, Error> {
    fn count(value: &Value, depth: usize, sum: &mut usize) -> Result<(), Error> {
        *sum += 1;
        if *sum > MAX_ITEMS {
            return Err(exceeded(&format!("makes a list or mapping of more than {MAX_ITEMS} values")));
        }
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
            return Ok(());
        }
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        let map = value.kind() == ValueKind::Map;
        for item in value.try_iter()? {
            if map {
                count(&value.get_item(&item)?, depth + 1, sum)?;
            }
            count(&item, depth + 1, sum)?;
        }
        Ok(())
    }
    let mut sum = 0;
    count(value, 0, &mut sum)?;
    Ok(sum)
}

/// Checks the length of a list that the rendering is about to make.
///
/// # Errors
/// It is too long.
pub(super) fn check_items(len: usize) -> Result<(), Error> {
    if len > MAX_ITEMS {
        return Err(exceeded(&format!("makes a list of {len} elements (the limit is {MAX_ITEMS})")));
    }
    Ok(())
}

/// A value nested deeper than [`MAX_DEPTH`].
pub(super) fn too_deep() -> Error {
    exceeded(&format!("nests lists or mappings deeper than {MAX_DEPTH}"))
}
