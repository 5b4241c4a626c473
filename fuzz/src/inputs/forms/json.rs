//! Changes of JSON: one node of the tree is replaced, renamed, removed, doubled, wrapped or edited.

use super::super::edit::{INTEGERS, NUMBERS, TEXTS, edited, pick};
use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Map, Value, json};

/// The file with a changed node; `None` where it is no JSON.
pub(super) fn changed(file: &[u8], u: &mut Unstructured<'_>) -> arbitrary::Result<Option<Vec<u8>>> {
    let Ok(mut tree) = serde_json::from_slice(file) else { return Ok(None) };
    for _ in 0..u.int_in_range(1..=3)? {
        change(&mut tree, u)?;
    }
    Ok(Some(tree.to_string().into_bytes()))
}

/// The file with a changed line: of another tree, or doubled, or at another place.
pub(super) fn changed_line(file: &[u8], u: &mut Unstructured<'_>) -> arbitrary::Result<Option<Vec<u8>>> {
    let mut lines: Vec<Vec<u8>> = file.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect();
    let at = u.choose_index(lines.len())?;
    match u.int_in_range(0..=7)? {
        0 => {
            let line = lines[at].clone();
            lines.insert(u.choose_index(lines.len())?, line);
        }
        1 => drop(lines.remove(at)),
        2 => {
            let other = u.choose_index(lines.len())?;
            lines.swap(at, other);
        }
        _ => match changed(&lines[at], u)? {
            Some(line) => lines[at] = line,
            None => return Ok(None),
        },
    }
    Ok(Some(lines.join(&b'\n')))
}

/// Changes one node of a tree.
pub(super) fn change(tree: &mut Value, u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let mut node = tree;
    // Down a random path, which ends with one chance in four at each step.
    loop {
        let inside = match node {
            Value::Array(list) => list.len(),
            Value::Object(object) => object.len(),
            _ => 0,
        };
        if inside == 0 || u.ratio(1, 4)? {
            break;
        }
        let at = u.choose_index(inside)?;
        let next = match node {
            Value::Array(list) => list.get_mut(at),
            Value::Object(object) => object.values_mut().nth(at),
            _ => None,
        };
        node = next.expect("the place is inside");
    }
    match (u.int_in_range(0..=6)?, &mut *node) {
        (0, Value::Array(list)) if !list.is_empty() => drop(list.remove(u.choose_index(list.len())?)),
        (1, Value::Array(list)) if !list.is_empty() => {
            let one = list[u.choose_index(list.len())?].clone();
            let times = u.int_in_range(1..=40)?;
            list.extend(std::iter::repeat_n(one, times));
        }
        (0, Value::Object(object)) if !object.is_empty() => {
            let key = object.keys().nth(u.choose_index(object.len())?).cloned().unwrap_or_default();
            object.shift_remove(&key);
        }
        (1, Value::Object(object)) if !object.is_empty() => {
            let at = u.choose_index(object.len())?;
            let (key, value) = object.iter().nth(at).map(|(k, v)| (k.clone(), v.clone())).unwrap_or_default();
            let name = edited(key.as_bytes(), u)?;
            object.insert(String::from_utf8_lossy(&name).into_owned(), value);
        }
        (0..=2, Value::String(text)) => {
            let bytes = edited(text.as_bytes(), u)?;
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        (3, _) => {
            let depth = u.int_in_range(1..=140)?;
            let inner = node.take();
            *node = (0..depth).fold(inner, |inner, i| if i % 2 == 0 { json!([inner]) } else { json!({ "a": inner }) });
        }
        _ => *node = value(u)?,
    }
    Ok(())
}

/// A value of any kind.
fn value(u: &mut Unstructured<'_>) -> arbitrary::Result<Value> {
    Ok(match u.int_in_range(0..=9)? {
        0 => Value::Null,
        1 => Value::Bool(bool::arbitrary(u)?),
        2 => json!(pick(&INTEGERS, u.arbitrary()?)),
        3 => json!(i64::arbitrary(u)?),
        4 => json!(f64::arbitrary(u)?),
        5 => pick(&NUMBERS, u.arbitrary()?).parse().map_or(Value::Null, Value::Number),
        6 => json!(pick(&TEXTS, u.arbitrary()?)),
        7 => json!([]),
        8 => Value::Object(Map::new()),
        _ => json!(pick(&TEXTS, u.arbitrary()?).repeat(usize::from(u8::arbitrary(u)?))),
    })
}
