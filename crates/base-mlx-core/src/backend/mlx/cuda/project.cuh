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
//
// DEPTH 0: a tile's rows are one piece of memory, which the copy engine brings into shared memory, as many tiles ahead as
// fit, at the word of one more warp; one block of (WARPS + 1) * 32 threads a multiprocessor. Else each lane keeps DEPTH
// chunks under way in its registers.
//
// A short kernel spends much of its time on fetching its own instructions, so loops are unrolled only as far as registers
// must be indexed by constants.

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
  static constexpr int PAIRS = LANE / 8;  // of steps of the tensor cores, in a chunk
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
  static constexpr int X_BYTES = ROWS * X_ROW_BYTES + (BITS < 16 ? (ROWS * CHUNKS * GROUPS * 4 + 15) / 16 * 16 : 0);
  static constexpr int PARTIAL_BYTES = 2 * WARPS * TILES * 16 * ROWS * 4;
  static constexpr int NORM_BYTES = (4 * (WARPS >= ROWS ? WARPS : ROWS) + 15) / 16 * 16;
  static constexpr int ROW_BYTES = IN * BITS / 8;
  static constexpr int SCALE_BYTES = QUANTISED ? IN / GROUP * 2 : 0;  // of a row
  static constexpr int ITEM_BYTES = TILES * 16 * (ROW_BYTES + 2 * SCALE_BYTES);
  static constexpr int MOST_BYTES = 226 * 1024;
  static constexpr int BARRIER_BYTES = DEPTH == 0 ? 1024 : 0;
  // Sums of x over what one accumulator covers, [ROWS, CHUNKS * GROUPS], behind the staged rows.
  static constexpr int SPAN = CHUNK / GROUPS, SPANS = CHUNKS * GROUPS;
  static constexpr int OTHER_BYTES = PARTIAL_BYTES + NORM_BYTES + BARRIER_BYTES;
  static constexpr bool BULK = DEPTH == 0 && sizeof(T) == 2 && OUT0 % 16 == 0 && OUT1 % 16 == 0 && OUT2 % 16 == 0 &&
                               TEAMS * ITEM_BYTES + OTHER_BYTES + (NORM != 0 ? X_BYTES : 0) <= MOST_BYTES;
  static constexpr bool STAGED = X_BYTES + OTHER_BYTES + (BULK ? TEAMS : 0) * ITEM_BYTES <= MOST_BYTES;
  // For more rows there are not enough registers, and the tensor cores add x up as well.
  static constexpr bool SUMMED = QUANTISED && STAGED && ROWS <= 4;
  static constexpr int BEFORE_BYTES = (STAGED ? X_BYTES : 0) + OTHER_BYTES;
  static constexpr int FIT = (MOST_BYTES - BEFORE_BYTES) / ITEM_BYTES;
  // A stage always belongs to the same team, which therefore never waits for a copy two ahead of the last.
  static constexpr int STAGES = BULK ? (FIT < 16 ? FIT : 16) / TEAMS * TEAMS : 0;
  static constexpr int THREADS = (WARPS + (BULK ? 1 : 0)) * 32;
  // Whether rows are divided by their root mean square only after the product. Half could overflow before.
  static constexpr bool FOLDED = NORM != 0 && Same<T, __nv_bfloat16>::value;
  // An item is copied in parts of at least a kilobyte of each row, so that work on a long row begins before it is whole.
  static constexpr int PART_TURNS = ROW_BYTES < 2048 ? TURNS : (1024 + TEAM * 64 - 1) / (TEAM * 64);
  static constexpr int PARTS = (TURNS + PART_TURNS - 1) / PART_TURNS;
  static constexpr int PART_BYTES = PARTS == 1 ? ROW_BYTES : PART_TURNS * TEAM * 64;  // of a row
  static_assert(STAGES * (PARTS + 1) * 8 <= BARRIER_BYTES, "");
  static constexpr int RING = DEPTH > 0 ? DEPTH : 3;
  static constexpr int SHARED_BYTES = BEFORE_BYTES + STAGES * ITEM_BYTES;
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
    Matrix<T> matrix;
    int row;     // first output in the matrix
    int out;     // outputs of the matrix
    int column;  // of the first output among all
  };

  static __device__ __forceinline__ Place place(int item, int tile, const Matrix<T>* matrices) {
    if constexpr (SWIGLU) return Place{matrices[tile], item * 16, OUT0, item * 16};
    if (OUT2 > 0 && item >= TILES0 + TILES1) {
      const int row = (item - TILES0 - TILES1) * 16;
      return Place{matrices[2], row, OUT2, OUT0 + OUT1 + row};
    }
    if (OUT1 > 0 && item >= TILES0) {
      const int row = (item - TILES0) * 16;
      return Place{matrices[1], row, OUT1, OUT0 + row};
    }
    return Place{matrices[0], item * 16, OUT0, item * 16};
  }

  static __device__ __forceinline__ void load(Stage& stage, int item, int chunk, int lane, const Matrix<T>* matrices) {
    const int from = chunk * CHUNK + lane % 4 * LANE;
    if (from >= IN) return;  // x is 0 there
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      const Place at = place(item, tile, matrices);
      const char* packed = static_cast<const char*>(at.matrix.packed);
      const T* scales = at.matrix.scales;
      const T* biases = at.matrix.biases;
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

  static constexpr int STAGED_BARRIER = 15, SUMMED_BARRIER = 14;  // after those of the teams
  static_assert(TEAMS < SUMMED_BARRIER, "");

  static __device__ __forceinline__ void wait_for_all() {
    asm volatile("bar.sync %0, %1;" ::"n"(STAGED_BARRIER), "n"(THREADS) : "memory");
  }

  // The number by which a row's products are multiplied if FOLDED, from what `stage_rows` left.
  static __device__ __forceinline__ float factor_of(int row, const float* squares) {
    constexpr int PARTS = WARPS >= ROWS ? WARPS / ROWS : 1;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < PARTS; n++) sum += squares[row * PARTS + n];
    return rsqrtf(sum / IN + __int_as_float(EPS_BITS));
  }

  // Called by whole warps, whose lanes have neighbouring eights of a row.
  static __device__ __forceinline__ void stage_sum(const uint4& values, int row, int i, bool inside, unsigned char* staged) {
    if constexpr (SUMMED) {
      const Word words[4] = {values.x, values.y, values.z, values.w};
      float sum = 0.0f;
#pragma unroll
      for (int word = 0; word < 4; word++) {
        const float2 pair = widen_pair<T>(words[word]);
        sum += pair.x + pair.y;
      }
#pragma unroll
      for (int distance = 1; distance < SPAN / 8; distance *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
      float* sums = reinterpret_cast<float*>(staged + ROWS * X_ROW_BYTES);
      if (inside && i % SPAN == 0) sums[row * SPANS + i / SPAN] = sum;
    }
  }

  static __device__ __forceinline__ void stage_rows(const T* x, int live, const T* norm_weight, unsigned char* staged,
                                                    float* squares) {
    const int thread = threadIdx.x;
    constexpr int UNITS = CHUNKS * CHUNK / 8;
    if constexpr (NORM == 0) {
      for (int unit = thread; unit < (ROWS * UNITS + 31) / 32 * 32; unit += WARPS * 32) {
        const int row = unit / UNITS, i = unit % UNITS * 8;
        const bool inside = row < ROWS;
        uint4 values = make_uint4(0, 0, 0, 0);
        if (inside && i < IN) values = *reinterpret_cast<const uint4*>(x + size_t(min(row, live - 1)) * IN + i);
        if (inside) *reinterpret_cast<uint4*>(staged + row * X_ROW_BYTES + unit_of(i)) = ordered(values);
        stage_sum(values, row, i, inside, staged);
      }
    } else {
      // Some warps take a row, or a warp takes some rows.
      constexpr int PARTS = WARPS >= ROWS ? WARPS / ROWS : 1;
      constexpr int AT_ONCE = WARPS / PARTS;
      constexpr int HELD = (UNITS + PARTS * 32 - 1) / (PARTS * 32);
      constexpr int AHEAD = HELD < 3 ? HELD : 2;
      const int warp = thread / 32, lane = thread % 32;
      const int part = warp % PARTS;
      auto normed = [&](const uint4& values, const uint4& weight, float factor) {
        const Word words[4] = {values.x, values.y, values.z, values.w};
        const Word factors[4] = {weight.x, weight.y, weight.z, weight.w};
        Word results[4];
#pragma unroll
        for (int word = 0; word < 4; word++) {
          float2 pair = widen_pair<T>(words[word]);
          const float2 by = widen_pair<T>(factors[word]);
          // Rounded before the weight as well, as the stock norm does.
          if (!FOLDED) pair = make_float2(rounded<T>(pair.x * factor), rounded<T>(pair.y * factor));
          results[word] = narrow_pair<T>(pair.x * by.x, pair.y * by.y);
        }
        return make_uint4(results[0], results[1], results[2], results[3]);
      };
#pragma unroll 1
      for (int row = warp / PARTS; row < ROWS && warp / PARTS < AT_ONCE; row += AT_ONCE) {
        float sum = 0.0f;
#pragma unroll(AHEAD)
        for (int n = 0; n < HELD; n++) {
          const int i = ((n * PARTS + part) * 32 + lane) * 8;
          const bool inside = i < CHUNKS * CHUNK;
          uint4 values = make_uint4(0, 0, 0, 0), weight = values;
          if (i < IN) {
            values = *reinterpret_cast<const uint4*>(x + size_t(min(row, live - 1)) * IN + i);
            if (FOLDED) weight = *reinterpret_cast<const uint4*>(norm_weight + i);
          }
          const Word words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
          for (int word = 0; word < 4; word++) {
            const float2 pair = widen_pair<T>(words[word]);
            sum += pair.x * pair.x + pair.y * pair.y;
          }
          if (FOLDED) {
            values = normed(values, weight, 1.0f);
            stage_sum(values, row, i, inside, staged);
            values = ordered(values);
          }
          if (inside) *reinterpret_cast<uint4*>(staged + row * X_ROW_BYTES + unit_of(i)) = values;
        }
        sum = sum_of_warp(sum);
        if (lane == 0) squares[row * PARTS + part] = sum;
      }
      if constexpr (!FOLDED) {
        asm volatile("bar.sync %0, %1;" ::"n"(SUMMED_BARRIER), "n"(WARPS * 32) : "memory");
#pragma unroll 1
        for (int row = warp / PARTS; row < ROWS && warp / PARTS < AT_ONCE; row += AT_ONCE) {
          const float factor = factor_of(row, squares);
#pragma unroll 1
          for (int n = 0; n < HELD; n++) {
            const int i = ((n * PARTS + part) * 32 + lane) * 8;
            const bool inside = i < CHUNKS * CHUNK;
            uint4* unit = reinterpret_cast<uint4*>(staged + row * X_ROW_BYTES + unit_of(inside ? i : 0));
            uint4 values = make_uint4(0, 0, 0, 0);
            if (i < IN) values = normed(*unit, *reinterpret_cast<const uint4*>(norm_weight + i), factor);
            stage_sum(values, row, i, inside, staged);
            if (inside) *unit = ordered(values);
          }
        }
      }
    }
    wait_for_all();
  }

  // Adds a chunk to the totals: [tile][column tile][4], as `multiply` lays them out.
  static __device__ __forceinline__ void add_chunk(float (&totals)[TILES][COLUMN_TILES][4], const Stage& stage, int chunk,
                                                   int lane, const unsigned char* staged, const T* x, int live) {
    const int g = lane / 4, t = lane % 4;
    const bool mine = GROUPS == 1 || g / COLUMN_ROWS == t * GROUPS / 4;
    // Short chains of products: each waits for the one before it.
    constexpr int CHAINS = SUMMED && TILES * COLUMN_TILES <= 2 ? 2 : 1;
    float partial[CHAINS][TILES][COLUMN_TILES][4] = {}, sums[COLUMN_TILES][4] = {};
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
            const size_t own = min(row, live - 1);
            right[column] = ordered(__ldg(reinterpret_cast<const uint4*>(x + own * IN + from)));
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
              multiply<T>(partial[step % CHAINS][tile][column], low.x, high.x, low.y, high.y, b0, b1);
              if (!SUMMED && tile == 0) multiply<T>(sums[column], ONES, ONES, ONES, ONES, b0, b1);
            } else {
              multiply<T>(totals[tile][column], low.x, high.x, low.y, high.y, b0, b1);
            }
          }
        }
      }
    }
    if constexpr (SUMMED) {
      const float* of_rows = reinterpret_cast<const float*>(staged + ROWS * X_ROW_BYTES) + chunk * GROUPS + t * GROUPS / 4;
#pragma unroll
      for (int column = 0; column < COLUMN_TILES; column++) {
#pragma unroll
        for (int n = 0; n < 2; n++) {
          const int row = column * COLUMN_ROWS + (t * 2 + n) % COLUMN_ROWS;
          sums[column][n] = sums[column][2 + n] = of_rows[min(row, ROWS - 1) * SPANS];
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
            float product = partial[0][tile][column][n];
            if constexpr (CHAINS == 2) product += partial[CHAINS - 1][tile][column][n];
            totals[tile][column][n] += scale * product + bias * sums[column][n];
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
    if constexpr (BIAS != 0) product = rounded<T>(product + widen(at.matrix.bias[at.row + output]));
    return product;
  }

  static __device__ __forceinline__ float swiglu(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

  // Adds up what the team's warps have of an item and writes it.
  static __device__ __forceinline__ void finish(float (&totals)[TILES][COLUMN_TILES][4], int item, int team, int member,
                                                int lane, float* slots, const float* squares, const Matrix<T>* matrices,
                                                const T* residual, T* out, int live) {
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
#pragma unroll 1
    for (int n = 0; n < PER_THREAD; n++) {
      const int index = (n * TEAM + member) * 32 + lane;
      const int row = index / 16, output = index % 16;
      const Place at = place(item, 0, matrices);
      if (row >= ROWS || row >= live || at.row + output >= at.out) continue;
      const size_t to = size_t(row) * OUT + at.column + output;
      float before = 0.0f;
      if constexpr (EPILOGUE == EPILOGUE_ADD) before = widen(residual[to]);
      float products[TILES];
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        products[tile] = 0.0f;
#pragma unroll
        for (int other = 0; other < TEAM; other++) {
          products[tile] += slots[((other * TILES + tile) * ROWS + row) * 16 + output];
        }
        if constexpr (FOLDED) products[tile] *= factor_of(row, squares);
        products[tile] = finished(place(item, tile, matrices), products[tile], output);
      }
      float result = products[0] + before;
      if constexpr (SWIGLU) result = swiglu(products[0], products[TILES - 1]);
      out[to] = narrow<T>(result);
    }
    if constexpr (TEAM == 1) __syncwarp();
  }

  static __device__ __forceinline__ void run(const T* x, int live, const T* norm_weight, const Matrix<T>* matrices,
                                             const T* residual, T* out, unsigned char* shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int team = warp / TEAM, member = warp % TEAM;
    // Tiles go to all blocks before a block gets a second one.
    const int first = team * gridDim.x + blockIdx.x, stride = gridDim.x * TEAMS;
    float* partials = reinterpret_cast<float*>(shared);
    float* squares = reinterpret_cast<float*>(shared + PARTIAL_BYTES);
    unsigned char* staged = shared + OTHER_BYTES;

    // The weights do not depend on the kernel before, nor on the norm: the first of them are asked for before all else.
    Stage ring[RING];
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
    for (int depth = 0; depth < RING; depth++) {
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        ring[depth].values[tile][0] = ring[depth].values[tile][1] = make_uint4(0, 0, 0, 0);
        ring[depth].scales[tile][0] = ring[depth].scales[tile][1] = narrow<T>(0.0f);
        ring[depth].biases[tile][0] = ring[depth].biases[tile][1] = narrow<T>(0.0f);
      }
      load_next(ring[depth]);
    }
    if constexpr (STAGED) {
      stage_rows(x, live, norm_weight, staged, squares);
    }

    float totals[TILES][COLUMN_TILES][4] = {};
    int parity = 0, turn = 0;
    for (int item = first; item < ITEMS;) {
#pragma unroll
      for (int depth = 0; depth < RING; depth++) {
        if (item >= ITEMS) break;
        const int chunk = turn * TEAM + member;
        if (CHUNKS % TEAM == 0 || chunk < CHUNKS) add_chunk(totals, ring[depth], chunk, lane, staged, x, live);
        load_next(ring[depth]);
        if (++turn == TURNS) {
          float* slots = partials + (parity * WARPS + team * TEAM) * (TILES * 16 * ROWS);
          finish(totals, item, team, member, lane, slots, squares, matrices, residual, out, live);
          parity ^= 1;
          turn = 0;
          item += stride;
        }
      }
    }
  }

  static __device__ __forceinline__ void copy(Word to, const void* from, Word bytes, Word barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
                 : "memory");
  }

  // Has the copy engine bring an item's weights: of each tile the scales and biases with the first part, and the rows.
  static __device__ __forceinline__ void copy_item(int item, const Matrix<T>* matrices, Word to, Word barriers, int lane) {
    constexpr int TILE_BYTES = 16 * (ROW_BYTES + 2 * SCALE_BYTES);
#pragma unroll 1
    for (int part = 0; part < PARTS; part++) {
      const Word barrier = barriers + part * 8;
      const Word bytes = PARTS == 1 ? ROW_BYTES : min(PART_BYTES, ROW_BYTES - part * PART_BYTES);
      if (lane == 0) {
        const Word all = TILES * 16 * (bytes + (part == 0 ? 2 * SCALE_BYTES : 0));
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(all) : "memory");
      }
      __syncwarp();
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        const Place at = place(item, tile, matrices);
        const char* rows = static_cast<const char*>(at.matrix.packed) + size_t(at.row) * ROW_BYTES;
        const Word tile_to = to + tile * TILE_BYTES;
        if (QUANTISED && part == 0 && lane == 0) {
          const size_t group = size_t(at.row) * (IN / GROUP);
          copy(tile_to + 16 * ROW_BYTES, at.matrix.scales + group, 16 * SCALE_BYTES, barrier);
          copy(tile_to + 16 * (ROW_BYTES + SCALE_BYTES), at.matrix.biases + group, 16 * SCALE_BYTES, barrier);
        }
        if constexpr (PARTS == 1) {
          if (lane == 0) copy(tile_to, rows, 16 * ROW_BYTES, barrier);
        } else if (lane < 16) {
          const int within = lane * ROW_BYTES + part * PART_BYTES;
          copy(tile_to + within, rows + within, bytes, barrier);
        }
      }
    }
  }

  static __device__ __forceinline__ void wait_for_phase(Word barrier, Word parity) {
    asm volatile(
        "{\n .reg .pred done;\n again:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        " @done bra.uni finished;\n bra.uni again;\n finished:\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
  }

  static __device__ __forceinline__ void run_bulk(const T* x, int live, const T* norm_weight, const Matrix<T>* matrices,
                                                  const T* residual, T* out, unsigned char* shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int team = warp / TEAM, member = warp % TEAM;
    float* partials = reinterpret_cast<float*>(shared);
    float* squares = reinterpret_cast<float*>(shared + PARTIAL_BYTES);
    unsigned char* staged = shared + OTHER_BYTES;
    unsigned char* stages = shared + BEFORE_BYTES;
    const Word barriers = Word(__cvta_generic_to_shared(shared + PARTIAL_BYTES + NORM_BYTES));
    const Word stages_at = Word(__cvta_generic_to_shared(stages));

    const Word empty = barriers, full = barriers + STAGES * 8;  // for each stage, and for each part of each stage

    if (warp == WARPS) {
      if (lane == 0) {
#pragma unroll 1
        for (int stage = 0; stage < STAGES; stage++) {
          asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(empty + stage * 8), "n"(TEAM) : "memory");
        }
#pragma unroll 1
        for (int part = 0; part < STAGES * PARTS; part++) {
          asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(full + part * 8) : "memory");
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      }
      __syncwarp();
      asm volatile("bar.arrive %0, %1;" ::"n"(STAGED_BARRIER), "n"(THREADS) : "memory");
      // The weights depend neither on the kernel before nor on the norm.
#pragma unroll 1
      for (int n = 0; blockIdx.x + n * gridDim.x < ITEMS; n++) {
        const int stage = n % STAGES;
        if (n >= STAGES) wait_for_phase(empty + stage * 8, (n / STAGES + 1) % 2);
        copy_item(blockIdx.x + n * gridDim.x, matrices, stages_at + stage * ITEM_BYTES, full + stage * PARTS * 8, lane);
      }
      return;
    }
    if constexpr (STAGED) {
      stage_rows(x, live, norm_weight, staged, squares);
    } else {
      wait_for_all();
    }

    float totals[TILES][COLUMN_TILES][4] = {};
    int parity = 0;
#pragma unroll 1
    for (int n = team; blockIdx.x + n * gridDim.x < ITEMS; n += TEAMS) {
      const int item = blockIdx.x + n * gridDim.x;
      const int stage = n % STAGES;
      const unsigned char* weights = stages + stage * ITEM_BYTES;
#pragma unroll 1
      for (int turn = 0; turn < TURNS; turn++) {
        if (turn % PART_TURNS == 0) wait_for_phase(full + (stage * PARTS + turn / PART_TURNS) * 8, n / STAGES % 2);
        const int chunk = turn * TEAM + member;
        if (CHUNKS % TEAM != 0 && chunk >= CHUNKS) continue;
        const int from = chunk * CHUNK + lane % 4 * LANE;
        const bool inside = IN % CHUNK == 0 || from < IN;
        Stage values;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const int row = lane / 4 + half * 8;
            const unsigned char* rows = weights + tile * (16 * (ROW_BYTES + 2 * SCALE_BYTES));
            values.values[tile][half] = make_uint4(0, 0, 0, 0);
            if (inside) values.values[tile][half] = *reinterpret_cast<const uint4*>(rows + row * ROW_BYTES + from * BITS / 8);
            if constexpr (QUANTISED) {
              const T* scales = reinterpret_cast<const T*>(rows + 16 * ROW_BYTES + row * SCALE_BYTES);
              values.scales[tile][half] = inside ? scales[from / GROUP] : narrow<T>(0.0f);
              values.biases[tile][half] = inside ? scales[16 * (IN / GROUP) + from / GROUP] : narrow<T>(0.0f);
            }
          }
        }
        add_chunk(totals, values, chunk, lane, staged, x, live);
      }
      __syncwarp();
      if (lane == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(empty + stage * 8) : "memory");
      float* slots = partials + (parity * WARPS + team * TEAM) * (TILES * 16 * ROWS);
      finish(totals, item, team, member, lane, slots, squares, matrices, residual, out, live);
      parity ^= 1;
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

  static __device__ void run_plainly(const T* x, int live, const T* norm_weight, const Matrix<T>* matrices,
                                     const T* residual, T* out) {
    const int lane = threadIdx.x % 32;
    for (int column = blockIdx.x * WARPS + threadIdx.x / 32; column < OUT; column += gridDim.x * WARPS) {
      for (int row = 0; row < live; row++) {
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

// x [live, IN], norm_weight [IN], residual [live, OUT] and out [live, OUT] of T with 1 to ROWS live rows; what is not used
// is null. OUT1 and OUT2 are 0 where there are fewer matrices, EPS_BITS the bits of an f32.
template <typename T, int ROWS, int IN, int BITS, int GROUP, int OUT0, int OUT1, int OUT2, int NORM, int EPS_BITS, int BIAS,
          int EPILOGUE, int WARPS, int TEAM, int DEPTH>
__device__ __forceinline__ void project(const T* x, int live, const T* norm_weight, Matrix<T> first, Matrix<T> second,
                                        Matrix<T> third, const T* residual, T* out) {
  using Plan =
      Project<T, ROWS, IN, BITS, GROUP, OUT0, OUT1, OUT2, NORM, EPS_BITS, BIAS, EPILOGUE, WARPS, TEAM, DEPTH>;
  const Matrix<T> matrices[3] = {first, second, third};
  if constexpr (Same<T, float>::value) {
    Plan::run_plainly(x, live, norm_weight, matrices, residual, out);
  } else if constexpr (Plan::BULK) {
    if constexpr (Plan::DYNAMIC_BYTES == 0) {
      __shared__ __align__(128) unsigned char shared[Plan::SHARED_BYTES];
      Plan::run_bulk(x, live, norm_weight, matrices, residual, out, shared);
    } else {
      extern __shared__ __align__(128) unsigned char dynamic[];
      Plan::run_bulk(x, live, norm_weight, matrices, residual, out, dynamic);
    }
  } else if constexpr (Plan::DYNAMIC_BYTES == 0) {
    __shared__ __align__(128) unsigned char shared[Plan::SHARED_BYTES];
    Plan::run(x, live, norm_weight, matrices, residual, out, shared);
  } else {
    extern __shared__ __align__(128) unsigned char dynamic[];
    Plan::run(x, live, norm_weight, matrices, residual, out, dynamic);
  }
}

}  // namespace base_mlx
