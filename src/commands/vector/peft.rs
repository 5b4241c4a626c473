//! `bidpo vector convert` of LoRA adapters.

use crate::args::outputs::{self, Kind};
use anyhow::{Context as _, ensure};
use bidpo_core::adapter::{AdapterFile, AdapterKind, CONFIG, HeadCounts, WEIGHTS};
use std::path::Path;
use std::process::ExitCode;

/// Converts a PEFT folder to GGUF, or a GGUF adapter to a PEFT folder.
pub fn convert(from: &Path, to: &Path, model: Option<&Path>, f16: bool) -> anyhow::Result<ExitCode> {
    let model = model.context(
        "converting an adapter needs --model FILE.gguf: it tells the number of heads, within which rows are moved",
    )?;
    let heads = HeadCounts::of_model(model)?;
    if from.is_dir() {
        ensure!(
            to.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")),
            "{}: an adapter from a PEFT folder is written as .gguf",
            to.display()
        );
        let of_peft = [from.join(CONFIG), from.join(WEIGHTS)];
        outputs::check(to, Kind::Adapter, &[model, &of_peft[0], &of_peft[1]])?;
        let mut adapter = AdapterFile::load_peft(from, &heads)?;
        adapter.provenance.set_str("converted_from", "PEFT");
        adapter.provenance.set_str("version", env!("CARGO_PKG_VERSION"));
        adapter.save(to, if f16 { AdapterKind::F16 } else { AdapterKind::F32 })?;
        said(&adapter, to);
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(!f16, "--f16 is for the way to GGUF: PEFT folders are written in F32");
    ensure!(
        to.extension().is_none() && !to.is_file(),
        "{}: a GGUF adapter is converted to a PEFT folder: give the name of one",
        to.display()
    );
    // A folder of something else stays as it is.
    let foreign =
        to.is_dir() && !to.join(CONFIG).exists() && std::fs::read_dir(to).is_ok_and(|mut d| d.next().is_some());
    ensure!(!foreign, "{} is a folder that holds something else: give another name", to.display());
    // So does an adapter that somebody else has trained.
    ensure!(
        !to.join(CONFIG).exists() || AdapterFile::wrote_peft(to) || outputs::is_forced(),
        "{} holds an adapter that bidpo did not write: give another name, or --force to replace it",
        to.display()
    );
    for name in [CONFIG, WEIGHTS] {
        outputs::not_an_input(&to.join(name), &[from, model])?;
    }
    let adapter = AdapterFile::load(from)?;
    adapter.save_peft(to, &heads)?;
    said(&adapter, to);
    Ok(ExitCode::SUCCESS)
}

fn said(adapter: &AdapterFile, to: &Path) {
    println!("written: {} ({} matrices of {} blocks)", to.display(), adapter.pairs.len(), adapter.layers().len());
}
