use std::io::{self, Write};

use anyhow::Result;
use base_mlx_core::store::{Bytes, Store};
use base_mlx_core::weights::{Checkpoint, LoadError};
use clap::Args;
use serde_json::json;

/// List the models on disk
#[derive(Args)]
pub(crate) struct Arguments {
    /// One JSON array
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments, store: &Store) -> Result<()> {
    let mut rows = Vec::new();
    for entry in store.list() {
        let kind = Kind::read(&entry.path);
        rows.push((entry, kind));
    }
    let mut stdout = io::stdout();
    if arguments.json {
        let rows = rows.iter().map(|(entry, kind)| {
            json!({
                "name": entry.name,
                "family": kind.as_ref().ok().map(|kind| &kind.family),
                "bytes": entry.bytes,
                "bits": kind.as_ref().ok().and_then(|kind| kind.bits),
                "path": entry.path,
                "error": kind.as_ref().err().map(LoadError::to_string),
            })
        });
        writeln!(stdout, "{:#}", serde_json::Value::from_iter(rows))?;
        return Ok(());
    }
    if rows.is_empty() {
        writeln!(io::stderr(), "no model is on disk\nhint: `base-mlx pull smollm2` fetches one")?;
        return Ok(());
    }
    let mut table = vec![["NAME", "FAMILY", "SIZE", "BITS", "WHERE"].map(str::to_owned)];
    for (entry, kind) in rows {
        let (family, bits) = match kind {
            Ok(kind) => {
                (kind.family, kind.bits.map_or("-".to_owned(), |bits| format!("{bits:.1}")))
            }
            Err(_) => ("?".to_owned(), "?".to_owned()),
        };
        let size = Bytes(entry.bytes).to_string();
        table.push([entry.name, family, size, bits, entry.path.display().to_string()]);
    }
    write_aligned(&mut stdout, &table)?;
    Ok(())
}

struct Kind {
    family: String,
    /// Average over all values; a file of a vocabulary alone has none.
    bits: Option<f64>,
}

impl Kind {
    fn read(path: &std::path::Path) -> Result<Self, LoadError> {
        let checkpoint = Checkpoint::open(path)?;
        let (mut bytes, mut values) = (0.0, 0.0);
        for tensor in checkpoint.tensors() {
            bytes += tensor.bytes as f64;
            values += tensor.shape.iter().map(|&size| size as f64).product::<f64>();
        }
        let bits = (values > 0.0).then(|| bytes * 8.0 / values);
        Ok(Self { family: checkpoint.config().model_type()?.to_owned(), bits })
    }
}

/// Columns two spaces apart; the last one ragged.
pub(super) fn write_aligned<const N: usize>(
    out: &mut impl Write,
    table: &[[String; N]],
) -> io::Result<()> {
    let width =
        |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..N).map(width).collect();
    for row in table {
        for (column, cell) in row.iter().enumerate() {
            if column + 1 < N {
                write!(out, "{cell:width$}  ", width = widths[column])?;
            } else {
                writeln!(out, "{cell}")?;
            }
        }
    }
    Ok(())
}
