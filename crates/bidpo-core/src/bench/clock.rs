//! Measuring two things in turns.

use crate::numbers::median;
use serde::Serialize;

/// Median, smallest and largest of some measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one number; `None` of none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let min = values.iter().copied().min_by(f64::total_cmp)?;
        let max = values.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { median: median(values)?, min, max })
    }

    /// A number that was measured once.
    pub fn exactly(value: f64) -> Self {
        Self { median: value, min: value, max: value }
    }
}

/// Calls `ours` and `reference` in turns, `rounds` times each, after one call of each that does not count. Both return
/// what they measured.
///
/// # Errors
/// Theirs.
pub fn alternate<E>(
    rounds: usize,
    ours: &mut dyn FnMut() -> Result<f64, E>,
    reference: &mut dyn FnMut() -> Result<f64, E>,
) -> Result<Vec<(f64, f64)>, E> {
    ours()?;
    reference()?;
    (0..rounds.max(1)).map(|_| Ok((ours()?, reference()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn medians() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[3.0, 1.0, 9.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }

    #[test]
    fn the_two_take_turns() {
        let calls = RefCell::new(String::new());
        let mut call = |name: char| -> Result<f64, ()> {
            calls.borrow_mut().push(name);
            Ok(calls.borrow().len() as f64)
        };
        let call = RefCell::new(&mut call);
        let got = alternate(2, &mut || (call.borrow_mut())('a'), &mut || (call.borrow_mut())('b')).unwrap();
        assert_eq!((calls.borrow().as_str(), got), ("ababab", vec![(3.0, 4.0), (5.0, 6.0)]));
    }
}
