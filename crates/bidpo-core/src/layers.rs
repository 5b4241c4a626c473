//! Lists of layers: `15`, `10-20`, `5,9,12-14`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

/// One or more layers, ascending and distinct. The caller checks that the model has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Layers(Vec<usize>);

/// More layers than any model has. A larger number is a typing error, and a range up to it would exhaust memory.
const MAX: usize = u16::MAX as usize;

/// An invalid list of layers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayersError {
    /// The list is empty.
    #[error("no layer is named: give one (15), a range (10-20) or a list (5,9,12-14)")]
    Empty,
    /// An entry is neither a number nor a range.
    #[error("{0:?} is not a list of layers: give one (15), a range (10-20) or a list (5,9,12-14)")]
    NotAList(String),
    /// A range whose first layer is above its last.
    #[error("{high}-{low}: the first layer lies above the last; the range is written {low}-{high}")]
    Reversed {
        /// The lower end.
        low: usize,
        /// The higher end.
        high: usize,
    },
    /// A layer occurs twice, perhaps in two ranges.
    #[error("layer {0} is named twice: each layer once")]
    Repeated(usize),
}

impl Layers {
    /// From layers in any order.
    ///
    /// # Errors
    /// [`LayersError::Empty`], [`LayersError::Repeated`].
    pub fn new(layers: impl IntoIterator<Item = usize>) -> Result<Self, LayersError> {
        let mut layers: Vec<usize> = layers.into_iter().collect();
        layers.sort_unstable();
        match layers.windows(2).find(|w| w[0] == w[1]) {
            Some(w) => Err(LayersError::Repeated(w[0])),
            None if layers.is_empty() => Err(LayersError::Empty),
            None => Ok(Self(layers)),
        }
    }

    /// A single layer.
    pub fn one(layer: usize) -> Self {
        Self(vec![layer])
    }

    /// For use in a sentence: `layer 15`, `layers 10-20`.
    pub fn labelled(&self) -> String {
        format!("layer{} {self}", if self.0.len() == 1 { "" } else { "s" })
    }
}

impl Deref for Layers {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl From<Layers> for String {
    fn from(layers: Layers) -> Self {
        layers.to_string()
    }
}

impl TryFrom<String> for Layers {
    type Error = LayersError;

    fn try_from(text: String) -> Result<Self, LayersError> {
        text.parse()
    }
}

impl FromStr for Layers {
    type Err = LayersError;

    fn from_str(text: &str) -> Result<Self, LayersError> {
        if text.trim().is_empty() {
            return Err(LayersError::Empty);
        }
        let number = |s: &str| -> Result<usize, LayersError> {
            let digits = Some(s.trim()).filter(|s| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()));
            let n = digits.and_then(|s| s.parse().ok()).filter(|&n| n <= MAX);
            n.ok_or_else(|| LayersError::NotAList(text.to_owned()))
        };
        let mut layers = Vec::new();
        let mut named = vec![false; MAX + 1];
        for part in text.split(',') {
            let (a, b) = part.split_once('-').unwrap_or((part, part));
            let (a, b) = (number(a)?, number(b)?);
            if a > b {
                return Err(LayersError::Reversed { low: b, high: a });
            }
            // Checked here, not at the end: a list of a million such ranges would exhaust memory first.
            // Both are at most MAX.
            if let Some(twice) = named[a..=b].iter().position(|&n| n) {
                return Err(LayersError::Repeated(a + twice));
            }
            named[a..=b].fill(true);
            layers.extend(a..=b);
        }
        Self::new(layers)
    }
}

impl fmt::Display for Layers {
    /// The text that [`FromStr`] reads, neighbours as ranges: `5,9,12-14`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|a, b| a + 1 == *b);
        for (i, run) in runs.enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match run {
                [one] => write!(f, "{comma}{one}")?,
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        for (text, layers, canonical) in [
            ("15", &[15][..], "15"),
            ("0", &[0], "0"),
            ("10-13", &[10, 11, 12, 13], "10-13"),
            ("7-7", &[7], "7"),
            ("12-14,5, 9", &[5, 9, 12, 13, 14], "5,9,12-14"),
            (" 3 - 4 ,1", &[1, 3, 4], "1,3-4"),
            ("1,2,3", &[1, 2, 3], "1-3"),
        ] {
            let read: Layers = text.parse().unwrap();
            assert_eq!((&*read, read.to_string().as_str()), (layers, canonical), "{text}");
            assert_eq!(canonical.parse(), Ok(read));
        }
        assert_eq!((Layers::one(3).labelled(), Layers(vec![3, 4]).labelled()), ("layer 3".into(), "layers 3-4".into()));
    }

    #[test]
    fn what_is_no_list_says_what_is_wrong() {
        let error = |text: &str| text.parse::<Layers>().unwrap_err();
        assert_eq!((error(""), error("  ")), (LayersError::Empty, LayersError::Empty));
        assert_eq!(error("3,20-10"), LayersError::Reversed { low: 10, high: 20 });
        assert_eq!((error("4,4"), error("1-5,3"), error("9,1-20")), {
            (LayersError::Repeated(4), LayersError::Repeated(3), LayersError::Repeated(9))
        });
        for bad in
            ["a", "-", "3-", "-3", "1--2", "1-2-3", "1,,2", ",", "1;2", "+1", "1.5", "65536", "1-99999999999999999999"]
        {
            assert_eq!(error(bad), LayersError::NotAList(bad.into()), "{bad}");
        }
        assert!(error("20-10").to_string().contains("10-20"));
    }
}
