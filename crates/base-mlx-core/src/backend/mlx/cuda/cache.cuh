// Where keys and values lie: blocks of BLOCK positions, found through a table of device addresses, one row a sequence. At
// a layer's offset a block holds [kv_heads, BLOCK, head_dim] keys, at another its values.

namespace base_mlx {

using Address = unsigned long long;

constexpr int BLOCK = 32;

// Elements from the start of a kv head's keys (or values) in a block to those of a position.
template <int HEAD_DIM>
__device__ __forceinline__ Word slot_of(Word position, int kv_head) {
  return (Word(kv_head) * BLOCK + position % BLOCK) * HEAD_DIM;
}

// The keys of one sequence, [kv_heads, length, head_dim], and its values, without gaps.
//
// `row` is the sequence's row of the table, `sizes` = {length}. Grid: x blocks of any number of threads over a head's
// elements, y kv_heads.
template <typename T, int KV_HEADS, int HEAD_DIM>
__device__ __forceinline__ void gather(const Address* row, const Word* layer, const Word* sizes, T* keys, T* values) {
  constexpr int UNIT = 16 / sizeof(T), UNITS = HEAD_DIM / UNIT;
  const Word length = sizes[0];
  const int kv_head = blockIdx.y;
  for (Word unit = blockIdx.x * blockDim.x + threadIdx.x; unit < length * UNITS; unit += gridDim.x * blockDim.x) {
    const Word position = unit / UNITS, within = unit % UNITS * UNIT;
    const T* block = reinterpret_cast<const T*>(row[position / BLOCK]);
    const Word from = slot_of<HEAD_DIM>(position, kv_head) + within;
    const size_t to = (size_t(kv_head) * length + position) * HEAD_DIM + within;
    *reinterpret_cast<uint4*>(keys + to) = *reinterpret_cast<const uint4*>(block + layer[0] + from);
    *reinterpret_cast<uint4*>(values + to) = *reinterpret_cast<const uint4*>(block + layer[1] + from);
  }
}

}  // namespace base_mlx
