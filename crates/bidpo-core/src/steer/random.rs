//! Random vectors to compare a trained one with.

use crate::numbers::{dot, norm};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// `vector`, `[n_layers, n_embd]`, under a random rotation of the residual stream: at each layer norm-matched to `vector`, and
/// with the same angles between layers. Directions that agree at neighbouring layers add up on their way through the model;
/// independent random ones would have less effect, and the comparison would flatter the trained vector. The same seed gives
/// the same rotation.
pub fn rotated(vector: &[f32], n_embd: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::MAX);
    let mut own: Vec<Vec<f64>> = Vec::new(); // orthonormal basis of the trained directions so far
    let mut drawn: Vec<Vec<f64>> = Vec::new(); // orthonormal random vectors, one for each of `own`
    let mut out = Vec::with_capacity(vector.len());
    for direction in vector.chunks(n_embd) {
        // Normal components: every direction is equally likely.
        let mut raw: Vec<f64> = (&mut rng).sample_iter(StandardNormal).take(direction.len()).collect();
        remove(&mut raw, &drawn);
        let length = norm(&raw);
        drawn.push(raw.iter().map(|x| x / length).collect());

        // Coordinates of the trained direction in the basis `own`; the remainder extends the basis.
        let mut rest: Vec<f64> = direction.iter().map(|&x| f64::from(x)).collect();
        let mut coordinates = remove(&mut rest, &own);
        let length = norm(&rest);
        coordinates.push(length);
        own.push(rest.iter().map(|x| if length > 0.0 { x / length } else { 0.0 }).collect());

        let mut turned = vec![0.0; direction.len()];
        for (c, q) in coordinates.iter().zip(&drawn) {
            turned.iter_mut().zip(q).for_each(|(t, q)| *t += c * q);
        }
        out.extend(turned.into_iter().map(|x| x as f32));
    }
    out
}

/// Subtracts from `x` its projections on the orthonormal `basis` (modified Gram-Schmidt); returns its coordinates there.
fn remove(x: &mut [f64], basis: &[Vec<f64>]) -> Vec<f64> {
    let mut along = Vec::with_capacity(basis.len());
    for q in basis {
        let c = dot(x, q);
        x.iter_mut().zip(q).for_each(|(x, q)| *x -= c * q);
        along.push(c);
    }
    along
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_angles_stay_and_directions_do_not() {
        let n = 64;
        let mut vector: Vec<f32> = (0..4 * n).map(|i| (i as f32 * 0.37).sin() * (1 + i / n) as f32).collect();
        let (first, rest) = vector.split_at_mut(n);
        // The second is half the first, plus a little; the third is the first; the fourth is zero.
        rest[..n].iter_mut().zip(first.iter()).for_each(|(x, f)| *x = 0.5 * f + 0.05 * *x);
        rest[n..2 * n].copy_from_slice(first);
        rest[2 * n..].fill(0.0);
        let random = rotated(&vector, n, 0);
        let rows = |v: &[f32]| v.chunks(n).map(<[f32]>::to_vec).collect::<Vec<_>>();
        let (a, b) = (rows(&vector), rows(&random));
        for i in 0..4 {
            for j in 0..4 {
                let (want, got) = (dot(&a[i], &a[j]), dot(&b[i], &b[j]));
                assert!((want - got).abs() < 1e-4 * (1.0 + want.abs()), "{i}, {j}: {got} for {want}");
            }
        }
        let cosine = dot(&a[0], &b[0]) / dot(&a[0], &a[0]);
        assert!(cosine.abs() < 0.5, "{cosine}");
        assert_eq!(random, rotated(&vector, n, 0));
        assert_ne!(random, rotated(&vector, n, 1));
    }
}
