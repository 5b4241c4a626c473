//! Log-probabilities from a row of logits.

use ggml_grad::llama::Token;

/// Log of the probability (natural) of tokens in one row, before any sampling option: softmax of the logits.
#[derive(Debug)]
pub(crate) struct RowLogprobs<'a> {
    logits: &'a [f32], // [n_vocab]
    /// log sum exp.
    norm: f64,
}

impl<'a> RowLogprobs<'a> {
    pub(crate) fn new(logits: &'a [f32]) -> Self {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
        Self { logits, norm: max + sum.ln() }
    }

    /// Of one token; minus infinity for one that is not in the vocabulary.
    pub(crate) fn of(&self, token: Token) -> f64 {
        usize::try_from(token)
            .ok()
            .and_then(|t| self.logits.get(t))
            .map_or(f64::NEG_INFINITY, |&x| f64::from(x) - self.norm)
    }

    /// The `n` most likely tokens, most likely first; of equals the lower number first.
    pub(crate) fn top(&self, n: usize) -> Vec<(Token, f64)> {
        if n == 0 {
            return Vec::new();
        }
        let mut top: Vec<(usize, f32)> = Vec::with_capacity(n + 1);
        for (i, &x) in self.logits.iter().enumerate() {
            if top.len() == n && top.last().is_some_and(|&(_, least)| x <= least) || x.is_nan() {
                continue;
            }
            let at = top.partition_point(|&(_, y)| y >= x);
            top.insert(at, (i, x));
            top.truncate(n);
        }
        top.into_iter().map(|(i, x)| (i as Token, f64::from(x) - self.norm)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::RowLogprobs;

    #[test]
    fn probabilities_add_up_and_the_top_is_sorted() {
        let logits = [1.0, 3.0, -2.0, 3.0, 0.5];
        let row = RowLogprobs::new(&logits);
        let sum: f64 = (0..5).map(|t| row.of(t).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12);
        assert_eq!(row.top(3).iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0]);
        assert_eq!(row.top(9).len(), 5);
        assert_eq!(row.top(1)[0].1, row.of(1));
        assert!((row.of(1) - row.of(0) - 2.0).abs() < 1e-12);
        assert_eq!((row.of(5), row.of(-1)), (f64::NEG_INFINITY, f64::NEG_INFINITY));
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let row = RowLogprobs::new(&[1e30, 0.0]);
        assert_eq!((row.of(0), row.of(1)), (0.0, -f64::from(1e30f32)));
    }
}
