use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use base_mlx_core::store::{Bytes, Source, Store, Survey, Unusable};
use base_mlx_core::weights::Checkpoint;

use super::Report;

/// Each tool's folder, and what is in it.
pub(super) fn look(store: &Store, report: &mut Report) {
    let survey = store.survey(|entry| {
        let checkpoint = Checkpoint::open(&entry.path).map_err(|error| error.to_string())?;
        checkpoint.config().model_type().map(|_| ()).map_err(|error| error.to_string())
    });
    for (source, folder) in store.folders() {
        look_at(source, &folder, &survey, report);
    }
    if survey.models.is_empty() {
        report.note("there is no model; `base-mlx serve` and `base-mlx pull smollm2` fetch one");
    }
}

fn look_at(source: Source, folder: &Path, survey: &Survey, report: &mut Report) {
    let shown = folder.display();
    match fs::read_dir(folder) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            report.note(format!("{source}: {shown} is not there"));
            return;
        }
        // Its service runs under a user of its own.
        Err(error) if source == Source::Ollama && error.kind() == ErrorKind::PermissionDenied => {
            report.note(format!("{source}: this user may not read {shown}"));
            return;
        }
        Err(error) => {
            let hint = "give this user the right to read it, or let its variable name another folder (docs/models.md)";
            report.wrong(format!("{source}: cannot read {shown}: {error}"), hint);
            return;
        }
    }
    let here = |path: &Path, of: Source| of == source && path.starts_with(folder);
    let models = survey.models.iter().filter(|entry| here(&entry.path, entry.source));
    let sizes: Vec<u64> = models.map(|entry| entry.bytes).collect();
    let count = match sizes.len() {
        0 => "no model".to_owned(),
        1 => format!("1 model, {}", Bytes(sizes.iter().sum())),
        count => format!("{count} models, {}", Bytes(sizes.iter().sum())),
    };
    report.ok(format!("{source}: {shown}: {count}"));
    for broken in survey.unusable.iter().filter(|one| here(&one.path, one.source)) {
        let Unusable { name, path, why, .. } = broken;
        report.wrong(
            format!("`{name}` cannot be used: {why}\n{}", path.display()),
            mend(name, source),
        );
    }
}

fn mend(name: &str, source: Source) -> String {
    match source {
        Source::HubCache | Source::Pip => format!(
            "`base-mlx pull {name}` fetches what is missing, `base-mlx rm {name}` clears it away"
        ),
        Source::ModelsDir | Source::Path => {
            format!("put the whole file there, or `base-mlx rm --force {name}`")
        }
        tool => {
            format!("fetch it again with {tool}, remove it there, or `base-mlx rm --force {name}`")
        }
    }
}

/// Room where pulls go.
pub(super) fn look_at_disks(store: &Store, report: &mut Report) {
    let options = store.options();
    for (what, folder) in [("the hub's models", &options.hub_cache), ("our own", &options.home)] {
        let Some(there) = first_that_is_there(folder) else { continue };
        let shown = folder.display();
        match options.host.free_bytes(&there) {
            Ok(free) if free < LITTLE_SPACE => report.wrong(
                format!("{} free for {what} in {shown}", Bytes(free)),
                "free some space, or choose another place with HF_HOME or BASE_MLX_HOME",
            ),
            Ok(free) => report.ok(format!("{} free for {what} in {shown}", Bytes(free))),
            Err(error) => report.note(format!("nobody knows how much is free in {shown}: {error}")),
        }
        if fs::metadata(&there).is_ok_and(|meta| meta.permissions().readonly()) {
            let hint = "make it writable, or choose another place with HF_HOME or BASE_MLX_HOME";
            report.wrong(format!("{} cannot be written to", there.display()), hint);
        }
    }
}

fn first_that_is_there(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find(|folder| folder.is_dir()).map(Path::to_owned)
}

/// A model of some use takes more.
const LITTLE_SPACE: u64 = 1_000_000_000;
