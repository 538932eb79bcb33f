// The kernels' entries: what the host passes, as each of them wants it.
//
// `batch` is one array of words for a whole step: the position of each token, the number of each token's sequence, and from
// the next even place on, for each sequence, the addresses of its blocks, `table_width` of them. All of it is of `tokens`
// tokens, and a launch takes those from `first` on.

namespace base_mlx {

struct Batch {
  const Word* words;
  Word tokens;

  __device__ __forceinline__ const Word* positions(Word first) const { return words + first; }
  __device__ __forceinline__ const Word* spans(Word first) const { return words + tokens + first; }
  __device__ __forceinline__ const Address* table() const {
    return reinterpret_cast<const Address*>(words + 2 * tokens);
  }
};

// The last four are `Project`'s own, which the host reads in the name that the compiler gives this entry.
template <typename T, int ROWS, int IN, int BITS, int GROUP, int OUT0, int OUT1, int OUT2, int NORM, int EPS_BITS, int BIAS,
          int EPILOGUE, int WARPS, int TEAM, int DEPTH, int THREADS, int DYNAMIC_BYTES, int ITEMS, int TEAMS>
__global__ void __launch_bounds__(THREADS)
    launch_project(const T* x, const T* residual, const T* norm_weight, const void* packed0, const T* scales0,
                   const T* biases0, const T* bias0, const void* packed1, const T* scales1, const T* biases1,
                   const T* bias1, const void* packed2, const T* scales2, const T* biases2, const T* bias2, T* out,
                   int live) {
  project<T, ROWS, IN, BITS, GROUP, OUT0, OUT1, OUT2, NORM, EPS_BITS, BIAS, EPILOGUE, WARPS, TEAM, DEPTH>(
      x, live, norm_weight, Matrix<T>{packed0, scales0, biases0, bias0}, Matrix<T>{packed1, scales1, biases1, bias1},
      Matrix<T>{packed2, scales2, biases2, bias2}, residual, out);
}

// The last four are `ProjectMany`'s. Launched in clusters of SPLIT blocks.
template <typename T, int ROWS, int IN, int BITS, int GROUP, int OUT0, int OUT1, int OUT2, int BIAS, int EPILOGUE,
          int SPLIT, int THREADS, int DYNAMIC_BYTES, int GRID, int ONE>
__global__ void __launch_bounds__(THREADS)
    launch_project_many(const T* x, const T* residual, const T*, const void* packed0, const T* scales0, const T* biases0,
                        const T* bias0, const void* packed1, const T* scales1, const T* biases1, const T* bias1,
                        const void* packed2, const T* scales2, const T* biases2, const T* bias2, T* out, int live) {
  project_many<T, ROWS, IN, BITS, GROUP, OUT0, OUT1, OUT2, BIAS, EPILOGUE, SPLIT>(
      x, live, Matrix<T>{packed0, scales0, biases0, bias0}, Matrix<T>{packed1, scales1, biases1, bias1},
      Matrix<T>{packed2, scales2, biases2, bias2}, residual, out);
}

template <typename T, int HEADS, int KV_HEADS, int HEAD_DIM, int ROTARY, int HEAD_NORM, int EPS_BITS, int FACTOR_BITS,
          int KEEP, int WARPS>
__global__ void launch_place(const T* qkv, const Word* batch, const float* inv_freq, const T* q_norm, const T* k_norm,
                             T* q, T* k, T* v, Word tokens, Word table_width, Word key_offset, Word value_offset) {
  const Batch all{batch, tokens};
  const Word layer[2] = {key_offset, value_offset}, sizes[1] = {table_width};
  place<T, HEADS, KV_HEADS, HEAD_DIM, ROTARY, HEAD_NORM, EPS_BITS, FACTOR_BITS, KEEP, WARPS>(
      qkv, q_norm, k_norm, inv_freq, all.positions(0), all.spans(0), all.table(), layer, sizes, q, k, v);
}

template <typename T, int HEADS, int KV_HEADS, int HEAD_DIM, int SCALE_BITS, int WARPS>
__global__ void launch_attend(const T* q, const Word* batch, T* out, Word tokens, Word first, Word table_width, Word window,
                              Word key_offset, Word value_offset) {
  const Batch all{batch, tokens};
  const Word layer[2] = {key_offset, value_offset}, sizes[2] = {table_width, window};
  attend<T, HEADS, KV_HEADS, HEAD_DIM, SCALE_BITS, 0, WARPS>(q, all.positions(first), all.spans(first), all.table(), layer,
                                                             sizes, out, nullptr, nullptr);
}

template <typename T, int HEADS, int KV_HEADS, int HEAD_DIM, int SCALE_BITS, int WARPS>
__global__ void launch_attend_in_parts(const T* q, const Word* batch, float* parts, float* stats, Word tokens, Word first,
                                       Word table_width, Word window, Word key_offset, Word value_offset) {
  const Batch all{batch, tokens};
  const Word layer[2] = {key_offset, value_offset}, sizes[2] = {table_width, window};
  attend<T, HEADS, KV_HEADS, HEAD_DIM, SCALE_BITS, 1, WARPS>(q, all.positions(first), all.spans(first), all.table(), layer,
                                                             sizes, nullptr, parts, stats);
}

template <typename T, int HEADS, int HEAD_DIM, int SPLITS>
__global__ void launch_combine(const float* parts, const float* stats, T* out) {
  combine<T, HEADS, HEAD_DIM, SPLITS>(parts, stats, out);
}

// To the device's own memory. Grid: any number of blocks of any number of threads.
__global__ void launch_copy(const Word* from, Word* to, Word count) {
  for (Word n = blockIdx.x * blockDim.x + threadIdx.x; n < count; n += gridDim.x * blockDim.x) to[n] = from[n];
}

template <typename T, int KV_HEADS, int HEAD_DIM>
__global__ void launch_gather(const Word* batch, const T*, T* keys, T* values, Word tokens, Word span, Word length, Word table_width,
                              Word key_offset, Word value_offset) {
  const Batch all{batch, tokens};
  const Word layer[2] = {key_offset, value_offset}, sizes[1] = {length};
  gather<T, KV_HEADS, HEAD_DIM>(all.table() + size_t(span) * table_width, layer, sizes, keys, values);
}

// `draws`: five rows of `gridDim.x` words: temperature, top_p, min_p, the random number, all f32, and top_k.
template <typename T, int VOCAB, int PADDED>
__global__ void __launch_bounds__(1024) launch_sample(const T* logits, const Word* draws, Word* out) {
  const float* numbers = reinterpret_cast<const float*>(draws);
  const Word rows = gridDim.x;
  sample<T, VOCAB, PADDED>(logits, numbers, numbers + rows, numbers + 2 * rows, numbers + 3 * rows, draws + 4 * rows, out);
}

}  // namespace base_mlx
