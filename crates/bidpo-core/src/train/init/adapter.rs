//! Where the training of an adapter begins: with the pairs of a file.

use crate::adapter::{AdapterFile, Target};
use crate::intervention::{Intervention, Lora};

/// An adapter's file that a run cannot begin with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdapterInitError {
    /// Matrices of the file that are not trained: the run would begin elsewhere.
    #[error(
        "it changes {}, and {} not trained: give --layers and --targets that hold all of its matrices",
        list(matrices),
        if matrices.len() == 1 { "that matrix is" } else { "those matrices are" }
    )]
    Untrained {
        /// The matrices, as `attn_q@3`.
        matrices: Vec<String>,
    },
    /// Another rank.
    #[error("{matrix} has rank {there} in it, and rank {rank} is trained: give --rank {there}")]
    Rank {
        /// The matrix.
        matrix: String,
        /// Its rank in the file.
        there: usize,
        /// The rank that is trained.
        rank: usize,
    },
    /// Another model's matrix.
    #[error("{matrix} reads {} and writes {} numbers in it, and in this model {} and {}: it belongs to another model", there[0], there[1], here[0], here[1])]
    Shape {
        /// The matrix.
        matrix: String,
        /// Widths in the file.
        there: [usize; 2],
        /// Widths in the model.
        here: [usize; 2],
    },
    /// No matrix of the file is trained.
    #[error("it holds no pair of matrices to begin with")]
    Empty,
}

/// The first of some names, and how many more there are.
fn list(names: &[String]) -> String {
    match names {
        [first, second, _, _, ..] => format!("{first}, {second} and {} more", names.len() - 2),
        few => few.join(", "),
    }
}

/// Parameters of `lora` from a file: its A, and its B times the quotient of the two factors (alpha over rank, as llama.cpp takes
/// it). Matrices that the file does not hold begin as without a file; so do vectors that are trained beside them.
///
/// # Errors
/// [`AdapterInitError`].
pub fn initial_adapter(lora: &Lora, seed: u64, file: &AdapterFile) -> Result<Vec<f64>, AdapterInitError> {
    let mut theta = lora.initial(seed);
    let mut left: Vec<&Target> = file.pairs.keys().collect();
    if left.is_empty() {
        return Err(AdapterInitError::Empty);
    }
    for (adapted, [a, b]) in lora.places() {
        let target = Target::of(&adapted.tensor);
        let Some(pair) = file.pairs.get(&target) else { continue };
        left.retain(|t| **t != target);
        let (there, here) = ([pair.n_in, pair.n_out], [adapted.n_in, adapted.n_out]);
        if there != here || pair.n_experts != adapted.n_experts {
            return Err(AdapterInitError::Shape { matrix: target.to_string(), there, here });
        }
        if pair.rank != lora.rank {
            return Err(AdapterInitError::Rank { matrix: target.to_string(), there: pair.rank, rank: lora.rank });
        }
        let factor = file.factor(pair, 1.0) / (f64::from(lora.alpha) / lora.rank as f64);
        theta[a].iter_mut().zip(&pair.a).for_each(|(x, &a)| *x = f64::from(a));
        theta[b].iter_mut().zip(&pair.b).for_each(|(x, &b)| *x = factor * f64::from(b));
    }
    match left.is_empty() {
        true => Ok(theta),
        false => Err(AdapterInitError::Untrained { matrices: left.into_iter().map(Target::to_string).collect() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::LowRank;
    use crate::intervention::Adapted;

    fn lora() -> Lora {
        let pair = |tensor: &str| Adapted { tensor: tensor.into(), n_in: 3, n_out: 2, n_experts: 1 };
        Lora {
            pairs: vec![pair("blk.1.attn_q.weight"), pair("blk.2.attn_q.weight")],
            rank: 1,
            alpha: 4.0,
            lr: 1.0,
            add: None,
        }
    }

    fn file(tensor: &str, rank: usize) -> AdapterFile {
        let mut file = AdapterFile::new("llama", Some(2.0));
        let pair = LowRank::new(rank, vec![1.5; 3 * rank], vec![-2.0; 2 * rank]).unwrap();
        file.pairs.insert(Target::of(tensor), pair);
        file
    }

    #[test]
    fn a_file_gives_the_same_change() {
        let lora = lora();
        let theta = initial_adapter(&lora, 0, &file("blk.2.attn_q.weight", 1)).unwrap();
        let plain = lora.initial(0);
        assert_eq!(theta[..5], plain[..5], "the other matrix begins as ever");
        assert_eq!(theta[5..8], [1.5; 3]);
        // 2 B A of the file is 4 B A here.
        assert_eq!(theta[8..], [-1.0; 2]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let of = |tensor: &str, rank| initial_adapter(&lora(), 0, &file(tensor, rank)).unwrap_err();
        assert!(matches!(of("blk.2.attn_q.weight", 2), AdapterInitError::Rank { there: 2, rank: 1, .. }));
        let e = of("blk.0.attn_q.weight", 1);
        assert!(e.to_string().contains("attn_q@0") && e.to_string().contains("--targets"), "{e}");
        let mut wide = file("blk.2.attn_q.weight", 1);
        wide.pairs.values_mut().for_each(|p| *p = LowRank::new(1, vec![1.0; 4], vec![1.0; 2]).unwrap());
        assert!(matches!(initial_adapter(&lora(), 0, &wide), Err(AdapterInitError::Shape { .. })));
        assert_eq!(initial_adapter(&lora(), 0, &AdapterFile::new("llama", None)), Err(AdapterInitError::Empty));
    }
}
