//! Texts side by side, each wrapped to its column.

use textwrap::core::display_width;

/// Lays `texts` out in columns under their `headings`, `width` characters in all.
pub fn side_by_side(headings: &[String], texts: &[String], width: usize) -> String {
    const GAP: &str = "  |  ";
    let n = texts.len().max(1);
    let column = (width.saturating_sub(GAP.len() * (n - 1)) / n).max(16);
    let cells: Vec<Vec<String>> = headings
        .iter()
        .zip(texts)
        .map(|(heading, text)| {
            let mut lines = wrap(heading, column);
            lines.push("-".repeat(column));
            lines.extend(wrap(text.trim(), column));
            lines
        })
        .collect();
    let head = headings.iter().map(|h| wrap(h, column).len()).max().unwrap_or(1);
    // Headings that wrap to fewer lines are filled up, so that the rules stand in one row.
    let cells: Vec<Vec<String>> = cells
        .into_iter()
        .zip(headings)
        .map(|(mut lines, h)| {
            for _ in wrap(h, column).len()..head {
                lines.insert(0, String::new());
            }
            lines
        })
        .collect();
    let rows = cells.iter().map(Vec::len).max().unwrap_or(0);
    let mut out = String::new();
    for row in 0..rows {
        let line = cells
            .iter()
            .map(|lines| {
                let text = lines.get(row).map_or("", String::as_str);
                format!("{text}{}", " ".repeat(column.saturating_sub(display_width(text))))
            })
            .collect::<Vec<_>>()
            .join(GAP);
        out += line.trim_end();
        out.push('\n');
    }
    out
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    text.lines().flat_map(|line| textwrap::wrap(line, width)).map(|l| l.into_owned()).collect()
}

/// Width of the terminal, or of `COLUMNS`, or 120.
pub fn terminal_width() -> usize {
    let terminal = console::Term::stdout();
    if let Some((_, columns)) = terminal.size_checked() {
        return usize::from(columns).clamp(40, 200);
    }
    std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).unwrap_or(120).clamp(40, 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_side_by_side() {
        let text = side_by_side(
            &["one".into(), "a longer heading that wraps".into()],
            &["short".into(), "this text is long enough to need more than one line".into()],
            45,
        );
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|l| display_width(l) <= 45), "{text}");
        assert!(lines[1].starts_with("one") && lines[1].contains("|  "), "{text}");
        assert!(lines[2].starts_with("----") && lines[2].ends_with("----"), "{text}");
        assert!(lines[3].starts_with("short") && lines[3].contains("this text is long"), "{text}");
    }
}
