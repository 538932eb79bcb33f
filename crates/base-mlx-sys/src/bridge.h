// What Rust calls: one table of C functions. `table.rs` mirrors it field by field; the hash of both is the table's
// version, so that only those that were written together work together.
//
// A function that can fail returns null, false or a negative number, and `last_error` says why, on the same thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mlx/mlx.h"

namespace base_mlx {

using Array = mlx::core::array;
struct Kernel;
struct Compiled;

// A handle as Rust lends it, and null where none need be given. Whoever gets an `Array*` owns it.
using In = const Array* const*;

template <typename T>
struct Slice {
  const T* data;
  size_t length;
};

using Arrays = Slice<In>;
using Dims = Slice<size_t>;
using Axes = Slice<int32_t>;
using Text = Slice<char>;

// The order of `Dtype` in Rust.
enum class Type : uint8_t { Bool, U8, I32, U32, F16, BF16, F32 };

enum class Unary : uint8_t { Erf, Exp, Negative, Sigmoid, Tanh };

enum class Binary : uint8_t {
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
  LogicalOr
};

enum class Along : uint8_t { Sum, Max, Argmax, Cumsum, Argsort };

enum class Backend : uint8_t { Cpu, Metal, Cuda };

enum class Memory : uint8_t { Active, Peak, Cache };

enum class Limit : uint8_t { Cache, CudaCache, Wired };

// An affine weight.
struct Quantized {
  Array* packed;
  Array* scales;
  Array* biases;
  int32_t group_size;
  int32_t bits;
};

struct KernelText {
  Text name;
  Slice<Text> inputs;
  Slice<Text> outputs;
  Text source;
  Text header;
};

// A constant that a kernel is compiled with: an integer, or the number of a dtype.
struct Constant {
  Text name;
  int32_t value;
  bool is_dtype;
};

struct Output {
  Dims shape;
  Type dtype;
};

struct Launch {
  int32_t grid[3];
  int32_t threadgroup[3];
  Slice<Constant> constants;
  Slice<Output> outputs;
};

// A function of Rust that MLX traces. `call` has room for `count` arrays that it makes, and says whether it did.
struct Function {
  void* state;
  bool (*call)(void* state, Arrays inputs, Array** arrays);
  void (*drop)(void* state);
  size_t count;
};

// One call of a kernel that the driver compiled. It takes the addresses of inputs, `addresses`, those of outputs, `numbers`.
struct CudaLaunch {
  uint32_t grid[3]; // blocks
  uint32_t block[3]; // threads of a block
  uint32_t cluster; // blocks along x; 1: no clusters
  uint32_t shared_memory; // dynamic, in bytes
  Slice<uint64_t> addresses;
  Slice<uint32_t> numbers;
  Slice<Output> outputs;
};

struct Table {
  uint64_t version;
  Text (*last_error)();

  // Handles
  Array* (*clone)(In a);
  void (*drop)(Array* a);
  int32_t (*dtype)(In a);
  // Lies in the array.
  Slice<int32_t> (*shape)(In a);
  size_t (*nbytes)(In a);
  int32_t (*is_available)(In a);

  // Data
  Array* (*from_bytes)(Slice<uint8_t> bytes, Dims shape, Type dtype);
  Array* (*full)(Dims shape, float value, Type dtype);
  Array* (*arange)(float start, float stop, float step, Type dtype);
  bool (*copy_to)(In a, uint8_t* bytes, size_t length);
  bool (*data_pointer)(In a, uint64_t* address);

  // Shapes
  Array* (*astype)(In a, Type dtype);
  Array* (*reshape)(In a, Dims shape);
  Array* (*transpose)(In a, Axes axes);
  Array* (*slice)(In a, Dims start, Dims stop);
  // Takes `a`.
  Array* (*slice_update)(Array* a, In update, Dims start, Dims stop);
  Array* (*concatenate)(Arrays arrays, int32_t axis);
  Array* (*take)(In a, In indices, int32_t axis);
  Array* (*take_along_axis)(In a, In indices, int32_t axis);

  // Arithmetic
  Array* (*unary)(In a, Unary operation);
  Array* (*binary)(In a, In b, Binary operation);
  Array* (*select)(In condition, In a, In b);
  Array* (*along)(In a, int32_t axis, bool keepdims, Along operation);
  Array* (*matmul)(In a, In b);

  // Quantised products
  Array* (*quantized_matmul)(In x, const Quantized* w);
  Array* (*gather_qmm)(In x, const Quantized* w, In indices);
  Array* (*dequantize)(const Quantized* w);

  // mlx::core::fast
  Array* (*rms_norm)(In x, In w, float eps);
  Array* (*layer_norm)(In x, In w, In bias, float eps);
  Array* (*rope)(In x, int32_t dims, float scale, In offset, In freqs);
  Array* (*attention)(In q, In k, In v, float scale, bool causal, In mask);
  // silu(gate) * up, in one kernel where MLX compiles.
  Array* (*swiglu)(In gate, In up);

  // Own kernels
  Kernel* (*metal_kernel)(const KernelText* text);
  Kernel* (*cuda_kernel)(const KernelText* text, int32_t shared_memory);
  // `arrays` has room for one array an output.
  bool (*call_kernel)(Kernel* kernel, Arrays inputs, const Launch* launch, Array** arrays);
  void (*drop_kernel)(Kernel* kernel);

  // Compiled functions
  Compiled* (*compile)(const Function* function);
  bool (*call_compiled)(const Compiled* compiled, Arrays inputs, Array** arrays);
  void (*drop_compiled)(Compiled* compiled);

  // Own CUDA kernels by the driver. The machine code and the name lie in the bridge until the next call on this thread.
  bool (*cuda_compile)(Text source, Text expression, Slice<Text> options, Text* code, Text* name);
  void* (*cuda_function)(Text code, Text name, uint32_t shared_memory);
  bool (*cuda_launch)(void* function, Arrays inputs, const CudaLaunch* launch, Array** arrays);
  Array* (*cuda_empty)(Dims shape, Type dtype);
  Array* (*cuda_pinned)(Slice<uint8_t> bytes, Dims shape, Type dtype);

  // Running
  bool (*eval)(Arrays arrays);
  bool (*async_eval)(Arrays arrays);
  bool (*synchronize)();

  // Devices
  bool has_cuda; // whether it was built for it
  bool (*backend_is_available)(Backend backend);
  bool (*set_default_device)(bool gpu);
  // Lies in the bridge until the next call on this thread.
  bool (*device_info)(bool gpu, Text key, Text* value);
  Text (*mlx_version)();

  // Memory, in bytes
  size_t (*memory)(Memory which);
  void (*reset_peak_memory)();
  bool (*clear_cache)();
  bool (*set_limit)(Limit which, size_t bytes, size_t* before);
};

} // namespace base_mlx
