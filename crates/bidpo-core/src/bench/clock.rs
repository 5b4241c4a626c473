//! Interleaved measurements.

use crate::numbers::median;
use serde::Serialize;
use std::num::NonZeroUsize;

/// Median, smallest and largest of some measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The minimum.
    pub min: f64,
    /// The maximum.
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

/// Pairs of measurements, (bidpo, reference): at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounds {
    first: (f64, f64),
    rest: Vec<(f64, f64)>,
}

impl Rounds {
    /// `n` rounds.
    ///
    /// # Errors
    /// The first one of `round`.
    pub fn measure<E>(n: NonZeroUsize, mut round: impl FnMut() -> Result<(f64, f64), E>) -> Result<Self, E> {
        let first = round()?;
        Ok(Self { first, rest: (1..n.get()).map(|_| round()).collect::<Result<_, _>>()? })
    }

    /// Spread of a value of each round.
    pub fn spread(&self, of: impl Fn((f64, f64)) -> f64) -> Spread {
        let first = of(self.first);
        let values: Vec<f64> = std::iter::once(first).chain(self.rest.iter().map(|&r| of(r))).collect();
        Spread::of(&values).unwrap_or(Spread::exactly(first))
    }
}

/// Calls `ours` and `reference` alternately, `rounds` times each, after one uncounted call of each. Both return their
/// measurement.
///
/// # Errors
/// Those of `ours` and `reference`.
pub fn alternate<E>(
    rounds: NonZeroUsize,
    ours: &mut dyn FnMut() -> Result<f64, E>,
    reference: &mut dyn FnMut() -> Result<f64, E>,
) -> Result<Rounds, E> {
    ours()?;
    reference()?;
    Rounds::measure(rounds, || Ok((ours()?, reference()?)))
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
        let two = NonZeroUsize::new(2).unwrap();
        let got = alternate(two, &mut || (call.borrow_mut())('a'), &mut || (call.borrow_mut())('b')).unwrap();
        assert_eq!((calls.borrow().as_str(), got), ("ababab", Rounds { first: (3.0, 4.0), rest: vec![(5.0, 6.0)] }));
    }
}
