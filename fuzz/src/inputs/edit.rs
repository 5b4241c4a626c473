//! Changes of a file that need no knowledge of its form.

use arbitrary::{Arbitrary, Unstructured};

/// Numbers that lengths and counts are changed to.
pub const INTEGERS: [u64; 11] =
    [0, 1, 2, 255, 1 << 16, 1 << 31, u32::MAX as u64, 1 << 40, 1 << 60, i64::MAX as u64, u64::MAX];
/// The same as text, with other numbers that readers compute with.
pub const NUMBERS: [&str; 10] =
    ["0", "-1", "1e999", "1e308", "-0.0", "4294967296", "1000000000000", "18446744073709551616", "NaN", "0.5"];
/// Texts with a meaning in some form, or on a terminal.
pub const TEXTS: [&str; 20] = [
    "\0",
    "\u{feff}",
    "\u{1b}]0;t\u{7}",
    "[[[[[[[[",
    "{\"",
    "\"",
    "\n",
    "\r\n\r\n",
    "\\ud800",
    "{{",
    "{% for a in b %}",
    "%}",
    ",,,,",
    "null",
    "(((((",
    "/scale 1e999 ",
    "\u{202e}",
    "\u{1d15e}\u{0301}",
    "Transfer-Encoding: chunked\r\n",
    "Content-Length: 5\r\n",
];

/// One change. Positions are fractions of the length, in 1 / 2^32.
#[derive(Debug, Clone, Arbitrary)]
pub enum Edit {
    /// One bit.
    Flip(u32, u8),
    /// One byte.
    Byte(u32, u8),
    /// A little-endian integer, as lengths and counts are stored.
    Integer(u32, u8),
    /// The next run of digits.
    Digits(u32, u8),
    /// A text is added.
    Insert(u32, u8),
    /// Bytes that are no UTF-8 are added.
    Foreign(u32),
    /// Some bytes are left out.
    Delete(u32, u8),
    /// Some bytes come twice.
    Repeat(u32, u8),
    /// Some bytes come many times.
    Multiply(u32, u8, u8),
    /// Some bytes are copied to another place.
    Copy(u32, u32, u8),
    /// The rest is left out.
    Cut(u32),
}

impl Edit {
    /// Applies the change; an empty file stays empty.
    pub fn apply(&self, file: &mut Vec<u8>) {
        if file.is_empty() {
            return;
        }
        // Half of the positions lie in the first sixteenth, where headers are.
        let near = |at: u32| if at & 1 == 0 { at >> 4 } else { at };
        let place = |at: u32| ((u64::from(near(at)) * file.len() as u64) >> 32) as usize;
        let part = |at: usize, n: u8| file[at..file.len().min(at + usize::from(n))].to_vec();
        match *self {
            Self::Flip(at, bit) => {
                let at = place(at);
                file[at] ^= 1 << (bit & 7);
            }
            Self::Byte(at, byte) => {
                let at = place(at);
                file[at] = byte;
            }
            Self::Integer(at, which) => {
                let at = place(at) & !3;
                let end = file.len().min(at + 8);
                file[at..end].copy_from_slice(&pick(&INTEGERS, which).to_le_bytes()[..end - at]);
            }
            Self::Digits(at, which) => {
                let at = place(at);
                let Some(start) = file[at..].iter().position(u8::is_ascii_digit).map(|i| at + i) else { return };
                let end = file[start..].iter().position(|b| !b.is_ascii_digit()).map_or(file.len(), |i| start + i);
                file.splice(start..end, pick(&NUMBERS, which).bytes());
            }
            Self::Insert(at, which) => {
                let at = place(at);
                file.splice(at..at, pick(&TEXTS, which).bytes());
            }
            Self::Foreign(at) => {
                let at = place(at);
                file.splice(at..at, [0xff, 0xfe, 0xc3]);
            }
            Self::Delete(at, n) => {
                let at = place(at);
                file.drain(at..file.len().min(at + usize::from(n)));
            }
            Self::Repeat(at, n) => {
                let at = place(at);
                let part = part(at, n);
                file.splice(at..at, part);
            }
            Self::Multiply(at, n, times) => {
                let at = place(at);
                let part = part(at, n % 16).repeat(usize::from(times));
                file.splice(at..at, part);
            }
            Self::Copy(from, to, n) => {
                let (from, to) = (place(from), place(to));
                let part = part(from, n);
                file.splice(to..to, part);
            }
            Self::Cut(at) => file.truncate(place(at)),
        }
    }
}

/// An element of a list.
pub fn pick<T: Copy>(list: &[T], which: u8) -> T {
    list[usize::from(which) % list.len()]
}

/// The file with one to six changes.
pub fn edited(file: &[u8], u: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    let mut file = file.to_vec();
    for _ in 0..u.int_in_range(1..=6)? {
        Edit::arbitrary(u)?.apply(&mut file);
    }
    Ok(file)
}
