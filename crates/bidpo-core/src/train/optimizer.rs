//! AdamW with decoupled weight decay, and learning-rate schedules.

use crate::engine::ParameterGroup;
use crate::numbers::norm;
use std::fmt;
use std::str::FromStr;

/// AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2) in f64, with a learning rate for each group of parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, multiplied with the learning rate.
    pub weight_decay: f64,
    /// Steps taken.
    pub t: u64,
    /// First moment.
    pub m: Vec<f64>,
    /// Second moment.
    pub s: Vec<f64>,
}

impl AdamW {
    /// An optimizer of `n` parameters with betas (0.9, 0.999) and eps 1e-8.
    pub fn new(n: usize, weight_decay: f64) -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, t: 0, m: vec![0.0; n], s: vec![0.0; n] }
    }

    /// One step: changes `x` along its gradient `g`, each group by its learning rate times `factor`. The groups cover `x` in
    /// order.
    pub fn step(&mut self, x: &mut [f64], g: &[f64], groups: &[ParameterGroup], factor: f64) {
        assert!(x.len() == self.m.len() && g.len() == self.m.len(), "sizes differ");
        let starts = std::iter::once(0).chain(groups.iter().map(|group| group.params.end));
        assert!(
            groups.iter().zip(starts).all(|(group, start)| group.params.start == start)
                && groups.last().map_or(0, |group| group.params.end) == x.len(),
            "groups of parameters that do not cover all {} of them in order",
            x.len()
        );
        self.t += 1;
        let c1 = 1.0 - self.beta1.powi(self.t as i32);
        let c2 = 1.0 - self.beta2.powi(self.t as i32);
        let lr = groups.iter().flat_map(|group| std::iter::repeat_n(group.lr * factor, group.params.len()));
        for ((((x, g), m), s), lr) in x.iter_mut().zip(g).zip(&mut self.m).zip(&mut self.s).zip(lr) {
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *s = self.beta2 * *s + (1.0 - self.beta2) * g * g;
            *x -= lr * ((*m / c1) / ((*s / c2).sqrt() + self.eps) + self.weight_decay * *x);
        }
    }
}

/// Learning-rate schedule after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Half a cosine down to zero (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5, without restarts).
    Cosine,
    /// Linear decay to zero.
    Linear,
    /// No decay.
    Constant,
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "cosine" => Ok(Self::Cosine),
            "linear" => Ok(Self::Linear),
            "constant" => Ok(Self::Constant),
            _ => Err(format!("invalid learning-rate schedule {s:?}: expected cosine, linear or constant")),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Schedule {
    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Linear => "linear",
            Self::Constant => "constant",
        }
    }

    /// Factor on the learning rate at `step` (from 0) of `total`, after a linear warm-up of `warmup` steps.
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let progress = (step - warmup) as f64 / (total.saturating_sub(warmup)).max(1) as f64;
        match self {
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Self::Linear => 1.0 - progress,
            Self::Constant => 1.0,
        }
    }
}

/// Scales `g` down to L2 norm `limit` where its norm is larger. Returns the norm before.
pub fn clip(g: &mut [f64], limit: f64) -> f64 {
    let norm = norm(g);
    if norm > limit {
        g.iter_mut().for_each(|x| *x *= limit / norm);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups of `n` parameters each.
    fn groups(rates: &[f64], n: usize) -> Vec<ParameterGroup> {
        let group = |(i, &lr): (usize, &f64)| ParameterGroup { params: i * n..(i + 1) * n, lr };
        rates.iter().enumerate().map(group).collect()
    }

    /// Worked by hand from the paper's algorithm, two steps of one coordinate: lr 0.1, decay 0.05, x 1, g 0.5 then -1.
    #[test]
    fn two_steps_by_hand() {
        let mut opt = AdamW::new(1, 0.05);
        let mut x = [1.0];
        opt.step(&mut x, &[0.5], &groups(&[0.1], 1), 1.0);
        // m = 0.05, s = 0.00025; corrected 0.5 and 0.25: step 0.5 / (0.5 + 1e-8); decay 0.05 * 1.
        let first = 1.0 - 0.1 * (0.5 / (0.5 + 1e-8) + 0.05);
        assert!((x[0] - first).abs() < 1e-12, "{}", x[0]);
        opt.step(&mut x, &[-1.0], &groups(&[0.1], 1), 1.0);
        // m = 0.9 * 0.05 - 0.1 = -0.055, corrected by 0.19; s = 0.999 * 0.00025 + 0.001 = 0.00124975, by 0.001999.
        let (m, s) = (-0.055 / 0.19, 0.001_249_75 / 0.001_999);
        let second = first - 0.1 * (m / (f64::sqrt(s) + 1e-8) + 0.05 * first);
        assert!((x[0] - second).abs() < 1e-12, "{} for {second}", x[0]);
    }

    #[test]
    fn each_group_has_its_own_rate() {
        let (mut joint, mut x) = (AdamW::new(4, 0.05), [1.0, 2.0, 3.0, 4.0]);
        let (mut low, mut high) = (AdamW::new(2, 0.05), AdamW::new(2, 0.05));
        let (mut a, mut b) = ([1.0, 2.0], [3.0, 4.0]);
        for g in [[0.5, -1.0, 2.0, 0.1], [-0.3, 0.2, 1.0, 7.0]] {
            joint.step(&mut x, &g, &groups(&[0.2, 1.4], 2), 0.5);
            low.step(&mut a, &g[..2], &groups(&[0.1], 2), 1.0);
            high.step(&mut b, &g[2..], &groups(&[0.7], 2), 1.0);
        }
        assert_eq!((&x[..2], &x[2..]), (&a[..], &b[..]));
    }

    #[test]
    fn schedules_at_known_points() {
        let c = |step| Schedule::Cosine.factor(step, 10, 110);
        assert!((c(0) - 0.1).abs() < 1e-15 && (c(9) - 1.0).abs() < 1e-15 && (c(10) - 1.0).abs() < 1e-15);
        assert!((c(60) - 0.5).abs() < 1e-12 && c(109) < 1e-3);
        assert!((Schedule::Linear.factor(60, 10, 110) - 0.5).abs() < 1e-12);
        assert_eq!(Schedule::Constant.factor(500, 10, 110), 1.0);
        assert_eq!(Schedule::Cosine.factor(0, 0, 1), 1.0);
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut g = [3.0, 4.0];
        assert_eq!(clip(&mut g, 1.0), 5.0);
        assert!((g[0] - 0.6).abs() < 1e-15 && (g[1] - 0.8).abs() < 1e-15);
        assert_eq!(clip(&mut g, 10.0), 1.0);
    }
}
