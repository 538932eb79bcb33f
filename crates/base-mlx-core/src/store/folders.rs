//! What is a model on disk, and what the models in a folder are called. Reads names and sizes, and of files only
//! the index of a sharded checkpoint and the first bytes of a GGUF file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::name::is_relative;
use super::places::{Found, Look};
use super::{Bytes, Fault};

/// How much must be there for a folder to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// A config.json: its owner says it is a model, and loading it says what is wrong.
    Config,
    /// All weights and a tokenizer, too: another tool may be in the midst of writing it.
    Complete,
}

/// What is in a folder that is laid out by hand: `x.gguf` and `x/config.json` are `x`, `owner/x.gguf` and
/// `owner/x/config.json` are `owner/x`, GGUF files in `owner/x/` are `owner/x` or `owner/x:TAG`.
pub(super) fn look(root: &Path, demand: Demand) -> Look {
    let mut look = Look::default();
    for (name, path) in children(root) {
        if look_at("", &name, &path, demand, &mut look) == Seen::Folder {
            let owner = format!("{name}/");
            for (name, path) in look.children(&name, &path) {
                if look_at(&owner, &name, &path, demand, &mut look) == Seen::Folder {
                    let name = format!("{owner}{name}");
                    if !look.children(&name, &path).is_empty() {
                        look.extend(ggufs_named(&name, &path));
                    }
                }
            }
        }
    }
    look
}

#[derive(PartialEq, Eq)]
enum Seen {
    /// Something to look into.
    Folder,
    Settled,
}

/// Adds what lies at `path`, which is called `name`. `owner` is empty, or ends with a slash.
fn look_at(owner: &str, name: &str, path: &Path, demand: Demand, look: &mut Look) -> Seen {
    match gguf_at(name, path) {
        Some(Gguf::Whole(stem)) => look.model(format!("{owner}{stem}"), path.to_owned()),
        Some(Gguf::Broken(stem, why)) => {
            look.broken(format!("{owner}{stem}"), path.to_owned(), why)
        }
        None if is_dangling(path) => {
            look.broken(format!("{owner}{name}"), path.to_owned(), DANGLING)
        }
        None if path.is_file() => {}
        None if !has_config(path) => return Seen::Folder,
        None => match lacks(path).filter(|_| demand == Demand::Complete) {
            None => look.model(format!("{owner}{name}"), path.to_owned()),
            // It is about the GGUF files beside it.
            Some(_) if !ggufs_in(path).is_empty() => return Seen::Folder,
            Some(fault) => look.broken(format!("{owner}{name}"), path.to_owned(), fault),
        },
    }
    Seen::Settled
}

/// What a file is, or was to be, by its name without `.gguf` and without the number of a part.
pub(super) enum Gguf<'a> {
    Whole(&'a str),
    Broken(&'a str, String),
}

/// `None` if it is no model: a folder, something else, a vision projector, a later part of a split model.
pub(super) fn gguf_at<'a>(name: &'a str, path: &Path) -> Option<Gguf<'a>> {
    if let Some(file) = unfinished(name) {
        let stem = gguf_stem(file).filter(|stem| !is_projector(stem) && path.is_file())?;
        let goes_on = match Part::of(stem) {
            Some(part) => part.is_told_by_another(path),
            None => path.with_file_name(file).exists(),
        };
        return (!goes_on).then(|| Gguf::Broken(whole(stem), HALF.to_owned()));
    }
    let stem = gguf_stem(name).filter(|stem| !is_projector(stem) && !path.is_dir())?;
    let why = match Part::of(stem) {
        Some(part) if part.is_told_by_another(path) => return None,
        Some(part) => part.fault(path),
        None => fault_of_file(path),
    };
    match why {
        Some(why) => Some(Gguf::Broken(whole(stem), why)),
        // The first of several parts may have nothing but what is said of all.
        None if Part::of(stem).is_some() => Some(Gguf::Whole(whole(stem))),
        None => has_tensors(path).then_some(Gguf::Whole(stem)),
    }
}

/// What keeps a file that has a name of its own from being whole, as far as is to be seen from outside.
fn fault_of_file(path: &Path) -> Option<String> {
    if is_dangling(path) {
        Some(DANGLING.to_owned())
    } else if !path.is_file() {
        Some("it is neither a file nor a folder".to_owned())
    } else if with_end(path, ".aria2").exists() {
        // A download that fills a file of the full size says so beside it.
        Some(HALF.to_owned())
    } else {
        None
    }
}

/// One of the files that a model is split into, as its name has it: `x-00002-of-00003`.
#[derive(Clone, Copy)]
struct Part<'a> {
    whole: &'a str,
    number: usize,
    count: usize,
}

impl<'a> Part<'a> {
    fn of(stem: &'a str) -> Option<Self> {
        let number = |text: &str| {
            let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (whole, own) = rest.rsplit_once('-')?;
        let (number, count) = (number(own)?, number(count)?);
        (1..=count).contains(&number).then_some(Self { whole, number, count })
    }

    fn at(path: &'a Path) -> Option<Self> {
        gguf_stem(path.file_name()?.to_str()?).and_then(Part::of).filter(|_| !path.is_dir())
    }

    /// Where all parts lie if this one lies at `path`.
    fn all(self, path: &Path) -> impl Iterator<Item = PathBuf> {
        let end = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        (1..=self.count).map(move |number| {
            path.with_file_name(format!("{}-{number:05}-of-{:05}.{end}", self.whole, self.count))
        })
    }

    /// Of those that are there or on their way, the first stands for all.
    fn is_told_by_another(self, path: &Path) -> bool {
        let beside = path.parent().map(children).unwrap_or_default();
        beside.iter().any(|(name, other)| {
            let file = unfinished(name).unwrap_or(name);
            let earlier = gguf_stem(file).and_then(Part::of).is_some_and(|other| {
                (other.whole, other.count) == (self.whole, self.count) && other.number < self.number
            });
            // A second download of a part that is there.
            let same = other != path && Some(file) == own_name(path) && unfinished(name).is_none();
            earlier || same
        })
    }

    fn fault(self, path: &Path) -> Option<String> {
        self.all(path).zip(1..).find_map(|(path, number)| {
            let there = path.exists() || path.is_symlink();
            let missing = || match is_coming(&path) {
                true => HALF.to_owned(),
                false => format!("its part {number} of {} is missing", self.count),
            };
            if there { fault_of_file(&path) } else { Some(missing()) }
        })
    }
}

/// The name of the file at `path`, or that of the one which a download there will become.
fn own_name(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    Some(unfinished(name).unwrap_or(name))
}

/// The name of a whole file, or of the model that a part is of.
fn whole(stem: &str) -> &str {
    Part::of(stem).map_or(stem, |part| part.whole)
}

/// The files of a GGUF model: itself, or of one in several parts all of them, there or not.
pub(super) fn files_of(path: &Path) -> Vec<PathBuf> {
    match Part::at(path) {
        Some(part) => part.all(path).collect(),
        None => vec![path.to_owned()],
    }
}

/// A model's path without links. Parts of one model are found beside each other by their names, so the links of these
/// stay.
pub(super) fn real(path: &Path) -> PathBuf {
    let real = match (Part::at(path), path.parent(), path.file_name()) {
        (Some(_), Some(folder), Some(name)) => {
            folder.canonicalize().map(|folder| folder.join(name))
        }
        _ => path.canonicalize(),
    };
    real.unwrap_or_else(|_| path.to_owned())
}

pub(super) fn is_model_folder(path: &Path, demand: Demand) -> bool {
    has_config(path) && (demand == Demand::Config || lacks(path).is_none())
}

pub(super) fn has_config(path: &Path) -> bool {
    path.join("config.json").is_file()
}

/// What keeps a folder with a config.json from being a whole model: the first thing.
pub(super) fn lacks(path: &Path) -> Option<Fault> {
    lacks_weights(path).or_else(|| {
        let tokenizer = TOKENIZERS.iter().any(|file| path.join(file).is_file());
        (!tokenizer).then(|| "it has no tokenizer".into())
    })
}

fn lacks_weights(path: &Path) -> Option<Fault> {
    let weights = match shards(&path.join(INDEX)) {
        Some(shards) => shards,
        None if path.join(INDEX).exists() => {
            return Some(format!("its {INDEX} names no files that could be read").into());
        }
        None => children(path)
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| name.ends_with(".safetensors"))
            .collect(),
    };
    let missing: Vec<_> = weights.iter().filter(|file| !path.join(file).is_file()).collect();
    if let Some(file) = missing.first() {
        let what = match path.join(file) {
            link if is_dangling(&link) => "is a link to a file that is not there",
            file if is_coming(&file) => "is only half there",
            _ => "is missing",
        };
        let more = missing.len() - 1;
        let more = if more > 0 { format!(", and so are {more} more") } else { String::new() };
        return Some(format!("its `{file}` {what}{more}").into());
    }
    if !weights.is_empty() {
        return None;
    }
    let downloads = |(name, path): &(String, PathBuf)| {
        name.contains(".safetensors") && unfinished(name).is_some() && path.is_file()
    };
    let others = |(name, _): &(String, PathBuf)| {
        [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end))
    };
    Some(match children(path) {
        files if files.iter().any(downloads) => HALF.into(),
        files if files.iter().any(others) => {
            Fault::foreign("its weights are not safetensors, which alone are read")
        }
        _ => "it has no weights".into(),
    })
}

/// A link to nothing.
pub(super) fn is_dangling(path: &Path) -> bool {
    path.is_symlink() && !path.exists()
}

/// The file that a download with this name will become.
pub(super) fn unfinished(name: &str) -> Option<&str> {
    let file = ENDS_OF_HALVES.iter().find_map(|end| name.strip_suffix(end))?;
    Some(file.strip_prefix("downloading_").unwrap_or(file))
}

/// Whether a download to this file has left something.
fn is_coming(path: &Path) -> bool {
    let beside = path.parent().map(children).unwrap_or_default();
    let name = path.file_name().and_then(|name| name.to_str());
    beside.iter().any(|(other, _)| unfinished(other).is_some() && unfinished(other) == name)
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(end);
    path.into()
}

/// The weight files that a `model.safetensors.index.json` names, or `None` if it is not there or not one.
pub(super) fn shards(index: &Path) -> Option<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    const MAX_BYTES: u64 = 64 << 20;
    let index: Index = serde_json::from_slice(&read_small(index, MAX_BYTES).ok()?).ok()?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    (!shards.is_empty() && shards.iter().all(|shard| is_relative(shard))).then_some(shards)
}

/// The GGUF files of a folder as `base`, if there is one, or `base:TAG`.
fn ggufs_named(base: &str, folder: &Path) -> Look {
    let mut look = tagged_ggufs(base, folder);
    match (look.models.as_mut_slice(), look.broken.as_mut_slice()) {
        ([model], _) => {
            let tagged = std::mem::replace(&mut model.name, base.to_owned());
            model.aliases.push(tagged);
        }
        ([], [broken]) => base.clone_into(&mut broken.name),
        _ => {}
    }
    look
}

/// The GGUF files of a folder as `base:TAG`, or with the whole file's name where a tag is that of two.
pub(super) fn tagged_ggufs(base: &str, folder: &Path) -> Look {
    let mut look = Look::default();
    let whole = ggufs_in(folder);
    for (file, path) in files_in(folder) {
        let name = file.rsplit('/').next().unwrap_or(&file);
        match gguf_at(name, &path) {
            Some(Gguf::Whole(stem)) => {
                let alike =
                    with_tag(whole.iter().map(|(file, _)| file.as_str()), tag(stem)).count();
                let tag = if alike == 1 { tag(stem) } else { name };
                let named = Found::new(format!("{base}:{tag}"), path);
                look.models.push(Found { base: Some(base.to_owned()), ..named });
            }
            Some(Gguf::Broken(stem, why)) => {
                look.broken(format!("{base}:{}", tag(stem)), path, why)
            }
            None => {}
        }
    }
    look
}

/// The GGUF files in a folder and one below it, by their relative paths.
pub(super) fn ggufs_in(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut files = files_in(folder);
    files.retain(|(file, path)| {
        let name = file.rsplit('/').next().unwrap_or(file);
        matches!(gguf_at(name, path), Some(Gguf::Whole(_)))
    });
    files
}

fn files_in(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    for (name, path) in children(folder) {
        if path.is_dir() {
            let inner = children(&path).into_iter();
            files.extend(inner.map(|(inner, path)| (format!("{name}/{inner}"), path)));
        } else {
            files.push((name, path));
        }
    }
    files
}

/// A GGUF file without tensors is a vocabulary. What is not GGUF at all counts, so that loading it says what is wrong.
fn has_tensors(path: &Path) -> bool {
    // The magic, the version, the number of tensors.
    let mut head = [0; 16];
    let read = open(path).and_then(|mut file| file.read_exact(&mut head));
    read.is_err() || !head.starts_with(b"GGUF") || head[8..] != [0; 8]
}

/// Opens a regular file: to open a pipe would wait for its writer, and a device may never end.
pub(super) fn open(path: &Path) -> io::Result<File> {
    match fs::metadata(path)?.is_file() {
        true => File::open(path),
        false => Err(io::Error::other("it is not a file")),
    }
}

/// What a file holds that is to be small. Who has written it is not known.
pub(super) fn read_small(path: &Path, most_bytes: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?.take(most_bytes + 1).read_to_end(&mut content)?;
    match content.len() as u64 > most_bytes {
        true => Err(io::Error::other(format!("it has more than {}", Bytes(most_bytes)))),
        false => Ok(content),
    }
}

/// Whether a file's name is that of a whole model: not of a vision projector, not of a part of a split model.
pub(super) fn is_gguf_model(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    gguf_stem(name).is_some_and(|stem| !is_projector(stem) && Part::of(stem).is_none())
}

fn is_projector(stem: &str) -> bool {
    stem.to_lowercase().starts_with("mmproj")
}

/// What tells a GGUF file from its siblings: `Q4_K_M` of `Qwen3-8B-Q4_K_M.gguf`, or its whole name.
pub(super) fn tag(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    let stem = whole(gguf_stem(name).unwrap_or(name));
    let last = stem.rsplit(['-', '.']).next().unwrap_or(stem);
    let upper = last.to_uppercase();
    let kind = upper.trim_start_matches('I');
    let is_quantisation = kind.starts_with('Q')
        && kind[1..].starts_with(|c: char| c.is_ascii_digit())
        || ["F16", "BF16", "F32", "MXFP4", "TQ1_0", "TQ2_0"].contains(&upper.as_str());
    if is_quantisation { last } else { stem }
}

/// The files that `wanted` means: by tag whatever its case, or by the file's whole name.
pub(super) fn with_tag<'a>(
    files: impl Iterator<Item = &'a str>,
    wanted: &str,
) -> impl Iterator<Item = &'a str> {
    files.filter(move |file| is_tagged(file, wanted))
}

pub(super) fn is_tagged(file: &str, wanted: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    let stem = gguf_stem(name).map(whole);
    name == wanted || stem == Some(wanted) || tag(file).eq_ignore_ascii_case(wanted)
}

fn gguf_stem(name: &str) -> Option<&str> {
    let at = name.len().checked_sub(5).filter(|&at| at > 0 && name.is_char_boundary(at))?;
    name[at..].eq_ignore_ascii_case(".gguf").then(|| &name[..at])
}

/// The sizes of a model's own files.
pub(super) fn bytes(path: &Path) -> u64 {
    files_of(path).iter().map(|file| bytes_at(file)).sum()
}

fn bytes_at(path: &Path) -> u64 {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => children(path)
            .iter()
            .filter_map(|(_, file)| fs::metadata(file).ok())
            .filter(|meta| meta.is_file())
            .map(|meta| meta.len())
            .sum(),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    }
}

/// What a folder holds, in the order of names. Hidden things and names that are not text are left out, and so
/// is everything if the folder cannot be read.
pub(super) fn children(folder: &Path) -> Vec<(String, PathBuf)> {
    try_children(folder).unwrap_or_default()
}

pub(super) fn try_children(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut children: Vec<_> = fs::read_dir(folder)?
        .flatten()
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        // The second is the file system's own, and nobody else may read it.
        .filter(|(name, _)| !name.starts_with('.') && name != "lost+found")
        .collect();
    children.sort();
    Ok(children)
}

pub(super) const TOKENIZERS: [&str; 4] =
    ["tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"];
pub(super) const INDEX: &str = "model.safetensors.index.json";
pub(super) const DANGLING: &str = "it is a link to a file that is not there";
pub(super) const HALF: &str = "its download is not finished";
/// What tools put behind the name of a file that they are still fetching.
const ENDS_OF_HALVES: [&str; 7] =
    [".part", ".partial", ".incomplete", ".downloadInProgress", ".download", ".crdownload", ".tmp"];

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
    }

    #[test]
    fn models_are_called_what_their_files_are_called() {
        let root = tempfile::tempdir().unwrap();
        touch(
            root.path(),
            &[
                "smollm2.gguf",
                "minilm/config.json",
                "notes.txt",
                "me/tiny/config.json",
                "me/other.GGUF",
                "you/one/one-Q4_0.gguf",
                "you/one/mmproj-one-F16.gguf",
                "you/two/two-Q4_0.gguf",
                "you/two/two-Q8_0.gguf",
                "you/split/split-Q8_0-00001-of-00002.gguf",
                ".hidden/config.json",
            ],
        );
        for vocabulary in ["vocab.gguf", "me/vocab.gguf", "you/one/vocab.gguf"] {
            let head = [&b"GGUF"[..], &3_u32.to_le_bytes(), &[0; 8], &[1; 8]].concat();
            fs::write(root.path().join(vocabulary), head).unwrap();
        }
        let names: Vec<_> =
            look(root.path(), Demand::Config).models.into_iter().map(|model| model.name).collect();
        let expected =
            ["me/other", "me/tiny", "minilm", "smollm2", "you/one", "you/two:Q4_0", "you/two:Q8_0"];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_folder_is_complete_when_its_last_shard_is_there() {
        let root = tempfile::tempdir().unwrap();
        let complete = || is_model_folder(root.path(), Demand::Complete);
        touch(root.path(), &["config.json", "model-1.safetensors"]);
        assert!(!complete(), "no tokenizer");
        touch(root.path(), &["tokenizer.json"]);
        assert!(complete());
        fs::write(root.path().join(INDEX), "{\"weight").unwrap();
        assert!(!complete(), "half an index");
        let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
        fs::write(root.path().join(INDEX), index).unwrap();
        assert!(!complete(), "a shard is missing");
        touch(root.path(), &["model-2.safetensors"]);
        assert!(complete());
        fs::write(root.path().join(INDEX), r#"{"weight_map":{"a":"../secret"}}"#).unwrap();
        assert!(!complete(), "an index that leads outside");
    }

    #[test]
    fn a_tag_is_the_quantisation_or_the_whole_name() {
        let cases = [
            ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
            ("sub/SmolLM2-135M-Instruct.q4_1.gguf", "q4_1"),
            ("x-IQ4_NL.gguf", "IQ4_NL"),
            ("x-BF16.gguf", "BF16"),
            ("Qwen.gguf", "Qwen"),
            ("model-Q.gguf", "model-Q"),
        ];
        for (file, expected) in cases {
            assert_eq!(tag(file), expected);
        }
        let files = ["x-Q4_0.gguf", "x-Q8_0.gguf", "x-UD-Q4_0.gguf"];
        assert_eq!(with_tag(files.into_iter(), "q8_0").collect::<Vec<_>>(), ["x-Q8_0.gguf"]);
        let exact = with_tag(files.into_iter(), "x-UD-Q4_0.gguf").collect::<Vec<_>>();
        assert_eq!(exact, ["x-UD-Q4_0.gguf"]);
        assert_eq!(with_tag(files.into_iter(), "Q4").count(), 0);
    }
}
