//! Changes of archives: one member's bytes or name, with checksums put right.

use super::super::edit::edited;
use arbitrary::{Arbitrary, Unstructured};
use std::io::{Cursor, Read, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// The archive with a changed member; `None` where it is none.
pub(super) fn changed(file: &[u8], u: &mut Unstructured<'_>) -> arbitrary::Result<Option<Vec<u8>>> {
    let Some(mut members) = members(file) else { return Ok(None) };
    if members.is_empty() {
        return Ok(None);
    }
    let at = u.choose_index(members.len())?;
    match u.int_in_range(0..=7)? {
        0 => drop(members.remove(at)),
        1 => {
            let name = edited(members[at].0.as_bytes(), u)?;
            members[at].0 = String::from_utf8_lossy(&name).into_owned();
        }
        2 => {
            let (name, bytes) = members[at].clone();
            members.push((format!("{name}2"), bytes));
        }
        _ => members[at].1 = edited(&members[at].1, u)?,
    }
    let packed = bool::arbitrary(u)?;
    Ok(write(&members, packed))
}

fn members(file: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let mut archive = ZipArchive::new(Cursor::new(file)).ok()?;
    (0..archive.len().min(64))
        .map(|i| {
            let member = archive.by_index(i).ok()?;
            let name = member.name().ok()?.into_owned();
            let mut bytes = Vec::new();
            member.take(1 << 20).read_to_end(&mut bytes).ok()?;
            Some((name, bytes))
        })
        .collect()
}

fn write(members: &[(String, Vec<u8>)], packed: bool) -> Option<Vec<u8>> {
    let method = if packed { CompressionMethod::Deflated } else { CompressionMethod::Stored };
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        archive.start_file(name.as_str(), SimpleFileOptions::default().compression_method(method)).ok()?;
        archive.write_all(bytes).ok()?;
    }
    Some(archive.finish().ok()?.into_inner())
}
