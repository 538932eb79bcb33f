// Own CUDA kernels without MLX's detours: `fast::cuda_kernel` puts a kernel's whole source together and hashes it at every
// call. Here a kernel is compiled once, and a call adds one node to the graph that MLX is building.
//
// No header of CUDA is needed: the driver and its compiler are found where MLX has loaded them, and what is used of
// MLX's own CUDA backend is declared below, as its headers of this version declare it.

#include "cuda.h"

#include <dlfcn.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "mlx/primitives.h"

struct CUfunc_st;
struct CUgraph_st;
struct CUgraphNode_st;
struct dim3 {
  unsigned int x, y, z;
};

namespace mlx::core::cu {

class CommandEncoder {
 public:
  void set_input_array(const array& arr);
  void set_output_array(const array& arr);
  void add_kernel_node_raw(
      CUfunc_st* func, dim3 grid_dim, dim3 block_dim, dim3 cluster_dim, uint32_t smem_bytes, void** params);
  void add_graph_node(CUgraph_st* child);
};

CommandEncoder& get_command_encoder(Stream s);

} // namespace mlx::core::cu

namespace base_mlx {

namespace mx = mlx::core;

namespace {

using Address = unsigned long long;

// As the driver's own.
struct KernelNode {
  CUfunc_st* function;
  unsigned int grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_memory;
  void** parameters;
  void** extra;
  void* kernel;
  void* context;
};

union alignas(8) LaunchAttribute {
  char padding[64];
  dim3 cluster;
};

// What the driver and its compiler are asked for, under their own names.
struct Driver {
  int (*cuModuleLoadData)(void** module, const void* image);
  int (*cuModuleGetFunction)(CUfunc_st** function, void* module, const char* name);
  int (*cuFuncSetAttribute)(CUfunc_st* function, int attribute, int value);
  int (*cuMemAllocAsync)(Address* address, size_t bytes, void* stream);
  int (*cuMemFree)(Address address);
  int (*cuMemHostAlloc)(void** memory, size_t bytes, unsigned int flags);
  int (*cuMemcpyDtoH)(void* to, Address from, size_t bytes);
  int (*cuStreamSynchronize)(void* stream);
  int (*cuGraphCreate)(CUgraph_st** graph, unsigned int flags);
  int (*cuGraphDestroy)(CUgraph_st* graph);
  int (*cuGraphAddKernelNode)(
      CUgraphNode_st** node, CUgraph_st* graph, CUgraphNode_st* const* before, size_t count, const KernelNode* kernel);
  int (*cuGraphKernelNodeSetAttribute)(CUgraphNode_st* node, int attribute, const LaunchAttribute* value);
  int (*cuGetErrorName)(int error, const char** name);
  int (*cuCtxGetDevice)(int* device);
  int (*cuDeviceGetAttribute)(int* value, int attribute, int device);
};

struct Compiler {
  int (*nvrtcCreateProgram)(
      void** program, const char* source, const char* name, int headers, const char* const* texts,
      const char* const* names);
  int (*nvrtcAddNameExpression)(void* program, const char* expression);
  int (*nvrtcCompileProgram)(void* program, int options, const char* const* given);
  int (*nvrtcGetProgramLogSize)(void* program, size_t* size);
  int (*nvrtcGetProgramLog)(void* program, char* log);
  int (*nvrtcGetLoweredName)(void* program, const char* expression, const char** name);
  int (*nvrtcGetCUBINSize)(void* program, size_t* size);
  int (*nvrtcGetCUBIN)(void* program, char* code);
  int (*nvrtcDestroyProgram)(void** program);
};

void* opened(std::initializer_list<const char*> names) {
  for (const auto* name : names) {
    if (auto* library = dlopen(name, RTLD_NOW | RTLD_NOLOAD)) {
      return library;
    }
  }
  throw std::runtime_error(std::string("MLX has not loaded ") + *names.begin());
}

template <typename F>
void find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  if (!function) {
    throw std::runtime_error(std::string("the driver or its compiler has no ") + name);
  }
}

const Driver& driver() {
  static const Driver driver = [] {
    auto* library = opened({"libcuda.so.1"});
    Driver found{};
    find(library, "cuModuleLoadData", found.cuModuleLoadData);
    find(library, "cuModuleGetFunction", found.cuModuleGetFunction);
    find(library, "cuFuncSetAttribute", found.cuFuncSetAttribute);
    find(library, "cuMemAllocAsync", found.cuMemAllocAsync);
    find(library, "cuMemFree_v2", found.cuMemFree);
    find(library, "cuMemHostAlloc", found.cuMemHostAlloc);
    find(library, "cuMemcpyDtoH_v2", found.cuMemcpyDtoH);
    find(library, "cuStreamSynchronize", found.cuStreamSynchronize);
    find(library, "cuGraphCreate", found.cuGraphCreate);
    find(library, "cuGraphDestroy", found.cuGraphDestroy);
    find(library, "cuGraphAddKernelNode_v2", found.cuGraphAddKernelNode);
    find(library, "cuGraphKernelNodeSetAttribute", found.cuGraphKernelNodeSetAttribute);
    find(library, "cuGetErrorName", found.cuGetErrorName);
    find(library, "cuCtxGetDevice", found.cuCtxGetDevice);
    find(library, "cuDeviceGetAttribute", found.cuDeviceGetAttribute);
    return found;
  }();
  return driver;
}

const Compiler& compiler() {
  static const Compiler compiler = [] {
    auto* library = opened({"libnvrtc.so.13", "libnvrtc.so.12"});
    Compiler found{};
    find(library, "nvrtcCreateProgram", found.nvrtcCreateProgram);
    find(library, "nvrtcAddNameExpression", found.nvrtcAddNameExpression);
    find(library, "nvrtcCompileProgram", found.nvrtcCompileProgram);
    find(library, "nvrtcGetProgramLogSize", found.nvrtcGetProgramLogSize);
    find(library, "nvrtcGetProgramLog", found.nvrtcGetProgramLog);
    find(library, "nvrtcGetLoweredName", found.nvrtcGetLoweredName);
    find(library, "nvrtcGetCUBINSize", found.nvrtcGetCUBINSize);
    find(library, "nvrtcGetCUBIN", found.nvrtcGetCUBIN);
    find(library, "nvrtcDestroyProgram", found.nvrtcDestroyProgram);
    return found;
  }();
  return compiler;
}

void check(int result, const char* what) {
  if (result != 0) {
    const char* name = nullptr;
    driver().cuGetErrorName(result, &name);
    throw std::runtime_error(std::string(what) + " failed: " + (name ? name : std::to_string(result).c_str()));
  }
}

// Attributes of the driver's: a device's compute capability, a kernel's dynamic shared memory, and a launch's clusters.
constexpr int CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, MAX_DYNAMIC_SHARED_SIZE_BYTES = 8, CLUSTER_DIMENSION = 4;

// Device memory for what own kernels write. MLX's is out of reach: only its own operations can have memory of the device
// alone.
class Pool {
 public:
  // On the thread that owns MLX.
  mx::allocator::Data allocate(size_t bytes) {
    bytes = rounded(bytes);
    trim();
    CudaBuffer* buffer = nullptr;
    {
      std::lock_guard lock(mutex_);
      // One a little larger will do: a prompt's chunks want memory that grows by a chunk's.
      if (auto found = free_.lower_bound(bytes); found != free_.end() && found->first <= bytes + bytes / 4) {
        buffer = taken(found);
      }
    }
    if (!buffer) {
      buffer = fresh(bytes);
    }
    {
      std::lock_guard lock(mutex_);
      active_ += buffer->size;
      peak_ = std::max(peak_, active_);
    }
    return mx::allocator::Data(mx::allocator::Buffer(buffer), [this](mx::allocator::Buffer given) {
      release(static_cast<CudaBuffer*>(given.ptr()));
    });
  }

  size_t active() {
    std::lock_guard lock(mutex_);
    return active_;
  }

  size_t peak() {
    std::lock_guard lock(mutex_);
    return peak_;
  }

  size_t cached() {
    std::lock_guard lock(mutex_);
    return cached_;
  }

  void reset_peak() {
    std::lock_guard lock(mutex_);
    peak_ = active_;
  }

  size_t set_limit(size_t limit) {
    std::lock_guard lock(mutex_);
    return std::exchange(limit_, limit);
  }

  // Keeps no more than so many bytes of what is free, the largest go first. On the thread that owns MLX. Waits for the
  // device: what is free here may still be in use there.
  void clear(size_t most) {
    std::vector<CudaBuffer*> unused;
    {
      std::lock_guard lock(mutex_);
      unused.swap(moved_);
      while (cached_ > most) {
        unused.push_back(taken(std::prev(free_.end())));
      }
    }
    if (unused.empty()) {
      return;
    }
    mx::synchronize();
    for (auto* buffer : unused) {
      check(driver().cuMemFree(reinterpret_cast<Address>(buffer->data)), "giving memory back");
      delete buffer;
    }
  }

 private:
  using Free = std::map<size_t, std::vector<CudaBuffer*>>;

  // Under the lock.
  CudaBuffer* taken(Free::iterator of_size) {
    auto* buffer = of_size->second.back();
    of_size->second.pop_back();
    if (of_size->second.empty()) {
      free_.erase(of_size);
    }
    cached_ -= buffer->size;
    return buffer;
  }

  // Few sizes, so that what one kernel leaves suits the next.
  static size_t rounded(size_t bytes) {
    constexpr size_t least = 512, unit = 1 << 20;
    if (bytes >= unit) {
      return (bytes + unit - 1) / unit * unit;
    }
    size_t size = least;
    while (size < bytes) {
      size *= 2;
    }
    return size;
  }

  CudaBuffer* fresh(size_t bytes) {
    Address address = 0;
    int result = driver().cuMemAllocAsync(&address, bytes, nullptr);
    if (result != 0) {
      clear(0);
      mx::clear_cache();
      result = driver().cuMemAllocAsync(&address, bytes, nullptr);
    }
    if (result != 0) {
      throw std::runtime_error("cannot allocate " + std::to_string(bytes) + " bytes on the device");
    }
    // MLX's stream does not wait for the one that the memory comes from.
    result = driver().cuStreamSynchronize(nullptr);
    if (result != 0) {
      driver().cuMemFree(address);
      check(result, "waiting for memory");
    }
    return new CudaBuffer{reinterpret_cast<void*>(address), bytes, 0};
  }

  // On any thread: MLX lets go of a buffer when the kernels that use it are done, on a thread of its own, which has no
  // context to free it in.
  void release(CudaBuffer* buffer) {
    std::lock_guard lock(mutex_);
    active_ -= buffer->size;
    if (buffer->device < 0) {
      // MLX has moved it to where the host can read it.
      moved_.push_back(buffer);
      return;
    }
    cached_ += buffer->size;
    free_[buffer->size].push_back(buffer);
  }

  // Keeps what is free below the limit, by some distance, for the device is waited for each time.
  void trim() {
    size_t most = 0;
    {
      std::lock_guard lock(mutex_);
      if (cached_ <= limit_ && moved_.size() < MOST_MOVED) {
        return;
      }
      most = limit_ / 2;
    }
    clear(most);
  }

  static constexpr size_t MOST_MOVED = 64;
  std::mutex mutex_;
  Free free_;
  std::vector<CudaBuffer*> moved_;
  size_t active_ = 0, peak_ = 0, cached_ = 0, limit_ = size_t{1} << 34;
};

// Never destroyed: arrays may be dropped at any time.
Pool& pool() {
  static auto* pool = new Pool;
  return *pool;
}

// Host memory that the device reads over the bus, for what is read once. Unified memory would move back and forth by page
// faults. Never given back: it is as much as was once on its way at the same time.
class Pinned {
 public:
  mx::allocator::Data allocate(size_t bytes) {
    size_t size = 4096;
    while (size < bytes) {
      size *= 2;
    }
    CudaBuffer* buffer = nullptr;
    {
      std::lock_guard lock(mutex_);
      if (auto& free = free_[size]; !free.empty()) {
        buffer = free.back();
        free.pop_back();
      }
    }
    if (!buffer) {
      void* memory = nullptr;
      check(driver().cuMemHostAlloc(&memory, size, PORTABLE), "allocating memory for the device to read");
      buffer = new CudaBuffer{memory, size, -1};
    }
    return mx::allocator::Data(mx::allocator::Buffer(buffer), [this](mx::allocator::Buffer given) {
      auto* buffer = static_cast<CudaBuffer*>(given.ptr());
      std::lock_guard lock(mutex_);
      free_[buffer->size].push_back(buffer);
    });
  }

 private:
  static constexpr unsigned int PORTABLE = 1;
  std::mutex mutex_;
  std::map<size_t, std::vector<CudaBuffer*>> free_;
};

Pinned& pinned() {
  static auto* pinned = new Pinned;
  return *pinned;
}

Address address(const mx::array& a) {
  const auto* buffer = static_cast<const CudaBuffer*>(a.buffer().ptr());
  return reinterpret_cast<Address>(buffer->data) + a.offset();
}

// One launch of a kernel: the addresses of its inputs, those that were given, those of its outputs, then its numbers.
class Launched : public mx::Primitive {
 public:
  Launched(mx::Stream stream, CUfunc_st* function, const CudaLaunch& launch)
      : mx::Primitive(stream),
        function_(function),
        grid_{launch.grid[0], launch.grid[1], launch.grid[2]},
        block_{launch.block[0], launch.block[1], launch.block[2]},
        cluster_(launch.cluster),
        shared_memory_(launch.shared_memory),
        given_(launch.addresses.data, launch.addresses.data + launch.addresses.length),
        numbers_(launch.numbers.data, launch.numbers.data + launch.numbers.length) {}

  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("an own kernel runs on the GPU only");
  }

  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cu::get_command_encoder(stream());
    for (auto& out : outputs) {
      out.set_data(pool().allocate(out.nbytes()));
    }
    std::vector<Address> addresses;
    addresses.reserve(inputs.size() + given_.size() + outputs.size());
    for (const auto& in : inputs) {
      if (!in.flags().row_contiguous) {
        throw std::invalid_argument("an own kernel reads row by row, an input does not lie so");
      }
      encoder.set_input_array(in);
      addresses.push_back(address(in));
    }
    addresses.insert(addresses.end(), given_.begin(), given_.end());
    for (const auto& out : outputs) {
      encoder.set_output_array(out);
      addresses.push_back(address(out));
    }
    std::vector<void*> parameters;
    parameters.reserve(addresses.size() + numbers_.size());
    for (auto& a : addresses) {
      parameters.push_back(&a);
    }
    for (auto& number : numbers_) {
      parameters.push_back(&number);
    }
    if (cluster_ == 1) {
      encoder.add_kernel_node_raw(function_, grid_, block_, {0, 0, 0}, shared_memory_, parameters.data());
    } else {
      add_in_clusters(encoder, parameters);
    }
  }

  const char* name() const override {
    return "Launched";
  }

 private:
  // As a graph of its own: MLX instantiates a graph once and updates it for all that look the same, and of a kernel it sees
  // clusters only there. Updating a node of other clusters succeeds, and computes something else.
  void add_in_clusters(mx::cu::CommandEncoder& encoder, std::vector<void*>& parameters) const {
    CUgraph_st* graph = nullptr;
    check(driver().cuGraphCreate(&graph, 0), "making a graph");
    std::unique_ptr<CUgraph_st, int (*)(CUgraph_st*)> destroyed(graph, driver().cuGraphDestroy);
    KernelNode kernel{};
    kernel.function = function_;
    std::tie(kernel.grid_x, kernel.grid_y, kernel.grid_z) = std::tie(grid_.x, grid_.y, grid_.z);
    std::tie(kernel.block_x, kernel.block_y, kernel.block_z) = std::tie(block_.x, block_.y, block_.z);
    kernel.shared_memory = shared_memory_;
    kernel.parameters = parameters.data();
    CUgraphNode_st* node = nullptr;
    check(driver().cuGraphAddKernelNode(&node, graph, nullptr, 0, &kernel), "adding a kernel");
    LaunchAttribute attribute{};
    attribute.cluster = {cluster_, 1, 1};
    check(driver().cuGraphKernelNodeSetAttribute(node, CLUSTER_DIMENSION, &attribute), "asking for clusters");
    encoder.add_graph_node(graph);
  }

  CUfunc_st* function_;
  dim3 grid_, block_;
  uint32_t cluster_;
  uint32_t shared_memory_;
  std::vector<Address> given_;
  std::vector<uint32_t> numbers_;
};

} // namespace

void cuda_compile(Text source, Text expression, Slice<Text> options, Text* code, Text* name) {
  thread_local std::string kept_code, kept_name;
  const auto& rtc = compiler();
  int device = 0, major = 0, minor = 0;
  check(driver().cuCtxGetDevice(&device), "asking for the device");
  check(driver().cuDeviceGetAttribute(&major, CAPABILITY_MAJOR, device), "asking for the capability");
  check(driver().cuDeviceGetAttribute(&minor, CAPABILITY_MINOR, device), "asking for the capability");

  void* program = nullptr;
  const auto text = string(source), wanted = string(expression);
  if (rtc.nvrtcCreateProgram(&program, text.c_str(), "base-mlx.cu", 0, nullptr, nullptr) != 0) {
    throw std::runtime_error("the CUDA compiler takes no program");
  }
  std::unique_ptr<void, void (*)(void*)> destroyed(
      program, [](void* program) { compiler().nvrtcDestroyProgram(&program); });
  rtc.nvrtcAddNameExpression(program, wanted.c_str());
  std::vector<std::string> all = {
      "--gpu-architecture=sm_" + std::to_string(major) + std::to_string(minor) + (major >= 9 ? "a" : ""),
      "--std=c++17"};
  for (size_t i = 0; i < options.length; i++) {
    all.push_back(string(options.data[i]));
  }
  std::vector<const char*> given;
  for (const auto& option : all) {
    given.push_back(option.c_str());
  }
  if (rtc.nvrtcCompileProgram(program, static_cast<int>(given.size()), given.data()) != 0) {
    size_t size = 0;
    rtc.nvrtcGetProgramLogSize(program, &size);
    std::string log(size, ' ');
    rtc.nvrtcGetProgramLog(program, log.data());
    throw std::runtime_error("the CUDA compiler refuses " + wanted + ": " + log);
  }
  const char* mangled = nullptr;
  size_t size = 0;
  if (rtc.nvrtcGetLoweredName(program, wanted.c_str(), &mangled) != 0 ||
      rtc.nvrtcGetCUBINSize(program, &size) != 0) {
    throw std::runtime_error("the CUDA compiler made no code of " + wanted);
  }
  kept_code.resize(size);
  rtc.nvrtcGetCUBIN(program, kept_code.data());
  kept_name = mangled;
  *code = {kept_code.data(), kept_code.size()};
  *name = {kept_name.data(), kept_name.size()};
}

void* cuda_function(Text code, Text name, uint32_t shared_memory) {
  void* module = nullptr;
  check(driver().cuModuleLoadData(&module, code.data), "loading a kernel");
  CUfunc_st* function = nullptr;
  check(driver().cuModuleGetFunction(&function, module, string(name).c_str()), "finding a kernel");
  if (shared_memory > 48 << 10) {
    check(
        driver().cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(shared_memory)),
        "asking for shared memory");
  }
  return function;
}

std::vector<mx::array> cuda_launch(void* function, std::vector<mx::array> inputs, const CudaLaunch& launch) {
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (size_t i = 0; i < launch.outputs.length; i++) {
    shapes.push_back(shape(launch.outputs.data[i].shape));
    dtypes.push_back(dtype(launch.outputs.data[i].dtype));
  }
  auto primitive = std::make_shared<Launched>(
      mx::default_stream(mx::Device::gpu), static_cast<CUfunc_st*>(function), launch);
  return mx::array::make_arrays(std::move(shapes), dtypes, std::move(primitive), inputs);
}

mx::array cuda_empty(Dims dims, Type type) {
  return mx::array(pool().allocate(bytes_of(dims, type)), shape(dims), dtype(type));
}

mx::array cuda_pinned(Slice<uint8_t> bytes, Dims dims, Type type) {
  auto a = mx::array(pinned().allocate(bytes.length), shape(dims), dtype(type));
  if (bytes.length != a.nbytes()) {
    throw std::invalid_argument("the bytes are not those of the shape");
  }
  std::memcpy(static_cast<CudaBuffer*>(a.buffer().ptr())->data, bytes.data, bytes.length);
  return a;
}

void cuda_copy(const mx::array& a, uint8_t* bytes) {
  check(driver().cuMemcpyDtoH(bytes, address(a), a.nbytes()), "copying from the device");
}

size_t cuda_memory(Memory which) {
  switch (which) {
    case Memory::Active: return pool().active();
    case Memory::Peak: return pool().peak();
    case Memory::Cache: return pool().cached();
  }
  return 0;
}

void cuda_reset_peak() {
  pool().reset_peak();
}

void cuda_clear_cache() {
  pool().clear(0);
}

size_t cuda_set_cache_limit(size_t bytes) {
  return pool().set_limit(bytes);
}

} // namespace base_mlx
