use std::path::{Path, PathBuf};

use crate::backend::DeviceError;

/// Why a model could not be loaded. Messages name the file, the tensor and both numbers.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// The file is not what it says it is: cut off, lying about sizes, hostile.
    #[error("{path} is damaged: {what}")]
    Damaged { path: PathBuf, what: String },
    /// A sound file of a kind that is not supported.
    #[error("{path}: {what} is not supported\nhint: {hint}")]
    Unsupported { path: PathBuf, what: String, hint: String },
    #[error("`{key}` in {path} {what}")]
    Config { path: PathBuf, key: String, what: String },
    #[error("{path} has no tensor `{tensor}`")]
    MissingTensor { path: PathBuf, tensor: String },
    #[error("tensor `{tensor}` in {path} has shape {found:?}, expected {expected:?}{hint}")]
    WrongShape {
        path: PathBuf,
        tensor: String,
        found: Vec<usize>,
        expected: Vec<usize>,
        /// Empty, or a line break, `hint: ` and a sentence.
        hint: String,
    },
    /// A tensor that no part of the family read: the family does not fit the checkpoint.
    #[error(
        "{path} has {count} tensors that family `{family}` does not use, the first is `{first}`"
    )]
    UnreadTensors { path: PathBuf, family: String, count: usize, first: String },
    #[error("{path}: family `{family}` is not supported\nhint: supported are {supported}")]
    UnknownFamily { path: PathBuf, family: String, supported: String },
    #[error("{path}: {is}")]
    WrongPurpose { path: PathBuf, is: &'static str },
    #[error("{path}: the tokenizer cannot be read: {what}")]
    Tokenizer { path: PathBuf, what: String },
    #[error("{path}: the chat template cannot be read: {what}")]
    Template { path: PathBuf, what: String },
    #[error("there is no tool format {name:?}\nhint: there are {known}")]
    ToolFormat { name: String, known: String },
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// Models may have more, but the system has not got it.
    #[error(
        "it needs {} of memory, and the system has {} left\nhint: end other programs, or unload another model",
        mib(*.needed), mib(*.free)
    )]
    ShortOfMemory { needed: usize, free: usize },
}

/// There is no room for a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it needs {} of memory, and of the {} that models may have {} are free\nhint: {}",
    mib(*.needed), mib(*.ceiling), mib(*.free), self.hint()
)]
pub struct NoRoom {
    /// Bytes: weights, what a step needs, and the keys and values of a short conversation.
    pub needed: usize,
    /// Bytes that models on this device may have in all.
    pub ceiling: usize,
    /// Bytes of these that no other model has.
    pub free: usize,
}

impl NoRoom {
    /// Whether it would fit if no other model were there.
    pub fn could_fit(&self) -> bool {
        self.needed <= self.ceiling
    }

    fn hint(&self) -> &'static str {
        if self.could_fit() {
            "unload another model"
        } else {
            "raise the ceiling, or shorten the context"
        }
    }
}

fn mib(bytes: usize) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

impl LoadError {
    /// The file or folder that is at fault, as the message has it; other files the message calls by their name alone.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. }
            | Self::Damaged { path, .. }
            | Self::Unsupported { path, .. }
            | Self::Config { path, .. }
            | Self::MissingTensor { path, .. }
            | Self::WrongShape { path, .. }
            | Self::UnreadTensors { path, .. }
            | Self::UnknownFamily { path, .. }
            | Self::WrongPurpose { path, .. }
            | Self::Tokenizer { path, .. }
            | Self::Template { path, .. } => Some(path),
            Self::ToolFormat { .. }
            | Self::Device(_)
            | Self::NoRoom(_)
            | Self::ShortOfMemory { .. } => None,
        }
    }
}
