// What Rust calls, in Rust's types. Exceptions pass through: cxx turns them into `Result`.
#pragma once

#include <memory>

#include "mlx/mlx.h"
#include "rust/cxx.h"

namespace base_mlx {

using Array = mlx::core::array;
using Handle = std::unique_ptr<Array>;
using Handles = rust::Slice<const Handle>;
using Ints = rust::Slice<const int32_t>;

struct Template;

class Kernel {
 public:
  Kernel(mlx::core::fast::CustomKernelFunction function) : function(std::move(function)) {}
  mlx::core::fast::CustomKernelFunction function;
};

// Arrays
Handle from_bytes(rust::Slice<const uint8_t> bytes, Ints shape, uint8_t dtype);
Handle copy_handle(const Array& a);
rust::Vec<uint8_t> to_bytes(const Array& a);
uint8_t dtype_of(const Array& a);
rust::Vec<int32_t> shape_of(const Array& a);
size_t nbytes_of(const Array& a);
Handle full(Ints shape, float value, uint8_t dtype);
Handle arange(float start, float stop, float step, uint8_t dtype);

// Shapes
Handle astype(const Array& a, uint8_t dtype);
Handle reshape(const Array& a, Ints shape);
Handle transpose(const Array& a, Ints axes);
Handle contiguous(const Array& a);
Handle broadcast_to(const Array& a, Ints shape);
Handle slice(const Array& a, Ints start, Ints stop);
Handle slice_update(Handle a, const Array& update, Ints start, Ints stop);
Handle concatenate(Handles arrays, int32_t axis);
Handle take(const Array& a, const Array& indices, int32_t axis);
Handle take_along_axis(const Array& a, const Array& indices, int32_t axis);

// Arithmetic
Handle unary(const Array& a, uint8_t operation);
Handle binary(const Array& a, const Array& b, uint8_t operation);
Handle where(const Array& condition, const Array& a, const Array& b);
Handle along(const Array& a, int32_t axis, bool keepdims, uint8_t operation);
Handle argpartition(const Array& a, int32_t kth, int32_t axis);
Handle matmul(const Array& a, const Array& b);

// Quantised products; an affine weight is `packed`, `scales`, `biases`.
Handle quantized_matmul(
    const Array& x, const Array& packed, const Array& scales, const Array& biases, int32_t group_size, int32_t bits);
Handle gather_qmm(
    const Array& x, const Array& packed, const Array& scales, const Array& biases, const Array& indices,
    int32_t group_size, int32_t bits);
Handle dequantize(
    const Array& packed, const Array& scales, const Array& biases, int32_t group_size, int32_t bits);
void quantize(const Array& w, int32_t group_size, int32_t bits, Handle& packed, Handle& scales, Handle& biases);

// mlx::core::fast
Handle rms_norm(const Array& x, const Array& w, float eps);
Handle layer_norm(const Array& x, const Array& w, const Array& b, float eps);
Handle rope(const Array& x, int32_t dims, float scale, const Array& offset, const Array& freqs);
Handle scaled_dot_product_attention(
    const Array& q, const Array& k, const Array& v, float scale, rust::Str mode, const Handle& mask);

// Own kernels
std::unique_ptr<Kernel> metal_kernel(
    rust::Str name, rust::Slice<const rust::Str> inputs, rust::Slice<const rust::Str> outputs, rust::Str source,
    rust::Str header);
std::unique_ptr<Kernel> cuda_kernel(
    rust::Str name, rust::Slice<const rust::Str> inputs, rust::Slice<const rust::Str> outputs, rust::Str source,
    rust::Str header, int32_t shared_memory);
std::unique_ptr<std::vector<Array>> call_kernel(
    const Kernel& kernel, Handles inputs, Ints shapes, Ints ranks,
    rust::Slice<const uint8_t> dtypes, Ints grid, Ints threadgroup, rust::Slice<const Template> arguments);
size_t count(const std::vector<Array>& arrays);
Handle at(const std::vector<Array>& arrays, size_t index);

// Running
void eval(Handles arrays);
void async_eval(Handles arrays);
void synchronize();

// Devices
bool gpu_is_available();
bool metal_is_available();
bool cuda_is_available();
void set_default_device(bool gpu);
rust::String device_info(bool gpu, rust::Str key);
rust::String version();

// Memory, in bytes
size_t active_memory();
size_t peak_memory();
size_t cache_memory();
void reset_peak_memory();
void clear_cache();
size_t set_cache_limit(size_t limit);
size_t set_memory_limit(size_t limit);
size_t set_wired_limit(size_t limit);

} // namespace base_mlx
