//! What a sweep is of: a vector at layers and scales, or an adapter at scales.

use super::Args;
use crate::args::names;
use crate::args::steering::{VectorArg, load_lora, load_vector, say_doubts};
use anyhow::{Context as _, bail, ensure};
use bidpo_core::adapter::AdapterFile;
use bidpo_core::data::ChatTemplate;
use bidpo_core::eval::items::Benchmark;
use bidpo_core::eval::prompt::{PromptOverride, Style};
use bidpo_core::eval::sweep::{Configuration, Factors, Percents, adapter_points, points};
use bidpo_core::extract::residual_norms;
use bidpo_core::steer::SteeringVector;
use ggml_grad::llama::Model;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Items on whose prompts the residual norm is measured.
const NORM_ITEMS: usize = 16;

/// Scales of a vector where none are given.
const PERCENTS: &str = "-10%..10%";
/// Scales of an adapter where none are given.
const FACTORS: &str = "-2..2";

/// The scales of `--scales`.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// With percent signs.
    Percents(Percents),
    /// Without.
    Factors(Factors),
}

impl FromStr for Scales {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.contains('%') {
            true => text.parse().map(Self::Percents),
            false => text.parse().map(Self::Factors),
        }
    }
}

/// The scales of a vector.
pub fn percents(args: &Args) -> anyhow::Result<Percents> {
    match &args.scales {
        None => PERCENTS.parse().map_err(anyhow::Error::msg),
        Some(Scales::Percents(percents)) => Ok(percents.clone()),
        Some(Scales::Factors(_)) => bail!(
            "--scales without a percent sign are those of an adapter (--lora): give those of a vector in percent of the residual \
             norm, as in {PERCENTS}"
        ),
    }
}

/// The scales of an adapter.
fn factors(args: &Args) -> anyhow::Result<Factors> {
    match &args.scales {
        None => FACTORS.parse().map_err(anyhow::Error::msg),
        Some(Scales::Factors(factors)) => Ok(factors.clone()),
        Some(Scales::Percents(_)) => {
            bail!(
                "--scales: an adapter has no norm in the residual stream: give factors, as in {FACTORS} or 0.25,0.5,1"
            )
        }
    }
}

/// What is swept, before the model is there.
pub enum Subject {
    /// A vector of a file.
    Vector { path: PathBuf, vector: Box<SteeringVector> },
    /// The file of an adapter, which only a model can load.
    Adapter(PathBuf),
}

/// What is swept, with its file.
pub struct Loaded {
    /// The file.
    pub path: PathBuf,
    /// The vector, or the adapter as a dial.
    pub vector: SteeringVector,
}

/// The file of an option. A scale behind a colon, as other commands take it, has no meaning here.
fn file_of(option: &str, file: &Path, model: &Path) -> anyhow::Result<PathBuf> {
    if let Some(VectorArg { path, scale: Some(_) }) = file.to_str().and_then(|text| text.parse().ok()) {
        let unit = if option == "--vector" { " (in percent of the residual norm)" } else { "" };
        bail!(
            "{option} {}: a sweep chooses the scale itself: give {}, and with --scales those to try{unit}",
            file.display(),
            path.display()
        );
    }
    names::vector(file, model)
}

impl Subject {
    /// Reads the file of `--vector`, or finds that of `--lora`; refuses scales of the other kind.
    pub fn of(args: &Args) -> anyhow::Result<Self> {
        let model = &args.model.model;
        let (path, is_adapter) = match (&args.vector, &args.lora) {
            (Some(vector), _) => {
                let path = file_of("--vector", vector, model)?;
                let is_adapter = AdapterFile::is_one(&path).unwrap_or(false);
                ensure!(
                    !is_adapter || args.layers.is_none(),
                    "{}: it is a LoRA adapter: --layers restricts vectors only",
                    path.display()
                );
                (path, is_adapter)
            }
            (None, Some(lora)) => (file_of("--lora", lora, model)?, true),
            (None, None) => bail!("internal: neither --vector nor --lora"),
        };
        if is_adapter {
            factors(args)?;
            return Ok(Self::Adapter(path));
        }
        percents(args)?;
        let vector = Box::new(load_vector(&path, None, args.convention)?.vector);
        Ok(Self::Vector { path, vector })
    }

    /// What is swept on `model`; says on stderr what speaks against it.
    pub fn loaded(self, model: &Arc<Model>) -> anyhow::Result<Loaded> {
        match self {
            Self::Vector { path, mut vector } => {
                say_doubts(&path, &vector, model);
                vector.scope =
                    ChatTemplate::scoped_by(None, &vector.scope, model).with_context(|| path.display().to_string())?;
                Ok(Loaded { path, vector: *vector })
            }
            Self::Adapter(path) => {
                let (dial, path) = load_lora(&VectorArg { path, scale: None }, model)?;
                Ok(Loaded { path, vector: SteeringVector::clone(&dial.vector) })
            }
        }
    }
}

/// The configurations to try, and the median residual norms that the scales of a vector are relative to.
pub struct Points {
    /// By layer; none for an adapter.
    pub norms: BTreeMap<usize, f64>,
    /// The configurations.
    pub list: Vec<Configuration>,
}

/// The median residual norm at each of `layers`, on the prompts of the items themselves.
pub fn median_norms(
    args: &Args,
    style: &Style,
    items: &Benchmark,
    model: &Arc<Model>,
    layers: &[usize],
) -> anyhow::Result<BTreeMap<usize, f64>> {
    let some: Vec<usize> = (0..items.items.len().min(NORM_ITEMS)).collect();
    let (prompts, _) = style.prompts(model, items, 0, &some, &PromptOverride::default())?;
    let contexts: Vec<_> = prompts.tokens(model)?.into_iter().map(|r| r.context).collect();
    let norms = residual_norms(model, layers, &contexts, args.model.threads())?;
    Ok(norms.into_iter().map(|(layer, stats)| (layer, stats.median)).collect())
}

impl Points {
    /// All configurations that `args` ask for.
    pub fn new(
        args: &Args,
        subject: &Loaded,
        style: &Style,
        items: &Benchmark,
        model: &Arc<Model>,
    ) -> anyhow::Result<Self> {
        let named = || subject.path.display().to_string();
        if subject.vector.adapter.is_some() {
            let list = adapter_points(&subject.vector, &factors(args)?, model).with_context(named)?;
            return Ok(Self { norms: BTreeMap::new(), list });
        }
        let layers = args.layers.as_ref().map_or_else(|| subject.vector.layers(), |l| l.to_vec());
        let norms = median_norms(args, style, items, model, &layers)?;
        let list = points(&subject.vector, &layers, &percents(args)?, &norms, model).with_context(named)?;
        Ok(Self { norms, list })
    }
}
