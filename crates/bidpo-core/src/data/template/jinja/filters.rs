//! Filters and tests whose Jinja2 meaning differs from minijinja's, that minijinja lacks, or that can make long texts.

use super::budget::{MAX_ITEMS, charge, check_items, spend};
use super::format::percent_format;
use super::json::tojson;
use super::methods::{is_lower, is_upper, join};
use super::python::str_of;
use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, filters};

pub(super) fn install(environment: &mut Environment<'_>) {
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
            _ => Value::from(values.0),
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
    environment.add_filter("slice", |state: &State<'_, '_>, value: Value, count: usize, fill: Option<Value>| {
        check_items(count)?;
        spend(state, count.saturating_mul(size_of::<Value>()))?;
        filters::slice(state, value, count, fill)
    });
    environment.add_filter("wordcount", minijinja_contrib::filters::wordcount);
    environment.add_filter("wordwrap", minijinja_contrib::filters::wordwrap);
    environment.add_filter("truncate", truncate);
    environment.add_filter("title", |state: &State<'_, '_>, text: Value| text_filter(state, &text, titled));
    for name in ["e", "escape", "forceescape"] {
        environment.add_filter(name, escape);
    }
    environment.add_filter("int", |value: &Value, default: Option<i64>, options: Kwargs| -> Result<Value, Error> {
        let default = default.or(options.get("default")?).unwrap_or(0);
        options.assert_all_used()?;
        Ok(to_int(value).unwrap_or_else(|| Value::from(default)))
    });
    environment.add_filter("float", |value: &Value, default: Option<f64>, options: Kwargs| -> Result<f64, Error> {
        let default = default.or(options.get("default")?).unwrap_or(0.0);
        options.assert_all_used()?;
        Ok(to_float(value).unwrap_or(default))
    });
    environment.add_filter("round", round);
    environment.add_filter("striptags", minijinja_contrib::filters::striptags);
    environment.add_filter("filesizeformat", minijinja_contrib::filters::filesizeformat);
    environment.add_function("cycler", minijinja_contrib::globals::cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
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
        matches!(value.kind(), ValueKind::Plain) || value.to_string().starts_with("minijinja::functions")
    });
}

/// White space of Python's `str.strip()`.
pub(super) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `batch(count, fill)`. The engine's own takes memory for `count` values before it reads one.
fn batch(state: &State<'_, '_>, value: Value, count: usize, fill: Option<Value>) -> Result<Value, Error> {
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
fn escape(state: &State<'_, '_>, value: Value) -> Result<String, Error> {
    let text = str_of(&value)?;
    charge(state, text.len().saturating_mul(5))?;
    Ok(text
        .replace('&', "&amp;")
        .replace('>', "&gt;")
        .replace('<', "&lt;")
        .replace('\'', "&#39;")
        .replace('"', "&#34;"))
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

fn to_int(value: &Value) -> Option<Value> {
    if let Some(text) = value.as_str() {
        let digits = text.trim_matches(is_python_space).replace('_', "");
        return match digits.parse::<i64>() {
            Ok(x) => Some(Value::from(x)),
            Err(_) => float_to_int(digits.parse().ok()?),
        };
    }
    match value.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => float_to_int(f64::try_from(value.clone()).ok()?),
        _ => None,
    }
}

fn float_to_int(x: f64) -> Option<Value> {
    (x.abs() < 9e18).then(|| Value::from(x.trunc() as i64))
}

fn to_float(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some(text) => text.trim_matches(is_python_space).replace('_', "").parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    }
}

/// `round(precision=0, method='common')`: halves go to the even digit, as in Python.
fn round(value: &Value, args: Rest<Value>) -> Result<f64, Error> {
    let (precision, method, options): (Option<i32>, Option<String>, Kwargs) = from_args(&args)?;
    let precision = precision.or(options.get("precision")?).unwrap_or(0).clamp(-300, 300);
    let method = method.or(options.get("method")?).unwrap_or_else(|| "common".into());
    options.assert_all_used()?;
    let x = to_float(value).ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, format!("a value of type {} has no digits", value.kind()))
    })?;
    let factor = 10f64.powi(precision);
    Ok(match method.as_str() {
        // The decimal digits of x decide, not those of x times the factor: 2.675 is a little less than that.
        "common" if precision > 0 => format!("{x:.*}", precision.unsigned_abs() as usize).parse().unwrap_or(x),
        "common" => (x * factor).round_ties_even() / factor,
        "ceil" => (x * factor).ceil() / factor,
        "floor" => (x * factor).floor() / factor,
        other => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("round: the method must be common, ceil or floor, not {other}"),
            ));
        }
    })
}
