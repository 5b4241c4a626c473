//! Tables of texts, written as Markdown.

use serde::{Deserialize, Serialize};

/// A table: a heading for each column, and rows with a text for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Headings of the columns.
    pub header: Vec<String>,
    /// Rows, each with one text a column.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self { header: header.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// The same with rows.
    #[must_use]
    pub fn with(mut self, rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        self.rows.extend(rows);
        self
    }

    /// Markdown whose columns are padded to equal width, so that it also reads well in a terminal. Bars are escaped.
    ///
    /// # Panics
    /// For a row with another number of texts than there are headings.
    pub fn markdown(&self) -> String {
        let cells = self.escaped();
        let width = |column: usize| cells.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).map(|(c, w)| format!("{c}{}", " ".repeat(w - c.chars().count())));
            format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
        };
        let rule = line(&widths.iter().map(|w| "-".repeat(*w)).collect::<Vec<_>>());
        let mut lines = cells.iter().map(|r| line(r));
        let head = lines.next().unwrap_or_default();
        head + &rule + &lines.collect::<String>()
    }

    /// Markdown without padding, for files that are rendered. Bars are escaped.
    pub fn compact(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = line(&vec!["---".to_owned(); self.header.len()]);
        let mut lines = self.escaped().into_iter().map(|r| line(&r));
        let head = lines.next().unwrap_or_default();
        head + &rule + &lines.collect::<String>()
    }

    /// Header and rows with their bars escaped.
    fn escaped(&self) -> Vec<Vec<String>> {
        let row = |row: &Vec<String>| {
            assert_eq!(row.len(), self.header.len(), "a row of {row:?} under {:?}", self.header);
            row.iter().map(|c| c.replace('|', "\\|")).collect()
        };
        [&self.header].into_iter().chain(&self.rows).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let table = Table::new(["condition", "p"]).with([vec!["a|b".to_owned(), "< 0.001".into()]]);
        assert_eq!(table.markdown(), "| condition | p       |\n| --------- | ------- |\n| a\\|b      | < 0.001 |\n");
        assert_eq!(table.compact(), "| condition | p |\n| --- | --- |\n| a\\|b | < 0.001 |\n");
    }
}
