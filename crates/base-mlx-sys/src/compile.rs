//! Functions that MLX traces once and runs with fewer kernels.

use std::any::Any;
use std::cell::Cell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::rc::Rc;

use crate::Result;
use crate::array::Array;
use crate::library::loaded;
use crate::runtime::owned;
use crate::table::{Arrays, RawCompiled, RawFunction};

/// A function of arrays, traced when it is first called with arrays of these shapes and types. Stays with the thread
/// that owns MLX, whose cache it lives in.
pub struct Compiled<const INPUTS: usize, const OUTPUTS: usize> {
    raw: NonNull<RawCompiled>,
    /// What the function panicked with while it was traced. As an `Rc` it keeps this from leaving the thread.
    panic: Rc<Panic>,
}

type Panic = Cell<Option<Box<dyn Any + Send>>>;

struct State<F> {
    function: F,
    panic: Rc<Panic>,
}

impl<const INPUTS: usize, const OUTPUTS: usize> Compiled<INPUTS, OUTPUTS> {
    /// The function may only build arrays: what it is called with has no elements, and it is not called each time.
    pub fn new<F>(function: F) -> Result<Self>
    where
        F: Fn([&Array; INPUTS]) -> Result<[Array; OUTPUTS]> + 'static,
    {
        let mlx = owned()?;
        let panic = Rc::new(Cell::new(None));
        let state = Box::new(State { function, panic: panic.clone() });
        let function = RawFunction {
            state: Box::into_raw(state).cast_const().cast(),
            call: trace::<F, INPUTS, OUTPUTS>,
            drop: release::<F>,
            count: OUTPUTS,
        };
        // SAFETY: the state is of the type that both functions expect; the bridge drops it, even if it fails.
        let raw = unsafe { (mlx.compile)(&function) };
        Ok(Self { raw: raw.ok_or_else(|| mlx.error())?, panic })
    }

    pub fn call(&self, inputs: [&Array; INPUTS]) -> Result<[Array; OUTPUTS]> {
        let mlx = owned()?;
        let mut arrays = MaybeUninit::<[Array; OUTPUTS]>::uninit();
        let (inputs, to) = (inputs.as_slice().into(), arrays.as_mut_ptr().cast());
        // SAFETY: there is room for as many arrays as the function makes.
        let called = unsafe { (mlx.call_compiled)(self.raw, inputs, to) };
        if let Some(panic) = self.panic.take() {
            resume_unwind(panic);
        }
        mlx.check(called)?;
        // SAFETY: it has succeeded, so all of them are there.
        Ok(unsafe { arrays.assume_init() })
    }
}

impl<const INPUTS: usize, const OUTPUTS: usize> Drop for Compiled<INPUTS, OUTPUTS> {
    fn drop(&mut self) {
        // SAFETY: this handle is the one that owns it, and this is the thread that made it.
        unsafe { (loaded().drop_compiled)(self.raw) };
    }
}

/// # Safety
/// The state is a `State<F>`, and there is room for `OUTPUTS` arrays.
unsafe extern "C" fn trace<F, const INPUTS: usize, const OUTPUTS: usize>(
    state: *const c_void,
    inputs: Arrays,
    arrays: *mut Array,
) -> bool
where
    F: Fn([&Array; INPUTS]) -> Result<[Array; OUTPUTS]>,
{
    // SAFETY: the caller's; it is dropped only with the compiled function.
    let state = unsafe { &*state.cast::<State<F>>() };
    let inputs = inputs.get().try_into().expect("as many as the call was given");
    // No panic may pass through C++.
    match catch_unwind(AssertUnwindSafe(|| (state.function)(inputs))) {
        Ok(Ok(outputs)) => {
            // SAFETY: the caller's.
            unsafe { arrays.cast::<[Array; OUTPUTS]>().write(outputs) };
            true
        }
        Ok(Err(_)) => false,
        Err(panic) => {
            state.panic.set(Some(panic));
            false
        }
    }
}

/// # Safety
/// The state is a `State<F>` that nobody uses any more.
unsafe extern "C" fn release<F>(state: *const c_void) {
    // SAFETY: the caller's; it came from such a box.
    drop(unsafe { Box::from_raw(state.cast_mut().cast::<State<F>>()) });
}
