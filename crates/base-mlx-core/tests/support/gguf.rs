/// A GGUF file in the making. Every number in it can be made to lie.
#[derive(Clone)]
pub(crate) struct GgufFile {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    /// Instead of the true number.
    pub(crate) tensor_count: Option<u64>,
    pub(crate) pair_count: Option<u64>,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Tensor>,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    kind: u32,
    shape: Vec<u64>,
    offset: Option<u64>,
    data: Vec<u8>,
}

impl GgufFile {
    pub(crate) fn new(architecture: &str) -> Self {
        Self::without_architecture().str("general.architecture", architecture)
    }

    pub(crate) fn without_architecture() -> Self {
        Self {
            version: 3,
            alignment: 32,
            tensor_count: None,
            pair_count: None,
            pairs: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// A pair whose value's bytes are given.
    pub(crate) fn pair(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.pairs.push([&string(key), &kind.to_le_bytes()[..], value].concat());
        self
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.pair(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, value: f32) -> Self {
        self.pair(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn bool(self, key: &str, value: bool) -> Self {
        self.pair(key, 7, &[value.into()])
    }

    pub(crate) fn str(self, key: &str, value: &str) -> Self {
        self.pair(key, 8, &string(value))
    }

    pub(crate) fn u64(self, key: &str, value: u64) -> Self {
        self.pair(key, 10, &value.to_le_bytes())
    }

    pub(crate) fn strings(self, key: &str, values: &[&str]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|value| string(value)).collect();
        self.array(key, 8, values.len() as u64, &elements)
    }

    pub(crate) fn f32s(self, key: &str, values: &[f32]) -> Self {
        self.array(key, 6, values.len() as u64, bytemuck::cast_slice(values))
    }

    pub(crate) fn i32s(self, key: &str, values: &[i32]) -> Self {
        self.array(key, 5, values.len() as u64, bytemuck::cast_slice(values))
    }

    /// An array that claims `count` elements of type `kind`, whatever its bytes are.
    pub(crate) fn array(self, key: &str, kind: u32, count: u64, elements: &[u8]) -> Self {
        self.pair(key, 9, &[&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat())
    }

    /// `kind` is ggml's number of the type; `shape` is outermost first, as everywhere but in the file.
    pub(crate) fn tensor(mut self, name: &str, kind: u32, shape: &[u64], data: &[u8]) -> Self {
        let (name, shape, data) = (name.to_owned(), shape.to_vec(), data.to_vec());
        self.tensors.push(Tensor { name, kind, shape, offset: None, data });
        self
    }

    pub(crate) fn f32_tensor(self, name: &str, shape: &[u64], values: &[f32]) -> Self {
        self.tensor(name, 0, shape, bytemuck::cast_slice(values))
    }

    /// A tensor that claims to lie at `offset`.
    pub(crate) fn tensor_at(mut self, name: &str, kind: u32, shape: &[u64], offset: u64) -> Self {
        self = self.tensor(name, kind, shape, &[]);
        self.tensors.last_mut().unwrap().offset = Some(offset);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.pair_count.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        file.extend(self.pairs.concat());
        let mut data = Vec::new();
        for tensor in &self.tensors {
            file.extend(string(&tensor.name));
            file.extend((tensor.shape.len() as u32).to_le_bytes());
            for dimension in tensor.shape.iter().rev() {
                file.extend(dimension.to_le_bytes());
            }
            file.extend(tensor.kind.to_le_bytes());
            file.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(data);
        file
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}
