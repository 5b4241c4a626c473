//! Markdown for the eye: the text as it is, marks included, with headings and **bold** in bold, code in colour.
//!
//! Pieces come as the model writes them, so a mark may arrive in two parts. Nothing is reordered or held back longer than
//! it takes to see what a mark is, and every style ends with its line at the latest (but for a block of code, which ends
//! with its fence).

use bidpo_core::chat::Printable;

/// Ends every style.
const RESET: &str = "\x1b[0m";
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const CODE: &str = "\x1b[36m";

/// Printable text with this module's styles.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Styled(String);

impl std::ops::Deref for Styled {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Styles one answer.
#[derive(Debug)]
pub struct Markdown {
    on: bool,
    /// The line so far, while it may still turn out to be a fence or a heading.
    start: Option<String>,
    /// A `*` whose neighbour is not known yet.
    star: bool,
    /// Inside a block of code.
    block: bool,
    bold: bool,
    code: bool,
}

/// Kind of a line, by its start.
enum Start {
    Open,
    Fence,
    Heading,
    Plain,
}

impl Markdown {
    /// With `on` false the text goes through as it is.
    pub fn new(on: bool) -> Self {
        Self { on, start: Some(String::new()), star: false, block: false, bold: false, code: false }
    }

    /// The piece with its styles.
    pub fn push(&mut self, piece: &Printable) -> Styled {
        if !self.on {
            return Styled(piece.to_string());
        }
        let mut out = String::new();
        for c in piece.chars() {
            match &mut self.start {
                Some(start) => {
                    start.push(c);
                    self.decide(&mut out);
                }
                None => self.inline(c, &mut out),
            }
        }
        Styled(out)
    }

    /// The buffered text, and the end of every style.
    pub fn finish(&mut self) -> Styled {
        let mut out = self.start.take().unwrap_or_default();
        if std::mem::take(&mut self.star) {
            out.push('*');
        }
        if self.bold || self.code || self.block {
            out += RESET;
        }
        *self = Self::new(self.on);
        Styled(out)
    }

    fn decide(&mut self, out: &mut String) {
        let Some(start) = &self.start else { return };
        let kind = kind(start, self.block);
        if matches!(kind, Start::Open) {
            return;
        }
        let start = self.start.take().unwrap_or_default();
        match kind {
            Start::Fence => {
                // The fence's own line is dim; behind an opening one the code begins with the next line.
                self.block = !self.block;
                *out += &format!("{RESET}{DIM}{start}");
                (self.bold, self.code) = (true, true); // so that the end of the line ends the style
            }
            Start::Heading => {
                *out += &format!("{BOLD}{start}");
                self.bold = true;
            }
            Start::Plain | Start::Open => start.chars().for_each(|c| self.inline(c, out)),
        }
    }

    fn inline(&mut self, c: char, out: &mut String) {
        if c == '\n' {
            if std::mem::take(&mut self.star) {
                out.push('*');
            }
            if self.bold || self.code {
                *out += RESET;
            }
            (self.bold, self.code) = (false, false);
            out.push('\n');
            if self.block {
                *out += CODE;
            }
            self.start = Some(String::new());
            return;
        }
        if self.block || (self.bold && self.code) {
            out.push(c);
            return;
        }
        if std::mem::take(&mut self.star) {
            if c == '*' {
                self.bold = !self.bold;
                *out += &if self.bold { format!("{BOLD}**") } else { format!("**{RESET}") };
                return;
            }
            out.push('*');
        }
        match c {
            '*' if !self.code => self.star = true,
            '`' => {
                self.code = !self.code && !self.bold;
                *out += &match (self.code, self.bold) {
                    (true, _) => format!("{CODE}`"),
                    (false, true) => "`".to_owned(),
                    (false, false) => format!("`{RESET}"),
                };
            }
            c => out.push(c),
        }
    }
}

/// The start of a line: up to three spaces, then three backticks (a fence) or one to six `#` and a space (a heading).
fn kind(start: &str, block: bool) -> Start {
    let text = start.trim_start_matches(' ');
    if start.len() - text.len() > 3 {
        return Start::Plain;
    }
    let marks = text.trim_start_matches('`');
    match (text.len() - marks.len(), marks.is_empty()) {
        (0, _) => {}
        (1 | 2, true) => return Start::Open,
        (1 | 2, false) => return Start::Plain,
        _ => return Start::Fence,
    }
    let rest = text.trim_start_matches('#');
    match text.len() - rest.len() {
        _ if block && !text.is_empty() => Start::Plain,
        0 if text.is_empty() => Start::Open,
        1..=6 if rest.is_empty() => Start::Open,
        1..=6 if rest.starts_with(' ') => Start::Heading,
        _ => Start::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bidpo_core::chat::printable;

    /// The text in pieces of `n` characters.
    fn styled(text: &str, n: usize) -> String {
        let mut markdown = Markdown::new(true);
        let characters: Vec<char> = text.chars().collect();
        let mut out: String =
            characters.chunks(n).map(|c| markdown.push(&printable(&c.iter().collect::<String>())).0).collect();
        out += &markdown.finish();
        out
    }

    fn plain(text: &str) -> String {
        [RESET, BOLD, DIM, CODE].iter().fold(text.to_owned(), |t, style| t.replace(style, ""))
    }

    const TEXT: &str = "# Title\nsome **bold** and `code`, 2 * 3 ** 4\n   ```rust\nlet **x** = `1`;\n# no title\n```\n\
                        after * and ***\n#hash\n    # four\n**open\nnext `open\n`` two\n";

    #[test]
    fn no_character_is_lost_however_the_text_is_cut() {
        for text in [TEXT, "", "*", "``", "###", "  ", "```", "**", "a\n\n\n", "```\ncode"] {
            let whole = styled(text, 1000);
            assert_eq!(plain(&whole), text);
            for n in 1..5 {
                assert_eq!(styled(text, n), whole, "pieces of {n}");
            }
            let mut off = Markdown::new(false);
            assert_eq!(off.push(&printable(text)).0 + &off.finish(), text);
        }
    }

    #[test]
    fn styles_start_and_end_where_they_should() {
        let lines = styled(TEXT, 1);
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines[0], format!("{BOLD}# Title{RESET}"));
        assert_eq!(lines[1], format!("some {BOLD}**bold**{RESET} and {CODE}`code`{RESET}, 2 * 3 {BOLD}** 4{RESET}"));
        assert_eq!(lines[2], format!("{RESET}{DIM}   ```rust{RESET}"));
        assert_eq!(lines[3], format!("{CODE}let **x** = `1`;"));
        assert_eq!(lines[4], format!("{CODE}# no title"));
        assert_eq!(lines[5], format!("{CODE}{RESET}{DIM}```{RESET}"));
        assert_eq!(lines[7], "#hash");
        assert_eq!(lines[9], format!("{BOLD}**open{RESET}"));
        // Whatever is left open, the end closes it.
        assert!(styled("**open", 1).ends_with(RESET) && styled("```\ncode", 1).ends_with(RESET));
    }
}
