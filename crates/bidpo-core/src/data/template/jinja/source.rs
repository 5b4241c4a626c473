//! A template's source made ready for minijinja's parser, which lacks some of Jinja2's syntax: a sign before a number, tuples
//! without parentheses, the line break behind `raw`, and `generation`.

/// Words behind which an operand begins.
const WORDS: [&str; 8] = ["not", "and", "or", "in", "is", "if", "elif", "else"];

/// Line ends as line feeds, and the syntax that the parser knows.
pub(super) fn prepared(source: &str) -> String {
    // Jinja2 reads every kind of line end as a line feed.
    let lines = source.replace("\r\n", "\n").replace('\r', "\n");
    let (mut out, mut rest) = (String::with_capacity(lines.len()), lines.as_str());
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let (Some(close), false) = (close_of(rest), rest.len() < 2) else {
            out.push('{');
            rest = &rest[1..];
            continue;
        };
        let Some(end) = (if close == "#}" { rest[2..].find(close).map(|i| i + 2) } else { end_of(rest, close) }) else {
            break;
        };
        let tag = &rest[..end + 2];
        rest = &rest[end + 2..];
        let inner = &tag[2..end];
        let name = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match (close, name) {
            ("#}", _) => out.push_str(tag),
            ("%}", "generation") => out.push_str(&tag.replace("generation", "with")),
            ("%}", "endgeneration") => out.push_str(&tag.replace("endgeneration", "endwith")),
            ("%}", "raw") => {
                out.push_str(tag);
                // minijinja leaves out one line break there, Jinja2 none.
                if rest.starts_with('\n') && !inner.ends_with('-') {
                    out.push('\n');
                }
                let raw = raw_end(rest);
                out.push_str(&rest[..raw]);
                rest = &rest[raw..];
            }
            _ => {
                out.push_str(&tag[..2]);
                out.push_str(&expression(inner, close == "}}"));
                out.push_str(close);
            }
        }
    }
    out + rest
}

/// What ends the tag that begins a text.
fn close_of(text: &str) -> Option<&'static str> {
    match text.as_bytes().get(1)? {
        b'{' => Some("}}"),
        b'%' => Some("%}"),
        b'#' => Some("#}"),
        _ => None,
    }
}

/// Where a tag ends: outside its strings, and outside the braces of dictionaries.
fn end_of(text: &str, close: &str) -> Option<usize> {
    let (mut quote, mut escaped, mut depth) = (None, false, 0usize);
    for (i, c) in text.char_indices().skip(2) {
        match quote {
            Some(q) => {
                if c == q && !escaped {
                    quote = None;
                }
                escaped = !escaped && c == '\\';
            }
            None => match c {
                '\'' | '"' => quote = Some(c),
                _ if depth == 0 && text[i..].starts_with(close) => return Some(i),
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            },
        }
    }
    None
}

/// Where the tag `endraw` begins; the end of the text without one.
fn raw_end(text: &str) -> usize {
    let mut from = 0;
    while let Some(i) = text[from..].find("{%") {
        let at = from + i;
        let name = text[at + 2..].trim_start_matches(['-', '+']).trim_start();
        if name.starts_with("endraw") {
            return at;
        }
        from = at + 2;
    }
    text.len()
}

/// An expression, with signs of plus as two of minus, and the commas of a tuple in parentheses.
fn expression(inner: &str, shown: bool) -> String {
    let control = |c: Option<char>| matches!(c, Some('-' | '+'));
    let head = usize::from(control(inner.chars().next()));
    let tail = inner.len() - usize::from(inner.len() > head && control(inner.chars().next_back()));
    let body = &inner[head..tail];
    let mut out = String::with_capacity(inner.len() + 2);
    let (mut quote, mut escaped, mut depth, mut tuple) = (None, false, 0i32, false);
    // An operand may begin here; the word that is being read.
    let (mut begins, mut word) = (true, String::new());
    // Words so far: a test is named behind `is`, and `set` assigns behind the first `=`.
    let (mut before, mut tests) = (String::new(), false);
    let sets = !shown && body.trim_start().starts_with("set ");
    let mut assigned = None;
    for c in body.chars() {
        if let Some(q) = quote {
            if c == q && !escaped {
                quote = None;
            }
            escaped = !escaped && c == '\\';
            out.push(c);
            continue;
        }
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            begins = false;
            out.push(c);
            continue;
        }
        if !word.is_empty() {
            begins = WORDS.contains(&word.as_str());
            tests = before == "is" && word != "not";
            // `is not` is followed by the test as `is` is.
            if !(before == "is" && word == "not") {
                before = std::mem::take(&mut word);
            }
            word.clear();
        }
        if tests && !c.is_whitespace() {
            // minijinja takes what follows the sign for the test's argument.
            out.push_str(if matches!(c, '+' | '-') { "()" } else { "" });
            tests = false;
        }
        match c {
            '+' if begins => {
                out.push_str("--");
                continue;
            }
            '\'' | '"' => (quote, begins) = (Some(c), false),
            '(' | '[' | '{' => (depth, begins) = (depth + 1, true),
            ')' | ']' | '}' => (depth, begins) = (depth - 1, false),
            ',' => (tuple, begins) = (tuple || depth == 0 && (shown || assigned.is_some()), true),
            '=' if sets && depth == 0 && assigned.is_none() => {
                begins = true;
                out.push(c);
                assigned = Some(out.len());
                continue;
            }
            '.' => begins = false,
            c if c.is_whitespace() => {}
            _ => begins = true,
        }
        out.push(c);
    }
    let body = match assigned {
        _ if shown && tuple => format!("({out})"),
        Some(at) if tuple => format!("{}({})", &out[..at], &out[at..]),
        _ => out,
    };
    format!("{}{body}{}", &inner[..head], &inner[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_parser_lacks_is_written_otherwise() {
        for (source, want) in [
            ("{{ +1 }}", "{{ --1 }}"),
            ("{{ a + +b }}{{+ a +}}", "{{ a + --b }}{{+ a +}}"),
            ("{{ '+' ~ a['+'] +1 }}", "{{ '+' ~ a['+'] +1 }}"),
            ("{{ a, 'b,' }}", "{{( a, 'b,' )}}"),
            ("{{ f(a, b) }}{% set x, y = 1, [2] %}", "{{ f(a, b) }}{% set x, y =( 1, [2] )%}"),
            ("{% set x = f(a, b) == c %}", "{% set x = f(a, b) == c %}"),
            ("{{ a is defined - 1 }}{{ a is not eq 1 + 1 }}", "{{ a is defined ()- 1 }}{{ a is not eq 1 + 1 }}"),
            ("{%- generation -%}a\r\n{% endgeneration %}", "{%- with -%}a\n{% endwith %}"),
            ("{% raw %}\n{{ +1 }}{% endraw %}{{ +1 }}", "{% raw %}\n\n{{ +1 }}{% endraw %}{{ --1 }}"),
            ("{# +1 #}{% if not +x %}{ +1 }", "{# +1 #}{% if not --x %}{ +1 }"),
            ("{{ {'a': {'b': +1}} }}", "{{ {'a': {'b': --1}} }}"),
            ("a {%} b {{ 'x", "a {%} b {{ 'x"),
        ] {
            assert_eq!(prepared(source), want);
        }
    }
}
