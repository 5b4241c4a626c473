//! Changes of safetensors: the header's tree, with its length put right, or the tensors' bytes.

use super::super::edit::edited;
use super::json;
use arbitrary::Unstructured;

/// The file with another header or other tensors; `None` where it has no header.
pub(super) fn changed(file: &[u8], u: &mut Unstructured<'_>) -> arbitrary::Result<Option<Vec<u8>>> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else { return Ok(None) };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let Some((header, tensors)) = rest.split_at_checked(length) else { return Ok(None) };
    let (header, tensors) = if u.ratio(1, 4)? {
        (header.to_vec(), edited(tensors, u)?)
    } else {
        let Some(header) = json::changed(header, u)? else { return Ok(None) };
        (header, tensors.to_vec())
    };
    Ok(Some([&(header.len() as u64).to_le_bytes(), &header[..], &tensors].concat()))
}
