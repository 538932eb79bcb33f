#include "bridge.h"

#include <cstring>
#include <sstream>
#include <stdexcept>

#include "cuda.h"
#include "mlx/backend/cuda/cuda.h"

namespace base_mlx {

namespace mx = mlx::core;

// Used by the thread that owns MLX alone, so a call finds the vectors of the one before and asks for no memory.
struct Kernel {
  mx::fast::CustomKernelFunction function;
  std::vector<mx::array> inputs;
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
};

struct Compiled {
  std::function<std::vector<mx::array>(const std::vector<mx::array>&)> function;
};

namespace {

// Beyond any machine's memory. MLX's CPU device does not look whether an allocation failed, so it must not be tried.
constexpr size_t most_bytes = size_t{1} << 46;

// In the order of `Type`.
const mx::Dtype dtypes[] = {
    mx::bool_, mx::uint8, mx::int32, mx::uint32, mx::float16, mx::bfloat16, mx::float32};

} // namespace

std::string string(Text text) {
  return {text.data, text.length};
}

mx::Dtype dtype(Type type) {
  return dtypes[static_cast<uint8_t>(type)];
}

mx::Shape shape(Dims dims) {
  mx::Shape to;
  for (size_t i = 0; i < dims.length; i++) {
    if (dims.data[i] > INT32_MAX) {
      throw std::invalid_argument("a dimension of " + std::to_string(dims.data[i]) + " is beyond MLX");
    }
    to.push_back(static_cast<mx::ShapeElem>(dims.data[i]));
  }
  return to;
}

size_t bytes_of(Dims dims, Type type) {
  size_t bytes = mx::size_of(dtype(type));
  for (size_t i = 0; i < dims.length; i++) {
    if (__builtin_mul_overflow(bytes, dims.data[i], &bytes) || bytes > most_bytes) {
      throw std::invalid_argument("an array has more than " + std::to_string(most_bytes) + " bytes");
    }
  }
  return bytes;
}

namespace {

thread_local std::string error;

void keep(const char* message) noexcept {
  try {
    error = message;
  } catch (...) {
    error.clear();
  }
}

// Runs what may throw; `failed` is what the caller gets if it does.
template <typename T, typename F>
T guard(T failed, F&& run) noexcept {
  try {
    return run();
  } catch (const std::exception& exception) {
    keep(exception.what());
  } catch (...) {
    keep("MLX threw something that is no exception");
  }
  return failed;
}

Array* handle(mx::array a) {
  // MLX's own count of elements wraps around.
  size_t bytes = a.itemsize();
  for (const auto dim : a.shape()) {
    if (__builtin_mul_overflow(bytes, static_cast<size_t>(dim), &bytes) || bytes > most_bytes) {
      std::ostringstream message;
      message << "an array of shape " << a.shape() << " has more than " << most_bytes << " bytes";
      throw std::invalid_argument(message.str());
    }
  }
  return new Array(std::move(a));
}

// MLX divides by both before it looks at them.
const Quantized& checked(const Quantized* w) {
  const bool known = (w->bits >= 2 && w->bits <= 6) || w->bits == 8;
  if (!known || w->group_size <= 0) {
    throw std::invalid_argument(
        "weights of " + std::to_string(w->bits) + " bits in groups of " + std::to_string(w->group_size) +
        ": MLX has 2 to 6 and 8 bits, and groups of 32, 64 or 128");
  }
  return *w;
}

template <typename F>
Array* make(F&& run) noexcept {
  return guard<Array*>(nullptr, [&] { return handle(run()); });
}

template <typename F>
bool done(F&& run) noexcept {
  return guard(false, [&] {
    run();
    return true;
  });
}

// All of them or none: hands out arrays where Rust has room for them.
void hand_out(std::vector<mx::array>&& arrays, Array** to) {
  size_t made = 0;
  try {
    for (auto& a : arrays) {
      to[made] = handle(std::move(a));
      made++;
    }
  } catch (...) {
    while (made > 0) {
      delete to[--made];
    }
    throw;
  }
}

std::vector<int> ints(Axes axes) {
  return {axes.data, axes.data + axes.length};
}

void append(std::vector<mx::array>& to, Arrays arrays) {
  to.reserve(arrays.length);
  for (size_t i = 0; i < arrays.length; i++) {
    to.push_back(**arrays.data[i]);
  }
}

std::vector<mx::array> list(Arrays arrays) {
  std::vector<mx::array> to;
  append(to, arrays);
  return to;
}

std::vector<std::string> strings(Slice<Text> texts) {
  std::vector<std::string> to;
  for (size_t i = 0; i < texts.length; i++) {
    to.push_back(string(texts.data[i]));
  }
  return to;
}

int32_t number(const mx::array& a) {
  for (size_t i = 0; i < std::size(dtypes); i++) {
    if (dtypes[i] == a.dtype()) {
      return static_cast<int32_t>(i);
    }
  }
  std::ostringstream message;
  message << "an array of " << a.dtype() << ", which base-mlx does not use";
  throw std::invalid_argument(message.str());
}

// What it holds is left over from others.
mx::array empty(Dims dims, Type type) {
  const size_t bytes = bytes_of(dims, type);
  auto data = mx::allocator::malloc(bytes);
  if (bytes > 0 && data.buffer().ptr() == nullptr) {
    throw std::runtime_error("cannot allocate an array of " + std::to_string(bytes) + " bytes");
  }
  return mx::array(std::move(data), shape(dims), dtype(type));
}

const CudaBuffer* cuda_buffer(const mx::array& a) {
  return mx::cu::is_available() ? static_cast<const CudaBuffer*>(a.buffer().ptr()) : nullptr;
}

void copy_to(mx::array a, uint8_t* bytes, size_t length) {
  a.eval();
  if (!a.flags().row_contiguous) {
    a = mx::contiguous(a);
    a.eval();
  }
  if (length != a.nbytes()) {
    throw std::invalid_argument("an array has " + std::to_string(a.nbytes()) + " bytes, not " + std::to_string(length));
  }
  if (length == 0) {
    return;
  }
#ifdef BASE_MLX_CUDA
  // `array::data` would move the whole buffer to unified memory, for good.
  if (const auto* buffer = cuda_buffer(a); buffer && buffer->device >= 0) {
    return cuda_copy(a, bytes);
  }
#endif
  std::memcpy(bytes, a.data<uint8_t>(), length);
}

uint64_t data_pointer(const mx::array& a) {
  if (a.status() == mx::array::Status::unscheduled) {
    throw std::invalid_argument("an array that was not evaluated has no address");
  }
  if (const auto* buffer = cuda_buffer(a)) {
    return reinterpret_cast<uint64_t>(buffer->data) + a.offset();
  }
  return reinterpret_cast<uint64_t>(a.data<uint8_t>());
}

mx::array unary(const mx::array& a, Unary operation) {
  switch (operation) {
    case Unary::Erf: return mx::erf(a);
    case Unary::Exp: return mx::exp(a);
    case Unary::Negative: return mx::negative(a);
    case Unary::Sigmoid: return mx::sigmoid(a);
    case Unary::Tanh: return mx::tanh(a);
  }
  throw std::invalid_argument("unary");
}

mx::array binary(const mx::array& a, const mx::array& b, Binary operation) {
  switch (operation) {
    case Binary::Add: return mx::add(a, b);
    case Binary::Subtract: return mx::subtract(a, b);
    case Binary::Multiply: return mx::multiply(a, b);
    case Binary::Divide: return mx::divide(a, b);
    case Binary::Maximum: return mx::maximum(a, b);
    case Binary::Minimum: return mx::minimum(a, b);
    case Binary::Less: return mx::less(a, b);
    case Binary::LessEqual: return mx::less_equal(a, b);
    case Binary::Equal: return mx::equal(a, b);
    case Binary::LogicalAnd: return mx::logical_and(a, b);
    case Binary::LogicalOr: return mx::logical_or(a, b);
  }
  throw std::invalid_argument("binary");
}

mx::array along(const mx::array& a, int32_t axis, bool keepdims, Along operation) {
  switch (operation) {
    case Along::Sum: return mx::sum(a, axis, keepdims);
    case Along::Max: return mx::max(a, axis, keepdims);
    case Along::Argmax: return mx::argmax(a, axis, keepdims);
    case Along::Cumsum: return mx::cumsum(a, axis);
    case Along::Argsort: return mx::argsort(a, axis);
  }
  throw std::invalid_argument("along");
}

mx::array attention(In q, In k, In v, float scale, bool causal, In mask) {
  std::optional<mx::array> given;
  if (mask) {
    given = **mask;
  }
  const auto* mode = mask ? "array" : causal ? "causal" : "";
  return mx::fast::scaled_dot_product_attention(**q, **k, **v, scale, mode, given);
}

std::vector<mx::array> call_kernel(Kernel& kernel, Arrays inputs, const Launch& launch) {
  kernel.inputs.clear();
  kernel.shapes.clear();
  kernel.dtypes.clear();
  append(kernel.inputs, inputs);
  for (size_t i = 0; i < launch.outputs.length; i++) {
    kernel.shapes.push_back(shape(launch.outputs.data[i].shape));
    kernel.dtypes.push_back(dtype(launch.outputs.data[i].dtype));
  }
  // MLX takes this one by value.
  std::vector<std::pair<std::string, mx::fast::TemplateArg>> constants;
  constants.reserve(launch.constants.length);
  for (size_t i = 0; i < launch.constants.length; i++) {
    const auto& constant = launch.constants.data[i];
    if (constant.is_dtype) {
      constants.emplace_back(string(constant.name), dtype(static_cast<Type>(constant.value)));
    } else {
      constants.emplace_back(string(constant.name), static_cast<int>(constant.value));
    }
  }
  const auto& [gx, gy, gz] = launch.grid;
  const auto& [tx, ty, tz] = launch.threadgroup;
  return kernel.function(
      kernel.inputs, kernel.shapes, kernel.dtypes, {gx, gy, gz}, {tx, ty, tz}, std::move(constants), std::nullopt,
      false, {});
}

Compiled* compile(const Function& function) {
  std::shared_ptr<void> state(function.state, function.drop);
  auto traced = [state, call = function.call, count = function.count](const std::vector<mx::array>& inputs) {
    std::vector<const Array*> handles;
    std::vector<In> lent;
    handles.reserve(inputs.size());
    for (const auto& a : inputs) {
      handles.push_back(&a);
      lent.push_back(&handles.back());
    }
    std::vector<Array*> made(count);
    std::vector<mx::array> outputs;
    outputs.reserve(count);
    if (!call(state.get(), {lent.data(), lent.size()}, made.data())) {
      // What it failed for was the last error here.
      throw std::runtime_error(error);
    }
    for (auto* a : made) {
      outputs.push_back(std::move(*a));
      delete a;
    }
    return outputs;
  };
  return new Compiled{mx::compile(std::move(traced))};
}

mx::Device device(bool gpu) {
  return gpu ? mx::Device::gpu : mx::Device::cpu;
}

bool available(Backend backend) {
  switch (backend) {
    case Backend::Cpu: return true;
    case Backend::Metal: return mx::is_available(mx::Device::gpu) && mx::metal::is_available();
    case Backend::Cuda: return mx::is_available(mx::Device::gpu) && mx::cu::is_available();
  }
  return false;
}

Text device_info(bool gpu, Text key) {
  thread_local std::string kept;
  kept.clear();
  const auto& info = mx::device_info(device(gpu));
  if (auto found = info.find(string(key)); found != info.end()) {
    std::ostringstream text;
    std::visit([&](const auto& value) { text << value; }, found->second);
    kept = text.str();
  }
  return {kept.data(), kept.size()};
}

size_t mlx_memory(Memory which) {
  switch (which) {
    case Memory::Active: return mx::get_active_memory();
    case Memory::Peak: return mx::get_peak_memory();
    case Memory::Cache: return mx::get_cache_memory();
  }
  return 0;
}

// MLX's, and what own kernels have beside it.
size_t memory(Memory which) {
#ifdef BASE_MLX_CUDA
  return mlx_memory(which) + cuda_memory(which);
#else
  return mlx_memory(which);
#endif
}

mx::array swiglu(const mx::array& gate, const mx::array& up) {
  // By thread, as MLX's cache of compiled functions is.
  thread_local const auto compiled = mx::compile(
      [](const std::vector<mx::array>& in) {
        return std::vector<mx::array>{mx::multiply(mx::multiply(in[0], mx::sigmoid(in[0])), in[1])};
      },
      true);
  return compiled({gate, up})[0];
}

#ifndef BASE_MLX_CUDA
[[noreturn]] void no_cuda() {
  throw std::runtime_error("this build of the bridge has no CUDA");
}
#endif

size_t set_limit(Limit which, size_t bytes) {
  switch (which) {
    case Limit::Cache: return mx::set_cache_limit(bytes);
    case Limit::CudaCache:
#ifdef BASE_MLX_CUDA
      return cuda_set_cache_limit(bytes);
#else
      no_cuda();
#endif
    case Limit::Wired: return mx::set_wired_limit(bytes);
  }
  return 0;
}

const Table table = {
    .version = BASE_MLX_BRIDGE_VERSION,
    .last_error = [] { return Text{error.data(), error.size()}; },

    .clone = [](In a) { return guard<Array*>(nullptr, [&] { return new Array(**a); }); },
    .drop = [](Array* a) { delete a; },
    .dtype = [](In a) { return guard<int32_t>(-1, [&] { return number(**a); }); },
    .shape = [](In a) { return Axes{(*a)->shape().data(), (*a)->ndim()}; },
    .nbytes = [](In a) { return (*a)->nbytes(); },
    .is_available = [](In a) { return guard<int32_t>(-1, [&] { return int32_t{(*a)->is_available()}; }); },

    .from_bytes =
        [](Slice<uint8_t> bytes, Dims dims, Type type) {
          return make([&] {
            auto a = empty(dims, type);
            if (bytes.length != a.nbytes()) {
              throw std::invalid_argument("the bytes are not those of the shape");
            }
            if (bytes.length > 0) {
              std::memcpy(a.data<uint8_t>(), bytes.data, bytes.length);
            }
            return a;
          });
        },
    .full =
        [](Dims dims, float value, Type type) {
          return make([&] { return mx::full(shape(dims), value, dtype(type)); });
        },
    .arange =
        [](float start, float stop, float step, Type type) {
          return make([&] { return mx::arange(start, stop, step, dtype(type)); });
        },
    .copy_to =
        [](In a, uint8_t* bytes, size_t length) { return done([&] { copy_to(**a, bytes, length); }); },
    .data_pointer = [](In a, uint64_t* address) { return done([&] { *address = data_pointer(**a); }); },

    .astype = [](In a, Type type) { return make([&] { return mx::astype(**a, dtype(type)); }); },
    .reshape = [](In a, Dims dims) { return make([&] { return mx::reshape(**a, shape(dims)); }); },
    .transpose = [](In a, Axes axes) { return make([&] { return mx::transpose(**a, ints(axes)); }); },
    .slice =
        [](In a, Dims start, Dims stop) { return make([&] { return mx::slice(**a, shape(start), shape(stop)); }); },
    .slice_update =
        [](Array* a, In update, Dims start, Dims stop) {
          std::unique_ptr<Array> taken(a);
          return make([&] { return mx::slice_update(*taken, **update, shape(start), shape(stop)); });
        },
    .concatenate =
        [](Arrays arrays, int32_t axis) { return make([&] { return mx::concatenate(list(arrays), axis); }); },
    .take = [](In a, In indices, int32_t axis) { return make([&] { return mx::take(**a, **indices, axis); }); },
    .take_along_axis =
        [](In a, In indices, int32_t axis) { return make([&] { return mx::take_along_axis(**a, **indices, axis); }); },

    .unary = [](In a, Unary operation) { return make([&] { return unary(**a, operation); }); },
    .binary = [](In a, In b, Binary operation) { return make([&] { return binary(**a, **b, operation); }); },
    .select = [](In condition, In a, In b) { return make([&] { return mx::where(**condition, **a, **b); }); },
    .along =
        [](In a, int32_t axis, bool keepdims, Along operation) {
          return make([&] { return along(**a, axis, keepdims, operation); });
        },
    .matmul = [](In a, In b) { return make([&] { return mx::matmul(**a, **b); }); },

    .quantized_matmul =
        [](In x, const Quantized* w) {
          return make([&] {
            const auto& [packed, scales, biases, group_size, bits] = checked(w);
            return mx::quantized_matmul(**x, *packed, *scales, *biases, true, group_size, bits);
          });
        },
    .gather_qmm =
        [](In x, const Quantized* w, In indices) {
          return make([&] {
            const auto& [packed, scales, biases, group_size, bits] = checked(w);
            return mx::gather_qmm(**x, *packed, *scales, *biases, std::nullopt, **indices, true, group_size, bits);
          });
        },
    .dequantize =
        [](const Quantized* w) {
          return make([&] {
            const auto& [packed, scales, biases, group_size, bits] = checked(w);
            return mx::dequantize(*packed, *scales, *biases, group_size, bits);
          });
        },

    .rms_norm = [](In x, In w, float eps) { return make([&] { return mx::fast::rms_norm(**x, **w, eps); }); },
    .layer_norm =
        [](In x, In w, In bias, float eps) {
          return make([&] { return mx::fast::layer_norm(**x, **w, **bias, eps); });
        },
    .rope =
        [](In x, int32_t dims, float scale, In offset, In freqs) {
          return make([&] { return mx::fast::rope(**x, dims, false, std::nullopt, scale, **offset, **freqs); });
        },
    .attention =
        [](In q, In k, In v, float scale, bool causal, In mask) {
          return make([&] { return attention(q, k, v, scale, causal, mask); });
        },

    .swiglu = [](In gate, In up) { return make([&] { return swiglu(**gate, **up); }); },

    .metal_kernel =
        [](const KernelText* text) {
          return guard<Kernel*>(nullptr, [&] {
            return new Kernel{mx::fast::metal_kernel(
                string(text->name), strings(text->inputs), strings(text->outputs), string(text->source),
                string(text->header))};
          });
        },
    .cuda_kernel =
        [](const KernelText* text, int32_t shared_memory) {
          return guard<Kernel*>(nullptr, [&] {
            return new Kernel{mx::fast::cuda_kernel(
                string(text->name), strings(text->inputs), strings(text->outputs), string(text->source),
                string(text->header), true, shared_memory)};
          });
        },
    .call_kernel =
        [](Kernel* kernel, Arrays inputs, const Launch* launch, Array** arrays) {
          bool called = done([&] { hand_out(call_kernel(*kernel, inputs, *launch), arrays); });
          // Held longer, they could not be written in place.
          kernel->inputs.clear();
          return called;
        },
    .drop_kernel = [](Kernel* kernel) { delete kernel; },

    .compile = [](const Function* function) { return guard<Compiled*>(nullptr, [&] { return compile(*function); }); },
    .call_compiled =
        [](const Compiled* compiled, Arrays inputs, Array** arrays) {
          return done([&] { hand_out(compiled->function(list(inputs)), arrays); });
        },
    .drop_compiled = [](Compiled* compiled) { delete compiled; },

#ifdef BASE_MLX_CUDA
    .cuda_compile =
        [](Text source, Text expression, Slice<Text> options, Text* code, Text* name) {
          return done([&] { cuda_compile(source, expression, options, code, name); });
        },
    .cuda_function =
        [](Text code, Text name, uint32_t shared_memory) {
          return guard<void*>(nullptr, [&] { return cuda_function(code, name, shared_memory); });
        },
    .cuda_launch =
        [](void* function, Arrays inputs, const CudaLaunch* launch, Array** arrays) {
          return done([&] { hand_out(cuda_launch(function, list(inputs), *launch), arrays); });
        },
    .cuda_empty = [](Dims dims, Type type) { return make([&] { return cuda_empty(dims, type); }); },
    .cuda_pinned =
        [](Slice<uint8_t> bytes, Dims dims, Type type) {
          return make([&] { return cuda_pinned(bytes, dims, type); });
        },
#else
    .cuda_compile = [](Text, Text, Slice<Text>, Text*, Text*) { return done([] { no_cuda(); }); },
    .cuda_function = [](Text, Text, uint32_t) { return guard<void*>(nullptr, []() -> void* { no_cuda(); }); },
    .cuda_launch = [](void*, Arrays, const CudaLaunch*, Array**) { return done([] { no_cuda(); }); },
    .cuda_empty = [](Dims, Type) { return make([]() -> mx::array { no_cuda(); }); },
    .cuda_pinned = [](Slice<uint8_t>, Dims, Type) { return make([]() -> mx::array { no_cuda(); }); },
#endif

    .eval = [](Arrays arrays) { return done([&] { mx::eval(list(arrays)); }); },
    .async_eval = [](Arrays arrays) { return done([&] { mx::async_eval(list(arrays)); }); },
    .synchronize = [] { return done([] { mx::synchronize(); }); },

#ifdef BASE_MLX_CUDA
    .has_cuda = true,
#else
    .has_cuda = false,
#endif
    .backend_is_available = [](Backend backend) { return guard(false, [&] { return available(backend); }); },
    .set_default_device = [](bool gpu) { return done([&] { mx::set_default_device(device(gpu)); }); },
    .device_info =
        [](bool gpu, Text key, Text* value) { return done([&] { *value = device_info(gpu, key); }); },
    .mlx_version = [] { return Text{mx::version(), std::strlen(mx::version())}; },

    .memory = [](Memory which) { return guard<size_t>(0, [&] { return memory(which); }); },
    .reset_peak_memory =
        [] {
          done([] {
            mx::reset_peak_memory();
#ifdef BASE_MLX_CUDA
            cuda_reset_peak();
#endif
          });
        },
    .clear_cache =
        [] {
          return done([] {
            mx::clear_cache();
#ifdef BASE_MLX_CUDA
            cuda_clear_cache();
#endif
          });
        },
    .set_limit =
        [](Limit which, size_t bytes, size_t* before) { return done([&] { *before = set_limit(which, bytes); }); },
};

} // namespace

} // namespace base_mlx

// The one name that the library exports.
extern "C" __attribute__((visibility("default"))) const base_mlx::Table* base_mlx_bridge() {
  return &base_mlx::table;
}
