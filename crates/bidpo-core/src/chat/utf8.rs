//! Text from tokens whose bytes may split a character.

/// Incremental UTF-8 decoder: a token may end in the middle of a character.
#[derive(Debug, Default)]
pub struct Utf8Decoder {
    pending: Vec<u8>,
}

impl Utf8Decoder {
    /// Adds bytes; returns the text that is complete by now. Bytes that cannot become UTF-8 come out as U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(text) => {
                    out.push_str(text);
                    self.pending.clear();
                    return out;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&self.pending[..valid]));
                    let Some(bad) = error.error_len() else {
                        self.pending.drain(..valid); // the start of a character: the next token brings the rest
                        return out;
                    };
                    out.push(char::REPLACEMENT_CHARACTER);
                    self.pending.drain(..valid + bad);
                }
            }
        }
    }

    /// The rest of the bytes; an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let left = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&left).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::Utf8Decoder;

    #[test]
    fn every_split_gives_the_same_text() {
        let text = "aé€😀z";
        let bytes = text.as_bytes();
        for i in 0..=bytes.len() {
            for j in i..=bytes.len() {
                let mut pieces = Utf8Decoder::default();
                let parts = [&bytes[..i], &bytes[i..j], &bytes[j..]].map(|part| pieces.push(part));
                assert_eq!(parts.concat() + &pieces.finish(), text, "{i} {j}");
            }
        }
    }

    #[test]
    fn broken_bytes_do_not_stop_the_stream() {
        let mut pieces = Utf8Decoder::default();
        assert_eq!(pieces.push(b"a\xffb\xe2\x82"), "a\u{FFFD}b");
        assert_eq!(pieces.push(b"c"), "\u{FFFD}c");
        assert_eq!(pieces.push(b"\xf0\x9f"), "");
        assert_eq!(pieces.finish(), "\u{FFFD}");
        assert_eq!(pieces.finish(), "");
    }
}
