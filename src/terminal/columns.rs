//! Texts side by side, each wrapped to its column.

use bidpo_core::chat::Printable;
use textwrap::core::display_width;

/// Lays `texts` out in columns under their `headings`, `width` characters in all.
pub fn side_by_side(headings: &[String], texts: &[Printable], width: usize) -> String {
    let column = column_width(texts.len(), width);
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

/// Columns that fill while their texts are still being written: a row is given out once it is whole in all of them.
#[derive(Debug)]
pub struct LiveColumns {
    column: usize,
    texts: Vec<String>,
    done: Vec<bool>,
    /// Rows given out.
    rows: usize,
}

impl LiveColumns {
    /// For `n` texts in `width` characters.
    pub fn new(n: usize, width: usize) -> Self {
        Self { column: column_width(n, width), texts: vec![String::new(); n], done: vec![false; n], rows: 0 }
    }

    /// The headings and the line below them.
    pub fn head(&self, headings: &[String]) -> String {
        let cells: Vec<Vec<String>> = headings.iter().map(|h| wrap(h, self.column)).collect();
        let rule = vec!["-".repeat(self.column); self.texts.len()];
        (0..cells.iter().map(Vec::len).max().unwrap_or(0))
            .map(|row| cells.iter().map(|c| c.get(row).cloned().unwrap_or_default()).collect())
            .chain([rule])
            .map(|cells: Vec<String>| self.row(&cells))
            .collect()
    }

    /// Adds to text `i`; returns the rows that are whole by now.
    pub fn push(&mut self, i: usize, piece: &Printable) -> String {
        self.texts[i] += &piece.replace('\t', "    ");
        self.take()
    }

    /// Text `i` is complete.
    pub fn end(&mut self, i: usize) -> String {
        self.done[i] = true;
        self.take()
    }

    /// The rest, whole or not.
    pub fn finish(&mut self) -> String {
        self.done.fill(true);
        self.take()
    }

    fn take(&mut self) -> String {
        let lines: Vec<Vec<String>> = self.texts.iter().map(|t| self.lines(t)).collect();
        let longest = lines.iter().map(Vec::len).max().unwrap_or(0);
        // The last line of an unfinished text still grows.
        let whole = lines
            .iter()
            .zip(&self.done)
            .map(|(l, done)| if *done { longest } else { l.len().saturating_sub(1) })
            .min()
            .unwrap_or(0);
        let rows = self.rows..whole.max(self.rows);
        self.rows = rows.end;
        rows.map(|row| self.row(&lines.iter().map(|l| l.get(row).cloned().unwrap_or_default()).collect::<Vec<_>>()))
            .collect()
    }

    /// First fit, broken at spaces only: text that follows never changes an earlier line.
    fn lines(&self, text: &str) -> Vec<String> {
        let options = textwrap::Options::new(self.column)
            .wrap_algorithm(textwrap::WrapAlgorithm::FirstFit)
            .word_separator(textwrap::WordSeparator::AsciiSpace)
            .word_splitter(textwrap::WordSplitter::NoHyphenation);
        text.trim_start().split('\n').flat_map(|line| textwrap::wrap(line, &options)).map(|l| l.into_owned()).collect()
    }

    fn row(&self, cells: &[String]) -> String {
        let padded = cells.iter().map(|c| format!("{c}{}", " ".repeat(self.column.saturating_sub(display_width(c)))));
        format!("{}\n", padded.collect::<Vec<_>>().join(GAP).trim_end())
    }
}

/// Between two columns.
const GAP: &str = "  |  ";

fn column_width(n: usize, width: usize) -> usize {
    let n = n.max(1);
    (width.saturating_sub(GAP.len() * (n - 1)) / n).max(16)
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
    use bidpo_core::chat::printable;

    #[test]
    fn columns_stand_side_by_side() {
        let text = side_by_side(
            &["one".into(), "a longer heading that wraps".into()],
            &["short", "this text is long enough to need more than one line"].map(printable),
            45,
        );
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|l| display_width(l) <= 45), "{text}");
        assert!(lines[1].starts_with("one") && lines[1].contains("|  "), "{text}");
        assert!(lines[2].starts_with("----") && lines[2].ends_with("----"), "{text}");
        assert!(lines[3].starts_with("short") && lines[3].contains("this text is long"), "{text}");
    }

    /// However the texts come in, the rows are those of the whole texts, and nothing that was given out changes.
    #[test]
    fn live_columns_end_as_the_whole_texts_would() {
        let texts = [
            "The quick brown fox, well-kept, jumps over the lazy dog.\n\nA new paragraph with averyverylongwordindeed, and more.",
            "Kurz.\n- one\n- two\n\u{e4}\u{6f22}\u{5b57}\u{6f22}\u{5b57}\u{6f22}\u{5b57}\u{6f22}\u{5b57}\u{6f22}\u{5b57} end",
        ];
        let mut whole = LiveColumns::new(2, 45);
        let expected = whole.push(0, &printable(texts[0])) + &whole.push(1, &printable(texts[1])) + &whole.finish();
        assert!(expected.lines().all(|l| display_width(l) <= 45), "{expected}");
        for (a, b) in [(1, 1), (1, 7), (5, 2), (200, 1)] {
            let chars = texts.map(|t| t.chars().collect::<Vec<_>>());
            let mut live = LiveColumns::new(2, 45);
            let mut out = String::new();
            let (mut left, mut right) = (chars[0].chunks(a), chars[1].chunks(b));
            loop {
                let pieces = [left.next(), right.next()];
                if pieces == [None, None] {
                    break;
                }
                for (i, piece) in pieces.iter().enumerate() {
                    out += &match piece {
                        Some(p) => live.push(i, &printable(&p.iter().collect::<String>())),
                        None => live.end(i),
                    };
                }
            }
            out += &live.finish();
            assert_eq!(out, expected, "pieces of {a} and {b}");
        }
        let mut live = LiveColumns::new(2, 45);
        assert_eq!(live.push(0, &printable("short")), "", "the other column has no whole line yet");
        assert_eq!(live.end(1), "", "this one may still grow");
        assert!(live.push(0, &printable("\nnext")).starts_with("short"));
    }
}
