//! The flags that put vectors on a model: shared by every command that steers.

use super::names;
use anyhow::{Context as _, anyhow, bail, ensure};
use bidpo_core::adapter::AdapterFile;
use bidpo_core::chat::printable;
use bidpo_core::data::{ChatTemplate, PreferenceSet, Prompt};
use bidpo_core::eval::conditions::condition::layers_of;
use bidpo_core::eval::conditions::{Steered, training_pairs, vector_facts};
use bidpo_core::eval::results::ConditionKind;
use bidpo_core::extract::residual_norms;
use bidpo_core::intervention::Scope;
use bidpo_core::layers::Layers;
use bidpo_core::steer::{
    ControlVector, Convention, LoadedVector, ScaledVector, SteeringVector, architecture_note, combine, warnings,
};
use ggml_grad::files::sha256_of_file;
use ggml_grad::llama::Model;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Options of every command that can steer.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(group = clap::ArgGroup::new("steers").multiple(true).args(["vectors", "loras"]))]
pub struct SteeringArgs {
    /// Control vector to apply: GGUF, safetensors, or PyTorch's and numpy's files, or a part of the name of one in ./vectors;
    /// FILE:SCALE gives its scale too. Several --vector options are summed.
    #[arg(long = "vector", short = 'v', value_name = "FILE.gguf[:SCALE]")]
    pub vectors: Vec<VectorArg>,
    /// LoRA adapter to apply (GGUF, as llama.cpp loads it), at scale 1; FILE:SCALE gives another one. Can be repeated, and given
    /// beside --vector: both apply. An adapter acts at every position.
    #[arg(long = "lora", value_name = "FILE.gguf[:SCALE]")]
    pub loras: Vec<VectorArg>,
    /// Scale of the vector: one for all, or one for each --vector in order [default: 1]. A negative scale reverses the
    /// direction. With a percent sign it is relative to the median residual norm (5%, -5%; mean over the vector's layers),
    /// which is measured if the file does not store it.
    #[arg(long = "scale", short = 's', value_name = "S", allow_hyphen_values = true, requires = "vectors")]
    pub scales: Vec<Scale>,
    /// Apply the vectors only at these layers: 15, or 10-20 (both ends included), or 5,9,12-14.
    #[arg(long, value_name = "LIST", requires = "vectors")]
    pub layers: Option<Layers>,
    /// Positions at which the vectors act instead of those they were trained for: all, prompt, answer, think, not-think (the
    /// answer's thought, and the rest of the answer), first:N, last:N (of the prompt), after:N (answer tokens), or a union such as
    /// first:1+answer.
    #[arg(long, value_name = "SCOPE", requires = "vectors")]
    pub scope: Option<Scope>,
    /// Layer convention of direction.N: output (of block N: bidpo, repeng) or generator (output of block N - 1: llama.cpp's
    /// cvector-generator). One for all, or one for each --vector in order [default: output].
    #[arg(long = "convention", value_name = "C", requires = "vectors")]
    pub conventions: Vec<Convention>,
}

/// `FILE`, or `FILE:SCALE` as llama.cpp writes it.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorArg {
    /// The file.
    pub path: PathBuf,
    /// The scale behind a colon.
    pub scale: Option<Scale>,
}

impl FromStr for VectorArg {
    type Err = String;

    /// A file of the whole name is meant first: names may hold colons (`C:\\v.gguf`, `a:1`).
    fn from_str(text: &str) -> Result<Self, String> {
        let whole = || Ok(Self { path: text.into(), scale: None });
        match text.rsplit_once(':') {
            Some((path, scale)) if !path.is_empty() && !Path::new(text).exists() => match scale.parse() {
                Ok(scale) => Ok(Self { path: path.into(), scale: Some(scale) }),
                // A drive letter or a part of the name; a missing file is reported by name.
                Err(_) if scale.is_empty() || scale.contains(['/', '\\', '.']) => whole(),
                Err(error) => Err(format!("{error}; the name of a file may hold a colon where the file exists")),
            },
            _ => whole(),
        }
    }
}

/// A scale as the user gives it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// A factor on the vector.
    Factor(f32),
    /// Percent of the median residual norm at the vector's layer; with several layers, the mean over them.
    Percent(f64),
}

impl FromStr for Scale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let bad = || format!("{text:?} is not a scale: give a number (1.5, -2) or a percentage (5%, -5%)");
        if let Some(number) = text.strip_suffix('%') {
            let percent: f64 = number.trim().parse().map_err(|_| bad())?;
            return if percent.is_finite() { Ok(Self::Percent(percent)) } else { Err(bad()) };
        }
        let factor: f32 = text.parse().map_err(|_| bad())?;
        if factor.is_finite() { Ok(Self::Factor(factor)) } else { Err(bad()) }
    }
}

impl Scale {
    /// The factor it stands for on this vector.
    pub fn factor(self, vector: &SteeringVector) -> anyhow::Result<f32> {
        Ok(match self {
            Self::Factor(f) => f,
            Self::Percent(p) => vector.scale_for_percent(p)?,
        })
    }
}

/// The vectors of `--vector`, loaded and checked against the model.
#[derive(Debug, Clone, Default)]
pub struct Steering {
    /// One dial for each `--vector`, then one for each `--lora`.
    pub dials: Vec<ScaledVector>,
    /// The file of each.
    pub files: Vec<PathBuf>,
    /// Layers of `--layers`.
    pub layers: Option<Layers>,
}

impl SteeringArgs {
    /// The convention in which `--vector` number `i` is read.
    pub fn convention(&self, i: usize) -> Convention {
        self.conventions.get(i).or(self.conventions.first()).copied().unwrap_or_default()
    }

    /// Loads the vectors and checks that they fit the model; prints warnings on stderr. `template`: that of the prompts, which
    /// marks thoughts for scopes that read them.
    pub fn load(
        &self,
        model: &Arc<Model>,
        template: Option<&ChatTemplate>,
        n_threads: u32,
    ) -> anyhow::Result<Steering> {
        let (n_vectors, n_scales, n_conventions) = (self.vectors.len(), self.scales.len(), self.conventions.len());
        ensure!(
            n_scales <= 1 || n_scales == n_vectors,
            "{n_scales} scales for {n_vectors} vectors: give one --scale for all or one for each --vector"
        );
        ensure!(
            n_conventions <= 1 || n_conventions == n_vectors,
            "{n_conventions} conventions for {n_vectors} vectors: give one --convention for all or one for each --vector"
        );
        if let Some(both) = self.vectors.iter().find(|v| v.scale.is_some() && n_scales > 0) {
            bail!("{}: its scale is given behind the colon and by --scale: leave one out", both.path.display());
        }
        let (mut dials, mut files) = (Vec::new(), Vec::new());
        for (i, VectorArg { path, scale }) in self.vectors.iter().enumerate() {
            let given = || self.scales.get(i).or(self.scales.first()).copied();
            let scale = scale.or_else(given).unwrap_or(Scale::Factor(1.0));
            let path = &names::vector(path, model.path())?;
            let mut dial = load_scaled_vector(path, self.layers.as_ref(), scale, self.convention(i), model, n_threads)?;
            ensure!(
                dial.vector.adapter.is_none() || self.scope.is_none(),
                "{}: it is a LoRA adapter, which acts at every position: give it with --lora, or leave --scope out",
                path.display()
            );
            say_doubts(path, &dial.vector, model);
            files.push(path.clone());
            let scope = self.scope.clone().unwrap_or_else(|| dial.vector.scope.clone());
            if self.scope.is_some() || scope.reads_thoughts() {
                let here =
                    ChatTemplate::scoped_by(template, &scope, model).with_context(|| path.display().to_string())?;
                let vector = Arc::make_mut(&mut dial.vector);
                vector.set_scope(scope);
                vector.scope = here;
            }
            dials.push(dial);
        }
        for lora in each_lora(&self.loras)? {
            let (dial, path) = load_lora(&lora, model)?;
            dials.push(dial);
            files.push(path);
        }
        let steering = Steering { dials, files, layers: self.layers.clone() };
        steering.control_vector(model)?;
        Ok(steering)
    }

    /// Loads the vectors as the steered condition of a run ([`SteeringArgs::load`]); `None` where there are none.
    pub fn steered(
        &self,
        model: &Arc<Model>,
        template: Option<&ChatTemplate>,
        n_threads: u32,
    ) -> anyhow::Result<Option<Steered>> {
        let steering = self.load(model, template, n_threads)?;
        if steering.dials.is_empty() {
            return Ok(None);
        }
        say_strength(&steering.dials, steering.layers.as_ref());
        let mut vectors = Vec::new();
        for (i, (path, dial)) in steering.files.iter().zip(&steering.dials).enumerate() {
            let sha256 = sha256_of_file(path).with_context(|| path.display().to_string())?;
            let percent = dial.vector.percent_of_scale(dial.scale);
            let mut facts = vector_facts(path, &sha256, f64::from(dial.scale), percent, &dial.vector);
            if dial.vector.adapter.is_none() && self.convention(i) != Convention::Output {
                facts.convention = Some(self.convention(i).to_string());
            }
            vectors.push(facts);
        }
        let control = steering.control_vector(model)?;
        let layers = control.as_ref().and_then(|c| Layers::new(layers_of(c, model.n_embd())).ok());
        let training_pairs = steering.dials.iter().filter_map(|d| training_pairs(&d.vector)).max();
        Ok(Some(Steered { control, kind: ConditionKind::Steered { vectors, layers, chosen_on: None }, training_pairs }))
    }
}

/// Loads a vector in its maker's convention; says on stderr what of it cannot be used. `layers` are those of a file that does not
/// name its own.
pub fn load_vector(path: &Path, layers: Option<&Layers>, convention: Convention) -> anyhow::Result<LoadedVector> {
    let loaded = SteeringVector::open(path, layers)?;
    for remark in &loaded.remarks {
        eprintln!("bidpo: {}: {}", path.display(), printable(&remark.to_string()));
    }
    Ok(LoadedVector { vector: normalized(loaded.vector, path, convention)?, ..loaded })
}

/// The vector that `path` holds, its layers as bidpo counts them.
fn normalized(vector: SteeringVector, path: &Path, convention: Convention) -> anyhow::Result<SteeringVector> {
    let normalized = vector.normalized(convention).with_context(|| path.display().to_string())?;
    if normalized.lost_block_0 {
        eprintln!(
            "bidpo: {}: direction.1 was measured at the output of block 0, where llama.cpp cannot steer: dropped",
            path.display()
        );
    }
    Ok(normalized.vector)
}

/// The adapters of `--lora`, a list with commas taken apart as llama.cpp does. A file of the whole name is meant first.
pub fn each_lora(loras: &[VectorArg]) -> anyhow::Result<Vec<VectorArg>> {
    let mut out = Vec::new();
    for lora in loras {
        let text = lora.path.to_string_lossy();
        let Some((before, last)) = text.rsplit_once(',').filter(|_| !lora.path.exists()) else {
            out.push(lora.clone());
            continue;
        };
        for part in before.split(',') {
            out.push(part.parse().map_err(|e: String| anyhow!("--lora {part}: {e}"))?);
        }
        out.push(VectorArg { path: last.into(), scale: lora.scale });
    }
    Ok(out)
}

/// Loads the adapter of `--lora` as a dial, with its file; says on stderr what speaks against it.
pub fn load_lora(lora: &VectorArg, model: &Arc<Model>) -> anyhow::Result<(ScaledVector, PathBuf)> {
    let path = names::vector(&lora.path, model.path())?;
    let scale = lora.scale.unwrap_or(Scale::Factor(1.0));
    let dial = load_adapter(&path, scale, model)?;
    say_doubts(&path, &dial.vector, model);
    Ok((dial, path))
}

/// Loads an adapter and names it after its file.
fn load_adapter(path: &Path, scale: Scale, model: &Arc<Model>) -> anyhow::Result<ScaledVector> {
    let Some(name) = path.file_stem() else { bail!("{} is not a file", path.display()) };
    let vector = Arc::new(SteeringVector::open_adapter(path, model)?);
    let scale = scale.factor(&vector).with_context(|| path.display().to_string())?;
    if vector.adapter.as_ref().is_some_and(|a| a.is_invoked) {
        eprintln!(
            "bidpo: warning: {}: it is meant to act from certain tokens on (aLoRA); bidpo applies it at every position",
            path.display()
        );
    }
    Ok(ScaledVector { name: name.to_string_lossy().into_owned(), vector, scale })
}

/// Loads one vector, or an adapter, and names it after its file.
pub fn load_scaled_vector(
    path: &Path,
    layers: Option<&Layers>,
    scale: Scale,
    convention: Convention,
    model: &Arc<Model>,
    n_threads: u32,
) -> anyhow::Result<ScaledVector> {
    if AdapterFile::is_one(path).unwrap_or(false) {
        ensure!(layers.is_none(), "{}: it is a LoRA adapter: --layers restricts vectors only", path.display());
        return load_adapter(path, scale, model);
    }
    let Some(name) = path.file_stem() else { bail!("{} is not a file", path.display()) };
    let vector = Arc::new(load_vector(path, layers, convention)?.vector);
    let mut dial = ScaledVector { name: name.to_string_lossy().into_owned(), vector, scale: 0.0 };
    if matches!(scale, Scale::Percent(_)) {
        measure_residual_norms(&mut dial, model, n_threads)?;
    }
    dial.scale = scale.factor(&dial.vector).with_context(|| path.display().to_string())?;
    Ok(dial)
}

/// Says on stderr what speaks against using the vector on this model.
pub fn say_doubts(path: &Path, vector: &SteeringVector, model: &Model) {
    if let Some(note) = architecture_note(vector, model) {
        eprintln!("note: {}: {}", path.display(), printable(&note));
    }
    for warning in warnings(vector, model) {
        eprintln!("bidpo: warning: {}: {}", path.display(), printable(&warning));
    }
}

/// Says on stderr which vectors are scaled beyond their measured range, or beyond the rule of thumb where they have none.
pub fn say_strength(dials: &[ScaledVector], layers: Option<&Layers>) {
    for dial in dials {
        if let Some(note) = dial.strength_note(layers) {
            eprintln!("note: {}: {note}", printable(&dial.name));
        }
    }
}

/// Pairs of the built-in set that are read for it: some three hundred tokens.
const MEASURED_PAIRS: usize = 8;

/// Measures the residual norm of a vector without one on this model, at the vector's layers, over questions and
/// answers that come with the program; says so on stderr.
pub fn measure_residual_norms(dial: &mut ScaledVector, model: &Arc<Model>, n_threads: u32) -> anyhow::Result<()> {
    if dial.vector.adapter.is_some() || dial.vector.percent_of_scale(1.0).is_some() {
        return Ok(());
    }
    combine(std::slice::from_ref(dial), None, model)?; // a vector of another model is told so before anything is measured
    let mut prompts = Vec::new();
    for pair in PreferenceSet::builtin(PreferenceSet::BUILTIN[0])?.pairs.iter().take(MEASURED_PAIRS) {
        let question = match &pair.prompt {
            Prompt::Text(text) => text.clone(),
            Prompt::Messages(messages) => messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n"),
        };
        prompts.push(model.tokenize(&format!("{question}\n{}", pair.chosen), true, false)?);
    }
    let mut vector = SteeringVector::clone(&dial.vector);
    let norms = residual_norms(model, &vector.layers(), &prompts, n_threads)?;
    for (layer, stats) in &norms {
        vector.provenance.set_float(&format!("residual_norm_median.{layer}"), stats.median);
    }
    eprintln!(
        "bidpo: {} does not say the residual norm: measured over {} tokens of built-in text, {} percent of it is scale 1",
        dial.name,
        prompts.iter().map(Vec::len).sum::<usize>(),
        vector.percent_of_scale(1.0).map_or_else(|| "?".to_owned(), |p| format!("{p:.3}")),
    );
    dial.vector = Arc::new(vector);
    Ok(())
}

impl Steering {
    /// The sum of the vectors on `model`; `None` without steering.
    pub fn control_vector(&self, model: &Model) -> anyhow::Result<Option<ControlVector>> {
        Ok(combine(&self.dials, self.layers.as_ref(), model)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_parsed() {
        assert_eq!("-1.5".parse(), Ok(Scale::Factor(-1.5)));
        assert_eq!("-5%".parse(), Ok(Scale::Percent(-5.0)));
        assert_eq!(" 2.5 % ".parse(), Ok(Scale::Percent(2.5)));
        for bad in ["", "%", "x", "nan", "inf%", "1,5", "1e99"] {
            assert!(bad.parse::<Scale>().unwrap_err().contains("is not a scale"), "{bad}");
        }
    }

    #[test]
    fn flags_take_negative_numbers() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            steering: SteeringArgs,
        }
        let parse = |args: &[&str]| <Cli as clap::Parser>::try_parse_from([&["x"], args].concat());
        let s =
            parse(&["--vector", "a.gguf", "--vector", "b.gguf", "--scale", "-1.5", "--scale", "-5%"]).unwrap().steering;
        assert_eq!(s.scales, [Scale::Factor(-1.5), Scale::Percent(-5.0)]);
        assert_eq!(s.vectors.len(), 2);
        let s = parse(&["-v", "a.gguf:-2", "-v", "b:0.5%"]).unwrap().steering;
        let scaled = |path: &str, scale| VectorArg { path: path.into(), scale: Some(scale) };
        assert_eq!(s.vectors, [scaled("a.gguf", Scale::Factor(-2.0)), scaled("b", Scale::Percent(0.5))]);
        let plain = |path: &str| Ok(VectorArg { path: path.into(), scale: None });
        for name in ["a.gguf", r"C:\v.gguf", "C:/v.gguf", "a:b.gguf", ":1", "a:"] {
            assert_eq!(name.parse(), plain(name), "{name}");
        }
        assert_eq!(r"C:\v.gguf:1.5".parse(), Ok(scaled(r"C:\v.gguf", Scale::Factor(1.5))));
        assert!("v.gguf:much".parse::<VectorArg>().unwrap_err().contains("is not a scale"));
        let folder = tempfile::tempdir().unwrap();
        let named = folder.path().join("v:2");
        std::fs::write(&named, "").unwrap();
        let named = named.to_str().unwrap();
        assert_eq!(named.parse(), plain(named), "a file of the whole name");
        assert!(parse(&["--scale", "2"]).is_err(), "a scale without a vector means nothing");
    }
}
