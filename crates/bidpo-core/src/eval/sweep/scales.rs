//! The scales that a sweep tries: of a vector in percent of the residual norm, of an adapter as factors.

use std::str::FromStr;

/// Largest scale in percent.
const MOST_PERCENT: f64 = 1000.0;
/// Largest factor of an adapter.
const MOST_FACTOR: f64 = 1000.0;

/// Scales to try, in percent of the median residual norm at the steered layer. 0, the unsteered model, is never among them.
#[derive(Debug, Clone, PartialEq)]
pub struct Percents(pub Vec<f64>);

impl FromStr for Percents {
    type Err = String;

    /// `-10%..10%` (steps of a quarter of the larger end), `-10%..10%/5%` (steps of 5 %), or a list: `-5%,5%,10%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let percent = |s: &str| {
            let number: f64 = s.trim().strip_suffix('%')?.trim().parse().ok()?;
            (number.is_finite() && number.abs() <= MOST_PERCENT).then_some(number)
        };
        scales(text, percent).map(Self).ok_or_else(|| {
            format!(
                "{text:?} is no list of scales: write -10%..10%, -10%..10%/5% (with a step) or -5%,5%,10%, in percent of the \
                 median residual norm"
            )
        })
    }
}

/// Scales of an adapter to try. 0, the unsteered model, is never among them.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors(pub Vec<f64>);

impl FromStr for Factors {
    type Err = String;

    /// `-2..2` (steps of a quarter of the larger end), `-1..1/0.5` (steps of 0.5), or a list: `-1,0.5,1`.
    fn from_str(text: &str) -> Result<Self, String> {
        let factor = |s: &str| {
            let number: f64 = s.trim().parse().ok()?;
            (number.is_finite() && number.abs() <= MOST_FACTOR).then_some(number)
        };
        scales(text, factor).map(Self).ok_or_else(|| {
            format!(
                "{text:?} is no list of an adapter's scales: write -2..2, -1..1/0.5 (with a step) or -1,0.5,1, without a \
                 percent sign"
            )
        })
    }
}

/// The scales of a range or a list, in order, each once, without 0; `None` where it is neither, or holds no scale.
fn scales(text: &str, number: impl Fn(&str) -> Option<f64>) -> Option<Vec<f64>> {
    let mut list = match text.split_once("..") {
        Some((lo, rest)) => {
            let (hi, step) = match rest.split_once('/') {
                Some((hi, step)) => (number(hi)?, Some(number(step)?)),
                None => (number(rest)?, None),
            };
            let lo = number(lo)?;
            let step = step.unwrap_or(lo.abs().max(hi.abs()) / 4.0);
            if lo >= hi || step <= 0.0 || (hi - lo) / step > 1000.0 {
                return None;
            }
            // Multiples of the step, so that 0 is hit and left out whatever the ends are; and the ends.
            let first = (lo / step - 1e-9).ceil() as i64;
            let inside = (first..).map(|i| i as f64 * step).take_while(|x| *x <= hi + 1e-9);
            let mut list: Vec<f64> = inside.chain([lo, hi]).collect();
            list.iter_mut().for_each(|x| *x = (*x * 1e6).round() / 1e6);
            list
        }
        None => text.split(',').map(number).collect::<Option<_>>()?,
    };
    list.retain(|x| *x != 0.0);
    list.sort_by(f64::total_cmp);
    list.dedup();
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_parsed() {
        let of = |t: &str| t.parse::<Percents>().unwrap().0;
        assert_eq!(of("-10%..10%"), [-10.0, -7.5, -5.0, -2.5, 2.5, 5.0, 7.5, 10.0]);
        assert_eq!(of("-10%..10%/5%"), [-10.0, -5.0, 5.0, 10.0]);
        assert_eq!(of("0%..6%/2%"), [2.0, 4.0, 6.0]);
        assert_eq!(of("-1% .. 7% / 3%"), [-1.0, 3.0, 6.0, 7.0]);
        assert_eq!(of("5%, -5%,5%"), [-5.0, 5.0]);
        for bad in ["", "5", "-10..10", "10%..-10%", "0%", "1%..2%/0%", "x%", "nan%", "-10%..10%/1e-9%"] {
            assert!(bad.parse::<Percents>().unwrap_err().contains("is no list of scales"), "{bad}");
        }
        let of = |t: &str| t.parse::<Factors>().unwrap().0;
        assert_eq!(of("-2..2"), [-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0]);
        assert_eq!(of("0..1/0.25"), [0.25, 0.5, 0.75, 1.0]);
        assert_eq!(of("1, -1,0.5,0"), [-1.0, 0.5, 1.0]);
        for bad in ["", "5%", "-1..1%", "1..-1", "0", "1e9", "inf", "x"] {
            assert!(bad.parse::<Factors>().unwrap_err().contains("without a percent sign"), "{bad}");
        }
    }
}
