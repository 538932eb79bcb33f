use super::{Array, Format, Metadata, Value};
use crate::tensor::Dtype;
use crate::weights::entry::{Entry, ParseError, Storage, check_overlaps, count_elements, damaged};

/// The header of a GGUF file.
#[derive(Clone, Debug)]
pub struct Gguf {
    pub version: u32,
    pub metadata: Metadata,
    /// In the file's order and under the file's names.
    pub tensors: Vec<Entry>,
}

/// Reads the header of a whole GGUF file, version 2 or 3, and checks every tensor's place in it. Tensor data is not
/// touched, and the memory used stays within a small multiple of the header's own size.
///
/// The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
pub fn parse(file: &[u8]) -> Result<Gguf, ParseError> {
    let mut reader = Reader { file, at: 0 };
    if reader.bytes::<4>("the magic number")? != *b"GGUF" {
        return Err(ParseError::Unsupported {
            what: "a file that does not begin with `GGUF`".into(),
            hint: "name a .gguf file, or the folder of config.json and safetensors files".into(),
        });
    }
    let version = reader.u32("the version")?;
    check_version(version)?;
    let tensor_count = reader.u64("the number of tensors")?;
    let pair_count = reader.u64("the number of metadata pairs")?;

    reader.count(pair_count, MIN_PAIR_BYTES, "metadata pairs")?;
    let mut metadata = Metadata::default();
    for _ in 0..pair_count {
        let key = reader.string("a metadata key")?;
        let kind = reader.u32(&key)?;
        let value = reader.value(kind, &key)?;
        if key.is_empty() || metadata.get(&key).is_some() {
            return damaged(format!("metadata key `{key}` is empty or there twice"));
        }
        metadata.insert(key, value);
    }

    let tensor_count = reader.count(tensor_count, MIN_TENSOR_BYTES, "tensors")?;
    let alignment = alignment(&metadata)?;
    let mut tensors = Vec::with_capacity(tensor_count);
    for _ in 0..tensor_count {
        tensors.push(reader.tensor()?);
    }
    let data_start = reader.at.next_multiple_of(alignment);
    for entry in &mut tensors {
        place(entry, data_start, alignment, file.len())?;
    }
    check_overlaps(&tensors)?;
    Ok(Gguf { version, metadata, tensors })
}

fn check_version(version: u32) -> Result<(), ParseError> {
    let (what, hint) = match version {
        2 | 3 => return Ok(()),
        _ if matches!(version.swap_bytes(), 1..=3) => {
            ("a big-endian GGUF file".into(), "get the little-endian file of this model")
        }
        _ => (format!("GGUF version {version}"), "supported are versions 2 and 3"),
    };
    Err(ParseError::Unsupported { what, hint: hint.into() })
}

fn alignment(metadata: &Metadata) -> Result<usize, ParseError> {
    const KEY: &str = "general.alignment";
    match (metadata.get(KEY), metadata.u64(KEY)) {
        (None, _) => Ok(32),
        (_, Some(alignment @ 1..=MAX_ALIGNMENT)) if alignment.is_power_of_two() => {
            Ok(alignment as usize)
        }
        (Some(value), _) => {
            damaged(format!("`{KEY}` is {value:?}, expected a power of two up to {MAX_ALIGNMENT}"))
        }
    }
}

/// Turns the range of a tensor, so far relative to the data's start, into one of the file's bytes.
fn place(
    entry: &mut Entry,
    data_start: usize,
    alignment: usize,
    file_bytes: usize,
) -> Result<(), ParseError> {
    let Entry { name, data, .. } = entry;
    if data.start % alignment != 0 {
        return damaged(format!(
            "tensor `{name}` begins at offset {}, which is no multiple of the alignment, {alignment}",
            data.start
        ));
    }
    let end = data_start.checked_add(data.end).filter(|&end| end <= file_bytes);
    let Some(end) = end else {
        return damaged(format!(
            "tensor `{name}` takes bytes {}..{} of the data, which begins at byte {data_start}, but the file has \
             {file_bytes} bytes",
            data.start, data.end
        ));
    };
    *data = data_start + data.start..end;
    Ok(())
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize, what: &str) -> Result<&'a [u8], ParseError> {
        let left = self.left();
        if bytes > left {
            return damaged(format!(
                "it ends at byte {}, inside {what}: {bytes} bytes are needed at byte {} and {left} are left",
                self.file.len(),
                self.at
            ));
        }
        let taken = &self.file[self.at..self.at + bytes];
        self.at += bytes;
        Ok(taken)
    }

    fn left(&self) -> usize {
        self.file.len() - self.at
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ParseError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N, what)?);
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, ParseError> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, ParseError> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// A count that the rest of the file can hold, so that memory may be set aside for it.
    fn count(&self, count: u64, min_bytes: usize, what: &str) -> Result<usize, ParseError> {
        let most = self.left() / min_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => damaged(format!(
                "it claims {count} {what}, but the {} bytes left at byte {} hold at most {most}",
                self.left(),
                self.at
            )),
        }
    }

    fn string(&mut self, what: &str) -> Result<String, ParseError> {
        let len = self.u64(what)?;
        let len = self.count(len, 1, &format!("bytes of text for {what}"))?;
        Ok(String::from_utf8_lossy(self.take(len, what)?).into_owned())
    }

    fn bool(&mut self, what: &str) -> Result<bool, ParseError> {
        match self.bytes::<1>(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => damaged(format!("{what} is the boolean {other}, expected 0 or 1")),
        }
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, ParseError> {
        let what = &format!("the value of `{key}`");
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.bytes(what)?)),
            1 => Value::I8(i8::from_le_bytes(self.bytes(what)?)),
            2 => Value::U16(u16::from_le_bytes(self.bytes(what)?)),
            3 => Value::I16(i16::from_le_bytes(self.bytes(what)?)),
            4 => Value::U32(u32::from_le_bytes(self.bytes(what)?)),
            5 => Value::I32(i32::from_le_bytes(self.bytes(what)?)),
            6 => Value::F32(f32::from_le_bytes(self.bytes(what)?)),
            7 => Value::Bool(self.bool(what)?),
            8 => Value::String(self.string(what)?),
            9 => Value::Array(self.array(what, 0)?),
            10 => Value::U64(u64::from_le_bytes(self.bytes(what)?)),
            11 => Value::I64(i64::from_le_bytes(self.bytes(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.bytes(what)?)),
            _ => return damaged(format!("{what} has type {kind}, expected 0..=12")),
        })
    }

    fn array(&mut self, what: &str, depth: usize) -> Result<Array, ParseError> {
        if depth == MAX_ARRAY_DEPTH {
            return damaged(format!("{what} has arrays nested deeper than {MAX_ARRAY_DEPTH}"));
        }
        let kind = self.u32(what)?;
        let len = self.u64(what)?;
        let min_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            _ => return damaged(format!("{what} is an array of type {kind}, expected 0..=12")),
        };
        let len = self.count(len, min_bytes, &format!("elements for {what}"))?;
        Ok(match kind {
            0 => Array::U8(self.take(len, what)?.to_vec()),
            1 => Array::I8(self.numbers(len, what, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(len, what, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(len, what, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(len, what, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(len, what, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(len, what, f32::from_le_bytes)?),
            7 => Array::Bool((0..len).map(|_| self.bool(what)).collect::<Result<_, _>>()?),
            8 => Array::String((0..len).map(|_| self.string(what)).collect::<Result<_, _>>()?),
            9 => Array::Array(
                (0..len).map(|_| self.array(what, depth + 1)).collect::<Result<_, _>>()?,
            ),
            10 => Array::U64(self.numbers(len, what, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(len, what, i64::from_le_bytes)?),
            _ => Array::F64(self.numbers(len, what, f64::from_le_bytes)?),
        })
    }

    fn numbers<T, const N: usize>(
        &mut self,
        len: usize,
        what: &str,
        read: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, ParseError> {
        let bytes = self.take(len * N, what)?; // no overflow: `count` has compared it with the file
        Ok(bytes.as_chunks::<N>().0.iter().map(|&chunk| read(chunk)).collect())
    }

    /// One tensor's description, with its range relative to the start of the data.
    fn tensor(&mut self) -> Result<Entry, ParseError> {
        let name = self.string("a tensor's name")?;
        let what = &format!("the description of tensor `{name}`");
        let dimensions = self.u32(what)?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return damaged(format!(
                "tensor `{name}` has {dimensions} dimensions, expected 1..={MAX_DIMENSIONS}"
            ));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            shape.push(self.size(what)?);
        }
        let kind = self.u32(what)?;
        let start = self.size(what)?;
        let row = shape[0]; // the file lists the innermost dimension first
        shape.reverse();
        let elements = count_elements(&name, &shape)?;
        let (storage, values, bytes) = storage(kind, &name)?;
        if row % values != 0 {
            return damaged(format!(
                "tensor `{name}` has rows of {row} values, which {} blocks of {values} do not divide",
                storage.name()
            ));
        }
        let size = (elements / values).checked_mul(bytes);
        let Some(end) = size.and_then(|size| start.checked_add(size)) else {
            return damaged(format!(
                "tensor `{name}` of shape {shape:?} at offset {start} ends beyond 2^64 bytes"
            ));
        };
        Ok(Entry { name, storage, shape, data: start..end })
    }

    fn size(&mut self, what: &str) -> Result<usize, ParseError> {
        let size = self.u64(what)?;
        usize::try_from(size)
            .or_else(|_| damaged(format!("{what} holds {size}, too large for this machine")))
    }
}

/// A type's storage, and how many values take how many bytes.
fn storage(kind: u32, name: &str) -> Result<(Storage, usize, usize), ParseError> {
    let plain = |dtype: Dtype| (Storage::Plain(dtype), 1, dtype.size());
    Ok(match kind {
        0 => plain(Dtype::F32),
        1 => plain(Dtype::F16),
        30 => plain(Dtype::BF16),
        24 => (Storage::Other("I8"), 1, 1),
        25 => (Storage::Other("I16"), 1, 2),
        26 => (Storage::Other("I32"), 1, 4),
        27 => (Storage::Other("I64"), 1, 8),
        28 => (Storage::Other("F64"), 1, 8),
        _ => match Format::by_id(kind) {
            Some(format) => (Storage::Blocks(format), format.values, format.bytes),
            None => {
                let known = UNSUPPORTED.iter().find(|(id, _)| *id == kind);
                let kind = known.map_or_else(|| kind.to_string(), |(_, name)| (*name).into());
                return Err(ParseError::Unsupported {
                    what: format!("type {kind} of tensor `{name}`"),
                    hint: format!("supported are F32, F16, BF16, {}", Format::names()),
                });
            }
        },
    })
}

/// A key's length, a type, and a value of one byte.
const MIN_PAIR_BYTES: usize = 8 + 4 + 1;
/// A name's length, a dimension count, a type, an offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 4 + 8;
const MAX_DIMENSIONS: u32 = 4;
const MAX_ARRAY_DEPTH: usize = 4;
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Names of the types that exist and are not read, for a better message.
const UNSUPPORTED: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];
