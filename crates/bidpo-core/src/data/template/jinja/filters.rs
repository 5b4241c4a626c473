//! Filters and tests whose Jinja2 meaning differs from minijinja's, that minijinja lacks, or that can make long texts.

mod pprint;
mod urls;
mod wrap;

use super::budget::{MAX_ITEMS, charge, check_items, spend};
use super::collections::failed;
use super::format::percent_format;
use super::json::tojson;
use super::methods::{is_lower, is_upper, join};
use super::ops::{int_value, integer, number};
use super::python::{Tuple, str_of};
use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, filters};

pub(super) fn install(environment: &mut Environment<'_>) {
    urls::install(environment);
    environment.add_filter("tojson", tojson);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("string", |state: &State<'_, '_>, value: &Value| -> Result<String, Error> {
        let text = str_of(value)?;
        charge(state, text.len())?;
        Ok(text)
    });
    environment.add_filter(
        "join",
        |state: &State<'_, '_>, list: Value, between: Option<&str>, options: Kwargs| -> Result<Value, Error> {
            let between = match between {
                Some(text) => Some(text.to_owned()),
                None => options.get::<Option<String>>("d")?,
            };
            let list = match options.get::<Option<Value>>("attribute")? {
                None => list,
                Some(attribute) => {
                    let pick = |item: Value| match attribute.as_str() {
                        Some(name) => item.get_attr(name),
                        None => item.get_item(&attribute),
                    };
                    Value::from(list.try_iter()?.map(pick).collect::<Result<Vec<_>, _>>()?)
                }
            };
            options.assert_all_used()?;
            join(state, between.as_deref().unwrap_or(""), &list, true)
        },
    );
    environment.add_filter("format", |state: &State<'_, '_>, format: &str, values: Rest<Value>| {
        let values = match &values.0[..] {
            [one] if one.is_kwargs() => one.clone(),
            _ => Tuple::value(values.0),
        };
        percent_format(state, format, &values)
    });
    environment.add_filter(
        "replace",
        |state: &State<'_, '_>, text: Value, from: Value, to: Value, most: Option<i64>| {
            let (text, from, to) =
                (Value::from(str_of(&text)?), Value::from(str_of(&from)?), Value::from(str_of(&to)?));
            super::methods::call(state, &text, "replace", &[from, to, Value::from(most)])
        },
    );
    environment.add_filter("upper", |state: &State<'_, '_>, text: Value| text_filter(state, &text, str::to_uppercase));
    environment.add_filter("lower", |state: &State<'_, '_>, text: Value| text_filter(state, &text, str::to_lowercase));
    environment.add_filter("capitalize", |state: &State<'_, '_>, text: Value| text_filter(state, &text, capitalized));
    environment.add_filter("center", |state: &State<'_, '_>, text: Value, width: Option<i64>| {
        super::methods::call(state, &Value::from(str_of(&text)?), "center", &[Value::from(width.unwrap_or(80))])
    });
    environment.add_filter("indent", indent);
    environment.add_filter("trim", |state: &State<'_, '_>, text: Value, args: Rest<Value>| -> Result<String, Error> {
        let (chars, options): (Option<String>, Kwargs) = from_args(&args)?;
        let chars = chars.or(options.get("chars")?);
        options.assert_all_used()?;
        text_filter(state, &text, |text| match &chars {
            None => text.trim_matches(is_python_space).to_owned(),
            Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
        })
    });
    environment.add_filter("list", |state: &State<'_, '_>, value: Value| -> Result<Value, Error> {
        if let Some(text) = value.as_str() {
            check_items(text.len())?;
            return Ok(Value::from(text.chars().map(|c| Value::from(c.to_string())).collect::<Vec<_>>()));
        }
        check_items(value.len().unwrap_or(0))?;
        charge(state, value.len().unwrap_or(0) * size_of::<Value>())?;
        filters::list(state, value)
    });
    environment.add_filter("batch", batch);
    environment.add_filter("pprint", |state: &State<'_, '_>, value: &Value| pprint::pprint(state, value));
    environment.add_filter("slice", |state: &State<'_, '_>, value: Value, count: i64, fill: Option<Value>| {
        if count < 0 {
            return Ok(Value::from(Vec::<Value>::new()));
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        check_items(count)?;
        spend(state, count.saturating_mul(size_of::<Value>()))?;
        filters::slice(state, value, count, fill)
    });
    environment.add_filter("wordcount", |state: &State<'_, '_>, text: Value| -> Result<Value, Error> {
        let text = str_of(&text)?;
        charge(state, text.len())?;
        minijinja_contrib::filters::wordcount(&Value::from(text))
    });
    environment.add_filter("wordwrap", wrap::wordwrap);
    environment.add_filter("truncate", truncate);
    environment.add_filter("title", |state: &State<'_, '_>, text: Value| text_filter(state, &text, titled));
    for name in ["e", "escape"] {
        environment.add_filter(name, |state: &State<'_, '_>, value: Value| match value.is_safe() {
            true => Ok(value),
            false => escape(state, value),
        });
    }
    environment.add_filter("forceescape", escape);
    environment.add_test("escaped", |value: &Value| value.is_safe());
    environment.add_filter("__written", |value: Value| match value.as_str() {
        Some(_) => Ok(value),
        None => {
            Err(failed(format!("a filter block makes {} of its text, and only texts can be written", value.kind())))
        }
    });
    environment.add_filter("abs", |value: &Value| match (integer(value), number(value)) {
        (Some(x), _) => Ok(int_value(x.saturating_abs())),
        (None, Some(x)) => Ok(Value::from(x.abs())),
        (None, None) => Err(failed(format!("abs: a number is needed, this is {}", value.kind()))),
    });
    environment.add_filter("int", |value: &Value, args: Rest<Value>| -> Result<Value, Error> {
        let (default, base, options): (Option<Value>, Option<u32>, Kwargs) = from_args(&args)?;
        let default = default.or(options.get("default")?).unwrap_or_else(|| Value::from(0));
        let base = base.or(options.get("base")?).unwrap_or(10);
        options.assert_all_used()?;
        no_undefined(value)?;
        Ok(to_int(value, base).unwrap_or(default))
    });
    environment.add_filter("float", |value: &Value, args: Rest<Value>| -> Result<Value, Error> {
        let (default, options): (Option<Value>, Kwargs) = from_args(&args)?;
        let default = default.or(options.get("default")?).unwrap_or_else(|| Value::from(0.0));
        options.assert_all_used()?;
        no_undefined(value)?;
        Ok(to_float(value).map_or(default, Value::from))
    });
    environment.add_filter("round", round);
    environment.add_filter("striptags", urls::strip_tags);
    environment.add_filter("safe", |state: &State<'_, '_>, value: Value| {
        text_filter(state, &value, str::to_owned).map(Value::from_safe_string)
    });
    // Attributes only: the items of a dictionary are none.
    environment.add_filter("attr", |value: &Value, name: &str| match value.kind() {
        ValueKind::Map if !is_namespace(value) => Ok(Value::UNDEFINED),
        _ => value.get_attr(name),
    });
    environment.add_filter("filesizeformat", minijinja_contrib::filters::filesizeformat);
    environment.add_function("dict", super::collections::dict);
    // A namespace is made of pairs, of names, or of both.
    environment.add_function("namespace", |given: Option<Value>, options: Kwargs| -> Result<Value, Error> {
        let mut fields: Vec<(String, Value)> = Vec::new();
        for source in given.into_iter().chain([Value::from(options)]) {
            for key in source.try_iter()? {
                fields.push((key.to_string(), source.get_item(&key)?));
            }
        }
        let fields: Value = fields.into_iter().collect();
        minijinja::functions::namespace(Some(fields))
    });
    environment.add_test("mapping", |value: &Value| value.kind() == ValueKind::Map && !is_namespace(value));
    type Known = fn(&State<'_, '_>, &str) -> bool;
    for (name, known) in
        [("filter", minijinja::tests::is_filter as Known), ("test", minijinja::tests::is_test as Known)]
    {
        environment.add_test(name, move |state: &State<'_, '_>, value: &Value| {
            super::order::hashable(value)?;
            Ok::<_, Error>(value.as_str().is_some_and(|name| known(state, name)))
        });
    }
    // Python: None is not iterable, a string and a mapping are.
    environment
        .add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok() || value.as_str().is_some());
    // Anything with a length and subscripts.
    environment.add_test("sequence", |value: &Value| {
        value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    environment.add_test("lower", |value: &Value| str_of(value).is_ok_and(|text| is_lower(&text)));
    environment.add_test("upper", |value: &Value| str_of(value).is_ok_and(|text| is_upper(&text)));
    environment.add_test("callable", |value: &Value| {
        matches!(value.kind(), ValueKind::Plain | ValueKind::Undefined)
            || value.to_string().starts_with("minijinja::functions")
    });
}

/// True for what `namespace()` made.
pub(super) fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("Namespace"))
}

/// White space of Python's `str.strip()`.
pub(super) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn no_undefined(value: &Value) -> Result<(), Error> {
    if value.is_undefined() { Err(failed("an undefined value is no number")) } else { Ok(()) }
}

/// `batch(count, fill)`. The engine's own takes memory for `count` values before it reads one.
fn batch(state: &State<'_, '_>, value: Value, count: i64, fill: Option<Value>) -> Result<Value, Error> {
    // Jinja2 begins a new line at exactly `count` items: never, for a count below one.
    let count = usize::try_from(count).ok().filter(|&n| n > 0);
    let fill = fill.filter(|_| count.is_some());
    let count = count.unwrap_or(MAX_ITEMS);
    let items = value.len().unwrap_or(0);
    check_items(items)?;
    if fill.is_some() {
        check_items(count)?;
    }
    let most = if fill.is_some() { count } else { count.min(value.len().unwrap_or(MAX_ITEMS).max(1)) };
    spend(state, items.saturating_add(most).saturating_mul(size_of::<Value>()))?;
    filters::batch(state, value, most, fill)
}

fn length(state: &State<'_, '_>, value: &Value) -> Result<usize, Error> {
    if let Some(text) = value.as_str() {
        spend(state, text.len())?;
    }
    if value.is_undefined() {
        return Ok(0);
    }
    let no_length =
        || Error::new(ErrorKind::InvalidOperation, format!("a value of type {} has no length", value.kind()));
    if value.is_none() { Err(no_length()) } else { value.len().ok_or_else(no_length) }
}

fn text_filter(state: &State<'_, '_>, value: &Value, change: impl Fn(&str) -> String) -> Result<String, Error> {
    let text = str_of(value)?;
    charge(state, text.len())?;
    Ok(change(&text))
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect())
}

/// `indent(width=4, first=False, blank=False)`.
fn indent(state: &State<'_, '_>, text: Value, args: Rest<Value>) -> Result<String, Error> {
    let (width, first, blank, options): (Option<Value>, Option<bool>, Option<bool>, Kwargs) = from_args(&args)?;
    let width = match width {
        Some(width) => width,
        None => options.get::<Option<Value>>("width")?.unwrap_or_else(|| Value::from(4)),
    };
    let first = first.or(options.get("first")?).unwrap_or(false);
    let blank = blank.or(options.get("blank")?).unwrap_or(false);
    options.assert_all_used()?;
    if text.as_str().is_none() {
        return Err(failed(format!("indent: a text is needed, this is {}", text.kind())));
    }
    let text = str_of(&text)?;
    let lines = text.split('\n').count();
    let step = match width.as_str() {
        Some(text) => text.to_owned(),
        None => {
            let width = width.as_usize().unwrap_or(0);
            charge(state, width.saturating_mul(lines))?;
            " ".repeat(width)
        }
    };
    charge(state, text.len() + step.len().saturating_mul(lines))?;
    // Jinja2 indents str.splitlines(), so every line end becomes a line feed, and a trailing one adds no line.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let body = text.strip_suffix('\n');
    let mut out = String::new();
    for (i, line) in body.unwrap_or(&text).split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i > 0 || first) && (blank || !line.is_empty() || i == 0) {
            out.push_str(&step);
        }
        out.push_str(line);
    }
    if body.is_some() {
        out.push('\n');
        if blank {
            out.push_str(&step);
        }
    }
    Ok(out)
}

/// markupsafe's escapes.
fn escape(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    let text = str_of(&value)?;
    charge(state, text.len().saturating_mul(5))?;
    Ok(Value::from_safe_string(escaped(&text)))
}

/// A text in markup.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('>', "&gt;").replace('<', "&lt;").replace('\'', "&#39;").replace('"', "&#34;")
}

/// Every word with a capital; words end at white space, hyphens and opening brackets.
fn titled(text: &str) -> String {
    let mut start = true;
    let mut out = String::new();
    for c in text.chars() {
        let boundary = is_python_space(c) || "-({[<".contains(c);
        if boundary || !start {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        start = boundary;
    }
    out
}

/// `truncate(length=255, killwords=False, end='...', leeway=5)`.
fn truncate(state: &State<'_, '_>, text: Value, args: Rest<Value>) -> Result<String, Error> {
    let (length, kill, end, leeway, options): (Option<usize>, Option<bool>, Option<String>, Option<usize>, Kwargs) =
        from_args(&args)?;
    let length = length.or(options.get("length")?).unwrap_or(255);
    let kill = kill.or(options.get("killwords")?).unwrap_or(false);
    let end = end.or(options.get("end")?).unwrap_or_else(|| "...".into());
    let leeway = leeway.or(options.get("leeway")?).unwrap_or(5);
    options.assert_all_used()?;
    if text.is_undefined() {
        return Ok(String::new());
    }
    if text.as_str().is_none() && text.len().is_none() {
        return Err(failed(format!("truncate: a value of type {} has no length", text.kind())));
    }
    let text = str_of(&text)?;
    charge(state, text.len() + end.len())?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let keep = length.saturating_sub(end.chars().count());
    let kept: String = text.chars().take(keep).collect();
    if kill {
        return Ok(kept + &end);
    }
    Ok(kept.rsplit_once(' ').map_or(kept.as_str(), |(before, _)| before).to_owned() + &end)
}

fn to_int(value: &Value, base: u32) -> Option<Value> {
    if let Some(text) = value.as_str() {
        return match parse_int(text, base) {
            Some(x) => Some(int_value(x)),
            None => float_to_int(to_float(value)?),
        };
    }
    match integer(value) {
        Some(x) => Some(int_value(x)),
        None => float_to_int(number(value)?),
    }
}

/// Python's `int(text, base)`: white space, a sign, a prefix of the base, underscores between digits.
fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(is_python_space);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = |base: u32| match base {
        2 => ["0b", "0B"],
        8 => ["0o", "0O"],
        _ => ["0x", "0X"],
    };
    let stripped = |base: u32| prefix(base).iter().find_map(|p| digits.strip_prefix(p));
    let (base, digits) = match base {
        0 => match [2, 8, 16].into_iter().find_map(|b| Some((b, stripped(b)?))) {
            Some(found) => found,
            None if digits.len() > 1 && digits.starts_with('0') && digits.contains(|c| c != '0' && c != '_') => {
                return None;
            }
            None => (10, digits),
        },
        2 | 8 | 16 => (base, stripped(base).unwrap_or(digits)),
        3..=36 => (base, digits),
        _ => return None,
    };
    let digits = digits.strip_prefix('_').filter(|_| digits.len() < text.len()).unwrap_or(digits);
    let plain =
        !digits.is_empty() && !digits.starts_with(['_', '+', '-']) && !digits.ends_with('_') && !digits.contains("__");
    if !plain {
        return None;
    }
    i128::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), base).ok()
}

fn float_to_int(x: f64) -> Option<Value> {
    (x.abs() < 1e38).then(|| int_value(x.trunc() as i128))
}

fn to_float(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some(text) => text.trim_matches(is_python_space).replace('_', "").parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    }
}

/// `round(precision=0, method='common')`: halves go to the even digit, and an integer stays one, as in Python.
fn round(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let (precision, method, options): (Option<i32>, Option<String>, Kwargs) = from_args(&args)?;
    let precision = precision.or(options.get("precision")?).unwrap_or(0).clamp(-300, 300);
    let method = method.or(options.get("method")?).unwrap_or_else(|| "common".into());
    options.assert_all_used()?;
    let x = number(value).ok_or_else(|| failed(format!("a value of type {} has no digits", value.kind())))?;
    let factor = 10f64.powi(precision);
    if let Some(x) = integer(value).filter(|_| method == "common") {
        let unit = 10i128.checked_pow(precision.min(0).unsigned_abs());
        let Some(unit) = unit else { return Ok(Value::from(0)) };
        let (down, rest) = (x.div_euclid(unit), x.rem_euclid(unit));
        let up = 2 * rest > unit || 2 * rest == unit && down % 2 != 0;
        return Ok(int_value((down + i128::from(up)) * unit));
    }
    Ok(Value::from(match method.as_str() {
        // The decimal digits of x decide, not those of x times the factor: 2.675 is a little less than that.
        "common" if precision > 0 => format!("{x:.*}", precision.unsigned_abs() as usize).parse().unwrap_or(x),
        "common" => (x * factor).round_ties_even() / factor,
        // Python's are integers, which know no -0.
        "ceil" => ((x * factor).ceil() + 0.0) / factor,
        "floor" => ((x * factor).floor() + 0.0) / factor,
        other => return Err(failed(format!("round: the method must be common, ceil or floor, not {other}"))),
    }))
}
