use std::fmt::Display;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::checkpoint::Stored;
use super::{Checkpoint, Config, LoadError};
use crate::backend::{Backend, DeviceError, Pool, Role};
use crate::tensor::{HostArray, HostWeight, Shape, Tensor, Weight};

/// Hands out a checkpoint's tensors by name, uploaded, and remembers which were asked for. A scope is a cheap copy
/// that puts a prefix before every name.
pub struct Loader<B: Backend> {
    checkpoint: Checkpoint,
    backend: B,
    /// Brings weights into another form.
    pool: Arc<Pool>,
    scope: String,
    /// Whether logits are wanted of the model.
    has_head: bool,
    /// For each of the checkpoint's tensors whether it was asked for; one for all scopes.
    read: Arc<Mutex<Vec<bool>>>,
    /// See [`Loader::step_bytes`]; one count for all scopes.
    step_bytes: Arc<AtomicUsize>,
}

impl<B: Backend> Loader<B> {
    pub(super) fn new(checkpoint: Checkpoint, backend: B) -> Self {
        let read = Arc::new(Mutex::new(vec![false; checkpoint.stored().len()]));
        let pool = backend.host_pool();
        Self {
            checkpoint,
            backend,
            pool,
            scope: String::new(),
            has_head: true,
            read,
            step_bytes: Arc::default(),
        }
    }

    /// For a model of which only the states are wanted.
    pub fn without_head(self) -> Self {
        Self { has_head: false, ..self }
    }

    pub fn has_head(&self) -> bool {
        self.has_head
    }

    pub fn config(&self) -> &Config {
        self.checkpoint.config()
    }

    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The tensors whose names begin with this scope's and `scope`.
    pub fn at(&self, scope: impl Display) -> Self {
        Self {
            checkpoint: self.checkpoint.clone(),
            backend: self.backend.clone(),
            pool: Arc::clone(&self.pool),
            scope: self.full(&scope.to_string()),
            has_head: self.has_head,
            read: Arc::clone(&self.read),
            step_bytes: Arc::clone(&self.step_bytes),
        }
    }

    /// A tensor of exactly this shape, as f32.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<B>, LoadError> {
        let values = self.host_tensor(name, shape)?;
        let array = self.backend.upload(HostArray::from_f32(shape, &values));
        let array = array.map_err(|error| self.refused(self.full(name), error))?;
        Ok(Tensor::new(&self.backend, array, Shape::new(shape)))
    }

    /// The same for the host to cut before it is uploaded.
    pub fn host_tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        self.checkpoint.require(&self.full(name))?.check_shape(shape, "")?;
        let values = self.optional_host(name)?.expect("the tensor was just found");
        self.count_for_step(size_of_val(&values[..]));
        Ok(values)
    }

    pub fn optional_tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<Tensor<B>>, LoadError> {
        if self.has(name) { self.tensor(name, shape).map(Some) } else { Ok(None) }
    }

    /// A small tensor's values for the host's own use, whatever its shape.
    pub fn optional_host(&self, name: &str) -> Result<Option<Vec<f32>>, LoadError> {
        self.ignore(name);
        self.checkpoint.values(&self.full(name))
    }

    /// The matrix `name` + `.weight` of shape `[out, in]`, dense or quantised.
    pub fn weight(&self, name: &str, out_in: [usize; 2]) -> Result<Weight<B>, LoadError> {
        let weight = self.rows(name, out_in, 0..out_in[0], Role::Factor)?;
        self.count_for_step(self.backend.weight_bytes(&weight));
        Ok(weight)
    }

    /// The same of which a step reads single rows only.
    pub fn table(&self, name: &str, out_in: [usize; 2]) -> Result<Weight<B>, LoadError> {
        self.rows(name, out_in, 0..out_in[0], Role::Table)
    }

    /// Some rows of the matrix `name` + `.weight` of shape `[out, in]`; not counted among what a step reads.
    pub fn rows(
        &self,
        name: &str,
        out_in: [usize; 2],
        rows: Range<usize>,
        role: Role,
    ) -> Result<Weight<B>, LoadError> {
        let full = self.full(name);
        let mut weight = self.checkpoint.weight(&self.pool, &full, out_in)?;
        if rows.len() < out_in[0] {
            weight = weight.rows(rows);
        }
        let parts = match weight {
            HostWeight::Dense(_) => &["weight"][..],
            HostWeight::Affine { .. } => &["weight", "scales", "biases"],
        };
        let uploaded = self.backend.upload_weight(weight, role);
        let weight = uploaded.map_err(|error| self.refused(format!("{full}.weight"), error))?;
        for part in parts {
            let part = format!("{name}.{part}");
            self.ignore(&part);
            // Every device lays weights out anew, so that the file's are not needed any more.
            if let Some(stored) = self.checkpoint.find(&self.full(&part)) {
                stored.release();
            }
        }
        Ok(weight)
    }

    /// Bytes of what was loaded so far that every step reads, however few its tokens.
    pub fn step_bytes(&self) -> usize {
        self.step_bytes.load(Ordering::Relaxed)
    }

    /// Adds to [`Loader::step_bytes`].
    pub fn count_for_step(&self, bytes: usize) {
        self.step_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether there is a tensor of this full name within the scope.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.find(&self.full(name)).is_some()
    }

    /// Counts a tensor as read that is known and not needed.
    pub fn ignore(&self, name: &str) {
        if let Some(position) = self.checkpoint.position(&self.full(name)) {
            // A panic elsewhere cannot leave a list of flags half written.
            self.read.lock().unwrap_or_else(PoisonError::into_inner)[position] = true;
        }
    }

    /// Fails if there is a tensor that nobody asked for: such a model is not the one that was built.
    pub fn finish(&self) -> Result<(), LoadError> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let tensors = self.checkpoint.stored();
        let unread: Vec<&Stored> =
            tensors.iter().zip(read.iter()).filter(|(_, read)| !**read).map(|(it, _)| it).collect();
        match unread.first() {
            None => Ok(()),
            Some(first) => Err(LoadError::UnreadTensors {
                path: self.checkpoint.path().to_owned(),
                family: self.config().model_type()?.to_owned(),
                count: unread.len(),
                first: first.name.clone(),
            }),
        }
    }

    fn refused(&self, tensor: String, error: DeviceError) -> LoadError {
        match error {
            DeviceError::Beyond { value, dtype } => LoadError::Unsupported {
                path: self.checkpoint.path().to_owned(),
                what: format!("the value {value} in tensor `{tensor}`, beyond {dtype},"),
                hint: format!("this device computes the model in {dtype}; use --device cpu"),
            },
            error => error.into(),
        }
    }

    fn full(&self, name: &str) -> String {
        if self.scope.is_empty() { name.to_owned() } else { format!("{}.{name}", self.scope) }
    }
}
