//! Numbers within bounds, digit by digit.

/// The most digits of a bound.
const DIGITS: usize = 15;

/// Bounds of a number: `minimum`, `exclusiveMinimum`, `maximum`, `exclusiveMaximum`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bounds {
    pub least: Option<f64>,
    pub above: Option<f64>,
    pub most: Option<f64>,
    pub below: Option<f64>,
}

/// Bounds that cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RangeError {
    Empty,
    Unsupported,
}

fn limit() -> i64 {
    10i64.pow(DIGITS as u32) - 1
}

fn whole(x: f64) -> Result<i64, RangeError> {
    if x.abs() <= limit() as f64 { Ok(x as i64) } else { Err(RangeError::Unsupported) }
}

/// Whole numbers; `None` without bounds.
pub(super) fn integers(b: &Bounds) -> Result<Option<String>, RangeError> {
    let lows = [b.least.map(f64::ceil), b.above.map(|x| x.floor() + 1.0)];
    let highs = [b.most.map(f64::floor), b.below.map(|x| x.ceil() - 1.0)];
    // A bound that no number of so many digits reaches is kept by all that are written.
    let most = limit() as f64;
    let low = lows.into_iter().flatten().reduce(f64::max).map(|x| whole(x.max(-most))).transpose()?;
    let high = highs.into_iter().flatten().reduce(f64::min).map(|x| whole(x.min(most))).transpose()?;
    if low.is_none() && high.is_none() {
        return Ok(None);
    }
    let (low, high) = (low.unwrap_or(-limit()), high.unwrap_or(limit()));
    if low > high { Err(RangeError::Empty) } else { Ok(Some(span(low, high))) }
}

/// Numbers with decimals between bounds that are whole and not negative; `None` without bounds.
pub(super) fn reals(b: &Bounds) -> Result<Option<String>, RangeError> {
    let (low, open_low) = match (b.least, b.above) {
        (None, None) if b.most.is_none() && b.below.is_none() => return Ok(None),
        (least, Some(above)) if least.is_none_or(|l| above >= l) => (above, true),
        (Some(least), _) => (least, false),
        (None, None) => return Err(RangeError::Unsupported),
        (None, Some(_)) => return Err(RangeError::Unsupported),
    };
    let (high, open_high) = match (b.most, b.below) {
        (None, None) => (limit() as f64, false),
        (most, Some(below)) if most.is_none_or(|m| below <= m) => (below, true),
        (Some(most), _) => (most, false),
        (None, Some(below)) => (below, true),
    };
    if low > high || (low == high && (open_low || open_high)) {
        return Err(RangeError::Empty);
    }
    if low.fract() != 0.0 || high.fract() != 0.0 || low < 0.0 {
        return Err(RangeError::Unsupported);
    }
    let (low, high) = (whole(low)?, whole(high)?);
    let mut parts = Vec::new();
    let first = if open_low { low + 1 } else { low };
    if first < high {
        parts.push(format!("({}) (\".\" [0-9]{{1,16}})?", span(first, high - 1)));
    }
    if open_low && low < high {
        parts.push(format!("\"{low}\" \".\" [0-9]{{0,15}} [1-9]"));
    }
    if !open_high {
        parts.push(format!("\"{high}\" (\".\" \"0\"{{1,2}})?"));
    }
    Ok(Some(parts.join(" | ")))
}

/// The whole numbers from `low` to `high`.
fn span(low: i64, high: i64) -> String {
    let mut parts = Vec::new();
    if low < 0 {
        let (from, to) = (if high < 0 { -high } else { 1 }, -low);
        parts.push(format!("\"-\" ({})", positive(from, to)));
    }
    if high >= 0 {
        parts.push(positive(low.max(0), high));
    }
    parts.join(" | ")
}

/// From `low` to `high`, neither negative: one part for each number of digits.
fn positive(low: i64, high: i64) -> String {
    let mut parts = Vec::new();
    let mut from = low;
    while from <= high {
        let n = from.to_string().len() as u32;
        let to = (10i64.pow(n) - 1).min(high);
        parts.push(same_length(from.to_string().as_bytes(), to.to_string().as_bytes()));
        from = to + 1;
    }
    parts.join(" | ")
}

/// From `low` to `high`, which have the same number of digits.
fn same_length(low: &[u8], high: &[u8]) -> String {
    let (Some((&a, low_rest)), Some((&b, high_rest))) = (low.split_first(), high.split_first()) else {
        return String::new();
    };
    let (a, b, n) = (char::from(a), char::from(b), low_rest.len());
    let all_low = low_rest.iter().all(|&d| d == b'0');
    let all_high = high_rest.iter().all(|&d| d == b'9');
    let class = |a: char, b: char| if a == b { format!("\"{a}\"") } else { format!("[{a}-{b}]") };
    let free = |first: String| match n {
        0 => first,
        n => format!("{first} [0-9]{{{n}}}"),
    };
    if all_low && all_high {
        return free(class(a, b));
    }
    if a == b {
        return format!("\"{a}\" ({})", same_length(low_rest, high_rest));
    }
    let mut parts = Vec::new();
    let (mut from, mut to) = (a as u8, b as u8);
    if !all_low {
        parts.push(format!("\"{a}\" ({})", same_length(low_rest, &vec![b'9'; n])));
        from += 1;
    }
    if !all_high {
        to -= 1;
    }
    if from <= to {
        parts.push(free(class(char::from(from), char::from(to))));
    }
    if !all_high {
        parts.push(format!("\"{b}\" ({})", same_length(&vec![b'0'; n], high_rest)));
    }
    parts.join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;

    /// These rules hold literals of digits, classes, groups and repetitions only: a regular expression but for the quotes.
    fn regex(body: &str) -> Regex {
        Regex::new(&format!("^({})$", body.replace("\".\"", "\\.").replace(['"', ' '], ""))).unwrap()
    }

    #[test]
    fn whole_numbers_between_bounds_are_all_there() {
        for (low, high) in [
            (0, 0),
            (0, 9),
            (1, 10),
            (7, 12),
            (0, 100),
            (95, 1204),
            (120, 129),
            (-5, 5),
            (-130, -7),
            (-1000, 1000),
            (999, 1001),
        ] {
            let bounds = Bounds { least: Some(f64::from(low)), most: Some(f64::from(high)), ..Bounds::default() };
            let within = regex(&integers(&bounds).unwrap().unwrap());
            for n in -1300..1300 {
                assert_eq!(within.is_match(&n.to_string()), (low..=high).contains(&n), "{n} in {low}..={high}");
            }
            assert!(!within.is_match("") && !within.is_match("007") && !within.is_match("-0"));
        }
        let open = regex(&integers(&Bounds { above: Some(17.5), ..Bounds::default() }).unwrap().unwrap());
        assert!(
            open.is_match("18") && open.is_match("123456789012345") && !open.is_match("17") && !open.is_match("-18")
        );
        let below = regex(&integers(&Bounds { below: Some(3.0), ..Bounds::default() }).unwrap().unwrap());
        assert!(below.is_match("2") && below.is_match("-99999") && !below.is_match("3"));
        assert_eq!(integers(&Bounds::default()), Ok(None));
        // JavaScript's safe integers, which Zod writes.
        let safe = 9_007_199_254_740_991.0;
        let safe = Bounds { least: Some(-safe), most: Some(safe), ..Bounds::default() };
        let safe = regex(&integers(&safe).unwrap().unwrap());
        assert!(["0", "-7", "999999999999999"].iter().all(|n| safe.is_match(n)) && !safe.is_match("9999999999999999"));
        assert_eq!(integers(&Bounds { least: Some(1e300), ..Bounds::default() }), Err(RangeError::Unsupported));
        assert_eq!(
            integers(&Bounds { above: Some(1.0), below: Some(2.0), ..Bounds::default() }),
            Err(RangeError::Empty)
        );
    }

    #[test]
    fn numbers_between_whole_bounds() {
        let bounds = |low, high| Bounds { least: Some(low), most: Some(high), ..Bounds::default() };
        let unit = regex(&reals(&bounds(0.0, 1.0)).unwrap().unwrap());
        for (text, want) in [
            ("0", true),
            ("0.0", true),
            ("0.75", true),
            ("1", true),
            ("1.0", true),
            ("1.01", false),
            ("2", false),
            ("-0.1", false),
        ] {
            assert_eq!(unit.is_match(text), want, "{text}");
        }
        let open = Bounds { above: Some(0.0), below: Some(10.0), ..Bounds::default() };
        let open = regex(&reals(&open).unwrap().unwrap());
        for (text, want) in
            [("0", false), ("0.0", false), ("0.05", true), ("9.99", true), ("10", false), ("10.0", false)]
        {
            assert_eq!(open.is_match(text), want, "{text}");
        }
        assert_eq!(reals(&bounds(0.5, 1.0)), Err(RangeError::Unsupported));
        assert_eq!(reals(&bounds(-1.0, 1.0)), Err(RangeError::Unsupported));
        assert_eq!(reals(&bounds(2.0, 1.0)), Err(RangeError::Empty));
        assert_eq!(reals(&Bounds::default()), Ok(None));
    }
}
