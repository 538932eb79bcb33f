use std::collections::HashMap;
use std::io::{self, Write};

use anyhow::Result;
use base_mlx_core::engine::Purpose;
use base_mlx_core::models::family;
use base_mlx_core::store::{Bytes, Entry, Nameless, Store};
use base_mlx_core::weights::{Checkpoint, LoadError};
use clap::Args;
use serde_json::{Value, json};

use crate::models::{self, Unread};

/// List the models on disk
#[derive(Args)]
pub(crate) struct Arguments {
    /// One JSON array
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments, store: &Store) -> Result<()> {
    let mut kinds = HashMap::new();
    let survey = store.survey(|entry| {
        let kind = Kind::read(&entry.path).map_err(|error| models::fault(&error))?;
        kinds.insert(entry.path.clone(), kind);
        Ok(())
    });
    let mut stderr = io::stderr();
    for unread in store.folders().iter().filter_map(Unread::of).filter(|it| !it.is_usual) {
        writeln!(stderr, "warning: {}", unread.told)?;
    }
    let mut stdout = io::stdout();
    if arguments.json {
        let row = |name: Value, entry: &Entry, note: Option<&str>| {
            let kind = &kinds[&entry.path];
            json!({
                "name": name,
                "family": kind.family,
                "purpose": kind.purpose,
                "bytes": entry.bytes,
                "bits": kind.bits,
                "path": entry.path,
                "source": entry.source.to_string(),
                "error": null,
                "note": note,
            })
        };
        let usable = survey.models.iter().map(|entry| row(json!(entry.name), entry, None));
        let nameless = survey.nameless.iter();
        let nameless =
            nameless.map(|Nameless { entry, why }| row(json!(entry.path), entry, Some(why)));
        let unusable = survey.unusable.iter().map(|one| {
            json!({
                "name": one.name,
                "family": null,
                "purpose": null,
                "bytes": null,
                "bits": null,
                "path": one.path,
                "source": one.source.to_string(),
                "error": one.fault.why,
                "note": null,
            })
        });
        let rows = usable.chain(nameless).chain(unusable);
        writeln!(stdout, "{:#}", serde_json::Value::from_iter(rows))?;
        return Ok(());
    }
    if survey.models.is_empty() {
        writeln!(stderr, "no model is on disk\nhint: `base-mlx pull smollm2` fetches one")?;
    } else {
        let heads = ["NAME", "FAMILY", "FOR", "SIZE", "BITS", "WHERE", "KEPT BY"];
        let mut table = vec![heads.map(str::to_owned)];
        for entry in survey.models {
            let kind = &kinds[&entry.path];
            let bits = kind.bits.map_or("-".to_owned(), |bits| format!("{bits:.1}"));
            let (size, place) = (Bytes(entry.bytes).to_string(), entry.path.display().to_string());
            let source = entry.source.to_string();
            let purpose = kind.purpose.unwrap_or("-").to_owned();
            table.push([entry.name, kind.family.clone(), purpose, size, bits, place, source]);
        }
        write_aligned(&mut stdout, &table)?;
    }
    if !survey.nameless.is_empty() {
        let mut table = vec![["BY PATH ALONE", "KEPT BY", "WHY", "WHERE"].map(str::to_owned)];
        for Nameless { entry, why } in survey.nameless {
            let (source, place) = (entry.source.to_string(), entry.path.display().to_string());
            table.push([entry.name, source, why, place]);
        }
        writeln!(stdout)?;
        write_aligned(&mut stdout, &table)?;
    }
    if !survey.unusable.is_empty() {
        let mut table = vec![["NOT USABLE", "KEPT BY", "WHY", "WHERE"].map(str::to_owned)];
        for one in survey.unusable {
            let why = one.fault.why.lines().next().unwrap_or_default().to_owned();
            table.push([one.name, one.source.to_string(), why, one.path.display().to_string()]);
        }
        writeln!(stdout)?;
        write_aligned(&mut stdout, &table)?;
    }
    Ok(())
}

/// What a model's header says.
struct Kind {
    family: String,
    /// What it makes; unknown where that is not supported.
    purpose: Option<&'static str>,
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
        let family = family(&checkpoint)?.to_owned();
        let purpose = Purpose::of_checkpoint(&checkpoint).ok().map(|purpose| match purpose {
            Purpose::Generate => "text",
            Purpose::Embed => "embeddings",
            Purpose::Rank => "scores",
        });
        Ok(Self { family, purpose, bits })
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
