// Checks the kernels against plain references in double precision, and times them as they will run: in a CUDA graph, one
// after the other, on weights and keys that the L2 cache does not hold.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "scalar.cuh"
#include "cache.cuh"
#include "project.cuh"
#include "many.cuh"
#include "place.cuh"
#include "attend.cuh"
#include "sample.cuh"

using namespace base_mlx;
using Bf16 = __nv_bfloat16;
using Half = __half;

#define CHECK(call)                                                                          \
  do {                                                                                       \
    const cudaError_t error = (call);                                                        \
    if (error != cudaSuccess) {                                                              \
      std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error));  \
      std::exit(1);                                                                          \
    }                                                                                        \
  } while (0)

static int processors = 0;
static cudaStream_t stream;
static bool failed = false;

template <typename V>
struct Buffer {
  V* at = nullptr;
  size_t size = 0;
  explicit Buffer(size_t size) : size(size) { CHECK(cudaMalloc(&at, std::max<size_t>(size, 1) * sizeof(V))); }
  explicit Buffer(const std::vector<V>& values) : Buffer(values.size()) {
    CHECK(cudaMemcpy(at, values.data(), size * sizeof(V), cudaMemcpyHostToDevice));
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(at); }
  std::vector<V> read() const {
    std::vector<V> values(size);
    CHECK(cudaMemcpy(values.data(), at, size * sizeof(V), cudaMemcpyDeviceToHost));
    return values;
  }
  void poison() const { CHECK(cudaMemset(at, 0xFF, size * sizeof(V))); }
};

__device__ __host__ inline unsigned long long mixed(unsigned long long x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Four uniforms added: about normal, of variance 1, times `scale`, plus `shift`.
template <typename T>
__global__ void fill_kernel(T* to, size_t size, unsigned long long seed, float scale, float shift) {
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += size_t(gridDim.x) * blockDim.x) {
    const unsigned long long bits = mixed(i * 0x2545F4914F6CDD1Dull + seed);
    float sum = -2.0f;
    for (int n = 0; n < 4; n++) sum += float(bits >> (16 * n) & 0xFFFF) / 65536.0f;
    to[i] = narrow<T>(sum * 1.7320508f * scale + shift);
  }
}
__global__ void fill_words_kernel(Word* to, size_t size, unsigned long long seed) {
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += size_t(gridDim.x) * blockDim.x) {
    to[i] = Word(mixed(i + seed) >> 7);
  }
}
static unsigned long long next_seed = 1;
template <typename T>
void fill(T* to, size_t size, float scale, float shift = 0.0f) {
  fill_kernel<T><<<1024, 256>>>(to, size, mixed(next_seed++), scale, shift);
  CHECK(cudaGetLastError());
}
void fill_words(Word* to, size_t size) {
  fill_words_kernel<<<1024, 256>>>(to, size, mixed(next_seed++));
  CHECK(cudaGetLastError());
}

// Microseconds a launch: `launch(n)` for n in 0..count in a graph, the median of some replays.
static double time_launches(int count, const std::function<void(int)>& launch) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int n = 0; n < count; n++) launch(n);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t start, end;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int n = 0; n < 9; n++) {
    CHECK(cudaEventRecord(start, stream));
    CHECK(cudaGraphLaunch(executable, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, start, end));
    if (n >= 2) times.push_back(ms);
  }
  CHECK(cudaGetLastError());
  CHECK(cudaEventDestroy(start));
  CHECK(cudaEventDestroy(end));
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1000.0 / count;
}

static void report(const char* name, double error, double limit) {
  const bool good = error < limit;  // not for NaN
  failed |= !good;
  std::printf("%-58s error %.2e %s\n", name, error, good ? "ok" : "WRONG");
}

template <typename T>
double error_of(const std::vector<T>& out, const std::vector<double>& reference) {
  double difference = 0.0, size = 0.0;
  for (size_t i = 0; i < out.size(); i++) {
    const double value = double(float(out[i]));
    difference += (value - reference[i]) * (value - reference[i]);
    size += reference[i] * reference[i];
  }
  return std::sqrt(difference / size);
}

// ---- project

template <typename T, int ROWS_, int IN_, int BITS_, int GROUP_, int OUT0_, int OUT1_, int OUT2_, int NORM_, int BIAS_,
          int EPILOGUE_>
struct Shape {
  using Scalar = T;
  static constexpr int ROWS = ROWS_, IN = IN_, BITS = BITS_, GROUP = GROUP_, OUT0 = OUT0_, OUT1 = OUT1_, OUT2 = OUT2_;
  static constexpr int NORM = NORM_, BIAS = BIAS_, EPILOGUE = EPILOGUE_;
  static constexpr int BLOCK_ROWS = ROWS < 64 ? ROWS : 64;  // of the kernel of many rows
  static constexpr int OUTS[3] = {OUT0, OUT1, OUT2};
  static constexpr int OUT = EPILOGUE == EPILOGUE_SWIGLU ? OUT0 : OUT0 + OUT1 + OUT2;
  static constexpr size_t WEIGHT_BYTES =
      size_t(OUT0 + OUT1 + OUT2) * IN * BITS / 8 + (BITS < 16 ? size_t(OUT0 + OUT1 + OUT2) * (IN / GROUP) * 2 * sizeof(T) : 0);
};
constexpr int EPS_BITS = 0x358637BD;  // 1e-6

template <typename S, int WARPS, int TEAM, int DEPTH, typename T = typename S::Scalar>
__global__ void project_kernel(const T* x, const T* norm_weight, Matrix<T> first, Matrix<T> second, Matrix<T> third,
                               const T* residual, T* out) {
  project<T, S::ROWS, S::IN, S::BITS, S::GROUP, S::OUT0, S::OUT1, S::OUT2, S::NORM, EPS_BITS, S::BIAS, S::EPILOGUE, WARPS,
          TEAM, DEPTH>(x, S::ROWS, norm_weight, first, second, third, residual, out);
}

template <typename S>
struct Weights {
  using T = typename S::Scalar;
  std::vector<std::unique_ptr<Buffer<Word>>> words;
  std::vector<std::unique_ptr<Buffer<T>>> scalars;
  Matrix<T> matrices[3] = {};
  T* scalar(size_t size, float scale, float shift) {
    scalars.push_back(std::make_unique<Buffer<T>>(size));
    fill(scalars.back()->at, size, scale, shift);
    return scalars.back()->at;
  }
  Weights() {
    const float size = 1.0f / std::sqrt(float(S::IN));
    for (int m = 0; m < 3; m++) {
      const size_t values = size_t(S::OUTS[m]) * S::IN;
      if (values == 0) continue;
      Matrix<T>& matrix = matrices[m];
      if (S::BITS < 16) {
        words.push_back(std::make_unique<Buffer<Word>>(values * S::BITS / 32));
        fill_words(words.back()->at, words.back()->size);
        matrix.packed = words.back()->at;
        const float step = size / (S::BITS == 4 ? 4.0f : 64.0f);
        matrix.scales = scalar(values / S::GROUP, step / 4.0f, step);
        matrix.biases = scalar(values / S::GROUP, size / 4.0f, -step * (S::BITS == 4 ? 7.5f : 127.5f));
      } else {
        matrix.packed = scalar(values, size, 0.0f);
      }
      if (S::BIAS) matrix.bias = scalar(S::OUTS[m], 0.5f, 0.0f);
    }
  }
};

template <typename S, typename T = typename S::Scalar>
__global__ void project_reference(const T* x, const T* norm_weight, Matrix<T> matrix, int outs, double* out) {
  const int output = blockIdx.x, row = blockIdx.y, lane = threadIdx.x;
  double squares = 0.0, product = 0.0;
  for (int i = lane; i < S::IN; i += 32) squares += double(widen(x[row * S::IN + i])) * double(widen(x[row * S::IN + i]));
  for (int n = 16; n > 0; n /= 2) squares += __shfl_xor_sync(0xFFFFFFFFu, squares, n);
  const double factor = S::NORM ? 1.0 / sqrt(squares / S::IN + 1e-6) : 1.0;
  for (int i = lane; i < S::IN; i += 32) {
    double value = double(widen(x[row * S::IN + i])) * factor;
    if (S::NORM) value *= double(widen(norm_weight[i]));
    double weight;
    if (S::BITS < 16) {
      const size_t bit = size_t(i) * S::BITS;
      const Word word = static_cast<const Word*>(matrix.packed)[size_t(output) * (S::IN * S::BITS / 32) + bit / 32];
      const Word q = word >> (bit % 32) & ((1u << S::BITS % 32) - 1);
      const size_t group = size_t(output) * (S::IN / S::GROUP) + i / S::GROUP;
      weight = double(widen(matrix.scales[group])) * q + double(widen(matrix.biases[group]));
    } else {
      weight = double(widen(static_cast<const T*>(matrix.packed)[size_t(output) * S::IN + i]));
    }
    product += value * weight;
  }
  for (int n = 16; n > 0; n /= 2) product += __shfl_xor_sync(0xFFFFFFFFu, product, n);
  if (lane == 0) out[size_t(row) * outs + output] = product + (S::BIAS ? double(widen(matrix.bias[output])) : 0.0);
}

template <typename S, int WARPS, int TEAM, int DEPTH>
auto prepared() {
  using T = typename S::Scalar;
  using Plan = Project<T, S::ROWS, S::IN, S::BITS, S::GROUP, S::OUT0, S::OUT1, S::OUT2, S::NORM, EPS_BITS, S::BIAS,
                       S::EPILOGUE, WARPS, TEAM, DEPTH>;
  auto kernel = project_kernel<S, WARPS, TEAM, DEPTH>;
  if (Plan::DYNAMIC_BYTES > 0) {
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::DYNAMIC_BYTES));
  }
  int fit = 0;
  CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, kernel, Plan::THREADS, Plan::DYNAMIC_BYTES));
  const int most = (Plan::ITEMS + Plan::TEAMS - 1) / Plan::TEAMS;
  struct Prepared {
    decltype(kernel) function;
    int bytes, fit, most, threads;
  };
  return Prepared{kernel, Plan::DYNAMIC_BYTES, fit, most, Plan::THREADS};
}

template <typename S>
struct Inputs {
  using T = typename S::Scalar;
  Buffer<T> x{size_t(S::ROWS) * S::IN}, norm_weight{S::IN}, residual{size_t(S::ROWS) * S::OUT}, out{size_t(S::ROWS) * S::OUT};
  Inputs() {
    fill(x.at, x.size, 1.0f, 0.1f);
    fill(norm_weight.at, norm_weight.size, 0.3f, 1.0f);
    fill(residual.at, residual.size, 1.0f);
  }
};

// Compares what `launch` makes of weights and inputs. `how` says which kernel it was.
template <typename S, typename Launch>
void check_product(const char* how, const Launch& launch) {
  using T = typename S::Scalar;
  Weights<S> weights;
  Inputs<S> inputs;
  inputs.out.poison();
  const auto& m = weights.matrices;
  launch(weights, inputs);
  CHECK(cudaGetLastError());
  CHECK(cudaDeviceSynchronize());
  std::vector<double> products[3];
  for (int n = 0; n < 3; n++) {
    if (S::OUTS[n] == 0) continue;
    Buffer<double> product(size_t(S::ROWS) * S::OUTS[n]);
    project_reference<S><<<dim3(S::OUTS[n], S::ROWS), 32, 0, stream>>>(inputs.x.at, inputs.norm_weight.at, m[n], S::OUTS[n],
                                                                      product.at);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    products[n] = product.read();
  }
  const auto residual = inputs.residual.read();
  std::vector<double> reference;
  for (int row = 0; row < S::ROWS; row++) {
    if (S::EPILOGUE == EPILOGUE_SWIGLU) {
      for (int o = 0; o < S::OUT0; o++) {
        const double gate = products[0][row * S::OUT0 + o];
        reference.push_back(gate / (1.0 + std::exp(-gate)) * products[1][row * S::OUT0 + o]);
      }
    } else {
      for (int n = 0; n < 3; n++) {
        for (int o = 0; o < S::OUTS[n]; o++) reference.push_back(products[n][row * S::OUTS[n] + o]);
      }
    }
  }
  if (S::EPILOGUE == EPILOGUE_ADD) {
    for (size_t i = 0; i < reference.size(); i++) reference[i] += double(float(residual[i]));
  }
  char name[128];
  std::snprintf(name, sizeof name, "project %s rows %d, %d+%d+%dx%d, %d/%d, norm %d bias %d end %d, %s",
                sizeof(T) == 4 ? "f32" : Same<T, Half>::value ? "f16" : "bf16", S::ROWS, S::OUT0, S::OUT1, S::OUT2, S::IN,
                S::BITS, S::GROUP, S::NORM, S::BIAS, S::EPILOGUE, how);
  report(name, error_of(inputs.out.read(), reference), sizeof(T) == 4 ? 1e-5 : Same<T, Half>::value ? 1.5e-3 : 1e-2);
}

template <typename S, int WARPS = 8, int TEAM = 4, int DEPTH = 3>
void check_project() {
  char how[32];
  std::snprintf(how, sizeof how, "%d.%d.%d", WARPS, TEAM, DEPTH);
  const auto kernel = prepared<S, WARPS, TEAM, DEPTH>();
  if (kernel.fit == 0) {
    std::printf("no block fits: rows %d, %dx%d, %s\n", S::ROWS, S::OUT, S::IN, how);
    failed = true;
    return;
  }
  check_product<S>(how, [&](const Weights<S>& weights, const Inputs<S>& inputs) {
    const auto& m = weights.matrices;
    kernel.function<<<std::min(kernel.most, processors), kernel.threads, kernel.bytes, stream>>>(
        inputs.x.at, inputs.norm_weight.at, m[0], m[1], m[2], inputs.residual.at, inputs.out.at);
  });
}

template <typename S, int SPLIT, typename T = typename S::Scalar>
__global__ void __cluster_dims__(SPLIT, 1, 1) __launch_bounds__(128)
    project_many_kernel(const T* x, int live, Matrix<T> first, Matrix<T> second, Matrix<T> third, const T* residual, T* out) {
  project_many<T, S::BLOCK_ROWS, S::IN, S::BITS, S::GROUP, S::OUT0, S::OUT1, S::OUT2, S::BIAS, S::EPILOGUE, SPLIT>(
      x, live, first, second, third, residual, out);
}

template <typename S, int SPLIT>
void launch_project_many(const Weights<S>& weights, const Inputs<S>& inputs) {
  using T = typename S::Scalar;
  using Plan = ProjectMany<T, S::BLOCK_ROWS, S::IN, S::BITS, S::GROUP, S::OUT0, S::OUT1, S::OUT2, S::BIAS, S::EPILOGUE, SPLIT>;
  const auto kernel = project_many_kernel<S, SPLIT>;
  if (Plan::DYNAMIC_BYTES > 0) {
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::DYNAMIC_BYTES));
  }
  const auto& m = weights.matrices;
  kernel<<<dim3(Plan::GRID, (S::ROWS + S::BLOCK_ROWS - 1) / S::BLOCK_ROWS), Plan::THREADS, Plan::DYNAMIC_BYTES, stream>>>(
      inputs.x.at, S::ROWS, m[0], m[1], m[2], inputs.residual.at, inputs.out.at);
}

template <typename S, int SPLIT>
void check_project_many() {
  char how[32];
  std::snprintf(how, sizeof how, "many, split %d", SPLIT);
  check_product<S>(how, launch_project_many<S, SPLIT>);
}

template <typename S>
struct Rotation {
  std::vector<std::unique_ptr<Weights<S>>> sets;
  Inputs<S> inputs;
  Rotation() {
    const size_t count = std::max<size_t>(2, (300u << 20) / S::WEIGHT_BYTES);
    for (size_t n = 0; n < count; n++) sets.push_back(std::make_unique<Weights<S>>());
    CHECK(cudaDeviceSynchronize());
  }
};

template <typename S, int WARPS, int TEAM, int DEPTH>
void launch_project(const Rotation<S>& rotation, int set, int per_processor) {
  static const auto kernel = prepared<S, WARPS, TEAM, DEPTH>();
  const auto& m = rotation.sets[set % rotation.sets.size()]->matrices;
  kernel.function<<<std::min(kernel.most, processors * per_processor), kernel.threads, kernel.bytes, stream>>>(
      rotation.inputs.x.at, rotation.inputs.norm_weight.at, m[0], m[1], m[2], rotation.inputs.residual.at,
      rotation.inputs.out.at);
}

template <typename S, int WARPS, int TEAM, int DEPTH>
void time_project(const Rotation<S>& rotation) {
  const auto kernel = prepared<S, WARPS, TEAM, DEPTH>();
  for (int per_processor = 1; per_processor <= std::min(kernel.fit, 4); per_processor++) {
    const double us = time_launches(60, [&](int n) { launch_project<S, WARPS, TEAM, DEPTH>(rotation, n, per_processor); });
    std::printf("rows %d %d+%d+%dx%d/%d  %2d.%2d.%d x%d/%d  %7.2f us  %5.0f GB/s\n", S::ROWS, S::OUT0, S::OUT1, S::OUT2,
                S::IN, S::BITS, WARPS, TEAM, DEPTH, per_processor, kernel.fit, us, S::WEIGHT_BYTES / us * 1e-3);
    if (kernel.most <= processors * per_processor) break;
  }
}

template <typename S, int SPLIT>
void time_project_many(const Rotation<S>& rotation) {
  const double us = time_launches(60, [&](int n) {
    launch_project_many<S, SPLIT>(*rotation.sets[n % rotation.sets.size()], rotation.inputs);
  });
  std::printf("rows %d %d+%d+%dx%d/%d  many, split %d  %7.2f us  %5.0f GB/s\n", S::ROWS, S::OUT0, S::OUT1, S::OUT2, S::IN,
              S::BITS, SPLIT, us, S::WEIGHT_BYTES / us * 1e-3);
}

template <typename S, int... SPLITS>
void time_splits() {
  const Rotation<S> rotation;
  (time_project_many<S, SPLITS>(rotation), ...);
}

// Qwen3-4B's products of many rows, 4 bits.
template <int ROWS>
void time_many() {
  time_splits<Shape<Bf16, ROWS, 2560, 4, 64, 4096, 1024, 1024, 0, 0, EPILOGUE_NONE>, 1, 2, 4, 8>();
  time_splits<Shape<Bf16, ROWS, 4096, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>, 1, 4, 8>();
  time_splits<Shape<Bf16, ROWS, 2560, 4, 64, 9728, 9728, 0, 0, 0, EPILOGUE_SWIGLU>, 1, 2, 4>();
  time_splits<Shape<Bf16, ROWS, 9728, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>, 1, 4, 8>();
  time_splits<Shape<Bf16, ROWS, 2560, 4, 64, 151936, 0, 0, 0, 0, EPILOGUE_NONE>, 1, 2>();
}

// ---- the cache, place, gather, attend

template <typename T, int HEADS_, int KV_HEADS_, int HEAD_DIM_>
struct Heads {
  using Scalar = T;
  static constexpr int HEADS = HEADS_, KV_HEADS = KV_HEADS_, HEAD_DIM = HEAD_DIM_;
  static constexpr size_t LAYER = size_t(KV_HEADS) * BLOCK * HEAD_DIM;  // of keys, in a block
};

// `lengths.size()` sequences of their own blocks, with `layers` layers, scattered.
template <typename H>
struct Cache {
  using T = typename H::Scalar;
  int layers, width;
  std::vector<Word> lengths;
  std::vector<Address> addresses;
  std::unique_ptr<Buffer<T>> memory;
  std::unique_ptr<Buffer<Address>> table;
  std::unique_ptr<Buffer<Word>> offsets;

  Cache(int layers, std::vector<Word> lengths_of) : layers(layers), lengths(std::move(lengths_of)) {
    width = 0;
    for (const Word length : lengths) width = std::max<int>(width, (length + BLOCK - 1) / BLOCK + 1);
    const size_t blocks = width * lengths.size(), block = H::LAYER * 2 * layers;
    memory = std::make_unique<Buffer<T>>(blocks * block);
    fill(memory->at, memory->size, 1.0f);
    for (size_t n = 0; n < blocks; n++) addresses.push_back(reinterpret_cast<Address>(memory->at + n * block));
    std::shuffle(addresses.begin(), addresses.end(), std::mt19937(7));
    table = std::make_unique<Buffer<Address>>(addresses);
    std::vector<Word> each;
    for (int layer = 0; layer < layers; layer++) {
      each.push_back(layer * 2 * H::LAYER);
      each.push_back((layer * 2 + 1) * H::LAYER);
    }
    offsets = std::make_unique<Buffer<Word>>(each);
  }
  const T* element(const std::vector<T>& copy, int span, int layer, int values, Word position, int kv_head, int dim) const {
    const Address block = addresses[size_t(span) * width + position / BLOCK];
    const size_t start = (block - reinterpret_cast<Address>(memory->at)) / sizeof(T);
    return &copy[start + (layer * 2 + values) * H::LAYER + (kv_head * BLOCK + position % BLOCK) * H::HEAD_DIM + dim];
  }
};

template <typename H, int SPLIT, int WARPS, typename T = typename H::Scalar>
__global__ void attend_kernel(const T* q, const Word* positions, const Word* row_span, const Address* table,
                              const Word* layer, const Word* sizes, T* out, float* parts, float* stats) {
  constexpr float SCALE = H::HEAD_DIM == 64 ? 0.125f : H::HEAD_DIM == 256 ? 0.0625f : 0.08838835f;
  constexpr int SCALE_BITS = __builtin_bit_cast(int, SCALE);
  attend<T, H::HEADS, H::KV_HEADS, H::HEAD_DIM, SCALE_BITS, SPLIT, WARPS>(q, positions, row_span, table, layer, sizes, out,
                                                                         parts, stats);
}
template <typename H, int SPLITS, typename T = typename H::Scalar>
__global__ void combine_kernel(const float* parts, const float* stats, T* out) {
  combine<T, H::HEADS, H::HEAD_DIM, SPLITS>(parts, stats, out);
}

template <typename H>
struct Queries {
  using T = typename H::Scalar;
  std::vector<Word> positions, spans;
  int window;
  Buffer<Word> positions_buffer, spans_buffer, sizes;
  Buffer<T> q, out;
  Buffer<float> parts, stats;
  Queries(const Cache<H>& cache, std::vector<Word> positions_of, std::vector<Word> spans_of, int window)
      : positions(positions_of), spans(spans_of), window(window), positions_buffer(positions_of), spans_buffer(spans_of),
        sizes(std::vector<Word>{Word(cache.width), Word(window)}), q(positions.size() * H::HEADS * H::HEAD_DIM),
        out(q.size), parts(q.size * 64), stats(positions.size() * H::HEADS * 64 * 2) {
    fill(q.at, q.size, 1.5f);
  }
};

template <typename H, int SPLITS, int WARPS>
void launch_attend(const Cache<H>& cache, const Queries<H>& queries, int layer) {
  constexpr int SPLIT = SPLITS > 1, ROUNDS = (H::HEADS / H::KV_HEADS + 7) / 8;
  const Word tokens = queries.positions.size();
  attend_kernel<H, SPLIT, WARPS><<<dim3(SPLITS, H::KV_HEADS * ROUNDS, tokens), WARPS * 32, 0, stream>>>(
      queries.q.at, queries.positions_buffer.at, queries.spans_buffer.at, cache.table->at, cache.offsets->at + layer * 2,
      queries.sizes.at, queries.out.at, queries.parts.at, queries.stats.at);
  if (SPLIT) {
    combine_kernel<H, SPLITS><<<dim3(H::HEADS, tokens), H::HEAD_DIM, 0, stream>>>(queries.parts.at, queries.stats.at,
                                                                                queries.out.at);
  }
}

template <typename H, int SPLITS, int WARPS>
void check_attend(std::vector<Word> lengths, std::vector<Word> positions, std::vector<Word> spans, int window) {
  using T = typename H::Scalar;
  const int layer = 1;
  Cache<H> cache(2, lengths);
  // What lies beyond the last position is no number.
  auto memory = cache.memory->read();
  for (size_t span = 0; span < lengths.size(); span++) {
    for (Word position = lengths[span]; position < Word(cache.width) * BLOCK; position++) {
      for (int kv_head = 0; kv_head < H::KV_HEADS; kv_head++) {
        for (int dim = 0; dim < H::HEAD_DIM; dim++) {
          for (int values = 0; values < 2; values++) {
            *const_cast<T*>(cache.element(memory, span, layer, values, position, kv_head, dim)) = T(NAN);
          }
        }
      }
    }
  }
  CHECK(cudaMemcpy(cache.memory->at, memory.data(), memory.size() * sizeof(T), cudaMemcpyHostToDevice));
  Queries<H> queries(cache, positions, spans, window);
  queries.out.poison();
  queries.parts.poison();
  queries.stats.poison();
  launch_attend<H, SPLITS, WARPS>(cache, queries, layer);
  CHECK(cudaGetLastError());
  CHECK(cudaDeviceSynchronize());
  const auto q = queries.q.read();
  std::vector<double> reference;
  for (size_t token = 0; token < positions.size(); token++) {
    const int last = positions[token], first = window > 0 ? std::max(0, last + 1 - window) : 0;
    for (int head = 0; head < H::HEADS; head++) {
      const int kv_head = head / (H::HEADS / H::KV_HEADS);
      std::vector<double> scores, sums(H::HEAD_DIM, 0.0);
      const double scale = H::HEAD_DIM == 64 ? 0.125f : H::HEAD_DIM == 256 ? 0.0625f : 0.08838835f;
      for (int p = first; p <= last; p++) {
        double score = 0.0;
        const T* key = cache.element(memory, spans[token], layer, 0, p, kv_head, 0);
        for (int dim = 0; dim < H::HEAD_DIM; dim++) {
          score += double(float(q[(token * H::HEADS + head) * H::HEAD_DIM + dim])) * double(float(key[dim]));
        }
        scores.push_back(score * scale);
      }
      const double best = *std::max_element(scores.begin(), scores.end());
      double weight = 0.0;
      for (int p = first; p <= last; p++) {
        const double share = std::exp(scores[p - first] - best);
        weight += share;
        const T* value = cache.element(memory, spans[token], layer, 1, p, kv_head, 0);
        for (int dim = 0; dim < H::HEAD_DIM; dim++) sums[dim] += share * double(float(value[dim]));
      }
      for (const double sum : sums) reference.push_back(sum / weight);
    }
  }
  char name[128];
  std::snprintf(name, sizeof name, "attend %s %d/%d heads of %d, window %d, %d parts, %d warps",
                sizeof(T) == 4 ? "f32" : Same<T, Half>::value ? "f16" : "bf16", H::HEADS, H::KV_HEADS, H::HEAD_DIM, window,
                SPLITS, WARPS);
  report(name, error_of(queries.out.read(), reference), sizeof(T) == 4 ? 1e-5 : Same<T, Half>::value ? 1.5e-3 : 1e-2);
}

template <typename H, int SPLITS, int WARPS>
void time_attend(const Cache<H>& cache, const Queries<H>& queries) {
  double bytes = 0.0;
  for (const Word position : queries.positions) bytes += double(position + 1) * H::KV_HEADS * H::HEAD_DIM * 2 * sizeof(typename H::Scalar);
  const double us = time_launches(60, [&](int n) { launch_attend<H, SPLITS, WARPS>(cache, queries, n % cache.layers); });
  std::printf("attend %zu x %u keys, %d parts, %d warps: %7.2f us  %5.0f GB/s\n", queries.positions.size(),
              queries.positions[0] + 1, SPLITS, WARPS, us, bytes / us * 1e-3);
}

constexpr int ONE_BITS = 0x3F800000;

template <typename H, int ROTARY, int HEAD_NORM, int KEEP, typename T = typename H::Scalar>
__global__ void place_kernel(const T* qkv, const T* q_norm, const T* k_norm, const float* inv_freq, const Word* positions,
                             const Word* row_span, const Address* table, const Word* layer, const Word* sizes, T* q, T* k,
                             T* v) {
  place<T, H::HEADS, H::KV_HEADS, H::HEAD_DIM, ROTARY, HEAD_NORM, EPS_BITS, ONE_BITS, KEEP, 8>(
      qkv, q_norm, k_norm, inv_freq, positions, row_span, table, layer, sizes, q, k, v);
}
template <typename H, typename T = typename H::Scalar>
__global__ void gather_kernel(const Address* row, const Word* layer, const Word* sizes, T* keys, T* values) {
  gather<T, H::KV_HEADS, H::HEAD_DIM>(row, layer, sizes, keys, values);
}

template <typename H, int ROTARY, int HEAD_NORM, int KEEP>
void check_place() {
  using T = typename H::Scalar;
  constexpr int ALL = H::HEADS + 2 * H::KV_HEADS, D = H::HEAD_DIM;
  const std::vector<Word> lengths{70, 5000}, positions{3, 69, 4999, 1234}, spans{0, 0, 1, 1};
  const int tokens = positions.size(), layer = 1;
  Cache<H> cache(2, lengths);
  Buffer<T> qkv(tokens * ALL * D), q_norm(D), k_norm(D), q(tokens * H::HEADS * D), k(tokens * H::KV_HEADS * D), v(k.size);
  fill(qkv.at, qkv.size, 1.0f);
  fill(q_norm.at, D, 0.3f, 1.0f);
  fill(k_norm.at, D, 0.3f, 1.0f);
  std::vector<float> frequencies;
  for (int i = 0; i < ROTARY / 2; i++) frequencies.push_back(float(std::pow(1e6, -2.0 * i / ROTARY)));
  Buffer<float> inv_freq(frequencies);
  Buffer<Word> positions_buffer(positions), spans_buffer(spans), sizes(std::vector<Word>{Word(cache.width)});
  q.poison();
  k.poison();
  v.poison();
  place_kernel<H, ROTARY, HEAD_NORM, KEEP><<<dim3((ALL + 7) / 8, tokens), 256, 0, stream>>>(
      qkv.at, q_norm.at, k_norm.at, inv_freq.at, positions_buffer.at, spans_buffer.at, cache.table->at,
      cache.offsets->at + layer * 2, sizes.at, q.at, k.at, v.at);
  CHECK(cudaGetLastError());
  CHECK(cudaDeviceSynchronize());
  const auto from = qkv.read(), by_q = q_norm.read(), by_k = k_norm.read(), memory = cache.memory->read();
  std::vector<T> got, kept;
  std::vector<double> reference, kept_reference;
  const auto got_q = q.read(), got_k = k.read(), got_v = v.read();
  for (int token = 0; token < tokens; token++) {
    for (int head = 0; head < ALL; head++) {
      std::vector<double> values(D);
      for (int i = 0; i < D; i++) values[i] = double(float(from[(token * ALL + head) * D + i]));
      const int kv_head = (head - H::HEADS) % H::KV_HEADS;
      if (head < H::HEADS + H::KV_HEADS) {
        double squares = 0.0;
        for (const double value : values) squares += value * value;
        for (int i = 0; i < D && HEAD_NORM; i++) {
          values[i] *= double(float(head < H::HEADS ? by_q[i] : by_k[i])) / std::sqrt(squares / D + 1e-6);
        }
        for (int i = 0; i < ROTARY / 2; i++) {
          const double angle = double(float(positions[token]) * frequencies[i]);
          const double low = values[i], high = values[i + ROTARY / 2];
          values[i] = low * std::cos(angle) - high * std::sin(angle);
          values[i + ROTARY / 2] = high * std::cos(angle) + low * std::sin(angle);
        }
      }
      for (int i = 0; i < D; i++) {
        reference.push_back(values[i]);
        if (head < H::HEADS) {
          got.push_back(got_q[(token * H::HEADS + head) * D + i]);
        } else {
          const bool is_value = head >= H::HEADS + H::KV_HEADS;
          got.push_back(*cache.element(memory, spans[token], layer, is_value, positions[token], kv_head, i));
          if (KEEP) {
            kept.push_back((is_value ? got_v : got_k)[(token * H::KV_HEADS + kv_head) * D + i]);
            kept_reference.push_back(values[i]);
          }
        }
      }
    }
  }
  char name[128];
  std::snprintf(name, sizeof name, "place %s %d/%d heads of %d, rotary %d, norm %d, keep %d",
                sizeof(T) == 4 ? "f32" : Same<T, Half>::value ? "f16" : "bf16", H::HEADS, H::KV_HEADS, D, ROTARY, HEAD_NORM,
                KEEP);
  const double limit = sizeof(T) == 4 ? 1e-5 : Same<T, Half>::value ? 1.5e-3 : 1e-2;
  report(name, error_of(got, reference), limit);
  if (KEEP) report("  kept", error_of(kept, kept_reference), limit);

  const Word length = lengths[1];
  Buffer<T> keys(size_t(H::KV_HEADS) * length * D), all_values(keys.size);
  keys.poison();
  all_values.poison();
  Buffer<Word> length_buffer(std::vector<Word>{length});
  gather_kernel<H><<<dim3(64, H::KV_HEADS), 256, 0, stream>>>(cache.table->at + cache.width, cache.offsets->at + layer * 2,
                                                             length_buffer.at, keys.at, all_values.at);
  CHECK(cudaGetLastError());
  CHECK(cudaDeviceSynchronize());
  const auto got_keys = keys.read(), got_values = all_values.read();
  std::vector<T> copies;
  std::vector<double> originals;
  for (int kv_head = 0; kv_head < H::KV_HEADS; kv_head++) {
    for (Word position = 0; position < length; position++) {
      for (int i = 0; i < D; i++) {
        for (int values = 0; values < 2; values++) {
          copies.push_back((values ? got_values : got_keys)[(size_t(kv_head) * length + position) * D + i]);
          originals.push_back(double(float(*cache.element(memory, 1, layer, values, position, kv_head, i))));
        }
      }
    }
  }
  report("  gather", error_of(copies, originals), 1e-12);
}

// ---- sample

template <typename T, int VOCAB, int PADDED>
__global__ void sample_kernel(const T* logits, const float* temperature, const float* top_p, const float* min_p,
                              const float* uniform, const Word* top_k, Word* out) {
  sample<T, VOCAB, PADDED>(logits, temperature, top_p, min_p, uniform, top_k, out);
}

struct Setting {
  float temperature, top_p, min_p;
  Word top_k;
};

// How far, as a share of all that is left, the token is from the one that `uniform` chooses; more than 1 if it is none of
// those that are left.
static double distance_from_choice(const std::vector<float>& logits, const Setting& setting, double uniform, Word token) {
  struct Rank {
    float logit;
    Word token;
  };
  std::vector<Rank> ranks;
  for (Word n = 0; n < logits.size(); n++) {
    if (logits[n] > -INFINITY) ranks.push_back({std::min(logits[n], 3.402823466e38f), n});
  }
  if (ranks.empty()) return token == 0xFFFFFFFFu ? 0.0 : 2.0;
  std::sort(ranks.begin(), ranks.end(),
            [](const Rank& a, const Rank& b) { return a.logit > b.logit || (a.logit == b.logit && a.token < b.token); });
  if (setting.temperature <= 0.0f) return token == ranks[0].token ? 0.0 : 2.0;
  const double best = ranks[0].logit;
  const auto weight = [&](const Rank& rank) { return std::exp((double(rank.logit) - best) / setting.temperature); };
  if (setting.top_k > 0) ranks.resize(std::min<size_t>(ranks.size(), setting.top_k));
  if (setting.top_p < 1.0f) {
    double all = 0.0, sum = 0.0;
    for (const Rank& rank : ranks) all += weight(rank);
    size_t kept = 0;
    while (kept < ranks.size()) {
      sum += weight(ranks[kept++]);
      if (sum >= double(setting.top_p) * all) break;
    }
    ranks.resize(kept);
  }
  while (weight(ranks.back()) < setting.min_p) ranks.pop_back();
  std::sort(ranks.begin(), ranks.end(), [](const Rank& a, const Rank& b) { return a.token < b.token; });
  double all = 0.0, sum = 0.0;
  for (const Rank& rank : ranks) all += weight(rank);
  for (const Rank& rank : ranks) {
    const double before = sum;
    sum += weight(rank);
    if (rank.token == token) return std::max(std::max(before / all - uniform, uniform - sum / all), 0.0);
  }
  return 2.0;
}

template <typename T, int VOCAB, int PADDED>
void check_sample(float spread, float shift, const std::vector<Setting>& settings, int each, bool awkward) {
  const size_t rows = settings.size() * each;
  Buffer<T> logits(rows * PADDED);
  fill(logits.at, logits.size, spread, shift);
  auto copy = logits.read();
  std::mt19937 random(11);
  for (size_t row = 0; row < rows; row++) {
    for (int n = VOCAB; n < PADDED; n++) copy[row * PADDED + n] = T(1e4f);
    for (int n = 0; n < 5; n++) copy[row * PADDED + random() % VOCAB] = T(shift + spread * 4.0f + n);
    if (awkward) {
      for (int n = 0; n < 100; n++) copy[row * PADDED + random() % VOCAB] = T(n % 2 ? -INFINITY : NAN);
      if (row % 3 == 0) copy[row * PADDED + random() % VOCAB] = T(INFINITY);
    }
    if (awkward && row + 1 == rows) {
      for (int n = 0; n < VOCAB; n++) copy[row * PADDED + n] = T(n % 2 ? -INFINITY : NAN);
    }
  }
  CHECK(cudaMemcpy(logits.at, copy.data(), copy.size() * sizeof(T), cudaMemcpyHostToDevice));
  std::vector<float> temperature, top_p, min_p, uniform;
  std::vector<Word> top_k;
  for (size_t row = 0; row < rows; row++) {
    const Setting& setting = settings[row % settings.size()];
    temperature.push_back(setting.temperature);
    top_p.push_back(setting.top_p);
    min_p.push_back(setting.min_p);
    top_k.push_back(setting.top_k);
    uniform.push_back(float(random() % 16777216) / 16777216.0f);
  }
  Buffer<float> temperatures(temperature), top_ps(top_p), min_ps(min_p), uniforms(uniform);
  Buffer<Word> top_ks(top_k), out(rows);
  out.poison();
  sample_kernel<T, VOCAB, PADDED><<<rows, 1024, 0, stream>>>(logits.at, temperatures.at, top_ps.at, min_ps.at, uniforms.at,
                                                            top_ks.at, out.at);
  CHECK(cudaGetLastError());
  CHECK(cudaDeviceSynchronize());
  const auto tokens = out.read();
  double worst = 0.0;
  for (size_t row = 0; row < rows; row++) {
    std::vector<float> one(VOCAB);
    for (int n = 0; n < VOCAB; n++) {
      const float logit = float(copy[row * PADDED + n]);
      one[n] = std::isnan(logit) ? -INFINITY : logit;
    }
    const Setting& setting = settings[row % settings.size()];
    const double distance = distance_from_choice(one, setting, uniform[row], tokens[row]);
    if (distance > 1e-4) {
      std::printf("  row %zu: temperature %g top_k %u top_p %g min_p %g u %g: token %u, %g away\n", row, setting.temperature,
                  setting.top_k, setting.top_p, setting.min_p, uniform[row], tokens[row], distance);
    }
    worst = std::max(worst, distance);
  }
  char name[128];
  std::snprintf(name, sizeof name, "sample %s of %d, spread %g%s", sizeof(T) == 4 ? "f32" : Same<T, Half>::value ? "f16" : "bf16",
                VOCAB, spread, awkward ? ", awkward" : "");
  report(name, worst, 1e-4);
}

template <typename T, int VOCAB>
void time_sample(const char* what, float spread, Setting setting, int rows) {
  Buffer<T> logits(size_t(rows) * VOCAB);
  fill(logits.at, logits.size, spread);
  Buffer<float> temperatures(std::vector<float>(rows, setting.temperature)), top_ps(std::vector<float>(rows, setting.top_p)),
      min_ps(std::vector<float>(rows, setting.min_p)), uniforms(std::vector<float>(rows, 0.37f));
  Buffer<Word> top_ks(std::vector<Word>(rows, setting.top_k)), out(rows);
  const double us = time_launches(20, [&](int) {
    sample_kernel<T, VOCAB, VOCAB><<<rows, 1024, 0, stream>>>(logits.at, temperatures.at, top_ps.at, min_ps.at, uniforms.at,
                                                             top_ks.at, out.at);
  });
  std::printf("sample %d rows of %d, spread %g, %s: %7.2f us\n", rows, VOCAB, spread, what, us);
}

// ---- what is run

static void check_many() {
  check_project_many<Shape<Bf16, 64, 2560, 4, 64, 4096, 1024, 1024, 0, 0, EPILOGUE_NONE>, 1>();
  check_project_many<Shape<Bf16, 32, 2560, 4, 64, 9728, 9728, 0, 0, 0, EPILOGUE_SWIGLU>, 1>();
  check_project_many<Shape<Bf16, 64, 2560, 4, 64, 4096, 1024, 1024, 0, 1, EPILOGUE_NONE>, 4>();
  check_project_many<Shape<Bf16, 64, 4096, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>, 8>();
  check_project_many<Shape<Bf16, 64, 2560, 4, 64, 9728, 9728, 0, 0, 0, EPILOGUE_SWIGLU>, 2>();
  check_project_many<Shape<Bf16, 32, 9728, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>, 8>();
  check_project_many<Shape<Bf16, 16, 2560, 4, 64, 9728, 9728, 0, 0, 1, EPILOGUE_SWIGLU>, 2>();
  check_project_many<Shape<Half, 64, 1024, 8, 64, 2048, 1024, 1024, 0, 1, EPILOGUE_NONE>, 4>();
  check_project_many<Shape<Bf16, 16, 1024, 8, 32, 3072, 3072, 0, 0, 0, EPILOGUE_SWIGLU>, 1>();
  check_project_many<Shape<Bf16, 32, 1024, 8, 128, 2048, 0, 0, 0, 0, EPILOGUE_ADD>, 8>();
  check_project_many<Shape<Bf16, 150, 1024, 4, 64, 2048, 1024, 1024, 0, 1, EPILOGUE_NONE>, 2>();
  check_project_many<Shape<Half, 64, 96, 4, 32, 37, 5, 1, 0, 1, EPILOGUE_NONE>, 1>();
  check_project_many<Shape<Bf16, 16, 224, 8, 32, 19, 0, 0, 0, 0, EPILOGUE_ADD>, 4>();
  check_project_many<Shape<Half, 32, 320, 4, 32, 33, 33, 0, 0, 1, EPILOGUE_SWIGLU>, 2>();
}

static void check_all() {
  check_project<Shape<Bf16, 1, 2560, 4, 64, 4096, 1024, 1024, 1, 0, EPILOGUE_NONE>, 16, 4, 4>();
  check_project<Shape<Bf16, 1, 4096, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>, 16, 8, 4>();
  check_project<Shape<Bf16, 1, 2560, 4, 64, 9728, 9728, 0, 1, 0, EPILOGUE_SWIGLU>, 16, 4, 3>();
  check_project<Shape<Bf16, 1, 9728, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>, 16, 16, 4>();
  check_project<Shape<Bf16, 1, 2560, 4, 64, 4096, 1024, 1024, 1, 1, EPILOGUE_NONE>, 16, 4, 0>();
  check_project<Shape<Bf16, 1, 4096, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>, 16, 8, 0>();
  check_project<Shape<Bf16, 1, 2560, 4, 64, 9728, 9728, 0, 1, 0, EPILOGUE_SWIGLU>, 16, 4, 0>();
  check_project<Shape<Bf16, 2, 9728, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>, 16, 16, 0>();
  check_project<Shape<Bf16, 4, 9728, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>, 16, 16, 0>();
  check_project<Shape<Bf16, 8, 9728, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>, 16, 16, 0>();
  check_project<Shape<Bf16, 8, 2560, 4, 64, 9728, 9728, 0, 1, 0, EPILOGUE_SWIGLU>, 8, 4, 0>();
  check_project<Shape<Bf16, 3, 1024, 4, 32, 2048, 1024, 1024, 1, 0, EPILOGUE_NONE>, 8, 4, 0>();
  check_project<Shape<Half, 2, 1024, 8, 64, 3072, 3072, 0, 1, 0, EPILOGUE_SWIGLU>, 16, 2, 0>();
  check_project<Shape<Bf16, 6, 1024, 8, 32, 2048, 1024, 1024, 1, 1, EPILOGUE_NONE>, 8, 8, 0>();
  check_project<Shape<Bf16, 1, 2560, 16, 64, 4096, 1024, 1024, 1, 0, EPILOGUE_NONE>, 16, 8, 0>();
  check_project<Shape<Bf16, 8, 3072, 16, 64, 1024, 0, 0, 0, 1, EPILOGUE_ADD>, 16, 8, 0>();
  check_project<Shape<Half, 3, 224, 4, 32, 48, 16, 16, 1, 1, EPILOGUE_NONE>, 4, 4, 0>();
  check_project<Shape<Half, 3, 96, 4, 32, 37, 5, 1, 1, 1, EPILOGUE_NONE>, 4, 4, 0>();
  check_project<Shape<Bf16, 2, 2560, 4, 64, 9728, 9728, 0, 1, 0, EPILOGUE_SWIGLU>>();
  check_project<Shape<Bf16, 4, 9728, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>>();
  check_project<Shape<Bf16, 5, 2560, 4, 64, 4096, 1024, 1024, 1, 1, EPILOGUE_NONE>>();
  check_project<Shape<Bf16, 8, 9728, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>, 16, 16, 4>();
  check_project<Shape<Bf16, 8, 2560, 4, 64, 9728, 9728, 0, 1, 0, EPILOGUE_SWIGLU>>();
  check_project<Shape<Bf16, 8, 18944, 4, 64, 3584, 0, 0, 0, 0, EPILOGUE_ADD>>();
  check_project<Shape<Bf16, 16, 2560, 4, 64, 9728, 0, 0, 0, 0, EPILOGUE_NONE>>();
  check_project<Shape<Bf16, 3, 1024, 4, 32, 2048, 1024, 1024, 1, 0, EPILOGUE_NONE>>();
  check_project<Shape<Bf16, 7, 1024, 4, 128, 3072, 3072, 0, 1, 0, EPILOGUE_SWIGLU>>();
  check_project<Shape<Bf16, 2, 1024, 8, 64, 3072, 3072, 0, 1, 0, EPILOGUE_SWIGLU>>();
  check_project<Shape<Bf16, 6, 1024, 8, 32, 2048, 1024, 1024, 1, 1, EPILOGUE_NONE>>();
  check_project<Shape<Bf16, 1, 1024, 8, 128, 2048, 0, 0, 0, 0, EPILOGUE_ADD>>();
  check_project<Shape<Bf16, 1, 2560, 16, 64, 4096, 1024, 1024, 1, 0, EPILOGUE_NONE>>();
  check_project<Shape<Bf16, 8, 3072, 16, 64, 1024, 0, 0, 0, 1, EPILOGUE_ADD>>();
  check_project<Shape<Half, 1, 2560, 4, 64, 9728, 9728, 0, 1, 0, EPILOGUE_SWIGLU>>();
  check_project<Shape<Half, 8, 1024, 8, 64, 2048, 1024, 1024, 1, 1, EPILOGUE_NONE>>();
  check_project<Shape<Half, 4, 1024, 16, 64, 3072, 3072, 0, 1, 0, EPILOGUE_SWIGLU>>();
  check_project<Shape<Half, 3, 96, 4, 32, 37, 5, 1, 1, 1, EPILOGUE_NONE>, 4, 4, 2>();
  check_project<Shape<Bf16, 2, 32, 4, 32, 3, 3, 0, 0, 0, EPILOGUE_SWIGLU>, 4, 2, 2>();
  check_project<Shape<Bf16, 3, 224, 8, 32, 19, 0, 0, 1, 0, EPILOGUE_ADD>, 4, 1, 3>();
  check_project<Shape<Bf16, 2, 40, 16, 32, 19, 0, 0, 1, 0, EPILOGUE_ADD>, 4, 1, 3>();
  check_project<Shape<Bf16, 1, 64, 16, 64, 128, 64, 64, 1, 0, EPILOGUE_NONE>, 16, 8, 4>();
  check_project<Shape<Bf16, 1, 64, 16, 64, 96, 96, 0, 1, 0, EPILOGUE_SWIGLU>, 16, 8, 4>();
  check_project<Shape<Bf16, 4, 96, 16, 64, 64, 0, 0, 0, 0, EPILOGUE_ADD>, 16, 8, 4>();
  check_project<Shape<Bf16, 8, 64, 16, 64, 96, 0, 0, 1, 0, EPILOGUE_NONE>, 16, 8, 4>();
  check_project<Shape<Half, 2, 64, 16, 64, 128, 64, 64, 1, 1, EPILOGUE_NONE>, 16, 8, 4>();
  check_project<Shape<Bf16, 1, 128, 8, 32, 128, 64, 64, 1, 0, EPILOGUE_NONE>, 16, 8, 0>();
  check_project<Shape<Bf16, 1, 320, 4, 32, 33, 0, 0, 0, 0, EPILOGUE_NONE>, 16, 8, 0>();
  check_project<Shape<Bf16, 8, 640, 4, 64, 64, 0, 0, 0, 1, EPILOGUE_NONE>, 16, 8, 0>();
  check_project<Shape<Half, 4, 1280, 8, 128, 7, 0, 0, 0, 1, EPILOGUE_NONE>, 16, 8, 0>();
  check_project<Shape<Bf16, 1, 576, 8, 32, 2050, 0, 0, 0, 0, EPILOGUE_NONE>, 16, 8, 0>();
  check_project<Shape<Bf16, 16, 9728, 4, 32, 5, 0, 0, 0, 0, EPILOGUE_NONE>, 8, 4, 2>();
  check_many();
  check_project<Shape<float, 3, 96, 4, 32, 37, 5, 1, 1, 1, EPILOGUE_NONE>>();
  check_project<Shape<float, 2, 256, 8, 64, 100, 100, 0, 1, 0, EPILOGUE_SWIGLU>>();
  check_project<Shape<float, 2, 256, 16, 64, 100, 0, 0, 0, 1, EPILOGUE_ADD>>();

  const std::vector<Word> lengths{600, 1, 33}, positions{599, 0, 32, 590, 16}, spans{0, 1, 2, 0, 2};
  check_attend<Heads<Bf16, 32, 8, 128>, 1, 4>(lengths, positions, spans, 0);
  check_attend<Heads<Bf16, 32, 8, 128>, 1, 4>(lengths, positions, spans, 100);
  check_attend<Heads<Bf16, 32, 8, 128>, 16, 2>(lengths, positions, spans, 0);
  check_attend<Heads<Bf16, 16, 8, 128>, 5, 4>(lengths, positions, spans, 77);
  check_attend<Heads<Half, 14, 2, 64>, 3, 4>(lengths, positions, spans, 0);
  check_attend<Heads<Half, 20, 20, 80>, 1, 4>(lengths, positions, spans, 0);
  check_attend<Heads<Bf16, 32, 32, 96>, 2, 4>(lengths, positions, spans, 0);
  check_attend<Heads<Bf16, 8, 4, 256>, 4, 4>(lengths, positions, spans, 0);
  check_attend<Heads<Bf16, 24, 2, 128>, 4, 4>(lengths, positions, spans, 0);
  check_attend<Heads<Bf16, 4, 2, 32>, 16, 4>(lengths, positions, spans, 0);
  check_attend<Heads<Bf16, 4, 2, 32>, 1, 2>(lengths, positions, spans, 40);
  check_attend<Heads<Half, 4, 4, 16>, 4, 4>(lengths, positions, spans, 0);
  check_attend<Heads<Half, 9, 3, 64>, 16, 4>(lengths, positions, spans, 1);
  check_attend<Heads<float, 8, 2, 128>, 4, 4>(lengths, positions, spans, 50);
  check_attend<Heads<float, 8, 2, 80>, 1, 4>(lengths, positions, spans, 0);

  check_place<Heads<Bf16, 32, 8, 128>, 128, 1, 1>();
  check_place<Heads<Half, 14, 2, 64>, 64, 0, 0>();
  check_place<Heads<Bf16, 4, 2, 32>, 32, 1, 1>();
  check_place<Heads<Bf16, 8, 2, 80>, 32, 0, 1>();
  check_place<Heads<float, 4, 1, 256>, 256, 1, 1>();

  const std::vector<Setting> settings{{0, 1, 0, 0},        {1, 1, 0, 0},         {0.7f, 0.9f, 0, 0},   {0.7f, 1, 0, 40},
                                      {1, 1, 0.05f, 0},    {0.8f, 0.95f, 0, 50}, {1.5f, 0.5f, 0.01f, 3000}, {1, 0.999f, 0, 0},
                                      {0.1f, 0.3f, 0, 1},  {2, 0.99f, 0.001f, 0}, {1, 0, 0, 0},        {0.6f, 0.95f, 0, 20}};
  check_sample<Bf16, 151936, 151936>(3.0f, 0.0f, settings, 4, false);
  check_sample<Bf16, 151936, 151936>(0.3f, -5.0f, settings, 2, false);
  check_sample<Bf16, 151669, 151936>(2.0f, 5.0f, settings, 3, true);
  check_sample<Half, 32003, 32003>(3.0f, 0.0f, settings, 2, true);
  check_sample<float, 49152, 49152>(3.0f, 0.0f, settings, 2, true);
  check_sample<float, 261, 264>(2.0f, 0.0f, settings, 4, false);
}

static void time_copy() {
  const size_t size = size_t(1) << 30;
  Buffer<char> from(size), to(size);
  CHECK(cudaMemset(from.at, 1, size));
  const double us =
      time_launches(4, [&](int) { cudaMemcpyAsync(to.at, from.at, size, cudaMemcpyDeviceToDevice, stream); });
  std::printf("copy: %.0f GB/s read and written\n", 2.0 * size / us * 1e-3);
}

static void time_attention() {
  using H = Heads<Bf16, 32, 8, 128>;
  {
    Cache<H> cache(3, std::vector<Word>(64, 600));
    std::vector<Word> spans;
    for (int n = 0; n < 64; n++) spans.push_back(n);
    Queries<H> queries(cache, std::vector<Word>(64, 599), spans, 0);
    time_attend<H, 1, 2>(cache, queries);
    time_attend<H, 1, 3>(cache, queries);
    time_attend<H, 1, 4>(cache, queries);
    time_attend<H, 2, 2>(cache, queries);
  }
  {
    Cache<H> cache(60, {600});
    Queries<H> queries(cache, {599}, {0}, 0);
    time_attend<H, 8, 2>(cache, queries);
    time_attend<H, 8, 4>(cache, queries);
    time_attend<H, 16, 1>(cache, queries);
    time_attend<H, 16, 2>(cache, queries);
    time_attend<H, 16, 4>(cache, queries);
  }
  {
    Cache<H> cache(20, {4096});
    Queries<H> queries(cache, {4095}, {0}, 0);
    time_attend<H, 16, 2>(cache, queries);
    time_attend<H, 16, 4>(cache, queries);
    time_attend<H, 16, 8>(cache, queries);
    time_attend<H, 32, 2>(cache, queries);
    time_attend<H, 32, 4>(cache, queries);
    time_attend<H, 64, 2>(cache, queries);
  }
}

static void time_samples() {
  for (const float spread : {3.0f, 0.5f}) {
    for (const int rows : {1, 64}) {
      time_sample<Bf16, 151936>("greedy", spread, {0, 1, 0, 0}, rows);
      time_sample<Bf16, 151936>("all", spread, {1, 1, 0, 0}, rows);
      time_sample<Bf16, 151936>("top_k 40", spread, {0.7f, 1, 0, 40}, rows);
      time_sample<Bf16, 151936>("top_p 0.9", spread, {0.7f, 0.9f, 0, 0}, rows);
      time_sample<Bf16, 151936>("min_p 0.05", spread, {0.7f, 1, 0.05f, 0}, rows);
      time_sample<Bf16, 151936>("top_k 20, top_p 0.95", spread, {0.6f, 0.95f, 0, 20}, rows);
    }
  }
}

// Qwen3-4B's products, 4 bits, as a step runs them: 36 layers, then the head.
template <int ROWS>
void time_layers() {
  using Qkv = Shape<Bf16, ROWS, 2560, 4, 64, 4096, 1024, 1024, 1, 0, EPILOGUE_NONE>;
  using O = Shape<Bf16, ROWS, 4096, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>;
  using Gate = Shape<Bf16, ROWS, 2560, 4, 64, 9728, 9728, 0, 1, 0, EPILOGUE_SWIGLU>;
  using Down = Shape<Bf16, ROWS, 9728, 4, 64, 2560, 0, 0, 0, 0, EPILOGUE_ADD>;
  const Rotation<Qkv> qkv;
  const Rotation<O> o;
  const Rotation<Gate> gate;
  const Rotation<Down> down;
  constexpr bool FEW = ROWS <= 4;
  const double us = 4.0 * time_launches(144, [&](int n) {
    if (n % 4 == 0) launch_project<Qkv, FEW ? 12 : 16, FEW ? 4 : 8, 0>(qkv, n / 4, 1);
    if (n % 4 == 1) launch_project<O, 16, 8, 0>(o, n / 4, 1);
    if (n % 4 == 2) launch_project<Gate, FEW ? 12 : 8, 4, FEW ? 0 : 3>(gate, n / 4, 1);
    if (n % 4 == 3) launch_project<Down, FEW ? 20 : 16, FEW ? 10 : 16, 0>(down, n / 4, 1);
  });
  const size_t bytes = Qkv::WEIGHT_BYTES + O::WEIGHT_BYTES + Gate::WEIGHT_BYTES + Down::WEIGHT_BYTES;
  std::printf("layer, rows %d: %.2f us  %.0f GB/s\n", ROWS, us, bytes / us * 1e-3);
}

int main(int count, char** arguments) {
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 0));
  CHECK(cudaStreamCreate(&stream));
  processors = properties.multiProcessorCount;
  std::printf("%s, %d multiprocessors\n", properties.name, processors);
  std::vector<std::string> wanted(arguments + 1, arguments + count);
  if (wanted.empty()) wanted = {"check", "copy", "layer", "attend", "sample"};
  for (const std::string& what : wanted) {
    if (what == "check") check_all();
    if (what == "copy") time_copy();
    if (what == "layer") {
      time_layers<1>();
      time_layers<2>();
      time_layers<4>();
      time_layers<8>();
    }
    if (what == "many") {
      check_many();
      time_many<16>();
      time_many<32>();
      time_many<64>();
      time_many<512>();
    }
    if (what == "attend") time_attention();
    if (what == "sample") time_samples();
  }
  return failed ? 1 : 0;
}
