use std::fmt;
use std::path::PathBuf;

use super::folders;

/// A model on disk, as it was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDir {
    /// What the user calls it, and the API's id of it.
    pub name: String,
    /// A folder with a config.json, or a GGUF file, whatever that is called.
    pub path: PathBuf,
    pub bytes: u64,
    pub source: Source,
    pub extras: Extras,
}

impl ModelDir {
    pub(super) fn new(name: &str, path: PathBuf, source: Source) -> Self {
        let bytes = folders::bytes(&path);
        Self { name: name.to_owned(), path, bytes, source, extras: Extras::default() }
    }
}

/// Everything on disk that is, or was to be, a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// In the order of names; of several with one name the one that it means.
    pub models: Vec<Entry>,
    pub unusable: Vec<Unusable>,
}

/// A model that can be asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub name: String,
    /// Other names that `Store::find` knows it by.
    pub aliases: Vec<String>,
    pub path: PathBuf,
    pub bytes: u64,
    pub source: Source,
    pub extras: Extras,
}

/// What would be a model if it were whole, or in a form that is read here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    pub name: String,
    pub path: PathBuf,
    pub source: Source,
    /// Half a sentence.
    pub why: String,
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
