//! `bidpo models`: which models are here, and how others come here.

mod fetch;
mod list;
mod verify;

pub use fetch::known as fetch_known;

use crate::args::names;
use anyhow::{Context as _, anyhow, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `bidpo models`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the models that are here, and those that `fetch` knows.
    List(list::Args),
    /// Fetch models by name or from an address. Transfers that broke off are continued, and files are checked by their SHA-256.
    Fetch(fetch::Args),
    /// Check the SHA-256 of models that are here.
    Verify(verify::Args),
    /// Print the path of a model.
    Path {
        /// A part of the model's name, or a file.
        #[arg(value_name = "NAME")]
        name: PathBuf,
    },
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.action.unwrap_or_else(|| Action::List(list::Args::default())) {
        Action::List(args) => list::run(&args),
        Action::Fetch(args) => fetch::run(&args),
        Action::Verify(args) => verify::run(&args),
        Action::Path { name } => {
            println!("{}", there(&name)?.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The model of this name, which must be here.
fn there(name: &Path) -> anyhow::Result<PathBuf> {
    if let Some(path) = names::model_there(name).map_err(|e| anyhow!("{}: {e}", name.display()))? {
        return Ok(path);
    }
    match name.to_str().and_then(bidpo_fetch::models::known) {
        Some(known) => bail!("{}: {}", name.display(), names::how_to_fetch(known)),
        None => bail!("{}: there is no such model here; `bidpo models` lists those that are", name.display()),
    }
}

/// The folder of models.
fn folder() -> anyhow::Result<PathBuf> {
    names::models_folder()
        .context("none of BIDPO_MODELS, XDG_CACHE_HOME and HOME says where models lie: set BIDPO_MODELS")
}
