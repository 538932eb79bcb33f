//! The device under test. MLX belongs to one thread, and tests run on many.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};

use base_mlx_core::backend::{MlxBackend, MlxDevice, MlxOptions};
use base_mlx_core::tensor::Dtype;

type Work = Box<dyn FnOnce(&MlxBackend) + Send>;

static THREAD: LazyLock<Mutex<Sender<Work>>> = LazyLock::new(|| {
    let (sender, receiver) = channel::<Work>();
    std::thread::spawn(move || {
        let own_kernels = std::env::var_os("BASE_MLX_TEST_STOCK").is_none();
        // Compiling them takes most of the time.
        let kernels = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
        let kernel_cache = Some(kernels);
        let options = MlxOptions { device: device(), own_kernels, cache_bytes: None, kernel_cache };
        let backend = MlxBackend::open(options).unwrap_or_else(|error| panic!("{error}"));
        println!("testing {}", backend.describe());
        let stock = backend.describe().contains("stock operations");
        assert!(!(own_kernels && stock), "own kernels are to be tested, and there are none");
        receiver.into_iter().for_each(|work| work(&backend));
    });
    Mutex::new(sender)
});

/// Runs `test` on MLX's thread; a panic there is a panic here.
pub(crate) fn on_mlx(test: impl FnOnce(&MlxBackend) + Send + 'static) {
    let (done, result) = channel();
    let work: Work = Box::new(move |backend| {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(backend)));
        done.send(outcome).unwrap();
    });
    THREAD.lock().unwrap().send(work).unwrap();
    match result.recv() {
        Ok(Ok(())) => {}
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(_) => panic!("MLX's thread has ended"),
    }
}

pub(crate) fn device() -> MlxDevice {
    match std::env::var("BASE_MLX_TEST_DEVICE").as_deref() {
        Ok("cuda") => MlxDevice::Cuda,
        Ok("metal") => MlxDevice::Metal,
        Ok("mlx-cpu") => MlxDevice::Cpu,
        Ok(other) => panic!("BASE_MLX_TEST_DEVICE is {other}, expected metal, cuda or mlx-cpu"),
        Err(_) if cfg!(target_os = "macos") => MlxDevice::Metal,
        Err(_) => MlxDevice::Cpu,
    }
}

/// What a result's distance from the reference depends on, beside its type.
#[derive(Clone, Copy)]
pub(crate) enum Made {
    /// Rounded once or twice.
    Directly,
    ByAttention,
    ByQuantised,
}

/// How far results may be from the reference, as a part of the largest: a few units in the last place of the type, many
/// of which were added up. MLX's CPU device adds attention and quantised products up in the type of the activations,
/// GPUs in f32.
pub(crate) fn tolerance(activations: Dtype, made: Made) -> f64 {
    let [f16, bf16] = match (device(), made) {
        (MlxDevice::Cpu, Made::Directly) => [1e-3, 8e-3],
        (MlxDevice::Cpu, Made::ByAttention) => [6e-3, 5e-2],
        (MlxDevice::Cpu, Made::ByQuantised) => [1.6e-2, 1.2e-1],
        (MlxDevice::Cuda | MlxDevice::Metal, _) => [4e-3, 3e-2],
    };
    match activations {
        Dtype::F32 => 2e-5,
        Dtype::F16 => f16,
        Dtype::BF16 => bf16,
        other => panic!("activations of {other}"),
    }
}

#[test]
fn a_build_without_cuda_says_so_where_cuda_is_wanted() {
    on_mlx(|_| {
        if !cfg!(target_os = "linux") || base_mlx_sys::has_cuda() {
            return;
        }
        let options = MlxOptions {
            device: MlxDevice::Cuda,
            own_kernels: true,
            cache_bytes: None,
            kernel_cache: None,
        };
        let Err(error) = MlxBackend::open(options) else { panic!("a CPU is no GPU") };
        assert!(error.to_string().ends_with("build with --features cuda"), "{error}");
    });
}
