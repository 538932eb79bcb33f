/// A safetensors file in the making.
#[derive(Clone, Default)]
pub(crate) struct SafetensorsFile {
    header: Vec<String>,
    data: Vec<u8>,
}

impl SafetensorsFile {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn tensor(mut self, name: &str, dtype: &str, shape: &[usize], data: &[u8]) -> Self {
        let (start, end) = (self.data.len(), self.data.len() + data.len());
        self.header.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        ));
        self.data.extend_from_slice(data);
        self
    }

    pub(crate) fn f32(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        self.tensor(name, "F32", shape, bytemuck::cast_slice(values))
    }

    pub(crate) fn u32(self, name: &str, shape: &[usize], values: &[u32]) -> Self {
        self.tensor(name, "U32", shape, bytemuck::cast_slice(values))
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        with_header(&format!("{{{}}}", self.header.join(",")), &self.data)
    }
}

/// A file of any header, however wrong.
pub(crate) fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let length = header.len() as u64;
    [&length.to_le_bytes(), header.as_bytes(), data].concat()
}
