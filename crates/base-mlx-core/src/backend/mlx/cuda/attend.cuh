// Attention of single queries, each to the keys of its own sequence, read where they lie in the cache.
//
// Query heads that share a kv head are the eight columns of the tensor cores' right operand, so a key is read once for all
// of them: scores[key, head] = keys · queries, then out[dim, head] += values · weights. A warp takes 16 keys at a time,
// the warps of a block take turns, and their sums are merged at the end. Both products take their left operand straight
// from 16-byte loads: of keys because the order of a sum does not matter, of values because it does not matter which
// dimension is which row.

namespace base_mlx {

// Eight rows of eight 16-bit values, transposed.
__device__ __forceinline__ Word transposed(Word tile) {
  Word result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(tile));
  return result;
}

// q [tokens, HEADS, HEAD_DIM]; a token at `positions` p attends to max(0, p + 1 - window) ..= p of the sequence in row
// `row_span` of `table` [spans, table_width]. `sizes` = {table_width, window}, 0 for no window; `layer` as in `place`.
//
// SPLIT 0: out [tokens, HEADS, HEAD_DIM]. SPLIT 1: each of gridDim.x parts of the context leaves what its keys give,
// `parts` [tokens, HEADS, gridDim.x, HEAD_DIM] not yet divided by the sum, and `stats` [.., 2]: the largest score times
// log2(e), and the sum of the weights relative to it.
//
// Grid: x parts, y KV_HEADS * ceil(HEADS / KV_HEADS / 8), z tokens; WARPS * 32 threads.
template <typename T, int HEADS, int KV_HEADS, int HEAD_DIM, int SCALE_BITS, int SPLIT, int WARPS>
struct Attend {
  static constexpr int SHARE = HEADS / KV_HEADS;
  static constexpr int ROUNDS = (SHARE + 7) / 8;
  static constexpr int KEYS = 16;
  static constexpr int SPANS = (HEAD_DIM + 31) / 32;    // of 32 dimensions: four lanes of a key
  static constexpr int VALUE_SPANS = (HEAD_DIM + 63) / 64;  // of 64 dimensions: eight lanes of a key
  static constexpr int STRIDE = HEAD_DIM + 4;
  static_assert(HEADS % KV_HEADS == 0 && HEAD_DIM % 16 == 0 && BLOCK % KEYS == 0, "");

  struct Range {
    int first, last;      // positions
    int unit, end_unit;  // units of KEYS positions of this part
  };

  static __device__ __forceinline__ Range range(int position, int window) {
    Range range;
    range.last = position;
    range.first = window > 0 && position + 1 > window ? position + 1 - window : 0;
    const int first_unit = range.first / KEYS, units = position / KEYS + 1 - first_unit;
    const int each = (units + gridDim.x - 1) / gridDim.x;
    range.unit = first_unit + blockIdx.x * each;
    range.end_unit = min(range.unit + each, first_unit + units);
    return range;
  }

  static __device__ __forceinline__ void store(int token, int head, int dim, float value, T* out, float* parts) {
    if constexpr (SPLIT != 0) {
      parts[((size_t(token) * HEADS + head) * gridDim.x + blockIdx.x) * HEAD_DIM + dim] = value;
    } else {
      out[(size_t(token) * HEADS + head) * HEAD_DIM + dim] = narrow<T>(value);
    }
  }

  static __device__ __forceinline__ void run(const T* q, const Word* positions, const Word* row_span, const Address* table,
                                             const Word* layer, const Word* sizes, T* out, float* parts, float* stats) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int kv_head = blockIdx.y / ROUNDS, round = blockIdx.y % ROUNDS, token = blockIdx.z;
    const int first_head = kv_head * SHARE + round * 8, heads = min(8, SHARE - round * 8);
    const Range keys = range(positions[token], sizes[1]);
    const Address* row = table + size_t(row_span[token]) * sizes[0];
    const Word key_offset = layer[0], value_offset = layer[1];

    uint4 queries[SPANS];
#pragma unroll
    for (int span = 0; span < SPANS; span++) {
      const int dim = span * 32 + t * 8;
      queries[span] = make_uint4(0, 0, 0, 0);
      if (g < heads && dim < HEAD_DIM) {
        queries[span] =
            *reinterpret_cast<const uint4*>(q + (size_t(token) * HEADS + first_head + g) * HEAD_DIM + dim);
      }
    }

    float sums[VALUE_SPANS][4][4] = {};  // dimensions 2 pair, 2 pair + 1 of the lane's eight, heads 2t, 2t+1
    float largest[2] = {-3.0e38f, -3.0e38f}, weights[2] = {0.0f, 0.0f};
    const float scale = __int_as_float(SCALE_BITS) * LOG2_E;

    uint4 left[2][SPANS], right[4][VALUE_SPANS];
    auto load_keys = [&](int unit, Address address) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int position = unit * KEYS + g + half * 8;
        const bool inside = position >= keys.first && position <= keys.last;
        const T* key = reinterpret_cast<const T*>(address) + key_offset + slot_of<HEAD_DIM>(position, kv_head);
#pragma unroll
        for (int span = 0; span < SPANS; span++) {
          const int dim = span * 32 + t * 8;
          left[half][span] = make_uint4(0, 0, 0, 0);
          if (inside && dim < HEAD_DIM) left[half][span] = load_once(key + dim);
        }
      }
    };
    auto load_values = [&](int unit, Address address) {
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const int position = unit * KEYS + t * 2 + n % 2 + n / 2 * 8;
        // What lies beyond the last position was never written, and may be no number.
        const bool inside = position >= keys.first && position <= keys.last;
        const T* value = reinterpret_cast<const T*>(address) + value_offset + slot_of<HEAD_DIM>(position, kv_head);
#pragma unroll
        for (int span = 0; span < VALUE_SPANS; span++) {
          const int dim = span * 64 + g * 8;
          right[n][span] = make_uint4(0, 0, 0, 0);
          if (inside && dim < HEAD_DIM) right[n][span] = load_once(value + dim);
        }
      }
    };

    int unit = keys.unit + warp;
    Address address = unit < keys.end_unit ? row[unit * KEYS / BLOCK] : 0;
    Address next_address = unit + WARPS < keys.end_unit ? row[(unit + WARPS) * KEYS / BLOCK] : 0;
    if (unit < keys.end_unit) load_keys(unit, address);
    for (; unit < keys.end_unit; unit += WARPS) {
      load_values(unit, address);
      float scores[4] = {};  // keys g, g+8 by heads 2t, 2t+1
#pragma unroll
      for (int span = 0; span < SPANS; span++) {
        const uint4 a = left[0][span], b = left[1][span], by = queries[span];
        multiply<T>(scores, a.x, b.x, a.y, b.y, by.x, by.y);
        multiply<T>(scores, a.z, b.z, a.w, b.w, by.z, by.w);
      }
      const int next = unit + WARPS;
      address = next_address;
      if (next < keys.end_unit) load_keys(next, address);
      if (next + WARPS < keys.end_unit) next_address = row[(next + WARPS) * KEYS / BLOCK];
      float best[2];
#pragma unroll
      for (int head = 0; head < 2; head++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int position = unit * KEYS + g + half * 8;
          const bool inside = position >= keys.first && position <= keys.last;
          scores[half * 2 + head] = inside ? scores[half * 2 + head] * scale : -3.0e38f;
        }
        best[head] = fmaxf(scores[head], scores[2 + head]);
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2) {
          best[head] = fmaxf(best[head], __shfl_xor_sync(0xFFFFFFFFu, best[head], distance));
        }
        best[head] = fmaxf(best[head], largest[head]);
      }
      const float shrink[2] = {power_of_two(largest[0] - best[0]), power_of_two(largest[1] - best[1])};
      largest[0] = best[0];
      largest[1] = best[1];
      Word packed[2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        packed[half] = narrow_pair<T>(power_of_two(scores[half * 2] - best[0]), power_of_two(scores[half * 2 + 1] - best[1]));
      }
      // The sum is of the weights as the values see them.
      const float2 low = widen_pair<T>(packed[0]), high = widen_pair<T>(packed[1]);
      weights[0] = weights[0] * shrink[0] + low.x + high.x;
      weights[1] = weights[1] * shrink[1] + low.y + high.y;
      const Word b0 = transposed(packed[0]), b1 = transposed(packed[1]);
#pragma unroll
      for (int span = 0; span < VALUE_SPANS; span++) {
        const Word words[4][4] = {{right[0][span].x, right[0][span].y, right[0][span].z, right[0][span].w},
                                  {right[1][span].x, right[1][span].y, right[1][span].z, right[1][span].w},
                                  {right[2][span].x, right[2][span].y, right[2][span].z, right[2][span].w},
                                  {right[3][span].x, right[3][span].y, right[3][span].z, right[3][span].w}};
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
          float(&sum)[4] = sums[span][pair];
#pragma unroll
          for (int n = 0; n < 4; n++) sum[n] *= shrink[n % 2];
          multiply<T>(sum, __byte_perm(words[0][pair], words[1][pair], 0x5410),
                      __byte_perm(words[0][pair], words[1][pair], 0x7632),
                      __byte_perm(words[2][pair], words[3][pair], 0x5410),
                      __byte_perm(words[2][pair], words[3][pair], 0x7632), b0, b1);
        }
      }
    }

    // Merge the warps.
    __shared__ float warp_stats[WARPS][8][2];
    __shared__ __align__(16) float warp_sums[WARPS][8][STRIDE];
#pragma unroll
    for (int head = 0; head < 2; head++) {
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) {
        weights[head] += __shfl_xor_sync(0xFFFFFFFFu, weights[head], distance);
      }
      if (g == 0) {
        warp_stats[warp][t * 2 + head][0] = largest[head];
        warp_stats[warp][t * 2 + head][1] = weights[head];
      }
#pragma unroll
      for (int span = 0; span < VALUE_SPANS; span++) {
        const int dim = span * 64 + g * 8;
        if (dim < HEAD_DIM) {
          float* to = &warp_sums[warp][t * 2 + head][dim];
          *reinterpret_cast<float4*>(to) =
              make_float4(sums[span][0][head], sums[span][0][2 + head], sums[span][1][head], sums[span][1][2 + head]);
          *reinterpret_cast<float4*>(to + 4) =
              make_float4(sums[span][2][head], sums[span][2][2 + head], sums[span][3][head], sums[span][3][2 + head]);
        }
      }
    }
    __syncthreads();
    for (int index = threadIdx.x; index < heads * HEAD_DIM; index += WARPS * 32) {
      const int head = index / HEAD_DIM, dim = index % HEAD_DIM;
      float best = -3.0e38f;
#pragma unroll
      for (int other = 0; other < WARPS; other++) best = fmaxf(best, warp_stats[other][head][0]);
      float sum = 0.0f, weight = 0.0f;
#pragma unroll
      for (int other = 0; other < WARPS; other++) {
        const float share = power_of_two(warp_stats[other][head][0] - best);
        weight += warp_stats[other][head][1] * share;
        sum += warp_sums[other][head][dim] * share;
      }
      if constexpr (SPLIT == 0) sum /= weight;
      store(token, first_head + head, dim, sum, out, parts);
      if (SPLIT != 0 && dim == 0) {
        float* to = stats + ((size_t(token) * HEADS + first_head + head) * gridDim.x + blockIdx.x) * 2;
        to[0] = best;
        to[1] = weight;
      }
    }
  }

  // Any T, for tests: a warp a head.
  static __device__ void run_plainly(const T* q, const Word* positions, const Word* row_span, const Address* table,
                                     const Word* layer, const Word* sizes, T* out, float* parts, float* stats) {
    constexpr int PER_LANE = (HEAD_DIM + 31) / 32;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int kv_head = blockIdx.y / ROUNDS, round = blockIdx.y % ROUNDS, token = blockIdx.z;
    const Range keys = range(positions[token], sizes[1]);
    const Address* row = table + size_t(row_span[token]) * sizes[0];
    for (int share = round * 8 + warp; share < min(SHARE, round * 8 + 8); share += WARPS) {
      const int head = kv_head * SHARE + share;
      float sums[PER_LANE] = {}, largest = -3.0e38f, weight = 0.0f;
      for (int position = max(keys.first, keys.unit * KEYS); position <= min(keys.last, keys.end_unit * KEYS - 1); position++) {
        const T* block = reinterpret_cast<const T*>(row[position / BLOCK]);
        const T* key = block + layer[0] + slot_of<HEAD_DIM>(position, kv_head);
        const T* value = block + layer[1] + slot_of<HEAD_DIM>(position, kv_head);
        float score = 0.0f;
        for (int dim = lane; dim < HEAD_DIM; dim += 32) {
          score += widen(q[(size_t(token) * HEADS + head) * HEAD_DIM + dim]) * widen(key[dim]);
        }
        score = sum_of_warp(score) * __int_as_float(SCALE_BITS) * LOG2_E;
        const float best = fmaxf(score, largest), shrink = exp2f(largest - best), share_of_key = exp2f(score - best);
        largest = best;
        weight = weight * shrink + share_of_key;
        for (int n = 0; n < PER_LANE; n++) {
          const int dim = n * 32 + lane;
          if (dim < HEAD_DIM) sums[n] = sums[n] * shrink + share_of_key * widen(value[dim]);
        }
      }
      for (int n = 0; n < PER_LANE; n++) {
        const int dim = n * 32 + lane;
        if (dim < HEAD_DIM) store(token, head, dim, SPLIT == 0 ? sums[n] / weight : sums[n], out, parts);
      }
      if (SPLIT != 0 && lane == 0) {
        float* to = stats + ((size_t(token) * HEADS + head) * gridDim.x + blockIdx.x) * 2;
        to[0] = largest;
        to[1] = weight;
      }
    }
  }
};

template <typename T, int HEADS, int KV_HEADS, int HEAD_DIM, int SCALE_BITS, int SPLIT, int WARPS>
__device__ __forceinline__ void attend(const T* q, const Word* positions, const Word* row_span, const Address* table,
                                       const Word* layer, const Word* sizes, T* out, float* parts, float* stats) {
  using Plan = Attend<T, HEADS, KV_HEADS, HEAD_DIM, SCALE_BITS, SPLIT, WARPS>;
  if constexpr (Same<T, float>::value) {
    Plan::run_plainly(q, positions, row_span, table, layer, sizes, out, parts, stats);
  } else {
    Plan::run(q, positions, row_span, table, layer, sizes, out, parts, stats);
  }
}

// Merges what SPLITS parts left. Grid: x HEADS, y tokens; HEAD_DIM threads.
template <typename T, int HEADS, int HEAD_DIM, int SPLITS>
__device__ __forceinline__ void combine(const float* parts, const float* stats, T* out) {
  const size_t head = size_t(blockIdx.y) * HEADS + blockIdx.x;
  const float2* stat = reinterpret_cast<const float2*>(stats) + head * SPLITS;
  const float* part = parts + head * SPLITS * HEAD_DIM + threadIdx.x;
  constexpr int AT_ONCE = SPLITS < 16 ? SPLITS : 16;
  float best = -3.0e38f, sum = 0.0f, weight = 0.0f;
#pragma unroll 1
  for (int from = 0; from < SPLITS; from += AT_ONCE) {
    float2 own[AT_ONCE];
    float values[AT_ONCE];
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
      const bool inside = from + n < SPLITS;
      own[n] = inside ? stat[from + n] : make_float2(-3.0e38f, 0.0f);
      values[n] = inside ? part[size_t(from + n) * HEAD_DIM] : 0.0f;
    }
    float largest = best;
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) largest = fmaxf(largest, own[n].x);
    const float shrink = power_of_two(best - largest);
    best = largest;
    sum *= shrink;
    weight *= shrink;
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
      const float share = power_of_two(own[n].x - best);
      sum += values[n] * share;
      weight += own[n].y * share;
    }
  }
  out[head * HEAD_DIM + threadIdx.x] = narrow<T>(sum / weight);
}

}  // namespace base_mlx
