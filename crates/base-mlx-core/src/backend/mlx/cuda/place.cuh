// From the product with q, k and v to rotated queries, and keys and values at their place in the cache.

namespace base_mlx {

// qkv [tokens, (HEADS + 2 KV_HEADS) * HEAD_DIM]: a token's queries, keys, values. Each query and key is RMS-normed with
// q_norm or k_norm [HEAD_DIM] if HEAD_NORM, then its first ROTARY values are rotated in pairs (i, i + ROTARY / 2) by
// position * inv_freq[i]. Keys and values are written to the blocks of `table` [spans, table_width]; `layer` = {offset of
// the layer's keys in a block, of its values}, in elements; `sizes` = {table_width}.
// q [tokens, HEADS, HEAD_DIM]; if KEEP also k and v [tokens, KV_HEADS, HEAD_DIM].
//
// A warp takes a head. Grid: x ceil((HEADS + 2 KV_HEADS) / WARPS), y tokens; WARPS * 32 threads.
template <typename T, int HEADS, int KV_HEADS, int HEAD_DIM, int ROTARY, int HEAD_NORM, int EPS_BITS, int FACTOR_BITS,
          int KEEP, int WARPS>
__device__ __forceinline__ void place(const T* qkv, const T* q_norm, const T* k_norm, const float* inv_freq,
                                      const Word* positions, const Word* row_span, const Address* table, const Word* layer,
                                      const Word* sizes, T* q, T* k, T* v) {
  constexpr int PER_LANE = (HEAD_DIM + 31) / 32;
  __shared__ float shared[WARPS][HEAD_DIM];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int head = blockIdx.x * WARPS + warp, token = blockIdx.y;
  if (head >= HEADS + 2 * KV_HEADS) return;
  const bool is_query = head < HEADS, is_value = head >= HEADS + KV_HEADS;
  const T* from = qkv + (size_t(token) * (HEADS + 2 * KV_HEADS) + head) * HEAD_DIM;
  const T* weight = is_query ? q_norm : k_norm;
  const Word position = positions[token];

  // All that is read is asked for before any of it is used.
  Address block = 0;
  if (!is_query) block = table[size_t(row_span[token]) * sizes[0] + position / BLOCK];
  float values[PER_LANE], weights[PER_LANE], frequencies[PER_LANE];
#pragma unroll
  for (int n = 0; n < PER_LANE; n++) {
    const int i = n * 32 + lane;
    const bool inside = i < HEAD_DIM;
    values[n] = inside ? widen(from[i]) : 0.0f;
    weights[n] = HEAD_NORM != 0 && !is_value && inside ? widen(weight[i]) : 0.0f;
    frequencies[n] = !is_value && i < ROTARY ? inv_freq[i % (ROTARY / 2)] : 0.0f;
  }
  if (!is_value) {
    if constexpr (HEAD_NORM != 0) {
      float squares = 0.0f;
#pragma unroll
      for (int n = 0; n < PER_LANE; n++) squares += values[n] * values[n];
      const float factor = rsqrtf(sum_of_warp(squares) / HEAD_DIM + __int_as_float(EPS_BITS));
#pragma unroll
      for (int n = 0; n < PER_LANE; n++) values[n] = rounded<T>(rounded<T>(values[n] * factor) * weights[n]);
    }
    float* own = shared[warp];
#pragma unroll
    for (int n = 0; n < PER_LANE; n++) {
      if (n * 32 + lane < HEAD_DIM) own[n * 32 + lane] = values[n];
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < PER_LANE; n++) {
      const int i = n * 32 + lane;
      if (i >= ROTARY) continue;
      float sine, cosine;
      sincosf(float(position) * frequencies[n], &sine, &cosine);
      const float other = i < ROTARY / 2 ? -own[i + ROTARY / 2] : own[i - ROTARY / 2];
      values[n] = (values[n] * cosine + other * sine) * __int_as_float(FACTOR_BITS);
    }
  }
  const int kv_head = is_query ? 0 : (head - HEADS) % KV_HEADS;
  T* to = q + (size_t(token) * HEADS + head) * HEAD_DIM;
  T* kept = nullptr;
  if (!is_query) {
    to = reinterpret_cast<T*>(block) + layer[is_value ? 1 : 0] + slot_of<HEAD_DIM>(position, kv_head);
    if (KEEP != 0) kept = (is_value ? v : k) + (size_t(token) * KV_HEADS + kv_head) * HEAD_DIM;
  }
#pragma unroll
  for (int n = 0; n < PER_LANE; n++) {
    const int i = n * 32 + lane;
    if (i >= HEAD_DIM) continue;
    to[i] = narrow<T>(values[n]);
    if (KEEP != 0 && !is_query) kept[i] = narrow<T>(values[n]);
  }
}

}  // namespace base_mlx
