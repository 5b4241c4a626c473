//! Changes of GGUF: keys, values and tensors' infos, written again with everything else in its place.

use super::super::edit::{INTEGERS, TEXTS, edited, pick};
use arbitrary::{Arbitrary, Unstructured};

/// Bytes of a value of each type; strings (8) and lists (9) have none.
const WIDTHS: [Option<usize>; 13] =
    [Some(1), Some(1), Some(2), Some(2), Some(4), Some(4), Some(4), Some(1), None, None, Some(8), Some(8), Some(8)];
const STRING: u32 = 8;
const LIST: u32 = 9;

struct Pair {
    key: Vec<u8>,
    kind: u32,
    value: Vec<u8>,
}

struct Tensor {
    name: Vec<u8>,
    sizes: Vec<u64>,
    kind: u32,
    offset: u64,
}

struct File {
    version: u32,
    pairs: Vec<Pair>,
    tensors: Vec<Tensor>,
    data: Vec<u8>,
}

/// The file with a changed key, value or tensor; `None` where it is no GGUF.
pub(super) fn changed(file: &[u8], u: &mut Unstructured<'_>) -> arbitrary::Result<Option<Vec<u8>>> {
    let Some(mut file) = read(file) else { return Ok(None) };
    for _ in 0..u.int_in_range(1..=3)? {
        if !file.tensors.is_empty() && bool::arbitrary(u)? {
            change_tensor(&mut file, u)?;
        } else if !file.pairs.is_empty() {
            change_pair(&mut file.pairs, u)?;
        }
    }
    Ok(Some(write(&file)))
}

fn change_pair(pairs: &mut Vec<Pair>, u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let at = u.choose_index(pairs.len())?;
    match u.int_in_range(0..=6)? {
        0 => drop(pairs.remove(at)),
        1 => pairs[at].key = edited(&pairs[at].key, u)?,
        2 => {
            let Pair { key, kind, value } = &pairs[at];
            let again = Pair { key: key.clone(), kind: *kind, value: value.clone() };
            pairs.push(again);
        }
        3 => {
            pairs[at].kind = STRING;
            pairs[at].value = text(pick(&TEXTS, u.arbitrary()?).as_bytes());
        }
        4 => {
            let kind = u.int_in_range(0..=12u32)?;
            if let Some(width) = WIDTHS[kind as usize] {
                pairs[at].kind = kind;
                pairs[at].value = pick(&INTEGERS, u.arbitrary()?).to_le_bytes()[..width].to_vec();
            }
        }
        5 => {
            let n = u.int_in_range(0..=9u64)?;
            pairs[at].kind = LIST;
            let numbers = vec![0; 4 * n as usize];
            pairs[at].value = [&5u32.to_le_bytes()[..], &n.to_le_bytes(), &numbers].concat();
        }
        _ => pairs[at].value = edited(&pairs[at].value, u)?,
    }
    Ok(())
}

fn change_tensor(file: &mut File, u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let at = u.choose_index(file.tensors.len())?;
    let tensor = &mut file.tensors[at];
    match u.int_in_range(0..=7)? {
        0 => drop(file.tensors.remove(at)),
        1 => tensor.name = edited(&tensor.name, u)?,
        2 => {
            let Tensor { name, sizes, kind, offset } = tensor;
            let again = Tensor { name: name.clone(), sizes: sizes.clone(), kind: *kind, offset: *offset };
            file.tensors.push(again);
        }
        3 => tensor.kind = u.int_in_range(0..=42)?,
        4 => tensor.offset = pick(&INTEGERS, u.arbitrary()?),
        5 => tensor.sizes.push(pick(&INTEGERS, u.arbitrary()?)),
        6 if !tensor.sizes.is_empty() => {
            let size = u.choose_index(tensor.sizes.len())?;
            tensor.sizes[size] = pick(&INTEGERS, u.arbitrary()?);
        }
        _ => file.data = edited(&file.data, u)?,
    }
    Ok(())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let n = usize::try_from(self.u64()?).ok()?;
        self.take(n)
    }

    /// A value's bytes.
    fn value(&mut self, kind: u32) -> Option<&'a [u8]> {
        let start = self.0;
        match kind {
            STRING => {
                self.text()?;
            }
            LIST => {
                let (kind, n) = (self.u32()?, self.u64()?);
                for _ in 0..n {
                    if kind == LIST {
                        return None;
                    }
                    self.value(kind)?;
                }
            }
            _ => {
                self.take((*WIDTHS.get(kind as usize)?)?)?;
            }
        }
        Some(&start[..start.len() - self.0.len()])
    }
}

fn read(bytes: &[u8]) -> Option<File> {
    let mut r = Reader(bytes);
    if r.take(4)? != b"GGUF" {
        return None;
    }
    let (version, n_tensors, n_pairs) = (r.u32()?, r.u64()?, r.u64()?);
    let mut pairs = Vec::new();
    for _ in 0..n_pairs {
        let (key, kind) = (r.text()?.to_vec(), r.u32()?);
        pairs.push(Pair { key, kind, value: r.value(kind)?.to_vec() });
    }
    let mut tensors = Vec::new();
    for _ in 0..n_tensors {
        let name = r.text()?.to_vec();
        let sizes = (0..r.u32()?).map(|_| r.u64()).collect::<Option<_>>()?;
        tensors.push(Tensor { name, sizes, kind: r.u32()?, offset: r.u64()? });
    }
    let start = (bytes.len() - r.0.len()).next_multiple_of(32);
    Some(File { version, pairs, tensors, data: bytes.get(start..)?.to_vec() })
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

fn write(file: &File) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(file.version.to_le_bytes());
    out.extend((file.tensors.len() as u64).to_le_bytes());
    out.extend((file.pairs.len() as u64).to_le_bytes());
    for Pair { key, kind, value } in &file.pairs {
        out.extend(text(key));
        out.extend(kind.to_le_bytes());
        out.extend(value);
    }
    for Tensor { name, sizes, kind, offset } in &file.tensors {
        out.extend(text(name));
        out.extend((sizes.len() as u32).to_le_bytes());
        sizes.iter().for_each(|size| out.extend(size.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(&file.data);
    out
}
