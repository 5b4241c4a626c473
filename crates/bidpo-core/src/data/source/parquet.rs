//! Parquet, the format in which data hubs keep their sets.

use super::{Format, Place, Row, Rows};
use crate::guard::guarded;
use parquet::basic::Compression;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Number, Value};

/// Bytes of a file's values that are read.
const MOST: i64 = 1 << 30;

/// Reads all rows.
pub(super) fn rows(bytes: Vec<u8>) -> Result<Rows, String> {
    let broken = |e: &dyn std::fmt::Display| format!("not a Parquet file that can be read: {e}");
    // The crate checks less of a damaged file than it relies on.
    let read = guarded(|| -> Result<Rows, String> {
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).map_err(|e| broken(&e))?;
        let size: i64 =
            reader.metadata().row_groups().iter().map(|g| g.total_byte_size().max(0)).fold(0, i64::saturating_add);
        if size > MOST {
            return Err(format!("its values have {size} bytes, the limit is {MOST}: give a part of it"));
        }
        let codecs = reader.metadata().row_groups().iter().flat_map(|g| g.columns()).map(|c| c.compression());
        if let Some(codec) = codecs.into_iter().find(|c| !is_read(c)) {
            return Err(format!(
                "it is compressed with {codec}, which is not read: write it with snappy, gzip or zstd (pyarrow: \
                 write_table(table, file, compression=\"zstd\"))"
            ));
        }
        let mut rows = Vec::new();
        for (i, row) in reader.get_row_iter(None).map_err(|e| broken(&e))?.enumerate() {
            let value = object(row.map_err(|e| broken(&e))?);
            rows.push(Row { place: Place::Row(i + 1), value: Ok(value) });
        }
        Ok(Rows { format: Format::Parquet, rows })
    });
    read.unwrap_or_else(|| Err(broken(&"it is damaged")))
}

fn is_read(codec: &Compression) -> bool {
    matches!(codec, Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_))
}

fn object(row: parquet::record::Row) -> Value {
    Value::Object(row.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect::<Map<_, _>>())
}

fn value(field: Field) -> Value {
    let float = |x: f64| Number::from_f64(x).map_or(Value::Null, Value::Number);
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(b),
        Field::Byte(n) => n.into(),
        Field::Short(n) => n.into(),
        Field::Int(n) | Field::Date(n) | Field::TimeMillis(n) => n.into(),
        Field::Long(n) | Field::TimeMicros(n) | Field::TimestampMillis(n) | Field::TimestampMicros(n) => n.into(),
        Field::UByte(n) => n.into(),
        Field::UShort(n) => n.into(),
        Field::UInt(n) => n.into(),
        Field::ULong(n) => n.into(),
        Field::Float16(x) => float(x.to_f64()),
        // The shortest digits: 0.1f32 is 0.1.
        Field::Float(x) => x.to_string().parse().map_or(Value::Null, float),
        Field::Double(x) => float(x),
        Field::Decimal(_) => Value::Null,
        Field::Str(text) => Value::String(text),
        // Text whose writer did not say that it is text.
        Field::Bytes(bytes) => bytes.as_utf8().map_or(Value::Null, |text| Value::String(text.to_owned())),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => Value::Array(list.elements().iter().cloned().map(value).collect()),
        Field::MapInternal(map) => Value::Object(
            map.entries()
                .iter()
                .map(|(k, v)| {
                    let key = match value(k.clone()) {
                        Value::String(text) => text,
                        other => other.to_string(),
                    };
                    (key, value(v.clone()))
                })
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file is pyarrow's.
    #[test]
    fn a_codec_that_is_not_read_is_named() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/cases/data/brotli.parquet");
        let reason = rows(std::fs::read(file).unwrap()).err().unwrap();
        assert!(reason.contains("compressed with BROTLI") && reason.contains("zstd"), "{reason}");
    }
}
