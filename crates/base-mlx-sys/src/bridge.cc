#include "base-mlx-sys/src/bridge.h"

#include <cstring>
#include <sstream>
#include <stdexcept>

#include "base-mlx-sys/src/bridge.rs.h"
#include "mlx/backend/cuda/cuda.h"

namespace base_mlx {

namespace mx = mlx::core;

namespace {

// Beyond any machine's memory. MLX's CPU device does not look whether an allocation failed, so it must not be tried.
constexpr size_t most_bytes = size_t{1} << 46;

Handle handle(mx::array a) {
  if (a.size() > most_bytes || a.nbytes() > most_bytes) {
    std::ostringstream message;
    message << "an array of shape " << a.shape() << " has more than " << most_bytes << " bytes";
    throw std::invalid_argument(message.str());
  }
  return std::make_unique<Array>(std::move(a));
}

mx::Shape shape(Ints ints) {
  return mx::Shape(ints.begin(), ints.end());
}

std::vector<int> ints(Ints ints) {
  return std::vector<int>(ints.begin(), ints.end());
}

std::vector<mx::array> list(Handles handles) {
  std::vector<mx::array> arrays;
  arrays.reserve(handles.size());
  for (const auto& a : handles) {
    arrays.push_back(*a);
  }
  return arrays;
}

// The order of `Dtype` in Rust.
const mx::Dtype dtypes[] = {mx::bool_, mx::uint8, mx::int32, mx::uint32, mx::float16, mx::bfloat16, mx::float32};

mx::Dtype dtype(uint8_t index) {
  return dtypes[index];
}

std::tuple<int, int, int> three(Ints ints) {
  return {ints[0], ints[1], ints[2]};
}

std::vector<std::string> strings(rust::Slice<const rust::Str> from) {
  std::vector<std::string> to;
  for (const auto& s : from) {
    to.emplace_back(s);
  }
  return to;
}

} // namespace

Handle from_bytes(rust::Slice<const uint8_t> bytes, Ints dims, uint8_t type) {
  auto data = mx::allocator::malloc(bytes.size());
  if (!bytes.empty()) {
    std::memcpy(data.buffer().raw_ptr(), bytes.data(), bytes.size());
  }
  return handle(mx::array(std::move(data), shape(dims), dtype(type)));
}

Handle copy_handle(const Array& a) {
  return handle(a);
}

rust::Vec<uint8_t> to_bytes(const Array& a) {
  auto whole = mx::contiguous(a);
  whole.eval();
  rust::Vec<uint8_t> bytes;
  bytes.reserve(whole.nbytes());
  const auto* from = whole.data<uint8_t>();
  std::copy(from, from + whole.nbytes(), std::back_inserter(bytes));
  return bytes;
}

uint8_t dtype_of(const Array& a) {
  for (uint8_t i = 0; i < std::size(dtypes); i++) {
    if (dtypes[i] == a.dtype()) {
      return i;
    }
  }
  std::ostringstream message;
  message << "an array of " << a.dtype() << ", which base-mlx does not use";
  throw std::invalid_argument(message.str());
}

rust::Vec<int32_t> shape_of(const Array& a) {
  rust::Vec<int32_t> dims;
  for (auto dim : a.shape()) {
    dims.push_back(dim);
  }
  return dims;
}

size_t nbytes_of(const Array& a) {
  return a.nbytes();
}

Handle full(Ints dims, float value, uint8_t type) {
  return handle(mx::full(shape(dims), value, dtype(type)));
}

Handle arange(float start, float stop, float step, uint8_t type) {
  return handle(mx::arange(start, stop, step, dtype(type)));
}

Handle astype(const Array& a, uint8_t type) {
  return handle(mx::astype(a, dtype(type)));
}

Handle reshape(const Array& a, Ints dims) {
  return handle(mx::reshape(a, shape(dims)));
}

Handle transpose(const Array& a, Ints axes) {
  return handle(mx::transpose(a, ints(axes)));
}

Handle contiguous(const Array& a) {
  return handle(mx::contiguous(a));
}

Handle broadcast_to(const Array& a, Ints dims) {
  return handle(mx::broadcast_to(a, shape(dims)));
}

Handle slice(const Array& a, Ints start, Ints stop) {
  return handle(mx::slice(a, shape(start), shape(stop)));
}

// Takes the handle: if nobody else has one, MLX writes in place.
Handle slice_update(Handle a, const Array& update, Ints start, Ints stop) {
  return handle(mx::slice_update(std::move(*a), update, shape(start), shape(stop)));
}

Handle concatenate(Handles arrays, int32_t axis) {
  return handle(mx::concatenate(list(arrays), axis));
}

Handle take(const Array& a, const Array& indices, int32_t axis) {
  return handle(mx::take(a, indices, axis));
}

Handle take_along_axis(const Array& a, const Array& indices, int32_t axis) {
  return handle(mx::take_along_axis(a, indices, axis));
}

Handle unary(const Array& a, uint8_t operation) {
  switch (static_cast<Unary>(operation)) {
    case Unary::Exp: return handle(mx::exp(a));
    case Unary::Log: return handle(mx::log(a));
    case Unary::Negative: return handle(mx::negative(a));
    case Unary::Sigmoid: return handle(mx::sigmoid(a));
    case Unary::Tanh: return handle(mx::tanh(a));
    case Unary::Erf: return handle(mx::erf(a));
    case Unary::Abs: return handle(mx::abs(a));
    case Unary::LogicalNot: return handle(mx::logical_not(a));
  }
  throw std::invalid_argument("unary");
}

Handle binary(const Array& a, const Array& b, uint8_t operation) {
  switch (static_cast<Binary>(operation)) {
    case Binary::Add: return handle(mx::add(a, b));
    case Binary::Subtract: return handle(mx::subtract(a, b));
    case Binary::Multiply: return handle(mx::multiply(a, b));
    case Binary::Divide: return handle(mx::divide(a, b));
    case Binary::Maximum: return handle(mx::maximum(a, b));
    case Binary::Minimum: return handle(mx::minimum(a, b));
    case Binary::Less: return handle(mx::less(a, b));
    case Binary::LessEqual: return handle(mx::less_equal(a, b));
    case Binary::Equal: return handle(mx::equal(a, b));
    case Binary::LogicalAnd: return handle(mx::logical_and(a, b));
    case Binary::LogicalOr: return handle(mx::logical_or(a, b));
  }
  throw std::invalid_argument("binary");
}

Handle where(const Array& condition, const Array& a, const Array& b) {
  return handle(mx::where(condition, a, b));
}

Handle along(const Array& a, int32_t axis, bool keepdims, uint8_t operation) {
  switch (static_cast<Along>(operation)) {
    case Along::Sum: return handle(mx::sum(a, axis, keepdims));
    case Along::Max: return handle(mx::max(a, axis, keepdims));
    case Along::Argmax: return handle(mx::argmax(a, axis, keepdims));
    case Along::Logsumexp: return handle(mx::logsumexp(a, axis, keepdims));
    case Along::Softmax: return handle(mx::softmax(a, axis, true));
    case Along::Cumsum: return handle(mx::cumsum(a, axis));
    case Along::Sort: return handle(mx::sort(a, axis));
    case Along::Argsort: return handle(mx::argsort(a, axis));
  }
  throw std::invalid_argument("along");
}

Handle argpartition(const Array& a, int32_t kth, int32_t axis) {
  return handle(mx::argpartition(a, kth, axis));
}

Handle matmul(const Array& a, const Array& b) {
  return handle(mx::matmul(a, b));
}

Handle quantized_matmul(
    const Array& x, const Array& packed, const Array& scales, const Array& biases, int32_t group_size, int32_t bits) {
  return handle(mx::quantized_matmul(x, packed, scales, biases, true, group_size, bits));
}

Handle gather_qmm(
    const Array& x, const Array& packed, const Array& scales, const Array& biases, const Array& indices,
    int32_t group_size, int32_t bits) {
  return handle(
      mx::gather_qmm(x, packed, scales, biases, std::nullopt, indices, true, group_size, bits));
}

Handle dequantize(
    const Array& packed, const Array& scales, const Array& biases, int32_t group_size, int32_t bits) {
  return handle(mx::dequantize(packed, scales, biases, group_size, bits));
}

void quantize(const Array& w, int32_t group_size, int32_t bits, Handle& packed, Handle& scales, Handle& biases) {
  auto parts = mx::quantize(w, group_size, bits);
  packed = handle(parts.at(0));
  scales = handle(parts.at(1));
  biases = handle(parts.at(2));
}

Handle rms_norm(const Array& x, const Array& w, float eps) {
  return handle(mx::fast::rms_norm(x, w, eps));
}

Handle layer_norm(const Array& x, const Array& w, const Array& b, float eps) {
  return handle(mx::fast::layer_norm(x, w, b, eps));
}

Handle rope(const Array& x, int32_t dims, float scale, const Array& offset, const Array& freqs) {
  return handle(mx::fast::rope(x, dims, false, std::nullopt, scale, offset, freqs));
}

Handle scaled_dot_product_attention(
    const Array& q, const Array& k, const Array& v, float scale, rust::Str mode, const Handle& mask) {
  std::optional<mx::array> given;
  if (mask) {
    given = *mask;
  }
  return handle(mx::fast::scaled_dot_product_attention(q, k, v, scale, std::string(mode), given));
}

std::unique_ptr<Kernel> metal_kernel(
    rust::Str name, rust::Slice<const rust::Str> inputs, rust::Slice<const rust::Str> outputs, rust::Str source,
    rust::Str header) {
  return std::make_unique<Kernel>(mx::fast::metal_kernel(
      std::string(name), strings(inputs), strings(outputs), std::string(source), std::string(header)));
}

std::unique_ptr<Kernel> cuda_kernel(
    rust::Str name, rust::Slice<const rust::Str> inputs, rust::Slice<const rust::Str> outputs, rust::Str source,
    rust::Str header, int32_t shared_memory) {
  return std::make_unique<Kernel>(mx::fast::cuda_kernel(
      std::string(name), strings(inputs), strings(outputs), std::string(source), std::string(header), true,
      shared_memory));
}

std::unique_ptr<std::vector<Array>> call_kernel(
    const Kernel& kernel, Handles inputs, Ints shapes, Ints ranks,
    rust::Slice<const uint8_t> types, Ints grid, Ints threadgroup, rust::Slice<const Template> arguments) {
  std::vector<mx::Shape> output_shapes;
  const auto* dims = shapes.data();
  for (auto rank : ranks) {
    output_shapes.emplace_back(dims, dims + rank);
    dims += rank;
  }
  std::vector<mx::Dtype> output_dtypes;
  for (auto type : types) {
    output_dtypes.push_back(dtype(type));
  }
  std::vector<std::pair<std::string, mx::fast::TemplateArg>> constants;
  for (const auto& argument : arguments) {
    std::string name(argument.name);
    if (argument.is_dtype) {
      constants.emplace_back(name, dtype(static_cast<uint8_t>(argument.value)));
    } else {
      constants.emplace_back(name, static_cast<int>(argument.value));
    }
  }
  return std::make_unique<std::vector<Array>>(kernel.function(
      list(inputs), output_shapes, output_dtypes, three(grid), three(threadgroup), constants, std::nullopt, false,
      {}));
}

size_t count(const std::vector<Array>& arrays) {
  return arrays.size();
}

Handle at(const std::vector<Array>& arrays, size_t index) {
  return handle(arrays.at(index));
}

void eval(Handles arrays) {
  mx::eval(list(arrays));
}

void async_eval(Handles arrays) {
  mx::async_eval(list(arrays));
}

void synchronize() {
  mx::synchronize();
}

bool gpu_is_available() {
  return mx::is_available(mx::Device::gpu);
}

bool metal_is_available() {
  return mx::metal::is_available();
}

bool cuda_is_available() {
  return mx::cu::is_available();
}

void set_default_device(bool gpu) {
  mx::set_default_device(gpu ? mx::Device::gpu : mx::Device::cpu);
}

rust::String device_info(bool gpu, rust::Str key) {
  const auto& info = mx::device_info(gpu ? mx::Device::gpu : mx::Device::cpu);
  auto found = info.find(std::string(key));
  if (found == info.end()) {
    return {};
  }
  std::ostringstream text;
  std::visit([&](const auto& value) { text << value; }, found->second);
  return text.str();
}

rust::String version() {
  return mx::version();
}

size_t active_memory() {
  return mx::get_active_memory();
}

size_t peak_memory() {
  return mx::get_peak_memory();
}

size_t cache_memory() {
  return mx::get_cache_memory();
}

void reset_peak_memory() {
  mx::reset_peak_memory();
}

void clear_cache() {
  mx::clear_cache();
}

size_t set_cache_limit(size_t limit) {
  return mx::set_cache_limit(limit);
}

size_t set_memory_limit(size_t limit) {
  return mx::set_memory_limit(limit);
}

size_t set_wired_limit(size_t limit) {
  return mx::set_wired_limit(limit);
}

} // namespace base_mlx
