// Own kernels on CUDA, and their memory; see `cuda.cc`. All throw.
#pragma once

#include <string>
#include <vector>

#include "bridge.h"

namespace base_mlx {

// The bridge's own.
std::string string(Text text);
mlx::core::Dtype dtype(Type type);
mlx::core::Shape shape(Dims dims);
size_t bytes_of(Dims dims, Type type);

// As MLX's own, which its operations look into; its header wants CUDA's.
struct CudaBuffer {
  void* data;
  size_t size;
  int device; // -1: unified memory
};

void cuda_compile(Text source, Text expression, Slice<Text> options, Text* code, Text* name);
void* cuda_function(Text code, Text name, uint32_t shared_memory);
std::vector<mlx::core::array> cuda_launch(
    void* function, std::vector<mlx::core::array> inputs, const CudaLaunch& launch);
mlx::core::array cuda_empty(Dims shape, Type type);
mlx::core::array cuda_pinned(Slice<uint8_t> bytes, Dims shape, Type type);
// From the device's own memory.
void cuda_copy(const mlx::core::array& a, uint8_t* bytes);

size_t cuda_memory(Memory which);
void cuda_reset_peak();
void cuda_clear_cache();
size_t cuda_set_cache_limit(size_t bytes);

} // namespace base_mlx
