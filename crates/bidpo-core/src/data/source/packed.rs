//! Compressed files: gzip and zstd, unpacked up to a limit.

use std::io::Read;

/// Bytes that a compressed file may unpack to: a few kilobytes can hold a terabyte of zeros.
const MOST: u64 = 1 << 30;

/// The compression of a file, told by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Packing {
    /// Endings of compressed files' names.
    pub(super) const ENDINGS: [&'static str; 3] = ["gz", "zst", "zstd"];

    pub(super) fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The contents.
    pub(super) fn unpack(self, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        match self {
            Self::None => Ok(bytes),
            Self::Gzip => unpack(flate2::read::MultiGzDecoder::new(&bytes[..]), "gzip", MOST),
            Self::Zstd => {
                let decoder = zstd::Decoder::with_buffer(&bytes[..]).map_err(|e| format!("not a zstd file: {e}"))?;
                unpack(decoder, "zstd", MOST)
            }
        }
    }
}

fn unpack(reader: impl Read, what: &str, most: u64) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    reader.take(most + 1).read_to_end(&mut out).map_err(|e| format!("not a whole {what} file: {e}"))?;
    if out.len() as u64 > most {
        return Err(format!(
            "it unpacks to more than {most} bytes, which is the limit: unpack it, and give a part of it"
        ));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds() {
        let zeros = std::io::repeat(0);
        let error = unpack(zeros, "gzip", 1000).unwrap_err();
        assert!(error.contains("more than 1000 bytes"), "{error}");
        assert_eq!(unpack(std::io::repeat(0).take(1000), "gzip", 1000).unwrap().len(), 1000);
    }
}
