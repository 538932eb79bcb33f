use std::io::{self, Write};

use anyhow::Result;
use base_mlx_core::store::{Bytes, Store};
use clap::Args;

/// Remove a model from the disk
#[derive(Args)]
pub(crate) struct Arguments {
    name: String,
    /// Remove it from another tool's folder too, or from the models folder
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(arguments: &Arguments, store: &Store) -> Result<()> {
    let removed = if arguments.force {
        store.remove_forced(&arguments.name)?
    } else {
        store.remove(&arguments.name)?
    };
    writeln!(io::stderr(), "removed {}, {} freed", removed.path.display(), Bytes(removed.bytes))?;
    Ok(())
}
