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

/// Numbers with decimals; `None` without bounds.
pub(super) fn reals(b: &Bounds) -> Result<Option<String>, RangeError> {
    let low = tighter([(b.least, false), (b.above, true)], |a, b| a > b);
    let high = tighter([(b.most, false), (b.below, true)], |a, b| a < b);
    if low.is_none() && high.is_none() {
        return Ok(None);
    }
    // A bound that no number of so many digits reaches is kept by all that are written.
    let all = limit() as f64;
    if low.is_some_and(|l| l.at > all) || high.is_some_and(|h| h.at < -all) {
        return Err(RangeError::Unsupported);
    }
    let low = low.filter(|l| l.at >= -all).unwrap_or(End { at: -all, open: false });
    let high = high.filter(|h| h.at <= all).unwrap_or(End { at: all, open: false });
    if low.at > high.at || (low.at == high.at && (low.open || high.open)) {
        return Err(RangeError::Empty);
    }
    let zero = |open| End { at: 0.0, open };
    let mut parts = Vec::new();
    if low.at < 0.0 {
        // Zero is written without a sign.
        let from = if high.at < 0.0 { high.opposite() } else { zero(true) };
        parts.push(format!("\"-\" ({})", unsigned(from, low.opposite())?));
    }
    if high.at > 0.0 || (high.at == 0.0 && !high.open) {
        parts.push(unsigned(if low.at < 0.0 { zero(false) } else { low }, high)?);
    }
    Ok(Some(parts.join(" | ")))
}

/// One end of a range.
#[derive(Debug, Clone, Copy)]
struct End {
    at: f64,
    /// The number itself is outside.
    open: bool,
}

impl End {
    fn opposite(self) -> Self {
        Self { at: -self.at, ..self }
    }

    /// Its digits before the point, as a number, and those behind it.
    fn digits(self) -> Result<(i64, String), RangeError> {
        let text = self.at.to_string();
        let (before, behind) = text.split_once('.').unwrap_or((&text, ""));
        let before: i64 = before.parse().map_err(|_| RangeError::Unsupported)?;
        if before > limit() || behind.len() > DIGITS {
            Err(RangeError::Unsupported)
        } else {
            Ok((before, behind.to_owned()))
        }
    }
}

/// The end that leaves fewer numbers. `beyond`: the first is farther inside than the second.
fn tighter(ends: [(Option<f64>, bool); 2], beyond: fn(f64, f64) -> bool) -> Option<End> {
    let ends = ends.into_iter().filter_map(|(at, open)| at.map(|at| End { at, open }));
    ends.reduce(|closed, open| if beyond(closed.at, open.at) { closed } else { open })
}

/// Any digits that may follow digits behind the point.
const MORE: &str = "[0-9]{0,15}";

/// Numbers from `low` to `high`, neither negative and not both open at one place.
fn unsigned(low: End, high: End) -> Result<String, RangeError> {
    let ((first, from), (last, to)) = (low.digits()?, high.digits()?);
    if low.at == high.at {
        return Ok(if from.is_empty() { format!("\"{first}\"") } else { format!("\"{first}\" \".\" \"{from}\"") });
    }
    if first == last {
        let between = between(&from, low.open, &to, high.open);
        let behind = format!("\".\" ({between})");
        return Ok(if from.is_empty() && !low.open {
            format!("\"{first}\" ({behind})?")
        } else {
            format!("\"{first}\" {behind}")
        });
    }
    let mut parts = Vec::new();
    parts.push(match (from.as_str(), low.open) {
        ("", false) => format!("\"{first}\" (\".\" [0-9]{{1,16}})?"),
        (from, open) => format!("\"{first}\" \".\" ({})", from_digits(from, open)),
    });
    if first + 1 < last {
        parts.push(format!("({}) (\".\" [0-9]{{1,16}})?", span(first + 1, last - 1)));
    }
    match (to.as_str(), high.open) {
        ("", true) => {}
        ("", false) => parts.push(format!("\"{last}\" (\".\" \"0\"{{1,2}})?")),
        (to, open) => parts.push(format!("\"{last}\" (\".\" ({}))?", to_digits(to, open))),
    }
    Ok(parts.join(" | "))
}

fn digit(text: &str) -> Option<(u8, &str)> {
    text.bytes().next().map(|d| (d - b'0', &text[1..]))
}

/// Digits behind the point from these on, without the number itself where `open`.
fn from_digits(from: &str, open: bool) -> String {
    match digit(from) {
        None if open => format!("{MORE} [1-9]"),
        None => MORE.to_owned(),
        Some((d, rest)) => {
            let same = format!("\"{d}\" ({})", from_digits(rest, open));
            if d < 9 { format!("{same} | [{}-9] {MORE}", d + 1) } else { same }
        }
    }
}

/// Digits behind the point up to these, which are not empty and do not end with 0.
fn to_digits(to: &str, open: bool) -> String {
    let Some((d, rest)) = digit(to) else { return String::new() };
    let less = (d > 0).then(|| format!("[0-{}] {MORE}", d - 1));
    let same = match (rest.is_empty(), open) {
        (true, true) => None,
        (true, false) => Some(format!("\"{d}\" \"0\"{{0,2}}")),
        (false, _) => Some(format!("\"{d}\" ({})?", to_digits(rest, open))),
    };
    less.into_iter().chain(same).collect::<Vec<_>>().join(" | ")
}

/// Digits behind the point from `from` up to `to`, which is more.
fn between(from: &str, open_from: bool, to: &str, open_to: bool) -> String {
    let (a, a_rest) = digit(from).unwrap_or((0, ""));
    let (b, b_rest) = digit(to).unwrap_or((9, ""));
    let none_left = from.len() <= 1 && !open_from;
    if a == b {
        let rest = between(a_rest, open_from, b_rest, open_to);
        return if none_left { format!("\"{a}\" ({rest})?") } else { format!("\"{a}\" ({rest})") };
    }
    let mut parts = vec![format!("\"{a}\" ({})", from_digits(a_rest, open_from))];
    if a + 1 < b {
        parts.push(format!("[{}-{}] {MORE}", a + 1, b - 1));
    }
    match (b_rest.is_empty(), open_to) {
        (true, true) => {}
        (true, false) => parts.push(format!("\"{b}\" \"0\"{{0,2}}")),
        (false, _) => parts.push(format!("\"{b}\" ({})?", to_digits(b_rest, open_to))),
    }
    parts.join(" | ")
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
    fn numbers_between_bounds_are_all_there() {
        let closed = |low, high| Bounds { least: Some(low), most: Some(high), ..Bounds::default() };
        let open = |low, high| Bounds { above: Some(low), below: Some(high), ..Bounds::default() };
        let texts: Vec<String> = (-230..=230)
            .map(|n| format!("{}{}.{:02}", if n < 0 { "-" } else { "" }, i32::abs(n) / 100, i32::abs(n) % 100))
            .chain((-25..=25).map(|n| n.to_string()))
            .chain(
                ["0.5", "0.249", "0.2501", "1.9999", "0.0001", "-0.5", "-1.7501", "12.5", "-12.75", "100", "1e3"]
                    .map(String::from),
            )
            .collect();
        for bounds in [
            closed(0.0, 1.0),
            open(0.0, 1.0),
            open(0.0, 10.0),
            closed(0.5, 1.0),
            open(0.5, 1.25),
            closed(0.25, 0.5),
            open(0.25, 0.5),
            closed(0.2, 0.25),
            closed(1.25, 1.25),
            closed(-1.0, 1.0),
            open(-1.0, 1.0),
            closed(-90.0, 90.0),
            closed(-1.75, -0.5),
            open(-12.5, 0.0),
            closed(-2.0, 0.0),
            Bounds { least: Some(0.0), above: Some(0.5), most: Some(2.0), ..Bounds::default() },
            Bounds { most: Some(1.5), ..Bounds::default() },
            Bounds { above: Some(-0.01), ..Bounds::default() },
            Bounds { least: Some(0.1), most: Some(1e300), ..Bounds::default() },
        ] {
            let body = reals(&bounds).unwrap().unwrap();
            let within = regex(&body);
            for text in &texts {
                let x: f64 = text.parse().unwrap();
                let fits = bounds.least.is_none_or(|l| x >= l)
                    && bounds.above.is_none_or(|l| x > l)
                    && bounds.most.is_none_or(|h| x <= h)
                    && bounds.below.is_none_or(|h| x < h);
                // Written without a power of ten, and zero without a sign.
                let written = !text.contains('e') && (x != 0.0 || !text.starts_with('-'));
                // Zeros behind the last digit of a bound are bounded, and zeros alone behind one that is excluded.
                let matched = within.is_match(text);
                assert!(matched == (fits && written) || (fits && text.ends_with('0')), "{text} in {bounds:?}: {body}");
                assert!(!matched || fits, "{text} in {bounds:?}: {body}");
            }
        }
        assert_eq!(reals(&closed(2.0, 1.0)), Err(RangeError::Empty));
        assert_eq!(reals(&open(1.0, 1.0)), Err(RangeError::Empty));
        assert_eq!(reals(&closed(1e-300, 1.0)), Err(RangeError::Unsupported));
        assert_eq!(reals(&Bounds::default()), Ok(None));
    }
}
