use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::entry::{Entry, Storage};
use super::mapping::Mapping;
use super::quantization::{Affine, Quantization};
use super::{Config, LoadError, Loader, folder, gguf};
use crate::backend::{Backend, Pool};
use crate::tensor::{Dtype, HostArray, HostWeight};

/// An opened checkpoint: its config, and its tensors under the names and shapes of the Hugging Face layout. The files
/// are mapped, not read; clones share them.
#[derive(Clone)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    config: Config,
    metadata: Option<gguf::Metadata>,
    quantization: Quantization,
    tensors: Vec<Stored>,
    /// Places in `tensors`.
    by_name: HashMap<String, usize>,
}

/// One tensor in a mapped file.
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) path: Arc<Path>,
    pub(super) storage: Storage,
    pub(super) shape: Vec<usize>,
    /// Of the file.
    bytes: Range<usize>,
    pub(super) data: Bytes,
    mapping: Mapping,
    /// The rows of each of this many heads are in the order 0, half, 1, half + 1, … and have to be put back.
    pub(super) interleaved_heads: Option<usize>,
}

/// What there is to know of a tensor without reading it.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    /// `BF16`, `Q4_K`, `affine 4-bit, group 64`.
    pub kind: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: usize,
}

impl Checkpoint {
    /// Opens a folder (config.json and safetensors, one file or shards) or a `.gguf` file. Reads headers only, and
    /// checks all that can be checked without touching tensor data.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let (config, metadata, tensors) = if path.is_dir() {
            let (config, tensors) = folder::open(path)?;
            (config, None, tensors)
        } else {
            let (config, metadata, tensors) = gguf::open(path)?;
            (config, Some(metadata), tensors)
        };
        let quantization = match metadata {
            None => Quantization::read(&config)?,
            Some(_) => Quantization::default(),
        };
        let by_name = index(&tensors)?;
        let path = path.to_owned();
        let inner = Inner { path, config, metadata, quantization, tensors, by_name };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The metadata of a GGUF file, which holds the tokenizer too.
    pub fn gguf(&self) -> Option<&gguf::Metadata> {
        self.inner.metadata.as_ref()
    }

    /// All tensors in the files' order; a quantised weight's three are one.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo> {
        self.inner.tensors.iter().filter_map(|stored| self.info(stored))
    }

    pub fn loader<B: Backend>(&self, backend: &B) -> Loader<B> {
        Loader::new(self.clone(), backend.clone())
    }

    /// A tensor's values as f32. `None` if there is no such tensor.
    pub fn values(&self, name: &str) -> Result<Option<Vec<f32>>, LoadError> {
        let Some(stored) = self.find(name) else { return Ok(None) };
        match stored.storage {
            Storage::Plain(Dtype::F32 | Dtype::F16 | Dtype::BF16) => {
                Ok(Some(stored.array()?.to_f32()))
            }
            Storage::Blocks(format) if stored.interleaved_heads.is_none() => {
                Ok(Some(gguf::dequantize(format, &stored.data)))
            }
            _ => Err(stored.unsupported()),
        }
    }

    /// The matrix `name` + `.weight`, dense or quantised, whose shape must be `[out, in]`. Block formats are brought
    /// into affine form here, by `pool`.
    pub fn weight(
        &self,
        pool: &Pool,
        name: &str,
        out_in: [usize; 2],
    ) -> Result<HostWeight, LoadError> {
        let weight = self.require(&format!("{name}.weight"))?;
        if self.find(&format!("{name}.scales")).is_some() {
            return self.affine(name, weight, out_in);
        }
        weight.check_shape(&out_in, "")?;
        match weight.storage {
            Storage::Plain(Dtype::F32 | Dtype::F16 | Dtype::BF16) => {
                Ok(HostWeight::Dense(weight.array()?))
            }
            // Packed values without the scales that give them meaning.
            Storage::Plain(Dtype::U32) => Err(self.missing(&format!("{name}.scales"))),
            Storage::Blocks(format) => {
                let blocks = gguf::Blocks { format, data: &weight.data };
                Ok(gguf::repack(pool, blocks, out_in, |row| weight.source_row(row)))
            }
            _ => Err(weight.unsupported()),
        }
    }

    fn affine(
        &self,
        name: &str,
        weight: &Stored,
        [rows, columns]: [usize; 2],
    ) -> Result<HostWeight, LoadError> {
        let Some(Affine { bits, group_size }) = self.inner.quantization.of(name) else {
            let what = format!("says that `{name}` is not quantised, but it has scales");
            return Err(self.config().error("quantization", &what));
        };
        let hint = format!(
            "\nhint: `quantization` in config.json says {bits} bits in groups of {group_size} for a matrix of \
             [{rows}, {columns}]"
        );
        let scales = self.require(&format!("{name}.scales"))?;
        let biases = self.require(&format!("{name}.biases"))?;
        if columns % group_size != 0 {
            let what = format!(
                "has groups of {group_size}, which do not divide the {columns} columns of `{name}`"
            );
            return Err(self.config().error("quantization", &what));
        }
        scales.check_shape(&[rows, columns / group_size], &hint)?;
        biases.check_shape(&[rows, columns / group_size], &hint)?;
        // The scales have shown that `columns` is a size that the file really has.
        weight.check_shape(&[rows, columns * bits as usize / 32], &hint)?;
        weight.check_storage(&[Dtype::U32])?;
        scales.check_storage(&[Dtype::F32, Dtype::F16, Dtype::BF16])?;
        let Storage::Plain(width) = scales.storage else { return Err(scales.unsupported()) };
        biases.check_storage(&[width])?;
        Ok(HostWeight::Affine {
            packed: weight.array()?,
            scales: scales.array()?,
            biases: biases.array()?,
            bits,
            group_size,
        })
    }

    /// The float type that the checkpoint's model computes in: that of its embedding. F16 for GGUF's blocks, whose scales
    /// are.
    pub fn dtype(&self) -> Dtype {
        let of_tokens = |part: &str| {
            let ends = ["embed_tokens", "word_embeddings"].map(|table| format!("{table}.{part}"));
            let tokens = |stored: &&Stored| ends.iter().any(|end| stored.name.ends_with(end));
            self.stored().iter().find(tokens)
        };
        match of_tokens("scales").or_else(|| of_tokens("weight")).map(|stored| stored.storage) {
            Some(Storage::Plain(dtype @ (Dtype::F32 | Dtype::F16 | Dtype::BF16))) => dtype,
            Some(Storage::Blocks(_)) => Dtype::F16,
            _ => Dtype::F32,
        }
    }

    /// `None` for the scales and biases of a quantised weight, which speaks for them.
    fn info(&self, stored: &Stored) -> Option<TensorInfo> {
        let parts = |stem: &str| {
            let part = |kind: &str| self.find(&format!("{stem}.{kind}"));
            Some((part("weight")?, part("scales")?, part("biases")?))
        };
        let (stem, kind) = stored.name.rsplit_once('.').unwrap_or_default();
        let mut info = TensorInfo {
            name: stored.name.clone(),
            kind: stored.storage.name(),
            shape: stored.shape.clone(),
            bytes: stored.data.len(),
        };
        if let (Some((weight, scales, biases)), Some(Affine { bits, group_size })) =
            (parts(stem), self.inner.quantization.of(stem))
        {
            match (kind, &mut info.shape[..]) {
                ("scales" | "biases", _) => return None,
                ("weight", [_, columns]) => {
                    *columns = *columns * 32 / bits as usize;
                    info.kind = format!("affine {bits}-bit, group {group_size}");
                    info.bytes = weight.data.len() + scales.data.len() + biases.data.len();
                }
                _ => {}
            }
        }
        Some(info)
    }

    pub(super) fn stored(&self) -> &[Stored] {
        &self.inner.tensors
    }

    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.inner.by_name.get(name).copied()
    }

    pub(super) fn find(&self, name: &str) -> Option<&Stored> {
        self.position(name).map(|position| &self.inner.tensors[position])
    }

    pub(super) fn require(&self, name: &str) -> Result<&Stored, LoadError> {
        self.find(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> LoadError {
        LoadError::MissingTensor { path: self.inner.path.clone(), tensor: name.to_owned() }
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Checkpoint({}, {} tensors)", self.path().display(), self.stored().len())
    }
}

fn index(tensors: &[Stored]) -> Result<HashMap<String, usize>, LoadError> {
    let mut by_name = HashMap::with_capacity(tensors.len());
    for (position, tensor) in tensors.iter().enumerate() {
        match by_name.entry(tensor.name.clone()) {
            Slot::Vacant(slot) => slot.insert(position),
            Slot::Occupied(slot) => {
                let first: &Stored = &tensors[*slot.get()];
                // Files of one checkpoint lie side by side.
                let file = first.path.file_name().unwrap_or_default().to_string_lossy();
                let what = format!("tensor `{}` is there twice, first in {file}", tensor.name);
                return Err(LoadError::Damaged { path: tensor.path.to_path_buf(), what });
            }
        };
    }
    Ok(by_name)
}

impl Stored {
    pub(super) fn new(path: &Path, file: &Mapping, entry: &Entry) -> Self {
        Self {
            name: entry.name.clone(),
            path: path.into(),
            storage: entry.storage,
            shape: entry.shape.clone(),
            bytes: entry.data.clone(),
            data: file.piece(entry.data.clone()),
            mapping: file.clone(),
            interleaved_heads: None,
        }
    }

    /// Gives the memory of its pages back; they are there again when they are read.
    pub(super) fn release(&self) {
        self.mapping.release(self.bytes.clone());
    }

    pub(super) fn check_shape(&self, expected: &[usize], hint: &str) -> Result<(), LoadError> {
        if self.shape == expected {
            return Ok(());
        }
        Err(LoadError::WrongShape {
            path: self.path.to_path_buf(),
            tensor: self.name.clone(),
            found: self.shape.clone(),
            expected: expected.to_vec(),
            hint: hint.to_owned(),
        })
    }

    fn check_storage(&self, expected: &[Dtype]) -> Result<(), LoadError> {
        if expected.iter().any(|&dtype| self.storage == Storage::Plain(dtype)) {
            return Ok(());
        }
        let names: Vec<_> = expected.iter().map(Dtype::to_string).collect();
        Err(LoadError::Damaged {
            path: self.path.to_path_buf(),
            what: format!(
                "tensor `{}` has type {}, expected {}",
                self.name,
                self.storage.name(),
                names.join(" or ")
            ),
        })
    }

    fn unsupported(&self) -> LoadError {
        LoadError::Unsupported {
            path: self.path.to_path_buf(),
            what: format!("tensor `{}` of type {}", self.name, self.storage.name()),
            hint: "supported are F32, F16, BF16, MLX's affine groups and GGUF's blocks".into(),
        }
    }

    /// A plain tensor, its rows in the order of the Hugging Face layout.
    fn array(&self) -> Result<HostArray, LoadError> {
        let Storage::Plain(dtype) = self.storage else { return Err(self.unsupported()) };
        let data = match self.interleaved_heads {
            None => self.data.clone(),
            Some(_) => {
                let rows = self.shape[0];
                let row_bytes = self.data.len() / rows;
                let mut data = Vec::with_capacity(self.data.len());
                for row in 0..rows {
                    let start = self.source_row(row) * row_bytes;
                    data.extend_from_slice(&self.data[start..start + row_bytes]);
                }
                data.into()
            }
        };
        Ok(HostArray { dtype, shape: self.shape.clone(), data })
    }

    /// Where in the file the row lies that is `row` in the Hugging Face layout.
    fn source_row(&self, row: usize) -> usize {
        let Some(heads) = self.interleaved_heads else { return row };
        let head_dim = self.shape[0] / heads;
        let (head, place) = (row / head_dim, row % head_dim);
        let (half, pair) = (place / (head_dim / 2), place % (head_dim / 2));
        head * head_dim + 2 * pair + half
    }
}
