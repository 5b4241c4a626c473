//! `bidpo vector`: inspect, convert and combine control vector files.

mod ablate;
mod adapter;
mod compare;
mod make;
mod peft;
mod show;
mod words;

use crate::args::names;
use crate::args::outputs::{self, Kind};
use crate::args::steering::{Scale, load_vector};
use anyhow::{Context as _, ensure};
use bidpo_core::adapter::AdapterFile;
use bidpo_core::layers::Layers;
use bidpo_core::steer::{Convention, FileRemark, Match, SteeringVector, match_architecture};
use clap::builder::{OsStringValueParser, TypedValueParser};
use show::Shown;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `bidpo vector`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

/// A file, or a part of its name.
fn by_name() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(names::any_vector)
}

/// The output of a command.
#[derive(Debug, clap::Args)]
struct Output {
    /// Output file: .gguf (for llama.cpp), .safetensors, or .npy (values only).
    #[arg(long, short = 'o', value_name = "FILE")]
    output: PathBuf,
}

/// The layer convention of the input files.
#[derive(Debug, Default, clap::Args)]
struct Reading {
    /// Layer convention of direction.N: output (of block N: bidpo, repeng) or generator (output of block N - 1: llama.cpp's
    /// cvector-generator). One for all files, or one for each file in order [default: output].
    #[arg(long = "convention", value_name = "C")]
    conventions: Vec<Convention>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print layers, norms and provenance of control vector files (bidpo's, llama.cpp's, repeng's, PyTorch's), and what a LoRA
    /// adapter changes.
    Show {
        /// The files; also parts of the names of some in ./vectors.
        #[arg(required = true, value_name = "FILE", value_parser = by_name())]
        files: Vec<PathBuf>,
        /// Print JSON on stdout: an array with one object for each file.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        reading: Reading,
    },
    /// Convert a vector to .gguf, .safetensors or .npy, chosen by file extension; reads .npz and .pt as well. Convert a LoRA adapter
    /// from GGUF to a PEFT folder, or back.
    Convert {
        /// The vector, adapter, or PEFT folder; also a part of the name of a file in ./vectors.
        #[arg(value_name = "FILE", value_parser = by_name())]
        file: PathBuf,
        /// Output file: .gguf (for llama.cpp), .safetensors, or .npy (values only); for an adapter a folder (PEFT) or .gguf.
        #[arg(long, short = 'o', value_name = "FILE|DIR")]
        output: PathBuf,
        /// For a LoRA adapter: the model file, which tells the number of heads.
        #[arg(long, short = 'm', value_name = "FILE.gguf", value_parser = OsStringValueParser::new().try_map(names::model))]
        model: Option<PathBuf>,
        /// For a LoRA adapter to GGUF: write 16-bit floats.
        #[arg(long)]
        f16: bool,
        /// For a file that names no layers (.npy, .pt): the layers of its rows, lowest first (15, 10-20). For other files: keep only
        /// these layers.
        #[arg(long, value_name = "LIST")]
        layers: Option<Layers>,
        /// Architecture to state (llama, gemma3, ...), in place of what the file states.
        #[arg(long, value_name = "NAME")]
        architecture: Option<String>,
        #[command(flatten)]
        reading: Reading,
    },
    /// Write what llama.cpp can run of an intervention that it cannot run as it is.
    Export {
        /// The file; also a part of the name of one in ./vectors.
        #[arg(value_name = "FILE", value_parser = by_name())]
        file: PathBuf,
        /// The constant vector that is nearest: a fully open gate, at every position.
        #[arg(long, required = true)]
        constant: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Write a LoRA adapter that takes a direction out of what a model writes into its residual stream.
    Ablate(ablate::Args),
    /// Compute a weighted sum of vectors.
    #[command(visible_alias = "combine")]
    Add {
        /// The vectors; also parts of the names of some in ./vectors.
        #[arg(required = true, num_args = 2.., value_name = "FILE", value_parser = by_name())]
        files: Vec<PathBuf>,
        /// Weights in the order of the files [default: 1 each]: 1,-0.5.
        #[arg(long, value_name = "W,W,...", value_delimiter = ',', allow_hyphen_values = true, value_parser = weight)]
        weights: Vec<f32>,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        reading: Reading,
    },
    /// Average vectors, layer by layer.
    Average {
        /// The vectors; also parts of the names of some in ./vectors.
        #[arg(required = true, num_args = 2.., value_name = "FILE", value_parser = by_name())]
        files: Vec<PathBuf>,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        reading: Reading,
    },
    /// Multiply a vector by a factor: its scale 1 then equals the former scale X.
    Scale {
        /// The vector; also a part of the name of one in ./vectors.
        #[arg(value_name = "FILE", value_parser = by_name())]
        file: PathBuf,
        /// A factor (1.5, -1), or the new norm in percent of the residual norm (5%).
        #[arg(value_name = "X", allow_hyphen_values = true)]
        scale: Scale,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        reading: Reading,
    },
    /// Compare vectors pairwise: cosine and norms, by layer and over all layers.
    Compare {
        /// The vectors; also parts of the names of some in ./vectors.
        #[arg(required = true, num_args = 2.., value_name = "FILE", value_parser = by_name())]
        files: Vec<PathBuf>,
        /// Print JSON on stdout.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        reading: Reading,
    },
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (inputs, output) = match &args.command {
        Command::Scale { file, output, .. } | Command::Export { file, output, .. } => (vec![file], Some(output)),
        Command::Add { files, output, .. } | Command::Average { files, output, .. } => {
            (files.iter().collect(), Some(output))
        }
        Command::Show { .. } | Command::Compare { .. } | Command::Ablate(_) | Command::Convert { .. } => {
            (Vec::new(), None)
        }
    };
    if let Some(Output { output }) = output {
        let inputs: Vec<&Path> = inputs.into_iter().map(PathBuf::as_path).collect();
        outputs::check(output, Kind::Vector, &inputs)?;
    }
    match args.command {
        Command::Show { files, json, reading } => show::show(&files, reading.shown(&files)?, json),
        Command::Ablate(args) => ablate::run(args),
        Command::Convert { file, output, model, f16, layers, architecture, reading } => {
            if file.is_dir() || AdapterFile::is_one(&file).unwrap_or(false) {
                ensure!(layers.is_none() && architecture.is_none(), "--layers and --architecture are for vectors");
                return peft::convert(&file, &output, model.as_deref(), f16);
            }
            ensure!(model.is_none() && !f16, "--model and --f16 are for LoRA adapters: {} is a vector", file.display());
            outputs::check(&output, Kind::Vector, &[&file])?;
            let mut vector = reading.load_one(&file, layers.as_ref())?;
            if let Some(name) = architecture {
                let stated = std::mem::replace(&mut vector.model_hint, name);
                if match_architecture(&stated, &vector.model_hint) == Match::Different {
                    let file = file.display();
                    eprintln!("note: {file} says {stated}; the new file says {}, as asked", vector.model_hint);
                }
            }
            make::write(&vector, &output)
        }
        Command::Export { file, constant: _, output } => {
            let vector = SteeringVector::load(&file)?;
            let (constant, lost) = vector.constant().with_context(|| file.display().to_string())?;
            for what in &lost {
                eprintln!("bidpo: warning: {what}");
            }
            if lost.is_empty() {
                eprintln!("note: {} is a constant vector already: nothing is lost", file.display());
            }
            make::write(&constant, &output.output)
        }
        Command::Add { files, weights, output, reading } => {
            ensure!(
                weights.is_empty() || weights.len() == files.len(),
                "{} weights for {} vectors: give one for each, in order",
                weights.len(),
                files.len()
            );
            let weights = if weights.is_empty() { vec![1.0; files.len()] } else { weights };
            make::write(&make::add(&files, &reading.load(&files)?, &weights)?, &output.output)
        }
        Command::Average { files, output, reading } => {
            make::write(&make::average(&files, &reading.load(&files)?)?, &output.output)
        }
        Command::Scale { file, scale, output, reading } => {
            let vector = reading.load_one(&file, None)?;
            let factor = scale.factor(&vector).with_context(|| file.display().to_string())?;
            make::write(&vector.scaled(factor), &output.output)
        }
        Command::Compare { files, json, reading } => compare::compare(&files, &reading.load(&files)?, json),
    }
}

impl Reading {
    /// All files, each in its convention, adapters among them.
    fn shown(&self, files: &[PathBuf]) -> anyhow::Result<Vec<Shown>> {
        let convention = self.of(files)?;
        let one = |(i, file): (usize, &PathBuf)| -> anyhow::Result<Shown> {
            Ok(match AdapterFile::is_one(file) {
                Ok(true) => Shown::Adapter(Box::new(AdapterFile::load(file)?)),
                _ => Shown::Vector(Box::new(load_vector(file, None, convention(i))?.vector)),
            })
        };
        files.iter().enumerate().map(one).collect()
    }

    /// All files, each in its convention.
    fn load(&self, files: &[PathBuf]) -> anyhow::Result<Vec<SteeringVector>> {
        let convention = self.of(files)?;
        files.iter().enumerate().map(|(i, f)| Ok(load_vector(f, None, convention(i))?.vector)).collect()
    }

    /// The convention of each file by its place.
    fn of(&self, files: &[PathBuf]) -> anyhow::Result<impl Fn(usize) -> Convention> {
        let (n_files, n_conventions) = (files.len(), self.conventions.len());
        ensure!(
            n_conventions <= 1 || n_conventions == n_files,
            "{n_conventions} conventions for {n_files} files: give one --convention for all or one for each file"
        );
        Ok(|i: usize| self.conventions.get(i).or(self.conventions.first()).copied().unwrap_or_default())
    }

    /// One file; of a file that does not name its layers `layers` names them, of another one it says which to keep.
    fn load_one(&self, file: &Path, layers: Option<&Layers>) -> anyhow::Result<SteeringVector> {
        ensure!(self.conventions.len() <= 1, "{} conventions for one file", self.conventions.len());
        let convention = self.conventions.first().copied().unwrap_or_default();
        let loaded = load_vector(file, layers, convention)?;
        match layers.filter(|_| !loaded.remarks.iter().any(|r| matches!(r, FileRemark::LayersGiven(_)))) {
            Some(layers) => loaded.vector.only(layers).with_context(|| file.display().to_string()),
            None => Ok(loaded.vector),
        }
    }
}

fn weight(text: &str) -> Result<f32, String> {
    text.trim()
        .parse::<f32>()
        .ok()
        .filter(|w| w.is_finite())
        .ok_or_else(|| format!("{text:?} is not a weight: give a number"))
}
