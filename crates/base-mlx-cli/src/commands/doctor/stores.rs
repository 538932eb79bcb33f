use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use base_mlx_core::models::family;
use base_mlx_core::store::{Bytes, Folder, Nameless, Source, Store, Survey, Unusable};
use base_mlx_core::weights::Checkpoint;

use super::Report;
use crate::models::{self, Unread};

/// Each tool's folder, and what is in it.
pub(super) fn look(store: &Store, report: &mut Report) {
    let survey = store.survey(|entry| {
        let read = Checkpoint::open(&entry.path);
        let read = read.and_then(|checkpoint| family(&checkpoint).map(|_| ()));
        read.map_err(|error| models::fault(&error))
    });
    for folder in store.folders() {
        look_at(&folder, &survey, report);
    }
    if survey.models.is_empty() && survey.nameless.is_empty() {
        report.note("there is no model; `base-mlx serve` and `base-mlx pull smollm2` fetch one");
    }
}

fn look_at(folder: &Folder, survey: &Survey, report: &mut Report) {
    let source = folder.source;
    let is_absent = folder.trouble.as_ref().is_some_and(|it| it.kind() == ErrorKind::NotFound);
    match Unread::of(folder) {
        None => {}
        // The tool that a variable is for may not have begun yet.
        Some(unread) if unread.is_usual || is_absent => return report.note(unread.told),
        Some(unread) => {
            let hint =
                format!("{LET_READ}, or let its variable name another folder (docs/models.md)");
            return report.wrong(unread.told, hint);
        }
    }
    let here = |path: &Path, of: Source| of == source && path.starts_with(&folder.path);
    let nameless = survey.nameless.iter().map(|one| &one.entry);
    let models = survey.models.iter().chain(nameless);
    let models = models.filter(|entry| here(&entry.path, entry.source));
    let sizes: Vec<u64> = models.map(|entry| entry.bytes).collect();
    let mut count = match sizes.len() {
        0 => "no model".to_owned(),
        1 => format!("1 model, {}", Bytes(sizes.iter().sum())),
        count => format!("{count} models, {}", Bytes(sizes.iter().sum())),
    };
    let unusable = survey.unusable.iter().filter(|one| here(&one.path, one.source));
    let (foreign, broken): (Vec<_>, Vec<_>) = unusable.partition(|one| one.fault.is_foreign);
    if !foreign.is_empty() {
        count += &format!("; of kinds that are not read: {}", foreign.len());
    }
    report.ok(format!("{source}: {}: {count}", folder.path.display()));
    for Nameless { entry, why } in survey.nameless.iter() {
        if here(&entry.path, entry.source) {
            report.note(format!("only its path can be asked for: {}\n{why}", entry.path.display()));
        }
    }
    for Unusable { name, path, fault, .. } in foreign {
        report.note(format!("`{name}` is whole, but not read: {}\n{}", fault.why, path.display()));
    }
    for Unusable { name, path, fault, .. } in broken {
        let is_hidden = path.is_dir() && fs::read_dir(path).is_err();
        let hint = if is_hidden { LET_READ.to_owned() } else { mend(name, source) };
        let told = format!("`{name}` cannot be used: {}\n{}", fault.why, path.display());
        report.wrong(told, hint);
    }
}

fn mend(name: &str, source: Source) -> String {
    match source {
        // The hub's oldest repositories have no owner, and no name that a pull takes.
        Source::HubCache if !name.contains('/') => {
            format!("`base-mlx rm {name}` clears it away")
        }
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
        if let Err(error) = try_to_write(folder) {
            let hint = "make it writable, or choose another place with HF_HOME or BASE_MLX_HOME";
            report.wrong(format!("nothing can be written to {shown}: {error}"), hint);
        }
    }
}

/// Makes a file in the folder, or in what there is of the way to it, and takes it away again: rights alone do not tell
/// of everything.
fn try_to_write(folder: &Path) -> io::Result<()> {
    let mut way = folder.ancestors();
    let there = way.find(|folder| folder.symlink_metadata().is_ok()).unwrap_or(Path::new("."));
    let trial = there.join(format!(".base-mlx-doctor-{}", std::process::id()));
    File::options().write(true).create_new(true).open(&trial)?;
    fs::remove_file(trial)
}

fn first_that_is_there(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find(|folder| folder.is_dir()).map(Path::to_owned)
}

const LET_READ: &str = "give this user the right to read it";
/// A model of some use takes more.
const LITTLE_SPACE: u64 = 1_000_000_000;
