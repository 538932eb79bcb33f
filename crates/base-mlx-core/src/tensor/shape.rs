use std::fmt;

/// Up to four dimensions, outermost first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; Self::MAX],
    len: usize,
}

impl Shape {
    const MAX: usize = 4;

    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= Self::MAX, "a shape has at most {} dimensions: {dims:?}", Self::MAX);
        let mut all = [0; Self::MAX];
        all[..dims.len()].copy_from_slice(dims);
        Self { dims: all, len: dims.len() }
    }

    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.len]
    }

    pub fn dim(&self, index: usize) -> usize {
        self.dims()[index]
    }

    pub fn last(&self) -> usize {
        *self.dims().last().expect("a tensor has at least one dimension")
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.dims().fmt(f)
    }
}
