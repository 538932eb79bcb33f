//! The C++ side, as cxx sees it. Nothing here is public: `lib.rs` makes it safe and checks the thread.

// What cxx writes is public within this private module; MLX's functions take what they take.
#[allow(unreachable_pub, clippy::too_many_arguments)]
#[cxx::bridge(namespace = "base_mlx")]
pub(crate) mod ffi {
    /// A compile-time constant of an own kernel: an integer, a bool as 0 or 1, or the number of a dtype.
    struct Template<'a> {
        name: &'a str,
        value: i32,
        is_dtype: bool,
    }

    #[derive(Debug)]
    #[repr(u8)]
    enum Unary {
        Exp,
        Log,
        Negative,
        Sigmoid,
        Tanh,
        Erf,
        Abs,
        LogicalNot,
    }

    #[derive(Debug)]
    #[repr(u8)]
    enum Binary {
        Add,
        Subtract,
        Multiply,
        Divide,
        Maximum,
        Minimum,
        Less,
        LessEqual,
        Equal,
        LogicalAnd,
        LogicalOr,
    }

    #[derive(Debug)]
    #[repr(u8)]
    enum Along {
        Sum,
        Max,
        Argmax,
        Logsumexp,
        Softmax,
        Cumsum,
        Sort,
        Argsort,
    }

    unsafe extern "C++" {
        include!("base-mlx-sys/src/bridge.h");

        type Array;
        type Kernel;

        fn from_bytes(bytes: &[u8], shape: &[i32], dtype: u8) -> Result<UniquePtr<Array>>;
        fn copy_handle(a: &Array) -> UniquePtr<Array>;
        fn to_bytes(a: &Array) -> Result<Vec<u8>>;
        fn dtype_of(a: &Array) -> Result<u8>;
        fn shape_of(a: &Array) -> Vec<i32>;
        fn nbytes_of(a: &Array) -> usize;
        fn full(shape: &[i32], value: f32, dtype: u8) -> Result<UniquePtr<Array>>;
        fn arange(start: f32, stop: f32, step: f32, dtype: u8) -> Result<UniquePtr<Array>>;

        fn astype(a: &Array, dtype: u8) -> Result<UniquePtr<Array>>;
        fn reshape(a: &Array, shape: &[i32]) -> Result<UniquePtr<Array>>;
        fn transpose(a: &Array, axes: &[i32]) -> Result<UniquePtr<Array>>;
        fn contiguous(a: &Array) -> Result<UniquePtr<Array>>;
        fn broadcast_to(a: &Array, shape: &[i32]) -> Result<UniquePtr<Array>>;
        fn slice(a: &Array, start: &[i32], stop: &[i32]) -> Result<UniquePtr<Array>>;
        fn slice_update(
            a: UniquePtr<Array>,
            update: &Array,
            start: &[i32],
            stop: &[i32],
        ) -> Result<UniquePtr<Array>>;
        fn concatenate(arrays: &[UniquePtr<Array>], axis: i32) -> Result<UniquePtr<Array>>;
        fn take(a: &Array, indices: &Array, axis: i32) -> Result<UniquePtr<Array>>;
        fn take_along_axis(a: &Array, indices: &Array, axis: i32) -> Result<UniquePtr<Array>>;

        fn unary(a: &Array, operation: u8) -> Result<UniquePtr<Array>>;
        fn binary(a: &Array, b: &Array, operation: u8) -> Result<UniquePtr<Array>>;
        #[cxx_name = "where"]
        fn where_(condition: &Array, a: &Array, b: &Array) -> Result<UniquePtr<Array>>;
        fn along(a: &Array, axis: i32, keepdims: bool, operation: u8) -> Result<UniquePtr<Array>>;
        fn argpartition(a: &Array, kth: i32, axis: i32) -> Result<UniquePtr<Array>>;
        fn matmul(a: &Array, b: &Array) -> Result<UniquePtr<Array>>;

        fn quantized_matmul(
            x: &Array,
            packed: &Array,
            scales: &Array,
            biases: &Array,
            group_size: i32,
            bits: i32,
        ) -> Result<UniquePtr<Array>>;
        fn gather_qmm(
            x: &Array,
            packed: &Array,
            scales: &Array,
            biases: &Array,
            indices: &Array,
            group_size: i32,
            bits: i32,
        ) -> Result<UniquePtr<Array>>;
        fn dequantize(
            packed: &Array,
            scales: &Array,
            biases: &Array,
            group_size: i32,
            bits: i32,
        ) -> Result<UniquePtr<Array>>;
        fn quantize(
            w: &Array,
            group_size: i32,
            bits: i32,
            packed: &mut UniquePtr<Array>,
            scales: &mut UniquePtr<Array>,
            biases: &mut UniquePtr<Array>,
        ) -> Result<()>;

        fn rms_norm(x: &Array, w: &Array, eps: f32) -> Result<UniquePtr<Array>>;
        fn layer_norm(x: &Array, w: &Array, b: &Array, eps: f32) -> Result<UniquePtr<Array>>;
        fn rope(
            x: &Array,
            dims: i32,
            scale: f32,
            offset: &Array,
            freqs: &Array,
        ) -> Result<UniquePtr<Array>>;
        fn scaled_dot_product_attention(
            q: &Array,
            k: &Array,
            v: &Array,
            scale: f32,
            mode: &str,
            mask: &UniquePtr<Array>,
        ) -> Result<UniquePtr<Array>>;

        fn metal_kernel(
            name: &str,
            inputs: &[&str],
            outputs: &[&str],
            source: &str,
            header: &str,
        ) -> Result<UniquePtr<Kernel>>;
        fn cuda_kernel(
            name: &str,
            inputs: &[&str],
            outputs: &[&str],
            source: &str,
            header: &str,
            shared_memory: i32,
        ) -> Result<UniquePtr<Kernel>>;
        fn call_kernel(
            kernel: &Kernel,
            inputs: &[UniquePtr<Array>],
            shapes: &[i32],
            ranks: &[i32],
            dtypes: &[u8],
            grid: &[i32],
            threadgroup: &[i32],
            arguments: &[Template],
        ) -> Result<UniquePtr<CxxVector<Array>>>;
        fn count(arrays: &CxxVector<Array>) -> usize;
        fn at(arrays: &CxxVector<Array>, index: usize) -> Result<UniquePtr<Array>>;

        fn eval(arrays: &[UniquePtr<Array>]) -> Result<()>;
        fn async_eval(arrays: &[UniquePtr<Array>]) -> Result<()>;
        fn synchronize() -> Result<()>;

        fn gpu_is_available() -> bool;
        fn metal_is_available() -> bool;
        fn cuda_is_available() -> bool;
        fn set_default_device(gpu: bool) -> Result<()>;
        fn device_info(gpu: bool, key: &str) -> Result<String>;
        fn version() -> String;

        fn active_memory() -> usize;
        fn peak_memory() -> usize;
        fn cache_memory() -> usize;
        fn reset_peak_memory();
        fn clear_cache();
        fn set_cache_limit(limit: usize) -> Result<usize>;
        fn set_memory_limit(limit: usize) -> Result<usize>;
        fn set_wired_limit(limit: usize) -> Result<usize>;
    }
}
