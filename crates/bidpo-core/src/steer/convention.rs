//! The layer that `direction.N` refers to: two conventions are in use. See docs/vector-file.md.

use super::{SteerError, SteeringVector};
use std::str::FromStr;

/// The layer that `direction.N` of a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Convention {
    /// The output of block N, blocks counted from 0: where llama.cpp adds it, where bidpo trains it and repeng measures it.
    #[default]
    Output,
    /// The output of block N - 1: where llama.cpp's `cvector-generator` measures it.
    Generator,
}

/// Value of the key `bidpo.layer_convention` in files that bidpo writes.
pub(crate) const OUTPUT_WORDS: &str = "direction.N is added to the output of block N, blocks counted from 0";

impl FromStr for Convention {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "output" | "repeng" | "llama.cpp" => Ok(Self::Output),
            "generator" | "cvector-generator" => Ok(Self::Generator),
            _ => Err(format!(
                "{text:?} is no convention: use output (direction.N belongs to the output of block N: bidpo, repeng) or \
                 generator (to the output of block N - 1: llama.cpp's cvector-generator)"
            )),
        }
    }
}

impl std::fmt::Display for Convention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Output => "output",
            Self::Generator => "generator",
        })
    }
}

/// A vector in the layer convention [`Convention::Output`].
#[derive(Debug, Clone, PartialEq)]
pub struct NormalizedVector {
    /// The vector.
    pub vector: SteeringVector,
    /// The file held a direction for the output of block 0, which llama.cpp cannot steer; it was dropped.
    pub lost_block_0: bool,
}

impl SteeringVector {
    /// Reads the layers of a file in its maker's convention and moves each direction to the layer where it was measured:
    /// under [`Convention::Generator`] `direction.N` goes to layer N - 1, and `direction.1`, measured at block 0, is
    /// left out. Under [`Convention::Output`] nothing changes.
    ///
    /// # Errors
    /// [`SteerError::Mismatch`] for a file that states [`Convention::Output`] itself, and where nothing would be left.
    pub fn normalized(self, convention: Convention) -> Result<NormalizedVector, SteerError> {
        if convention == Convention::Output {
            return Ok(NormalizedVector { vector: self, lost_block_0: false });
        }
        self.require_control_vector("--convention generator")?;
        if let Some(stated) = self.provenance.str("layer_convention") {
            return Err(SteerError::Mismatch(format!(
                "the file states its convention ({stated}), which is not the cvector-generator's: omit --convention"
            )));
        }
        let mut vector = self;
        let lost_block_0 = vector.directions.remove(&1).is_some();
        vector.directions = std::mem::take(&mut vector.directions).into_iter().map(|(n, d)| (n - 1, d)).collect();
        if vector.directions.is_empty() {
            return Err(SteerError::Mismatch(
                "it holds direction.1 only, measured at the output of block 0, where llama.cpp cannot steer: nothing is left"
                    .into(),
            ));
        }
        vector.forget_range();
        vector.provenance.set_str("layer_convention", OUTPUT_WORDS);
        vector.provenance.set_str("moved_from", "cvector-generator's convention, one layer higher");
        Ok(NormalizedVector { vector, lost_block_0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Layers;

    #[test]
    fn the_generators_directions_move_down_by_one() {
        let layers: Layers = "1-3,7".parse().unwrap();
        let v = SteeringVector::from_layers(&layers, &[1.0, 2.0, 3.0, 7.0], "llama").unwrap();
        assert_eq!(
            v.clone().normalized(Convention::Output).unwrap(),
            NormalizedVector { vector: v.clone(), lost_block_0: false }
        );
        let moved = v.normalized(Convention::Generator).unwrap();
        assert!(moved.lost_block_0);
        assert_eq!(moved.vector.layers(), [1, 2, 6]);
        assert_eq!((moved.vector.directions[&1][0], moved.vector.directions[&6][0]), (2.0, 7.0));
        let again = moved.vector.normalized(Convention::Generator).unwrap_err().to_string();
        assert!(again.contains("states its convention"), "{again}");
        let first = SteeringVector::single(1, vec![1.0], "").unwrap().normalized(Convention::Generator).unwrap_err();
        assert!(first.to_string().contains("nothing is left"), "{first}");
        let kept = SteeringVector::single(2, vec![1.0], "").unwrap().normalized(Convention::Generator).unwrap();
        assert!(!kept.lost_block_0 && kept.vector.layers() == [1]);
    }

    #[test]
    fn names() {
        for c in [Convention::Output, Convention::Generator] {
            assert_eq!(c.to_string().parse(), Ok(c));
        }
        assert_eq!("repeng".parse(), Ok(Convention::Output));
        assert!("input".parse::<Convention>().unwrap_err().contains("cvector-generator"));
    }
}
