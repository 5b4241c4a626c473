//! Written answers that the token limit cut off: what is measured of them is measured on stumps.

use super::Analysis;
use crate::eval::measures::Kind;

/// Fraction of cut-off answers above which a run warns.
pub const CUT_OFF_LIMIT: f64 = 0.2;

/// The written answers of one condition that the token limit cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutOff {
    /// The condition.
    pub condition: String,
    /// Answers that were cut off.
    pub cut: usize,
    /// All its answers.
    pub n: usize,
}

impl CutOff {
    /// The fraction of the answers that were cut off.
    pub fn share(&self) -> f64 {
        self.cut as f64 / self.n as f64
    }
}

impl Analysis {
    /// The answers that were cut off, for each condition; empty for a run in which nothing was written.
    pub fn cut_off(&self) -> Vec<CutOff> {
        let ended = self.tables.iter().find(|t| t.measure.kind == Kind::Ended);
        let rows = ended.into_iter().flat_map(|t| &t.rows);
        rows.filter_map(|row| {
            let (n, ended) = (row.estimate.n, row.estimate.count?);
            Some(CutOff { condition: row.condition.clone(), cut: n - ended, n })
        })
        .collect()
    }

    /// Warning where the limit cut off more than a fifth of the answers under some condition.
    pub fn cut_off_warning(&self) -> Option<String> {
        let worst = self.cut_off().into_iter().max_by(|a, b| a.share().total_cmp(&b.share()))?;
        (worst.share() > CUT_OFF_LIMIT).then(|| {
            let limit = self.manifest.prompt.pointer("/writing/max_tokens").and_then(serde_json::Value::as_u64);
            let limit = limit.map_or_else(|| "the token limit".to_owned(), |n| format!("the limit of {n} tokens"));
            format!(
                "Warning: {limit} cut off up to {:.0} % of the answers ({} of {} under \"{}\"): what is measured on them is \
                 measured on unfinished answers. A higher --max-tokens lets them end.",
                100.0 * worst.share(),
                worst.cut,
                worst.n,
                worst.condition
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::analyse;
    use super::super::tests::{bits, run_of};
    use super::*;
    use crate::eval::results::Written;

    #[test]
    fn a_warning_above_a_fifth() {
        let analysis = |cut: usize| {
            let right = bits(10, |_| true);
            let mut run = run_of(&[("unsteered", "unsteered", &right), ("steered", "steered", &right)]);
            run.manifest.protocol = "prompts".into();
            run.manifest.prompt = serde_json::json!({ "writing": { "max_tokens": 24 } });
            for (c, records) in run.records.iter_mut().enumerate() {
                for (i, record) in records.iter_mut().enumerate() {
                    record.views.clear();
                    let ended = c == 0 || i >= cut;
                    record.written = Some(Written { text: "One two three four five.".into(), n_tokens: 5, ended });
                }
            }
            analyse(&run).unwrap()
        };
        let counts = |a: &Analysis| a.cut_off().iter().map(|c| (c.cut, c.n)).collect::<Vec<_>>();
        let (two, three) = (analysis(2), analysis(3));
        assert_eq!((counts(&two), counts(&three)), (vec![(0, 10), (2, 10)], vec![(0, 10), (3, 10)]));
        assert_eq!(two.cut_off_warning(), None);
        let warning = three.cut_off_warning().unwrap();
        assert!(warning.contains("limit of 24 tokens cut off up to 30 % of the answers (3 of 10 under \"steered\")"));
        assert!(three.summary().contains(&warning) && !two.summary().iter().any(|s| s.contains("cut off")));
    }
}
