//! A pair of matrices whose product is added to one of the model's.

use super::AdapterError;

/// `B A`, of rank at most `rank`, for a matrix of `[n_out, n_in]`; one such pair an expert.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// Width of what the matrix reads.
    pub n_in: usize,
    /// Width of what it writes.
    pub n_out: usize,
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Matrices of a mixture of experts; 1 for a plain one.
    pub n_experts: usize,
    /// `[n_experts, rank, n_in]`.
    pub a: Vec<f32>,
    /// `[n_experts, n_out, rank]`.
    pub b: Vec<f32>,
}

impl LowRank {
    /// A pair for a plain matrix: `a` `[rank, n_in]`, `b` `[n_out, rank]`.
    ///
    /// # Errors
    /// [`AdapterError::Invalid`] for sizes that do not fit together and values that are not finite.
    pub fn new(rank: usize, a: Vec<f32>, b: Vec<f32>) -> Result<Self, AdapterError> {
        Self::of_experts(1, rank, a, b)
    }

    /// Pairs for `n_experts` matrices: `a` `[n_experts, rank, n_in]`, `b` `[n_experts, n_out, rank]`.
    ///
    /// # Errors
    /// As [`LowRank::new`].
    pub fn of_experts(n_experts: usize, rank: usize, a: Vec<f32>, b: Vec<f32>) -> Result<Self, AdapterError> {
        let rows = rank * n_experts;
        if rows == 0 || a.is_empty() || b.is_empty() || !a.len().is_multiple_of(rows) || !b.len().is_multiple_of(rows) {
            return Err(AdapterError::Invalid(format!(
                "A of {} values and B of {} values are no pairs of rank {rank} for {n_experts} matrices",
                a.len(),
                b.len()
            )));
        }
        let pair = Self { n_in: a.len() / rows, n_out: b.len() / rows, rank, n_experts, a, b };
        pair.check()?;
        Ok(pair)
    }

    /// Checks sizes and values.
    ///
    /// # Errors
    /// [`AdapterError::Invalid`].
    pub fn check(&self) -> Result<(), AdapterError> {
        let rows = self.rank * self.n_experts;
        if rows == 0 || self.a.len() != rows * self.n_in || self.b.len() != rows * self.n_out {
            return Err(AdapterError::Invalid(format!(
                "A of {} values and B of {} values do not fit {} matrices of {} x {} at rank {}",
                self.a.len(),
                self.b.len(),
                self.n_experts,
                self.n_out,
                self.n_in,
                self.rank
            )));
        }
        for (name, values) in [("A", &self.a), ("B", &self.b)] {
            if let Some(i) = values.iter().position(|x| !x.is_finite()) {
                return Err(AdapterError::Invalid(format!(
                    "element {i} of {name} is {}: every value must be finite",
                    values[i]
                )));
            }
        }
        Ok(())
    }

    /// The Frobenius norm of `B A`; of several experts, of all of them together.
    ///
    /// `|B A|^2 = trace(A^T B^T B A) = sum((B^T B) * (A A^T))`, element by element: no product of the matrix's size is needed.
    pub fn norm(&self) -> f64 {
        let (n_a, n_b) = (self.rank * self.n_in, self.n_out * self.rank);
        let mut sum = 0.0;
        for (a, b) in self.a.chunks(n_a).zip(self.b.chunks(n_b)) {
            for i in 0..self.rank {
                for j in 0..self.rank {
                    let (row_i, row_j) = (&a[i * self.n_in..][..self.n_in], &a[j * self.n_in..][..self.n_in]);
                    let of_a: f64 = row_i.iter().zip(row_j).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
                    let rows = b.chunks(self.rank);
                    let of_b: f64 = rows.map(|row| f64::from(row[i]) * f64::from(row[j])).sum();
                    sum += of_a * of_b;
                }
            }
        }
        sum.max(0.0).sqrt()
    }

    /// The rows of `scale * B A` of one expert, `[n_out, n_in]`, each given to `take` with its number.
    pub fn each_row(&self, expert: usize, scale: f64, take: &mut dyn FnMut(usize, &[f64])) {
        let mut row = vec![0.0; self.n_in];
        for out in 0..self.n_out {
            row.fill(0.0);
            self.add_row(expert, out, scale, &mut row);
            take(out, &row);
        }
    }

    /// Adds row `out` of `scale * B A` of one expert to `row`, `[n_in]`.
    pub fn add_row(&self, expert: usize, out: usize, scale: f64, row: &mut [f64]) {
        let a = &self.a[expert * self.rank * self.n_in..][..self.rank * self.n_in];
        let of_b = &self.b[(expert * self.n_out + out) * self.rank..][..self.rank];
        for (of_a, &weight) in a.chunks(self.n_in).zip(of_b) {
            let weight = scale * f64::from(weight);
            row.iter_mut().zip(of_a).for_each(|(x, &a)| *x += weight * f64::from(a));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_are_those_of_the_product() {
        let values = |n: usize, k: f32| (0..n).map(|i| (i as f32 * k).sin()).collect::<Vec<f32>>();
        for (experts, rank, n_in, n_out) in [(1, 1, 5, 3), (1, 3, 4, 6), (2, 2, 3, 5)] {
            let pair = LowRank::of_experts(
                experts,
                rank,
                values(experts * rank * n_in, 0.7),
                values(experts * n_out * rank, 1.3),
            )
            .unwrap();
            assert_eq!((pair.n_in, pair.n_out), (n_in, n_out));
            let mut sum = 0.0;
            for e in 0..experts {
                pair.each_row(e, 2.0, &mut |_, row| sum += row.iter().map(|x| x * x).sum::<f64>());
            }
            assert!((pair.norm() * 2.0 - sum.sqrt()).abs() < 1e-9 * sum.sqrt(), "{experts} {rank}");
        }
        assert!(LowRank::new(2, vec![1.0; 3], vec![1.0; 4]).is_err());
        assert!(LowRank::new(1, vec![f32::NAN], vec![1.0]).is_err() && LowRank::new(0, vec![1.0], vec![1.0]).is_err());
    }
}
