//! A vocabulary that tokenizes any text, after the model of SentencePiece: three control tokens, the 256 bytes, then
//! letters and combinations of letters, the shorter ones first.

use crate::llama::{GgufWriter, LlamaError};

/// Control tokens and bytes.
pub(super) const SMALLEST: usize = 259;

/// SentencePiece's mark of a space.
const SPACE: char = '\u{2581}';
/// The most frequent letters of English first.
const LETTERS: &str = "etaoinshrdlcumwfgypbvkjxqz";
const OTHERS: &str = ".,ETAOINSHRDLCUMWFGYPBVKJXQZ?!'\"-:;()0123456789\n";

/// llama.cpp's numbers of kinds of tokens.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const BYTE: i32 = 6;
}

/// Adds a tokenizer of `n` tokens (at least [`SMALLEST`]).
///
/// # Errors
/// Those of [`GgufWriter::set`].
pub(super) fn write(meta: &mut GgufWriter, n: usize) -> Result<(), LlamaError> {
    let control = [("<unk>", kind::UNKNOWN), ("<s>", kind::CONTROL), ("</s>", kind::CONTROL)];
    let mut texts: Vec<String> = control.iter().map(|(text, _)| (*text).to_owned()).collect();
    let mut kinds: Vec<i32> = control.iter().map(|(_, kind)| *kind).collect();
    texts.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
    kinds.resize(SMALLEST, kind::BYTE);
    texts.extend(pieces().take(n - SMALLEST));
    kinds.resize(n, kind::NORMAL);
    // The tokenizer joins the pair with the highest score first: the piece that comes first in the list.
    let scores: Vec<f32> = (0..n).map(|i| if i < SMALLEST { 0.0 } else { SMALLEST as f32 - i as f32 }).collect();
    meta.set_text("tokenizer.ggml.model", "llama")?;
    meta.set_text("tokenizer.ggml.pre", "default")?;
    meta.set_texts("tokenizer.ggml.tokens", &texts)?;
    meta.set_f32s("tokenizer.ggml.scores", &scores)?;
    meta.set_i32s("tokenizer.ggml.token_type", &kinds)?;
    meta.set_u32("tokenizer.ggml.unknown_token_id", 0)?;
    meta.set_u32("tokenizer.ggml.bos_token_id", 1)?;
    meta.set_u32("tokenizer.ggml.eos_token_id", 2)?;
    meta.set_bool("tokenizer.ggml.add_bos_token", true)?;
    meta.set_bool("tokenizer.ggml.add_eos_token", false)
}

/// Single characters, then all words of two letters, of three, and so on, each also with a space before it.
fn pieces() -> impl Iterator<Item = String> {
    let letters: Vec<char> = LETTERS.chars().collect();
    let singles = std::iter::once(SPACE).chain(LETTERS.chars()).chain(OTHERS.chars()).map(String::from);
    let first = letters.iter().map(|c| format!("{SPACE}{c}")).collect::<Vec<_>>();
    let words = (2u32..).flat_map(move |length| {
        let letters = letters.clone();
        (0..letters.len().pow(length)).flat_map(move |number| {
            let mut word = String::new();
            let mut rest = number;
            for _ in 0..length {
                word.insert(0, letters[rest % letters.len()]);
                rest /= letters.len();
            }
            [word.clone(), format!("{SPACE}{word}")]
        })
    });
    singles.chain(first).chain(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_all_different() {
        let list: Vec<String> = pieces().take(40_000).collect();
        assert_eq!(list.iter().collect::<std::collections::HashSet<_>>().len(), list.len());
    }
}
