//! Data files as rows: JSON Lines, JSON, CSV, TSV and Parquet, plain or compressed. What a row means is not decided here.
//!
//! The contents name the format, not the file's name: JSON Lines are read under `.json` too. A row that cannot be read is
//! kept as a fault with its place; only a file that is unreadable as a whole is an error.

mod json;
mod packed;
#[cfg(feature = "parquet")]
mod parquet;
mod table;
mod tidy;
mod whole;

use ggml_grad::files::FileError;
use packed::Packing;
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};

/// A data file that cannot be read as rows.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] FileError),
    /// Neither contents nor name tell the format.
    #[error(
        "{path}: unknown kind of file: data are read from JSON Lines, JSON, CSV and TSV under their usual names (.jsonl, .json, \
         .csv, .tsv), also as .gz or .zst, and from Parquet (.parquet)"
    )]
    Unknown {
        /// The file.
        path: PathBuf,
    },
    /// The contents are not what the format asks for.
    #[error("{place}: {reason}")]
    Format {
        /// The file, and the line where one is known.
        place: String,
        /// The reason, and what to do.
        reason: String,
    },
}

/// The place of a row in its file, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A line of text.
    Line(usize),
    /// An item of a JSON list.
    Item(usize),
    /// A row of a Parquet file.
    #[cfg_attr(not(feature = "parquet"), allow(dead_code))]
    Row(usize),
}

impl Place {
    /// `file:3`, or `file: item 3`.
    pub(crate) fn of(self, path: &Path) -> String {
        match self {
            Self::Line(n) => format!("{}:{n}", path.display()),
            Self::Item(n) => format!("{}: item {n}", path.display()),
            Self::Row(n) => format!("{}: row {n}", path.display()),
        }
    }

    /// The number in it.
    pub(crate) fn number(self) -> usize {
        match self {
            Self::Line(n) | Self::Item(n) | Self::Row(n) => n,
        }
    }
}

/// A row: its place, and its value or why it has none.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) place: Place,
    pub(crate) value: Result<Value, String>,
}

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    JsonLines,
    JsonList,
    JsonColumns,
    /// Lists under a list of names.
    JsonTable,
    /// What a data hub's viewer answers.
    Viewer,
    Csv,
    Tsv,
    #[cfg_attr(not(feature = "parquet"), allow(dead_code))]
    Parquet,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::JsonLines => "JSON Lines",
            Self::JsonList => "a JSON list",
            Self::JsonColumns => "JSON by columns",
            Self::JsonTable => "a JSON table",
            Self::Viewer => "rows of a data hub's viewer",
            Self::Csv => "CSV",
            Self::Tsv => "TSV",
            Self::Parquet => "Parquet",
        }
    }
}

/// The rows of a format.
struct Rows {
    format: Format,
    rows: Vec<Row>,
}

/// A file's rows.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// SHA-256 of the file's bytes as they lie on the disk, lower-case hex.
    pub(crate) sha256: String,
    pub(crate) format: Format,
    packing: Packing,
    /// The rows in file order, blank lines left out.
    pub(crate) rows: Vec<Row>,
}

/// The format and the compression in words: `JSON Lines, gzip`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.packing {
            Packing::None => f.write_str(self.format.name()),
            Packing::Gzip => write!(f, "{}, gzip", self.format.name()),
            Packing::Zstd => write!(f, "{}, zstd", self.format.name()),
        }
    }
}

impl Source {
    /// Reads a file.
    ///
    /// # Errors
    /// [`SourceError`].
    pub(crate) fn load(path: &Path) -> Result<Self, SourceError> {
        let bytes = ggml_grad::files::read_whole(path).map_err(FileError::read(path))?;
        Self::parse(bytes, path)
    }

    /// Reads a file; one whose name and contents tell no format is a CSV table.
    ///
    /// # Errors
    /// [`SourceError`].
    pub(crate) fn load_table(path: &Path) -> Result<Self, SourceError> {
        match Self::load(path) {
            Err(SourceError::Unknown { .. }) => {
                let bytes = ggml_grad::files::read_whole(path).map_err(FileError::read(path))?;
                let sha256 = ggml_grad::files::sha256_of_bytes(&bytes);
                let Rows { format, rows } = table::rows(text_of(&bytes), b',', Format::Csv, path)?;
                Ok(Self { path: path.to_owned(), sha256, format, packing: Packing::None, rows })
            }
            other => other,
        }
    }

    /// Reads the bytes of the file `path`.
    ///
    /// # Errors
    /// [`SourceError`].
    pub(crate) fn parse(bytes: Vec<u8>, path: &Path) -> Result<Self, SourceError> {
        let fail = |reason: String| SourceError::Format { place: path.display().to_string(), reason };
        let sha256 = ggml_grad::files::sha256_of_bytes(&bytes);
        let packing = Packing::of(&bytes);
        let bytes = packing.unpack(bytes).map_err(fail)?;
        let Rows { format, rows } = rows(bytes, path)?;
        Ok(Self { path: path.to_owned(), sha256, format, packing, rows })
    }
}

fn rows(bytes: Vec<u8>, path: &Path) -> Result<Rows, SourceError> {
    let fail = |reason: &str| SourceError::Format { place: path.display().to_string(), reason: reason.to_owned() };
    if bytes.starts_with(b"PAR1") {
        #[cfg(feature = "parquet")]
        return parquet::rows(bytes).map_err(|reason| fail(&reason));
        #[cfg(not(feature = "parquet"))]
        return Err(fail(
            "this is a Parquet file, and this bidpo was built without them: build it with the feature `parquet`, or convert \
             the file to JSON Lines",
        ));
    }
    let bytes = match utf16(&bytes) {
        Some(text) => text.map_err(fail)?.into_bytes(),
        None => bytes,
    };
    let text = text_of(&bytes);
    let named = extension(path);
    let first = text.iter().find(|b| !b.is_ascii_whitespace());
    let table = |delimiter, format| table::rows(text, delimiter, format, path);
    match (named.as_deref(), first) {
        (Some("csv"), _) => table(table::delimiter(text), Format::Csv),
        (Some("tsv" | "tab"), _) => table(b'\t', Format::Tsv),
        (Some("jsonl" | "ndjson"), _) => json::rows(text, path, json::Named::Lines),
        (_, Some(b'{' | b'[')) | (Some("json"), _) => json::rows(text, path, json::Named::Other),
        _ => match table::detected(text) {
            Some(b'\t') => table(b'\t', Format::Tsv),
            Some(delimiter) => table(delimiter, Format::Csv),
            None => Err(SourceError::Unknown { path: path.to_owned() }),
        },
    }
}

/// A text in UTF-16 with its byte order mark; `None` for other bytes. Without the mark, half of the bytes of most texts are 0.
fn utf16(bytes: &[u8]) -> Option<Result<String, &'static str>> {
    let unit = match bytes {
        [0xff, 0xfe, ..] => u16::from_le_bytes,
        [0xfe, 0xff, ..] => u16::from_be_bytes,
        [0, b, ..] | [b, 0, ..] if b.is_ascii() && *b != 0 => {
            return Some(Err("this text seems to be UTF-16 without a byte order mark: save it as UTF-8"));
        }
        _ => return None,
    };
    let (units, rest) = bytes[2..].as_chunks();
    let text = char::decode_utf16(units.iter().map(|pair| unit(*pair))).collect::<Result<String, _>>();
    Some(text.ok().filter(|_| rest.is_empty()).ok_or("this text begins as UTF-16 does and is not: save it as UTF-8"))
}

/// The text without a byte order mark.
fn text_of(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// The ending of the file's name, without that of a compression.
fn extension(path: &Path) -> Option<String> {
    let ending = |path: &Path| path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    match ending(path) {
        Some(packed) if Packing::ENDINGS.contains(&packed.as_str()) => ending(&path.with_extension("")),
        other => other,
    }
}

/// A file's name without its endings of formats and compressions: `prefs` of `prefs.jsonl.gz`.
pub fn stem(name: &str) -> &str {
    let mut name = name;
    for ending in Packing::ENDINGS.iter().chain(&["jsonl", "ndjson", "json", "csv", "tsv", "parquet"]) {
        name = name.strip_suffix(ending).and_then(|n| n.strip_suffix('.')).filter(|n| !n.is_empty()).unwrap_or(name);
    }
    name
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Rows as `place=value`, or the error.
    fn read(name: &str, bytes: &[u8]) -> Result<(String, Vec<String>), String> {
        let source = Source::parse(bytes.to_vec(), Path::new(name)).map_err(|e| e.to_string())?;
        let one = |row: &Row| match &row.value {
            Ok(value) => format!("{} {value}", row.place.number()),
            Err(reason) => format!("{} {reason}", row.place.of(&source.path)),
        };
        Ok((source.to_string(), source.rows.iter().map(one).collect()))
    }

    fn ok(name: &str, bytes: &[u8], format: &str, rows: &[&str]) {
        let (is, found) = read(name, bytes).unwrap();
        assert_eq!((is.as_str(), found), (format, rows.iter().map(|r| (*r).to_owned()).collect()), "{name}");
    }

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn json_lines_under_any_name() {
        let lines = b"\xef\xbb\xbf{\"a\": 1}\r\n\r\n{\"a\": 2}\r\n";
        for name in ["f.jsonl", "f.json", "f.ndjson", "f.txt", "f", "f.jsonl.gz"] {
            ok(name, lines, "JSON Lines", &[r#"1 {"a":1}"#, r#"3 {"a":2}"#]);
        }
        ok("f.gz", &gzip(lines), "JSON Lines, gzip", &[r#"1 {"a":1}"#, r#"3 {"a":2}"#]);
        ok("f.json", &gzip(lines), "JSON Lines, gzip", &[r#"1 {"a":1}"#, r#"3 {"a":2}"#]);
        let zstd = zstd::encode_all(&lines[..], 0).unwrap();
        ok("f.jsonl.zst", &zstd, "JSON Lines, zstd", &[r#"1 {"a":1}"#, r#"3 {"a":2}"#]);
        // A line that is not JSON or not UTF-8 is a fault of that line. NaN, which Python writes, is null.
        let bad =
            b"{\"a\": 1}\n{\"a\": \n{\"a\": \"\xff\"}\n{\"a\": NaN, \"b\": \"NaN, -Infinity\", \"c\": -Infinity}\n";
        ok(
            "f.jsonl",
            bad,
            "JSON Lines",
            &[
                r#"1 {"a":1}"#,
                "f.jsonl:2 not JSON (column 6): EOF while parsing a value",
                "f.jsonl:3 not UTF-8 (byte 8 of the line): save the file as UTF-8",
                r#"4 {"a":null,"b":"NaN, -Infinity","c":null}"#,
            ],
        );
    }

    #[test]
    fn json_lists_objects_and_columns() {
        ok("f.json", b"[{\"a\": 1},\n {\"a\": 2}]", "a JSON list", &[r#"1 {"a":1}"#, r#"2 {"a":2}"#]);
        ok("f.jsonl", b"\n[\n{\"a\": 1}\n]\n", "a JSON list", &[r#"1 {"a":1}"#]);
        // A list inside an object, one object over several lines, objects over several lines each.
        let inside = br#"{"version": "1", "tags": ["x"], "data": [{"a": 1}]}"#;
        ok("f.json", inside, "a JSON list", &[r#"1 {"a":1}"#]);
        ok("f.json", b"{\n\"a\": \"x\"\n}\n", "JSON Lines", &[r#"1 {"a":"x"}"#]);
        ok("f.json", b"{\n\"a\": 1\n}\n{\n\"a\": 2\n}\n", "JSON Lines", &[r#"1 {"a":1}"#, r#"4 {"a":2}"#]);
        // pandas: to_dict("list"), and to_json() with its index.
        ok(
            "f.json",
            br#"{"a": ["x", "y"], "b": [1, null]}"#,
            "JSON by columns",
            &[r#"1 {"a":"x","b":1}"#, r#"2 {"a":"y","b":null}"#],
        );
        let index = br#"{"a": {"0": "x", "1": "y"}, "b": {"0": 1, "1": 2}}"#;
        ok("f.json", index, "JSON by columns", &[r#"1 {"a":"x","b":1}"#, r#"2 {"a":"y","b":2}"#]);
        let error = read("f.json", br#"{"train": [{"a": 1}], "test": [{"a": 2}]}"#).unwrap_err();
        assert!(error.contains("\"train\", \"test\"") && error.contains("one list"), "{error}");
        let error = read("f.json", b"[\n{\"a\": 1},,]").unwrap_err();
        assert!(error.starts_with("f.json:2: not a JSON list (column 10)"), "{error}");
    }

    #[test]
    fn tables_know_their_lines() {
        let text = "a,b\r\n1,\"x\r\ny\"\r\n\r\n2,z\r\n3\r\n4,w\r\n";
        let rows = [
            r#"2 {"a":"1","b":"x\r\ny"}"#,
            r#"5 {"a":"2","b":"z"}"#,
            "f.csv:6 1 field where the header has 2 (a comma or a quotation mark too few?)",
            r#"7 {"a":"4","b":"w"}"#,
        ];
        ok("f.csv", text.as_bytes(), "CSV", &rows);
        ok(
            "f.csv",
            text.replace("\r\n", "\n").as_bytes(),
            "CSV",
            &[r#"2 {"a":"1","b":"x\ny"}"#, rows[1], rows[2], rows[3]],
        );
        ok(
            "f.csv.gz",
            &gzip(text.as_bytes()),
            "CSV, gzip",
            &[
                rows[0],
                rows[1],
                "f.csv.gz:6 1 field where the header has 2 (a comma or a quotation mark too few?)",
                rows[3],
            ],
        );
        ok("f.tsv", b"a\tb\n1, 2\t\"x\"\n", "TSV", &[r#"2 {"a":"1, 2","b":"x"}"#]);
        ok("f.csv", b"a;b\n1,5;x\n", "CSV", &[r#"2 {"a":"1,5","b":"x"}"#]);
        ok(
            "f.csv",
            b"a,b\n1,\xff\n2,x\n",
            "CSV",
            &["f.csv:2 not UTF-8: save the file as UTF-8", r#"3 {"a":"2","b":"x"}"#],
        );
        // Messages in a cell, as pandas writes them with json.dumps.
        let cell = "m\n\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"x\"\"}]\"\n[1]\n";
        ok("f.csv", cell.as_bytes(), "CSV", &[r#"2 {"m":[{"role":"user","content":"x"}]}"#, r#"3 {"m":"[1]"}"#]);
        let error = read("f.csv", b"a,b,a\n1,2,3\n").unwrap_err();
        assert_eq!(error, "f.csv:1: the header has the column \"a\" twice: rename one of them");
    }

    #[test]
    fn json_as_people_write_it_and_as_hubs_answer_it() {
        let both = [r#"1 {"a":1}"#, r#"2 {"a":2}"#];
        // Commas after the last item; a comma in a text stays.
        ok("f.json", b"[\n{\"a\": 1,},\n{\"a\": 2},\n]\n", "a JSON list", &both);
        ok("f.jsonl", b"{\"a\": \",]\\\"\",}\n", "JSON Lines", &[r#"1 {"a":",]\""}"#]);
        ok("f.json", b"{\n\"a\": 1,\n}\n{\n\"a\": 2\n}\n", "JSON Lines", &[r#"1 {"a":1}"#, r#"4 {"a":2}"#]);
        let viewer = br#"{"features": [{"name": "a"}], "rows": [{"row_idx": 0, "row": {"a": 1}, "truncated_cells": []},
            {"row_idx": 1, "row": {"a": 2}, "truncated_cells": ["a"]}], "num_rows_total": 2}"#;
        let cut = "f.json: item 2 the viewer cut this row's \"a\": download the file of the data set itself";
        ok("f.json", viewer, "rows of a data hub's viewer", &[both[0], cut]);
        // pandas: to_json(orient="split") and "index"; a list of lists with its header.
        let table = [r#"1 {"prompt":"x","b":1}"#, r#"2 {"prompt":"y","b":2}"#];
        let split = br#"{"columns": ["prompt", "b"], "index": [0, 1], "data": [["x", 1], ["y", 2]]}"#;
        ok("f.json", split, "a JSON table", &table);
        ok("f.json", br#"[["prompt", "b"], ["x", 1], ["y", 2]]"#, "a JSON table", &table);
        let index = br#"{"0": {"prompt": "x", "b": 1}, "k": {"prompt": "y", "b": 2, "id": 5}}"#;
        let rows = [r#"1 {"prompt":"x","b":1,"id":"0"}"#, r#"2 {"prompt":"y","b":2,"id":5}"#];
        ok("f.json", index, "a JSON list", &rows);
        // Lists without names are kept as they are.
        ok("f.jsonl", b"[\"x\", 1]\n\n[\"y\", 2]\n", "JSON Lines", &[r#"1 ["x",1]"#, r#"3 ["y",2]"#]);
        ok("f.jsonl", b"[\"x\", 1]\n", "JSON Lines", &[r#"1 ["x",1]"#]);
    }

    #[test]
    fn utf16_with_its_mark() {
        let text = "a,b\r\n1,\"\u{e9}\u{1f34f}\"\r\n";
        let units = || text.encode_utf16();
        let little: Vec<u8> = [0xff, 0xfe].into_iter().chain(units().flat_map(u16::to_le_bytes)).collect();
        let big: Vec<u8> = [0xfe, 0xff].into_iter().chain(units().flat_map(u16::to_be_bytes)).collect();
        for bytes in [little, big] {
            ok("f.csv", &bytes, "CSV", &["2 {\"a\":\"1\",\"b\":\"\u{e9}\u{1f34f}\"}"]);
        }
    }

    #[test]
    fn a_table_under_another_name() {
        let row = r#"2 {"prompt":"a","chosen":"b, c"}"#;
        ok("f.txt", b"prompt,chosen\na,\"b, c\"\n", "CSV", &[row]);
        ok("f", b"prompt\tchosen\r\na\tb, c\r\n", "TSV", &[row]);
        ok("f.data", b"prompt;chosen\na;b, c\n", "CSV", &[row]);
        for text in [
            "Dear all, hello\nnothing, more, here\n",
            "one,two\n",
            "A sentence, and more.\nAnother, like it.\n",
            "a\nb\n",
        ] {
            assert!(read("f.txt", text.as_bytes()).unwrap_err().contains("unknown kind of file"), "{text}");
        }
    }

    #[test]
    fn what_is_no_data_file() {
        assert!(read("f.txt", b"x").unwrap_err().contains("unknown kind of file"));
        assert!(read("f", b"").unwrap_err().contains("unknown kind of file"));
        for bytes in [b"\xff\xfe{\0}".as_slice(), b"\xff\xfe\0\xd8", b"{\0}\0", b"\0{\0}"] {
            assert!(read("f.jsonl", bytes).unwrap_err().contains("UTF-16"), "{bytes:?}");
        }
        let cut = &gzip(b"{\"a\": 1}\n")[..12];
        assert!(read("f.jsonl.gz", cut).unwrap_err().starts_with("f.jsonl.gz: not a whole gzip file"), "cut");
        assert!(read("f.parquet", b"PAR1abc").unwrap_err().starts_with("f.parquet: "));
        assert_eq!(read("f.jsonl", b"\n").unwrap().1, Vec::<String>::new());
        assert_eq!([stem("a.jsonl.gz"), stem("b.csv"), stem("c"), stem(".json")], ["a", "b", "c", ".json"]);
    }
}
