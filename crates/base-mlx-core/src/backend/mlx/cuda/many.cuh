// A product of many rows, 9 and more, with one to three quantised matrices that share their input.
//
//   out[r, o] = epilogue(sum_i x[r, i] * w[o, i])
//
// So many rows do not fit into shared memory beside the weights, so both go by in chunks: x through a ring of stages in
// shared memory, the weights straight into registers. There a weight becomes a number of type T, rounded as when a matrix is
// expanded, and serves all rows at once: the tensor cores' left operand is 16 outputs, the right one 8 rows.
//
// A block takes 128 outputs, each of its four warps two tiles of 16 (for swiglu: one tile of either matrix), because every
// block reads all of x. What that leaves too few of is made up for by SPLIT: so many blocks, a cluster, share the outputs and
// split the input, and each adds up the sums of some of the rows over all of them.
//
// Grid: x GRID blocks of THREADS threads, y as many as it takes for all rows, ROWS each. Dynamic shared memory: DYNAMIC_BYTES.
// The runtime launches no more than ROWS rows; the bench does.

namespace base_mlx {

// a * b + c of both values of a word, rounded once.
template <typename T>
__device__ __forceinline__ Word multiply_add_pair(Word a, Word b, Word c) {
  Word result;
  if constexpr (Same<T, __nv_bfloat16>::value) {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  }
  return result;
}

__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// What lies at `address` of another block of the cluster.
__device__ __forceinline__ float4 load_of_cluster(Word address, Word rank) {
  Word there;
  float4 value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(there)
               : "memory");
  return value;
}

template <typename T, int ROWS, int IN, int BITS, int GROUP, int OUT0, int OUT1, int OUT2, int BIAS, int EPILOGUE, int SPLIT>
struct ProjectMany {
  // How quantised values are unpacked, and where outputs lie, is the same.
  using Few = Project<T, ROWS, IN, BITS, GROUP, OUT0, OUT1, OUT2, 0, 0, BIAS, EPILOGUE, 4, 4, 2>;
  using Place = typename Few::Place;
  static constexpr int WARPS = 4, THREADS = WARPS * 32;
  static constexpr bool SWIGLU = Few::SWIGLU;
  static constexpr int LANE = Few::LANE, CHUNK = Few::CHUNK;
  static constexpr int BLOCK_ITEMS = SWIGLU ? WARPS : 2 * WARPS;  // items are tiles of 16 outputs
  static constexpr int GRID = (Few::ITEMS + BLOCK_ITEMS - 1) / BLOCK_ITEMS * SPLIT;
  static constexpr int TURNS = (Few::CHUNKS + SPLIT - 1) / SPLIT;
  static constexpr int COLUMNS = ROWS / 8;
  static constexpr int ROW_BYTES = CHUNK * 2, STAGE_BYTES = ROWS * ROW_BYTES, STAGES = 3;
  // Of a row's sums over 16 outputs; the padding spreads a warp's rows over the banks.
  static constexpr int SLOT = 20;
  static constexpr int SUM_BYTES = 2 * WARPS * ROWS * SLOT * 4;
  static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES > SUM_BYTES ? STAGES * STAGE_BYTES : SUM_BYTES;
  static constexpr int DYNAMIC_BYTES = SHARED_BYTES <= 48 * 1024 ? 0 : SHARED_BYTES;
  static_assert(BITS < 16 && sizeof(T) == 2 && ROWS % 16 == 0 && ROWS % SPLIT == 0, "");

  struct Weights {
    uint4 values[2][2];  // of the tiles' rows g and g+8
    T scales[2][2], biases[2][2];
  };

  // The place of a warp's tile; beyond the last, the last.
  static __device__ __forceinline__ Place place(int block, int warp, int tile, const Matrix<T>* matrices) {
    const int item = block * BLOCK_ITEMS + (SWIGLU ? warp : warp * 2 + tile);
    return Few::place(min(item, Few::ITEMS - 1), tile, matrices);
  }

  static __device__ __forceinline__ void load_weights(Weights& weights, const Place (&places)[2], int chunk, int lane) {
    const int from = chunk * CHUNK + lane % 4 * LANE;
    if (from >= IN) return;  // x is 0 there
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const Place& at = places[tile];
        const int row = min(at.row + lane / 4 + half * 8, at.out - 1);
        const char* packed = static_cast<const char*>(at.matrix.packed);
        weights.values[tile][half] = load_once(packed + size_t(row) * (IN * BITS / 8) + size_t(from) * BITS / 8);
        const int group = row * (IN / GROUP) + from / GROUP;
        weights.scales[tile][half] = at.matrix.scales[group];
        weights.biases[tile][half] = at.matrix.biases[group];
      }
    }
  }

  // Rows lie in units of eight values in the order [eight of a lane, lane of a row]; odd rows have their halves swapped, so
  // that two rows lie in different banks.
  static __device__ __forceinline__ int unit_at(int row, int eight, int lane) {
    return row * ROW_BYTES + (eight * 64 ^ (row & 1) * 64) + lane * 16;
  }

  static __device__ __forceinline__ void load_x(const T* x, int live, int chunk, Word stage) {
    constexpr int UNITS = CHUNK / 8;
#pragma unroll
    for (int n = 0; n < ROWS * UNITS / THREADS; n++) {
      const int index = n * THREADS + threadIdx.x;
      const int row = index / UNITS, i = index % UNITS * 8;
      const int from = chunk * CHUNK + i;
      const T* source = x + size_t(min(row, live - 1)) * IN + (from < IN ? from : 0);
      const Word to = stage + unit_at(row, i % LANE / 8, i / LANE);
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(source)),
                   "r"(from < IN ? 16 : 0)
                   : "memory");
    }
  }

  static __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

  static __device__ __forceinline__ Word pair_of(T value) {
    const Word half = *reinterpret_cast<const unsigned short*>(&value);
    return half | half << 16;
  }

  // Quantised values with Few::OFFSET added, to what they stand for.
  static __device__ __forceinline__ Word weights_of(Word values, Word scale, Word bias) {
    constexpr bool BFLOAT = Same<T, __nv_bfloat16>::value;
    constexpr Word ONE = BFLOAT ? 0x3F803F80u : 0x3C003C00u;
    constexpr Word MINUS_OFFSET = !BFLOAT ? 0xE400E400u : BITS == 4 ? 0xC300C300u : 0x43004300u;  // -1024, -128, 128
    return multiply_add_pair<T>(multiply_add_pair<T>(values, ONE, MINUS_OFFSET), scale, bias);
  }

  static __device__ __forceinline__ void add_chunk(float (&totals)[2][COLUMNS][4], const Weights& weights, int lane,
                                                   const unsigned char* stage) {
    const int g = lane / 4, t = lane % 4;
    Word scales[2][2], biases[2][2];
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        scales[tile][half] = pair_of(weights.scales[tile][half]);
        biases[tile][half] = pair_of(weights.biases[tile][half]);
      }
    }
#pragma unroll
    for (int eight = 0; eight < LANE / 8; eight++) {
      Word left[2][2][4];  // tile, step
#pragma unroll
      for (int tile = 0; tile < 2; tile++) {
#pragma unroll
        for (int step = 0; step < 2; step++) {
          const uint2 low = Few::operand(weights.values[tile][0], eight * 2 + step);
          const uint2 high = Few::operand(weights.values[tile][1], eight * 2 + step);
          left[tile][step][0] = weights_of(low.x, scales[tile][0], biases[tile][0]);
          left[tile][step][1] = weights_of(high.x, scales[tile][1], biases[tile][1]);
          left[tile][step][2] = weights_of(low.y, scales[tile][0], biases[tile][0]);
          left[tile][step][3] = weights_of(high.y, scales[tile][1], biases[tile][1]);
        }
      }
#pragma unroll
      for (int column = 0; column < COLUMNS; column++) {
        const uint4 right = Few::ordered(*reinterpret_cast<const uint4*>(stage + unit_at(column * 8 + g, eight, t)));
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
          const auto& a = left[tile];
          multiply<T>(totals[tile][column], a[0][0], a[0][1], a[0][2], a[0][3], right.x, right.y);
          multiply<T>(totals[tile][column], a[1][0], a[1][1], a[1][2], a[1][3], right.z, right.w);
        }
      }
    }
  }

  static __device__ __forceinline__ void run(const T* x, int live, const Matrix<T>* matrices, const T* residual, T* out,
                                             unsigned char* shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int block = blockIdx.x / SPLIT, part = blockIdx.x % SPLIT;
    const int first = part * TURNS, turns = min(TURNS, Few::CHUNKS - first);  // may be none
    const Word stages = Word(__cvta_generic_to_shared(shared));
    const Place places[2] = {place(block, warp, 0, matrices), place(block, warp, 1, matrices)};

    Weights ring[2] = {};
    if (turns > 0) load_weights(ring[0], places, first, lane);
#pragma unroll
    for (int turn = 0; turn < STAGES - 1; turn++) {
      if (turn < turns) load_x(x, live, first + turn, stages + turn * STAGE_BYTES);
      commit();
    }
    float totals[2][COLUMNS][4] = {};
#pragma unroll 1
    for (int pair = 0; pair < turns; pair += 2) {
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const int turn = pair + n;
        if (turn >= turns) break;
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();
        const int ahead = turn + STAGES - 1;
        if (turn + 1 < turns) load_weights(ring[1 - n], places, first + turn + 1, lane);
        if (ahead < turns) load_x(x, live, first + ahead, stages + ahead % STAGES * STAGE_BYTES);
        commit();
        add_chunk(totals, ring[n], lane, shared + turn % STAGES * STAGE_BYTES);
      }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    finish(totals, block, part, warp, lane, shared, stages, matrices, residual, out, live);
  }

  static __device__ __forceinline__ void finish(float (&totals)[2][COLUMNS][4], int block, int part, int warp, int lane,
                                                unsigned char* shared, Word sums_at, const Matrix<T>* matrices,
                                                const T* residual, T* out, int live) {
    float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
#pragma unroll
      for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
          const int row = column * 8 + lane % 4 * 2 + n % 2;
          sums[((warp * 2 + tile) * ROWS + row) * SLOT + lane / 4 + n / 2 * 8] = totals[tile][column][n];
        }
      }
    }
    if constexpr (SPLIT > 1) {
      wait_for_cluster();
    } else {
      __syncthreads();
    }
    auto summed = [&](int slot, int row, int four) {
      const int at = ((slot * ROWS + row) * SLOT + four * 4) * 4;
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int rank = 0; rank < SPLIT; rank++) {
        float4 value;
        if constexpr (SPLIT > 1) {
          value = load_of_cluster(sums_at + at, rank);
        } else {
          value = *reinterpret_cast<const float4*>(shared + at);
        }
        sum.x += value.x;
        sum.y += value.y;
        sum.z += value.z;
        sum.w += value.w;
      }
      return sum;
    };
    // Rows in turn, so that all blocks of a cluster have some of the live ones.
    constexpr int OUTPUT_TILES = SWIGLU ? WARPS : 2 * WARPS;
#pragma unroll 1
    for (int index = threadIdx.x; index < ROWS / SPLIT * OUTPUT_TILES * 4; index += THREADS) {
      const int four = index % 4, tile = index / 4 % OUTPUT_TILES, row = index / (4 * OUTPUT_TILES) * SPLIT + part;
      const int item = block * BLOCK_ITEMS + tile;
      if (row >= live || item >= Few::ITEMS) continue;
      const Place at = Few::place(item, 0, matrices);
      const float4 first = summed(SWIGLU ? tile * 2 : tile, row, four);
      float4 second = first;
      if constexpr (SWIGLU) second = summed(tile * 2 + 1, row, four);
      const float products[2][4] = {{first.x, first.y, first.z, first.w}, {second.x, second.y, second.z, second.w}};
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const int output = four * 4 + n;
        if (at.row + output >= at.out) continue;
        const size_t to = size_t(row) * Few::OUT + at.column + output;
        float result = Few::finished(at, products[0][n], output);
        if constexpr (SWIGLU) result = Few::swiglu(result, Few::finished(Few::place(item, 1, matrices), products[1][n], output));
        if constexpr (EPILOGUE == EPILOGUE_ADD) result += widen(residual[to]);
        out[to] = narrow<T>(result);
      }
    }
    // Until here the others may read this block's sums.
    if constexpr (SPLIT > 1) wait_for_cluster();
  }
};

// x [live, IN], residual [live, OUT] and out [live, OUT] of T; see `project`.
template <typename T, int ROWS, int IN, int BITS, int GROUP, int OUT0, int OUT1, int OUT2, int BIAS, int EPILOGUE, int SPLIT>
__device__ __forceinline__ void project_many(const T* x, int live, Matrix<T> first, Matrix<T> second, Matrix<T> third,
                                             const T* residual, T* out) {
  using Plan = ProjectMany<T, ROWS, IN, BITS, GROUP, OUT0, OUT1, OUT2, BIAS, EPILOGUE, SPLIT>;
  const Matrix<T> matrices[3] = {first, second, third};
  const size_t before = size_t(blockIdx.y) * ROWS;
  x += before * IN;
  residual += before * Plan::Few::OUT;
  out += before * Plan::Few::OUT;
  live = min(ROWS, live - int(before));
  if constexpr (Plan::DYNAMIC_BYTES == 0) {
    __shared__ __align__(128) unsigned char shared[Plan::SHARED_BYTES];
    Plan::run(x, live, matrices, residual, out, shared);
  } else {
    extern __shared__ __align__(128) unsigned char dynamic[];
    Plan::run(x, live, matrices, residual, out, dynamic);
  }
}

}  // namespace base_mlx
