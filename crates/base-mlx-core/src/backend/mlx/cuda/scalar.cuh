// What every kernel here needs of the activation type T, which is __nv_bfloat16, __half or float. Each kernel's source is
// this file, then its own; there are no includes among them, because the run-time compiler sees one text.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace base_mlx {

using Word = unsigned int;

template <typename T>
__device__ __forceinline__ T narrow(float value) {
  return T(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half narrow<__half>(float value) {
  return __float2half_rn(value);
}

__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(float value) { return value; }

// To T and back: where the stock operations would have stored the value.
template <typename T>
__device__ __forceinline__ float rounded(float value) {
  return widen(narrow<T>(value));
}

template <typename A, typename B>
struct Same {
  static constexpr bool value = false;
};
template <typename A>
struct Same<A, A> {
  static constexpr bool value = true;
};

// The two values of a word, the lower half first.
template <typename T>
__device__ __forceinline__ float2 widen_pair(Word pair) {
  if constexpr (Same<T, __nv_bfloat16>::value) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u));
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  }
}

template <typename T>
__device__ __forceinline__ Word narrow_pair(float low, float high) {
  if constexpr (Same<T, __nv_bfloat16>::value) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const Word*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const Word*>(&pair);
  }
}

// out[16 × 8] += a[16 × 16] · b[16 × 8]. Lane (g = lane / 4, t = lane % 4) holds, of a: rows g, g+8 at columns 2t, 2t+1,
// then rows g, g+8 at columns 2t+8, 2t+9; of b: rows 2t, 2t+1, then 2t+8, 2t+9, at column g; of out: row g at columns
// 2t, 2t+1, then row g+8.
template <typename T>
__device__ __forceinline__ void multiply(float (&out)[4], Word a0, Word a1, Word a2, Word a3, Word b0, Word b1) {
  if constexpr (Same<T, __nv_bfloat16>::value) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(out[0]), "+f"(out[1]), "+f"(out[2]), "+f"(out[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(out[0]), "+f"(out[1]), "+f"(out[2]), "+f"(out[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// 16 bytes that nothing else reads soon.
__device__ __forceinline__ uint4 load_once(const void* address) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

// 2^value; a few units in the last place, 0 for what would be denormal.
__device__ __forceinline__ float power_of_two(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
  return value;
}

constexpr float LOG2_E = 1.4426950408889634f;

}  // namespace base_mlx
