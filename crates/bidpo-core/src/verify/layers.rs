//! The layers that a vector's directions belong to: programs number them differently, and no file says so.
//!
//! The mean difference of activations between chosen and rejected answers is taken at the output of each block. A direction that was
//! measured on such activations is most like the difference at the block where it was measured. Neighbouring blocks are much alike,
//! so that a lead counts only where it is significant: over the layers where the vector has many, else over the pairs.

use super::{Problem, Verification, VerifyError};
use crate::extract::Extractor;
use crate::numbers::cosine;
use crate::stats::{Interval, mean, student_mean};
use crate::steer::SteeringVector;
use ggml_grad::llama::Token;
use std::collections::BTreeMap;

/// Least mean cosine at which a direction is said to be like the activations at all.
const ALIKE: f64 = 0.1;
/// Confidence level of a lead.
const LEVEL: f64 = 0.99;
/// Layers from which on the comparison is paired by layer. With fewer it is over the pairs.
const MANY_LAYERS: usize = 6;
/// Most groups of pairs that the jackknife leaves out one by one.
const GROUPS: usize = 32;

/// A block beside a direction's number N.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Block {
    /// Block N - 1, whose output is the input of block N: llama.cpp's cvector-generator.
    Below,
    /// Block N: bidpo, repeng, and what llama.cpp steers.
    Own,
    /// Block N + 1.
    Above,
}

impl Block {
    const ALL: [Self; 3] = [Self::Below, Self::Own, Self::Above];

    /// The block of a layer.
    fn of(self, layer: usize) -> usize {
        match self {
            Self::Below => layer - 1,
            Self::Own => layer,
            Self::Above => layer + 1,
        }
    }

    /// `block N - 1`.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Below => "block N - 1",
            Self::Own => "block N",
            Self::Above => "block N + 1",
        }
    }
}

/// What a lead is tested over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// The vector's layers.
    Layers,
    /// Groups of pairs, by the jackknife.
    Pairs,
}

impl Over {
    /// `layers`, `groups of pairs`.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Layers => "layers",
            Self::Pairs => "groups of pairs",
        }
    }
}

/// The lead of the best block over the next one, in |cosine|.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lead {
    /// The mean.
    pub mean: f64,
    /// Its 99 % interval.
    pub interval: Interval,
    /// What it is tested over.
    pub over: Over,
    /// So many of them.
    pub n: usize,
    /// True where it is significant at 1 %.
    pub is_sure: bool,
}

/// Whose activations the directions are like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Belongs {
    /// No block's: the pairs tell nothing.
    Unlike,
    /// Neighbouring blocks are too alike, or the pairs too few. The lead of the best, where one leads all others.
    CannotTell(Option<Lead>),
    /// Those of a block.
    To(Block, Lead),
}

/// How the directions compare with activations on both sides of their blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerFit {
    /// Mean over the layers of |cosine| of direction.N with the difference at the output of each block that is compared.
    pub cosines: BTreeMap<Block, f64>,
    /// Mean signed cosine at the output of block N.
    pub signed: f64,
    /// Layers compared.
    pub n_layers: usize,
    /// The verdict.
    pub belongs: Belongs,
}

impl LayerFit {
    /// The verdict.
    pub fn in_words(&self) -> &'static str {
        match self.belongs {
            Belongs::Unlike => {
                "the directions are unlike the activations of these pairs, so they tell nothing of its layers"
            }
            Belongs::CannotTell(_) => "cannot tell: neighbouring blocks are too alike for these pairs",
            Belongs::To(Block::Below, _) => "direction.N belongs to the output of block N - 1 (cvector-generator)",
            Belongs::To(Block::Own, _) => "direction.N belongs to the output of block N (bidpo, repeng)",
            Belongs::To(Block::Above, _) => "direction.N belongs to the output of block N + 1",
        }
    }

    /// The lead that the verdict rests on.
    pub fn lead(&self) -> Option<Lead> {
        match self.belongs {
            Belongs::Unlike => None,
            Belongs::CannotTell(lead) => lead,
            Belongs::To(_, lead) => Some(lead),
        }
    }

    pub(super) fn problem(&self) -> Option<Problem> {
        match self.belongs {
            Belongs::To(Block::Below, _) => Some(Problem::OneBlockEarlier),
            Belongs::To(Block::Above, _) => Some(Problem::OneBlockLater),
            _ => None,
        }
    }
}

/// Differences of activations, chosen minus rejected, summed over groups of pairs.
struct Differences {
    /// By block, `[n_embd]`: the sum over all pairs.
    all: BTreeMap<usize, Vec<f64>>,
    /// The same of each group.
    groups: Vec<BTreeMap<usize, Vec<f64>>>,
}

impl Differences {
    fn measured(of: &Verification<'_>, blocks: &[usize]) -> Result<Self, VerifyError> {
        let n_embd = of.model.n_embd();
        let long = |pair: &crate::train::NamedPair| {
            let t = &pair.tokens;
            t.prompt.len() + t.chosen.len().max(t.rejected.len())
        };
        let longest = of.pairs.iter().map(long).max().unwrap_or(1);
        let mut extractor = Extractor::new(of.model, blocks, longest, of.n_threads)?;
        let zeros: BTreeMap<usize, Vec<f64>> = blocks.iter().map(|&b| (b, vec![0.0; n_embd])).collect();
        let n_groups = of.pairs.len().min(GROUPS);
        let (mut all, mut groups) = (zeros.clone(), vec![zeros; n_groups]);
        for (i, pair) in of.pairs.iter().enumerate() {
            for (answer, sign) in [(&pair.tokens.chosen, 1.0), (&pair.tokens.rejected, -1.0)] {
                let tokens: Vec<Token> = [&pair.tokens.prompt[..], answer].concat();
                for (block, rows) in extractor.run(&tokens, i + 1)? {
                    // [n_tokens, n_embd]: the mean over the answer's positions.
                    let n = answer.len().min(rows.len() / n_embd).max(1);
                    for sum in [all.get_mut(&block), groups[i % n_groups].get_mut(&block)].into_iter().flatten() {
                        for row in rows.chunks_exact(n_embd).rev().take(n) {
                            sum.iter_mut().zip(row).for_each(|(s, &x)| *s += sign * f64::from(x) / n as f64);
                        }
                    }
                }
            }
        }
        Ok(Self { all, groups })
    }

    /// |cosine| of a direction with the difference at a block, without a group of pairs.
    fn cosine(&self, direction: &[f32], block: usize, without: Option<usize>) -> Option<f64> {
        let all = self.all.get(&block)?;
        let cosine = match without.and_then(|g| self.groups.get(g)?.get(&block)) {
            Some(part) => cosine(direction, &all.iter().zip(part).map(|(a, p)| a - p).collect::<Vec<f64>>()),
            None => cosine(direction, all),
        };
        cosine.is_finite().then_some(cosine)
    }

    /// By layer the lead in |cosine| of one block over another; layers that lack one of them are left out.
    fn leads(
        &self,
        directions: &BTreeMap<usize, &Vec<f32>>,
        [best, other]: [Block; 2],
        without: Option<usize>,
    ) -> Vec<f64> {
        let at = |layer: usize, direction: &[f32], block: Block| {
            self.cosine(direction, block.of(layer), without).map(f64::abs)
        };
        directions.iter().filter_map(|(&l, d)| Some(at(l, d, best)? - at(l, d, other)?)).collect()
    }

    /// The lead of one block over another; `None` where no layer has both, or nothing can be tested.
    fn lead(&self, directions: &BTreeMap<usize, &Vec<f32>>, blocks: [Block; 2]) -> Option<Lead> {
        let by_layer = self.leads(directions, blocks, None);
        let (over, values) = if by_layer.len() >= MANY_LAYERS {
            (Over::Layers, by_layer)
        } else {
            // Pseudo-values of the jackknife (Tukey 1958; Miller 1974, Biometrika 61:1).
            let (n, whole) = (self.groups.len() as f64, mean(&by_layer));
            let without = |g: usize| mean(&self.leads(directions, blocks, Some(g)));
            (Over::Pairs, (0..self.groups.len()).map(|g| n * whole - (n - 1.0) * without(g)).collect())
        };
        let estimate = student_mean(&values, LEVEL).filter(|e| e.mean.is_finite())?;
        let is_sure = estimate.mean > 0.0 && estimate.p < 1.0 - LEVEL;
        Some(Lead { mean: estimate.mean, interval: estimate.interval, over, n: values.len(), is_sure })
    }

    /// Whose activations the directions are like.
    fn belong(&self, directions: &BTreeMap<usize, &Vec<f32>>, cosines: &BTreeMap<Block, f64>) -> Belongs {
        if cosines.values().copied().fold(0.0, f64::max) < ALIKE {
            return Belongs::Unlike;
        }
        let known = || cosines.keys().copied();
        for best in known() {
            let leads: Vec<Option<Lead>> =
                known().filter(|&b| b != best).map(|other| self.lead(directions, [best, other])).collect();
            let Some(leads) = leads.into_iter().collect::<Option<Vec<Lead>>>() else { continue };
            let Some(least) = leads.iter().copied().min_by(|a, b| a.interval.lo.total_cmp(&b.interval.lo)) else {
                continue;
            };
            if leads.iter().all(|l| l.is_sure) {
                return Belongs::To(best, least);
            }
            if leads.iter().all(|l| l.mean > 0.0) {
                return Belongs::CannotTell(Some(least));
            }
        }
        Belongs::CannotTell(None)
    }
}

pub(super) fn layers(of: &Verification<'_>, vector: &SteeringVector) -> Result<Option<LayerFit>, VerifyError> {
    let n_layer = of.model.n_layer();
    let directions: BTreeMap<usize, &Vec<f32>> =
        vector.directions.iter().filter(|(l, _)| (1..n_layer).contains(*l)).map(|(l, d)| (*l, d)).collect();
    let mut blocks: Vec<usize> = directions.keys().flat_map(|&l| Block::ALL.map(|b| b.of(l))).collect();
    blocks.retain(|b| *b < n_layer);
    blocks.sort_unstable();
    blocks.dedup();
    if directions.is_empty() {
        return Ok(None);
    }
    let differences = Differences::measured(of, &blocks)?;
    let at = |block: Block| -> Vec<f64> {
        directions.iter().filter_map(|(&l, d)| differences.cosine(d, block.of(l), None)).collect()
    };
    let own = at(Block::Own);
    if own.is_empty() {
        return Ok(None);
    }
    let absolute = |block: Block| {
        let cosines: Vec<f64> = at(block).into_iter().map(f64::abs).collect();
        (!cosines.is_empty()).then(|| (block, mean(&cosines)))
    };
    let cosines: BTreeMap<Block, f64> = Block::ALL.into_iter().filter_map(absolute).collect();
    let belongs = differences.belong(&directions, &cosines);
    Ok(Some(LayerFit { cosines, signed: mean(&own), n_layers: own.len(), belongs }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: usize = 64;

    /// Activations that turn by a part from block to block, and a noise of each pair.
    fn differences(n_blocks: usize, n_pairs: usize, noise: f64) -> Differences {
        let mut state = 1u64;
        let mut number = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / f64::from(1u32 << 30) - 1.0
        };
        let mut row = move |scale: f64| (0..N).map(|_| scale * number()).collect::<Vec<f64>>();
        let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f64>>();
        let mut at = vec![row(1.0)];
        for b in 1..n_blocks {
            at.push(sum(&at[b - 1], &row(0.4)));
        }
        let groups: Vec<BTreeMap<usize, Vec<f64>>> =
            (0..n_pairs).map(|_| at.iter().map(|d| sum(d, &row(noise))).enumerate().collect()).collect();
        let zeros = || (0..n_blocks).map(|b| (b, vec![0.0; N])).collect::<BTreeMap<_, _>>();
        let all = groups.iter().fold(zeros(), |all, g| all.into_iter().map(|(b, s)| (b, sum(&s, &g[&b]))).collect());
        Differences { all, groups }
    }

    /// The verdict on directions that are those of block N + `shift`, at some layers.
    fn verdict(of: &Differences, layers: &[usize], shift: isize) -> Belongs {
        let own: BTreeMap<usize, Vec<f32>> = layers
            .iter()
            .map(|&l| (l, of.all[&l.checked_add_signed(shift).unwrap()].iter().map(|&x| x as f32).collect()))
            .collect();
        let directions = own.iter().map(|(l, d)| (*l, d)).collect();
        let cosines = Block::ALL.into_iter().filter_map(|b| {
            let at: Vec<f64> = own.iter().filter_map(|(l, d)| of.cosine(d, b.of(*l), None).map(f64::abs)).collect();
            (!at.is_empty()).then(|| (b, mean(&at)))
        });
        of.belong(&directions, &cosines.collect())
    }

    #[test]
    fn the_block_is_found_with_many_layers_and_with_one() {
        let of = differences(14, 24, 1.0);
        let all: Vec<usize> = (1..13).collect();
        for (layers, over) in [(&all[..], Over::Layers), (&[5][..], Over::Pairs), (&[3, 9][..], Over::Pairs)] {
            for (shift, block) in [(-1, Block::Below), (0, Block::Own), (1, Block::Above)] {
                let Belongs::To(found, lead) = verdict(&of, layers, shift) else {
                    panic!("{layers:?} {shift}: {:?}", verdict(&of, layers, shift))
                };
                assert_eq!((found, lead.over), (block, over), "{layers:?}");
                assert!(lead.interval.lo > 0.0 && lead.interval.contains(lead.mean));
            }
        }
        // The highest layer has no block above.
        assert!(matches!(verdict(&of, &[13], 0), Belongs::To(Block::Own, _)));
    }

    #[test]
    fn nothing_is_said_of_what_does_not_show_it() {
        // Another direction altogether.
        let of = differences(14, 24, 1.0);
        let other: Vec<f32> = (0..N).map(|i| if i % 2 == 0 { 0.3 } else { -0.3 }).collect();
        let directions: BTreeMap<usize, &Vec<f32>> = (1..13).map(|l| (l, &other)).collect();
        let small = BTreeMap::from([(Block::Own, 0.05), (Block::Below, 0.04)]);
        assert_eq!(of.belong(&directions, &small), Belongs::Unlike);
        // One direction at all layers is no layer's own.
        let same: BTreeMap<usize, &Vec<f32>> = directions.keys().map(|&l| (l, &other)).collect();
        let some = BTreeMap::from([(Block::Below, 0.3), (Block::Own, 0.3), (Block::Above, 0.3)]);
        assert!(matches!(of.belong(&same, &some), Belongs::CannotTell(_)));
        // One pair.
        let of = differences(14, 1, 1.0);
        assert_eq!(verdict(&of, &[5], 0), Belongs::CannotTell(None));
    }
}
