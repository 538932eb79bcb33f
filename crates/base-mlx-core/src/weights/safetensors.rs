use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::entry::{Entry, ParseError, Storage, check_overlaps, count_elements, damaged};
use crate::tensor::Dtype;

/// Reads the header of a whole safetensors file and checks every tensor's place in it: the tensors fill the data
/// exactly, without holes or overlaps, and none is there twice. Tensor data is not touched.
///
/// The format: <https://github.com/huggingface/safetensors#format>.
pub fn parse(file: &[u8]) -> Result<Vec<Entry>, ParseError> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return damaged(format!(
            "it has {} bytes, fewer than the 8 of a header's length",
            file.len()
        ));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
    let Some((header, data)) = header else {
        return damaged(format!(
            "its header claims {length} bytes, but only {} follow (is it a safetensors file?)",
            rest.len()
        ));
    };
    let header: Header = serde_json::from_slice(header)
        .map_err(|error| ParseError::Damaged(format!("its header cannot be read: {error}")))?;

    let data_start = file.len() - data.len();
    let mut entries = Vec::with_capacity(header.tensors.len());
    for (name, description) in header.tensors {
        entries.push(entry(name, description, data_start, file.len())?);
    }
    check_names(&entries)?;
    check_overlaps(&entries)?;
    // Without overlaps, the sizes add up to the data's size only if there is no hole either.
    let bytes: usize = entries.iter().map(|entry| entry.data.len()).sum();
    if bytes != data.len() {
        return damaged(format!(
            "its tensors take {bytes} bytes, but {} bytes follow the header",
            data.len()
        ));
    }
    Ok(entries)
}

fn entry(
    name: String,
    description: Description,
    data_start: usize,
    file_bytes: usize,
) -> Result<Entry, ParseError> {
    let Description { dtype, shape, data_offsets: [start, end] } = description;
    let elements = count_elements(&name, &shape)?;
    let Some((storage, bits)) = storage(&dtype) else {
        let names: Vec<_> = TYPES.iter().map(|(name, ..)| *name).collect();
        return Err(ParseError::Unsupported {
            what: format!("type `{dtype}` of tensor `{name}`"),
            hint: format!("known are {}", names.join(", ")),
        });
    };
    // As u128, because a lie about 2^61 elements should still be told as a number.
    let bits = elements as u128 * bits as u128;
    if !bits.is_multiple_of(8) {
        return damaged(format!(
            "tensor `{name}` of {dtype} and shape {shape:?} ends inside a byte"
        ));
    }
    let data_bytes = file_bytes - data_start;
    if start > end || end > data_bytes {
        return damaged(format!(
            "tensor `{name}` takes bytes {start}..{end} of the data, which has {data_bytes} bytes"
        ));
    }
    if (end - start) as u128 != bits / 8 {
        return damaged(format!(
            "tensor `{name}` has {} bytes, but {dtype} of shape {shape:?} takes {}",
            end - start,
            bits / 8
        ));
    }
    Ok(Entry { name, storage, shape, data: data_start + start..data_start + end })
}

fn check_names(entries: &[Entry]) -> Result<(), ParseError> {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => damaged(format!("tensor `{}` is there twice", pair[0])),
        None => Ok(()),
    }
}

/// The header's JSON object, in its own order and with its duplicates, which a map would hide.
struct Header {
    tensors: Vec<(String, Description)>,
}

#[derive(serde::Deserialize)]
struct Description {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        tensors.push((name, map.next_value()?));
                    }
                }
                Ok(Header { tensors })
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

fn storage(dtype: &str) -> Option<(Storage, usize)> {
    let plain = |dtype: Dtype| Some((Storage::Plain(dtype), 8 * dtype.size()));
    match dtype {
        "F32" => plain(Dtype::F32),
        "F16" => plain(Dtype::F16),
        "BF16" => plain(Dtype::BF16),
        "U32" => plain(Dtype::U32),
        "U8" => plain(Dtype::U8),
        _ => {
            let (name, bits) = TYPES.iter().find(|(name, _)| *name == dtype)?;
            Some((Storage::Other(name), *bits))
        }
    }
}

/// Every type of the format, and the bits of a value.
const TYPES: &[(&str, usize)] = &[
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("C64", 64),
    ("F64", 64),
    ("I64", 64),
    ("U64", 64),
];
