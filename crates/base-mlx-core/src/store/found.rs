use std::fmt;
use std::io;
use std::path::PathBuf;

use super::folders;

/// A model on disk, as it was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDir {
    /// What the user calls it, and the API's id of it.
    pub name: String,
    /// A folder with a config.json, or a GGUF file, whatever that is called: of several parts the first.
    pub path: PathBuf,
    /// The same without links: what all names of one model have in common.
    pub real: PathBuf,
    pub bytes: u64,
    pub source: Source,
    pub extras: Extras,
}

impl ModelDir {
    pub(super) fn new(name: &str, path: PathBuf, source: Source) -> Self {
        let (real, bytes) = (folders::real(&path), folders::bytes(&path));
        Self { name: name.to_owned(), path, real, bytes, source, extras: Extras::default() }
    }
}

/// Everything on disk that is, or was to be, a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// In the order of names, each of which means that very model.
    pub models: Vec<Entry>,
    pub nameless: Vec<Nameless>,
    pub unusable: Vec<Unusable>,
}

/// A model that can be asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub name: String,
    /// Other names that `Store::find` knows it by.
    pub aliases: Vec<String>,
    pub path: PathBuf,
    /// The same without links.
    pub real: PathBuf,
    pub bytes: u64,
    pub source: Source,
    pub extras: Extras,
}

impl From<Entry> for ModelDir {
    fn from(entry: Entry) -> Self {
        let Entry { name, aliases: _, path, real, bytes, source, extras } = entry;
        Self { name, path, real, bytes, source, extras }
    }
}

/// A whole model that no name means, so that only its path does.
#[derive(Clone, Debug, PartialEq)]
pub struct Nameless {
    /// Under the name that it would have.
    pub entry: Entry,
    /// What the name means instead: half a sentence, for people of this machine.
    pub why: String,
}

/// What would be a model if it were whole, or in a form that is read here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    pub name: String,
    pub path: PathBuf,
    pub source: Source,
    pub fault: Fault,
}

/// Why files are of no use as a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Half a sentence.
    pub why: String,
    /// Whether they are whole, and only of a kind that is not read here.
    pub is_foreign: bool,
}

impl Fault {
    pub fn broken(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_foreign: false }
    }

    pub fn foreign(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_foreign: true }
    }
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self::broken(why)
    }
}

impl From<&str> for Fault {
    fn from(why: &str) -> Self {
        Self::broken(why)
    }
}

/// A folder in which models are looked for.
#[derive(Debug)]
pub struct Folder {
    pub source: Source,
    pub path: PathBuf,
    /// The variable or the setting that names it, if it is not the usual one.
    pub named_by: Option<&'static str>,
    /// Why it cannot be read.
    pub trouble: Option<io::Error>,
}

/// What a tool keeps beside a model about how it is to be used: of Ollama's Modelfile what concerns us.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extras {
    /// The system message of conversations that have none.
    pub system: Option<String>,
    pub parameters: Parameters,
    pub template: OwnTemplate,
}

/// Whether the tool has a chat template of its own for the model, beside that in the model's file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnTemplate {
    #[default]
    Absent,
    /// In the language of Go's templates, which is not read here.
    Go,
}

/// Values for requests that leave them open, as the tool has them: nobody has looked whether they are in range.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    pub temperature: Option<f64>,
    pub top_k: Option<i64>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    pub repeat_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub seed: Option<i64>,
    /// Most tokens of an answer; less than 1 is no limit.
    pub num_predict: Option<i64>,
    pub stop: Vec<String>,
}

/// Where a model lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    ModelsDir,
    /// Our own cache, out of a pip package.
    Pip,
    HubCache,
    LmStudio,
    LlamaCpp,
    Ollama,
    /// Wherever the user said.
    Path,
}

impl Source {
    /// Whose it is, if a pull did not bring it here.
    pub fn owner(self) -> Option<&'static str> {
        match self {
            Self::Pip | Self::HubCache => None,
            Self::ModelsDir => Some("the models folder"),
            Self::LmStudio => Some("LM Studio"),
            Self::LlamaCpp => Some("llama.cpp"),
            Self::Ollama => Some("Ollama"),
            Self::Path => Some("you, as a path was given"),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ModelsDir => "models folder",
            Self::Pip => "pip package",
            Self::HubCache => "Hugging Face cache",
            Self::LmStudio => "LM Studio",
            Self::LlamaCpp => "llama.cpp",
            Self::Ollama => "Ollama",
            Self::Path => "path",
        })
    }
}
