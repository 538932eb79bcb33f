use std::ops::Range;
use std::path::Path;

use super::LoadError;
use super::gguf::Format;
use crate::tensor::Dtype;

/// What a file's header says of one tensor. The parsers promise that `data` lies inside the file, overlaps no other
/// tensor, and is exactly as long as `storage` and `shape` demand.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub name: String,
    pub storage: Storage,
    /// Outermost first; no dimension is zero.
    pub shape: Vec<usize>,
    pub data: Range<usize>,
}

/// How a tensor's values lie in its file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Storage {
    Plain(Dtype),
    /// GGUF blocks of quantised values.
    Blocks(&'static Format),
    /// A type whose size is known and which nothing here computes with: 64-bit integers, 8-bit floats, …
    Other(&'static str),
}

impl Storage {
    pub fn name(&self) -> String {
        match self {
            Self::Plain(dtype) => dtype.to_string(),
            Self::Blocks(format) => format.name.to_owned(),
            Self::Other(name) => (*name).to_owned(),
        }
    }
}

/// Why the bytes of a file cannot be read; becomes a [`LoadError`] once the file's name is known.
#[derive(Clone, Debug, PartialEq)]
pub enum ParseError {
    Damaged(String),
    Unsupported { what: String, hint: String },
}

impl ParseError {
    pub fn at(self, path: &Path) -> LoadError {
        let path = path.to_owned();
        match self {
            Self::Damaged(what) => LoadError::Damaged { path, what },
            Self::Unsupported { what, hint } => LoadError::Unsupported { path, what, hint },
        }
    }
}

pub(super) fn damaged<T>(what: String) -> Result<T, ParseError> {
    Err(ParseError::Damaged(what))
}

/// The product of the dimensions, unless it does not fit or is zero.
pub(super) fn count_elements(name: &str, shape: &[usize]) -> Result<usize, ParseError> {
    let elements = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
    match elements {
        Some(0) => damaged(format!("tensor `{name}` of shape {shape:?} has no elements")),
        Some(elements) => Ok(elements),
        None => damaged(format!("tensor `{name}` of shape {shape:?} has more than 2^64 elements")),
    }
}

/// Two tensors that share bytes are a forgery or a mistake; both are named.
pub(super) fn check_overlaps(entries: &[Entry]) -> Result<(), ParseError> {
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_by_key(|entry| entry.data.start);
    for pair in order.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if first.data.end > second.data.start {
            return damaged(format!(
                "tensor `{}` begins at byte {}, inside tensor `{}`, which ends at byte {}",
                second.name, second.data.start, first.name, first.data.end
            ));
        }
    }
    Ok(())
}
