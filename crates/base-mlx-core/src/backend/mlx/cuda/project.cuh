// A product of few rows with one to three weight matrices that share their input, with the norm before and the sum or the
// activation after it.
//
//   out[r, o] = epilogue(sum_i norm(x)[r, i] * w[o, i])
//
// Such a product is bound by reading the weights, so it must keep enough bytes under way and spend few instructions on
// each weight. The tensor cores do the sums for any number of rows up to 8 at the price of one: a tile of 16 outputs is
// the left operand, x the right one. Quantised values become numbers of type T without conversion, by or-ing them into
// the mantissa of a constant: 128 + q for bfloat16, 1024 + q for half; products with x are exact, sums are f32, and the
// constant is taken out again by the sum of x over the group, which the affine bias needs anyway.
//
// A lane loads 16 bytes of a row; the four lanes of a row cover a chunk. If a chunk has more than one group (4 bits, group
// 64: two), each group gets columns of the right operand of its own: x where the lane's values are of that group, else 0.
// So one accumulator is one group's, and scales are applied in f32.
//
// Grid: any number of blocks of WARPS * 32 threads; the work is spread over all teams of TEAM warps, each of which takes
// tiles of 16 outputs and splits them along the input. Dynamic shared memory: Project::DYNAMIC_BYTES.

namespace base_mlx {

// w[o, i] = scales[o, i / GROUP] * q + biases[o, i / GROUP] with 4 or 8 bits, `packed` the words of q, the first value in
// the lowest bits; or `packed` the values themselves. `bias` is added to the product.
template <typename T>
struct Matrix {
  const void* packed;  // [out, in * BITS / 32] words, or [out, in] of T
  const T* scales;     // [out, in / GROUP]
  const T* biases;     // [out, in / GROUP]
  const T* bias;       // [out]
};

constexpr int EPILOGUE_NONE = 0;
constexpr int EPILOGUE_ADD = 1;     // + residual [ROWS, OUT]
constexpr int EPILOGUE_SWIGLU = 2;  // silu(first) * second, both of OUT0 outputs

template <typename T, int ROWS, int IN, int BITS, int GROUP, int OUT0, int OUT1, int OUT2, int NORM, int EPS_BITS, int BIAS,
          int EPILOGUE, int WARPS, int TEAM, int DEPTH>
struct Project {
  static constexpr int LANE = 128 / BITS;  // values of a row that a lane loads at once
  static constexpr int CHUNK = 4 * LANE;
  static constexpr int CHUNKS = (IN + CHUNK - 1) / CHUNK;
  static constexpr int TURNS = (CHUNKS + TEAM - 1) / TEAM;
  static constexpr bool QUANTISED = BITS < 16;
  static constexpr int GROUPS = QUANTISED && GROUP < CHUNK ? CHUNK / GROUP : 1;  // of a chunk
  static constexpr int COLUMN_ROWS = 8 / GROUPS;                                 // rows of x in eight columns
  static constexpr int COLUMN_TILES = (ROWS + COLUMN_ROWS - 1) / COLUMN_ROWS;
  static constexpr bool SWIGLU = EPILOGUE == EPILOGUE_SWIGLU;
  static constexpr int TILES = SWIGLU ? 2 : 1;
  static constexpr int TILES0 = (OUT0 + 15) / 16, TILES1 = (OUT1 + 15) / 16, TILES2 = (OUT2 + 15) / 16;
  static constexpr int ITEMS = SWIGLU ? TILES0 : TILES0 + TILES1 + TILES2;
  static constexpr int OUT = SWIGLU ? OUT0 : OUT0 + OUT1 + OUT2;
  static constexpr int TEAMS = WARPS / TEAM;
  static constexpr int PER_THREAD = (16 * ROWS + TEAM * 32 - 1) / (TEAM * 32);  // outputs of a tile
  // x in shared memory: 16-byte units in the order [chunk, pair of steps, lane of the row]. Neighbouring rows lie half of
  // the banks apart.
  static constexpr int X_ROW_BYTES = (CHUNKS * CHUNK * 2) / 128 * 128 + 64 + ((CHUNKS * CHUNK * 2) % 128 > 64 ? 128 : 0);
  static constexpr int X_BYTES = ROWS * X_ROW_BYTES;
  static constexpr int PARTIAL_BYTES = 2 * WARPS * TILES * 16 * ROWS * 4;
  static constexpr int NORM_BYTES = 4 * WARPS * ((ROWS + WARPS - 1) / WARPS) + 16;
  static constexpr bool STAGED = X_BYTES + PARTIAL_BYTES + NORM_BYTES <= 220 * 1024;
  static constexpr int SHARED_BYTES = (STAGED ? X_BYTES : 0) + PARTIAL_BYTES + NORM_BYTES;
  static constexpr int DYNAMIC_BYTES = SHARED_BYTES <= 48 * 1024 || Same<T, float>::value ? 0 : SHARED_BYTES;
  static_assert(NORM == 0 || STAGED, "the rows to normalise do not fit into shared memory");
  static_assert(!SWIGLU || OUT0 == OUT1, "gate and up have equally many outputs");
  static_assert(WARPS % TEAM == 0 && IN % 8 == 0, "");
  static_assert(!QUANTISED || (IN % GROUP == 0 && GROUP % 32 == 0), "");

  struct Stage {
    uint4 values[TILES][2];  // of output rows g and g+8
    T scales[TILES][2], biases[TILES][2];
  };

  // Where a tile's values lie.
  struct Place {
    const Matrix<T>* matrix;
    int row;     // first output in the matrix
    int out;     // outputs of the matrix
    int column;  // of the first output among all
  };

  static __device__ __forceinline__ Place place(int item, int tile, const Matrix<T>* matrices) {
    if constexpr (SWIGLU) return Place{matrices + tile, item * 16, OUT0, item * 16};
    if (OUT1 > 0 && item >= TILES0) {
      item -= TILES0;
      if (OUT2 > 0 && item >= TILES1) {
        item -= TILES1;
        return Place{matrices + 2, item * 16, OUT2, OUT0 + OUT1 + item * 16};
      }
      return Place{matrices + 1, item * 16, OUT1, OUT0 + item * 16};
    }
    return Place{matrices, item * 16, OUT0, item * 16};
  }

  static __device__ __forceinline__ void load(Stage& stage, int item, int chunk, int lane, const Matrix<T>* matrices) {
    const int from = chunk * CHUNK + lane % 4 * LANE;
    if (from >= IN) return;  // x is 0 there
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      const Place at = place(item, tile, matrices);
      const char* packed = static_cast<const char*>(at.matrix->packed);
      const T* scales = at.matrix->scales;
      const T* biases = at.matrix->biases;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = min(at.row + lane / 4 + half * 8, at.out - 1);
        stage.values[tile][half] = load_once(packed + size_t(row) * (IN * BITS / 8) + size_t(from) * BITS / 8);
        if constexpr (QUANTISED) {
          const int group = row * (IN / GROUP) + from / GROUP;
          stage.scales[tile][half] = scales[group];
          stage.biases[tile][half] = biases[group];
        }
      }
    }
  }

  static constexpr float OFFSET =
      BITS == 16 ? 0.0f : !Same<T, __nv_bfloat16>::value ? 1024.0f : BITS == 4 ? 128.0f : -128.0f;
  static constexpr Word ONES = Same<T, __nv_bfloat16>::value ? 0x3F803F80u : 0x3C003C00u;

  // Two values with OFFSET added: of 4 bits those at `shift` and `shift` + 16, of 8 bits likewise.
  static __device__ __forceinline__ Word expand(Word word, int shift) {
    const Word moved = word >> shift;
    if constexpr (BITS == 4) {
      return (moved & 0x000F000Fu) | (Same<T, __nv_bfloat16>::value ? 0x43004300u : 0x64006400u);
    } else if constexpr (Same<T, __nv_bfloat16>::value) {
      // Bfloat16 has eight bits: 128 + the lower seven, minus 128 or 256, is q - 128.
      const Word low = (moved & 0x007F007Fu) | 0x43004300u;
      const Word away = (moved & 0x00800080u) ^ 0x43804380u;
      const __nv_bfloat162 pair = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&low),
                                          *reinterpret_cast<const __nv_bfloat162*>(&away));
      return *reinterpret_cast<const Word*>(&pair);
    } else {
      return (moved & 0x00FF00FFu) | 0x64006400u;
    }
  }

  // The operand of step `step` of a lane's 16 bytes: four values as two words.
  static __device__ __forceinline__ uint2 operand(const uint4& values, int step) {
    const Word words[4] = {values.x, values.y, values.z, values.w};
    if constexpr (BITS == 4) {
      const Word word = words[step / 2];
      const int shift = step % 2 * 8;
      return make_uint2(expand(word, shift), expand(word, shift + 4));
    } else if constexpr (BITS == 8) {
      return make_uint2(expand(words[step], 0), expand(words[step], 8));
    } else {
      return make_uint2(words[step * 2], words[step * 2 + 1]);
    }
  }

  // Eight values of x in the order in which `operand` gives those of the weights.
  static __device__ __forceinline__ uint4 ordered(const uint4& x) {
    if constexpr (BITS == 4) {
      return make_uint4(__byte_perm(x.x, x.z, 0x5410), __byte_perm(x.x, x.z, 0x7632), __byte_perm(x.y, x.w, 0x5410),
                        __byte_perm(x.y, x.w, 0x7632));
    } else if constexpr (BITS == 8) {
      return make_uint4(__byte_perm(x.x, x.y, 0x5410), __byte_perm(x.x, x.y, 0x7632), __byte_perm(x.z, x.w, 0x5410),
                        __byte_perm(x.z, x.w, 0x7632));
    } else {
      return x;
    }
  }

  // Where the eight values from i on lie in a row of staged x.
  static __device__ __forceinline__ int unit_of(int i) {
    const int chunk = i / CHUNK, lane = i % CHUNK / LANE, pair = i % LANE / 8;
    return chunk * (CHUNK * 2) + pair * 64 + lane * 16;
  }

  static __device__ __forceinline__ void stage_rows(const T* x, const T* norm_weight, unsigned char* staged,
                                                    float* squares) {
    const int thread = threadIdx.x;
    constexpr int UNITS = CHUNKS * CHUNK / 8;
    if constexpr (NORM == 0) {
      for (int unit = thread; unit < ROWS * UNITS; unit += WARPS * 32) {
        const int row = unit / UNITS, i = unit % UNITS * 8;
        uint4 values = make_uint4(0, 0, 0, 0);
        if (i < IN) values = *reinterpret_cast<const uint4*>(x + size_t(row) * IN + i);
        *reinterpret_cast<uint4*>(staged + row * X_ROW_BYTES + unit_of(i)) = ordered(values);
      }
    } else {
      // Some warps take a row, or a warp takes some rows.
      constexpr int PARTS = WARPS >= ROWS ? WARPS / ROWS : 1;
      constexpr int ROUNDS = (ROWS + WARPS - 1) / WARPS;
      constexpr int HELD = (UNITS + PARTS * 32 - 1) / (PARTS * 32);
      constexpr bool HOLD = HELD * ROUNDS <= 5;
      const int warp = thread / 32, lane = thread % 32;
      const int part = warp % PARTS;
      uint4 weights[HOLD ? HELD : 1];
      if constexpr (HOLD) {
#pragma unroll
        for (int n = 0; n < HELD; n++) {
          const int i = ((n * PARTS + part) * 32 + lane) * 8;
          weights[n] = i < IN ? *reinterpret_cast<const uint4*>(norm_weight + i) : make_uint4(0, 0, 0, 0);
        }
      }
#pragma unroll
      for (int round = 0; round < ROUNDS; round++) {
        const int row = round * WARPS + warp / PARTS;
        float sum = 0.0f;
        if (row < ROWS) {
#pragma unroll
          for (int n = 0; n < HELD; n++) {
            const int i = ((n * PARTS + part) * 32 + lane) * 8;
            if (i >= CHUNKS * CHUNK) break;
            uint4 values = make_uint4(0, 0, 0, 0);
            if (i < IN) values = *reinterpret_cast<const uint4*>(x + size_t(row) * IN + i);
            const Word words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
            for (int word = 0; word < 4; word++) {
              const float2 pair = widen_pair<T>(words[word]);
              sum += pair.x * pair.x + pair.y * pair.y;
            }
            *reinterpret_cast<uint4*>(staged + row * X_ROW_BYTES + unit_of(i)) = values;
          }
        }
        sum = sum_of_warp(sum);
        if (lane == 0) squares[round * WARPS + warp] = sum;
      }
      __syncthreads();
#pragma unroll
      for (int round = 0; round < ROUNDS; round++) {
        const int row = round * WARPS + warp / PARTS;
        if (row >= ROWS) continue;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < PARTS; n++) sum += squares[round * WARPS + warp / PARTS * PARTS + n];
        const float factor = rsqrtf(sum / IN + __int_as_float(EPS_BITS));
#pragma unroll
        for (int n = 0; n < HELD; n++) {
          const int i = ((n * PARTS + part) * 32 + lane) * 8;
          if (i >= CHUNKS * CHUNK) break;
          uint4* unit = reinterpret_cast<uint4*>(staged + row * X_ROW_BYTES + unit_of(i));
          const uint4 values = *unit;
          uint4 weight;
          if constexpr (HOLD) {
            weight = weights[n];
          } else {
            weight = i < IN ? *reinterpret_cast<const uint4*>(norm_weight + i) : make_uint4(0, 0, 0, 0);
          }
          const Word words[4] = {values.x, values.y, values.z, values.w};
          const Word factors[4] = {weight.x, weight.y, weight.z, weight.w};
          Word normed[4];
#pragma unroll
          for (int word = 0; word < 4; word++) {
            const float2 pair = widen_pair<T>(words[word]), by = widen_pair<T>(factors[word]);
            // Rounded before the weight as well, as the stock norm does.
            normed[word] = narrow_pair<T>(rounded<T>(pair.x * factor) * by.x, rounded<T>(pair.y * factor) * by.y);
          }
          *unit = ordered(make_uint4(normed[0], normed[1], normed[2], normed[3]));
        }
      }
    }
    __syncthreads();
  }

  // Adds a chunk to the totals: [tile][column tile][4], as `multiply` lays them out.
  static __device__ __forceinline__ void add_chunk(float (&totals)[TILES][COLUMN_TILES][4], const Stage& stage, int chunk,
                                                   int lane, const unsigned char* staged, const T* x) {
    constexpr int PAIRS = LANE / 8;
    const int g = lane / 4, t = lane % 4;
    const bool mine = GROUPS == 1 || g / COLUMN_ROWS == t * GROUPS / 4;
    float partial[TILES][COLUMN_TILES][4], sums[COLUMN_TILES][4];
    if constexpr (QUANTISED) {
#pragma unroll
      for (int column = 0; column < COLUMN_TILES; column++) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
          sums[column][n] = 0.0f;
#pragma unroll
          for (int tile = 0; tile < TILES; tile++) partial[tile][column][n] = 0.0f;
        }
      }
    }
#pragma unroll
    for (int pair = 0; pair < PAIRS; pair++) {
      uint4 right[COLUMN_TILES];
#pragma unroll
      for (int column = 0; column < COLUMN_TILES; column++) {
        const int row = column * COLUMN_ROWS + g % COLUMN_ROWS;
        right[column] = make_uint4(0, 0, 0, 0);
        if constexpr (STAGED) {
          if (mine && row < ROWS) {
            right[column] = *reinterpret_cast<const uint4*>(staged + row * X_ROW_BYTES + chunk * (CHUNK * 2) + pair * 64 +
                                                            t * 16);
          }
        } else {
          const int from = chunk * CHUNK + t * LANE + pair * 8;
          if (mine && row < ROWS && from < IN) {
            right[column] = ordered(__ldg(reinterpret_cast<const uint4*>(x + size_t(row) * IN + from)));
          }
        }
      }
#pragma unroll
      for (int step = 0; step < 2; step++) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
          const uint2 low = operand(stage.values[tile][0], pair * 2 + step);
          const uint2 high = operand(stage.values[tile][1], pair * 2 + step);
#pragma unroll
          for (int column = 0; column < COLUMN_TILES; column++) {
            const Word b0 = step == 0 ? right[column].x : right[column].z;
            const Word b1 = step == 0 ? right[column].y : right[column].w;
            if constexpr (QUANTISED) {
              multiply<T>(partial[tile][column], low.x, high.x, low.y, high.y, b0, b1);
              if (tile == 0) multiply<T>(sums[column], ONES, ONES, ONES, ONES, b0, b1);
            } else {
              multiply<T>(totals[tile][column], low.x, high.x, low.y, high.y, b0, b1);
            }
          }
        }
      }
    }
    if constexpr (QUANTISED) {
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
          const float scale = widen(stage.scales[tile][n / 2]);
          const float bias = widen(stage.biases[tile][n / 2]) - OFFSET * scale;
#pragma unroll
          for (int column = 0; column < COLUMN_TILES; column++) {
            totals[tile][column][n] += scale * partial[tile][column][n] + bias * sums[column][n];
          }
        }
      }
    }
  }

  static __device__ __forceinline__ void wait_for_team(int team) {
    if constexpr (TEAM == 1) {
      __syncwarp();
    } else {
      asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(TEAM * 32) : "memory");
    }
  }

  static __device__ __forceinline__ float finished(const Place& at, float product, int output) {
    product = rounded<T>(product);
    if constexpr (BIAS != 0) product = rounded<T>(product + widen(at.matrix->bias[at.row + output]));
    return product;
  }

  static __device__ __forceinline__ float swiglu(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

  static __device__ __forceinline__ void run(const T* x, const T* norm_weight, const Matrix<T>* matrices, const T* residual,
                                             T* out, unsigned char* shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int team = warp / TEAM, member = warp % TEAM;
    // Tiles go to all blocks before a block gets a second one.
    const int first = team * gridDim.x + blockIdx.x, stride = gridDim.x * TEAMS;
    float* partials = reinterpret_cast<float*>(shared);
    float* squares = reinterpret_cast<float*>(shared + PARTIAL_BYTES);
    unsigned char* staged = shared + PARTIAL_BYTES + NORM_BYTES / 16 * 16;

    // The weights do not depend on the kernel before, nor on the norm: the first of them are asked for before all else.
    Stage ring[DEPTH];
    int load_item = first, load_turn = 0;
    auto load_next = [&](Stage& stage) {
      const int chunk = load_turn * TEAM + member;
      if (load_item < ITEMS && (CHUNKS % TEAM == 0 || chunk < CHUNKS)) load(stage, load_item, chunk, lane, matrices);
      if (++load_turn == TURNS) {
        load_turn = 0;
        load_item += stride;
      }
    };
#pragma unroll
    for (int depth = 0; depth < DEPTH; depth++) {
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        ring[depth].values[tile][0] = ring[depth].values[tile][1] = make_uint4(0, 0, 0, 0);
        ring[depth].scales[tile][0] = ring[depth].scales[tile][1] = narrow<T>(0.0f);
        ring[depth].biases[tile][0] = ring[depth].biases[tile][1] = narrow<T>(0.0f);
      }
      load_next(ring[depth]);
    }
    if constexpr (STAGED) stage_rows(x, norm_weight, staged, squares);

    float totals[TILES][COLUMN_TILES][4] = {};
    int parity = 0;
    auto finish = [&](int item) {
      float* slots = partials + (parity * WARPS + team * TEAM) * (TILES * 16 * ROWS);
      parity ^= 1;
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int column = 0; column < COLUMN_TILES; column++) {
#pragma unroll
          for (int n = 0; n < 4; n++) {
            float total = totals[tile][column][n];
            if constexpr (GROUPS >= 2) total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
            if constexpr (GROUPS >= 4) total += __shfl_xor_sync(0xFFFFFFFFu, total, 1);
            const int in_column = lane % 4 * 2 + n % 2;
            const int row = column * COLUMN_ROWS + in_column;
            if (in_column < COLUMN_ROWS && row < ROWS) {
              slots[((member * TILES + tile) * ROWS + row) * 16 + lane / 4 + n / 2 * 8] = total;
            }
            totals[tile][column][n] = 0.0f;
          }
        }
      }
      wait_for_team(team);
#pragma unroll
      for (int n = 0; n < PER_THREAD; n++) {
        const int index = (n * TEAM + member) * 32 + lane;
        const int row = index / 16, output = index % 16;
        const Place at = place(item, 0, matrices);
        if (row >= ROWS || at.row + output >= at.out) continue;
        float products[TILES];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
          products[tile] = 0.0f;
#pragma unroll
          for (int other = 0; other < TEAM; other++) {
            products[tile] += slots[((other * TILES + tile) * ROWS + row) * 16 + output];
          }
          products[tile] = finished(place(item, tile, matrices), products[tile], output);
        }
        const size_t to = size_t(row) * OUT + at.column + output;
        float result = products[0];
        if constexpr (SWIGLU) result = swiglu(products[0], products[TILES - 1]);
        if constexpr (EPILOGUE == EPILOGUE_ADD) result += widen(residual[to]);
        out[to] = narrow<T>(result);
      }
      if constexpr (TEAM == 1) __syncwarp();
    };

    int turn = 0;
    for (int item = first; item < ITEMS;) {
#pragma unroll
      for (int depth = 0; depth < DEPTH; depth++) {
        if (item >= ITEMS) break;
        const int chunk = turn * TEAM + member;
        if (CHUNKS % TEAM == 0 || chunk < CHUNKS) add_chunk(totals, ring[depth], chunk, lane, staged, x);
        load_next(ring[depth]);
        if (++turn == TURNS) {
          finish(item);
          turn = 0;
          item += stride;
        }
      }
    }
  }

  // Any T, for tests: a warp an output.
  static __device__ float value_at(const Matrix<T>& matrix, int row, int i) {
    if constexpr (BITS == 16) {
      return widen(static_cast<const T*>(matrix.packed)[size_t(row) * IN + i]);
    } else {
      const Word word = static_cast<const Word*>(matrix.packed)[size_t(row) * (IN * BITS / 32) + i * BITS / 32];
      const Word q = (word >> (i * BITS % 32)) & ((1u << BITS) - 1);
      const int group = row * (IN / GROUP) + i / GROUP;
      return widen(matrix.scales[group]) * float(q) + widen(matrix.biases[group]);
    }
  }

  static __device__ void run_plainly(const T* x, const T* norm_weight, const Matrix<T>* matrices, const T* residual, T* out) {
    const int lane = threadIdx.x % 32;
    for (int column = blockIdx.x * WARPS + threadIdx.x / 32; column < OUT; column += gridDim.x * WARPS) {
      for (int row = 0; row < ROWS; row++) {
        float factor = 1.0f;
        if (NORM != 0) {
          float squares = 0.0f;
          for (int i = lane; i < IN; i += 32) squares += widen(x[row * IN + i]) * widen(x[row * IN + i]);
          factor = rsqrtf(sum_of_warp(squares) / IN + __int_as_float(EPS_BITS));
        }
        float products[TILES];
        for (int tile = 0; tile < TILES; tile++) {
          const int second = !SWIGLU && column >= OUT0, third = second && column >= OUT0 + OUT1;
          const Matrix<T>& matrix = matrices[SWIGLU ? tile : second + third];
          const int output = column - (second ? OUT0 : 0) - (third ? OUT1 : 0);
          float product = 0.0f;
          for (int i = lane; i < IN; i += 32) {
            float value = widen(x[row * IN + i]);
            if (NORM != 0) value = rounded<T>(rounded<T>(value * factor) * widen(norm_weight[i]));
            product += value * value_at(matrix, output, i);
          }
          product = rounded<T>(sum_of_warp(product));
          if (BIAS != 0) product = rounded<T>(product + widen(matrix.bias[output]));
          products[tile] = product;
        }
        float result = products[0];
        if (SWIGLU) result = swiglu(products[0], products[TILES - 1]);
        if (EPILOGUE == EPILOGUE_ADD) result += widen(residual[size_t(row) * OUT + column]);
        if (lane == 0) out[size_t(row) * OUT + column] = narrow<T>(result);
      }
    }
  }
};

// x [ROWS, IN], norm_weight [IN], residual [ROWS, OUT] and out [ROWS, OUT] of T; what is not used is null. OUT1 and OUT2
// are 0 where there are fewer matrices, EPS_BITS the bits of an f32.
template <typename T, int ROWS, int IN, int BITS, int GROUP, int OUT0, int OUT1, int OUT2, int NORM, int EPS_BITS, int BIAS,
          int EPILOGUE, int WARPS, int TEAM, int DEPTH>
__device__ __forceinline__ void project(const T* x, const T* norm_weight, Matrix<T> first, Matrix<T> second,
                                        Matrix<T> third, const T* residual, T* out) {
  using Plan =
      Project<T, ROWS, IN, BITS, GROUP, OUT0, OUT1, OUT2, NORM, EPS_BITS, BIAS, EPILOGUE, WARPS, TEAM, DEPTH>;
  const Matrix<T> matrices[3] = {first, second, third};
  if constexpr (Same<T, float>::value) {
    Plan::run_plainly(x, norm_weight, matrices, residual, out);
  } else if constexpr (Plan::DYNAMIC_BYTES == 0) {
    __shared__ __align__(16) unsigned char shared[Plan::SHARED_BYTES];
    Plan::run(x, norm_weight, matrices, residual, out, shared);
  } else {
    extern __shared__ __align__(16) unsigned char dynamic[];
    Plan::run(x, norm_weight, matrices, residual, out, dynamic);
  }
}

}  // namespace base_mlx
