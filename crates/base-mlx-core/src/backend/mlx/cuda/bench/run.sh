#!/bin/sh
# Checks and times the kernels on the first NVIDIA GPU: ./run.sh [check|copy|layer|many|attend|sample ...]
set -eu
here=$(dirname "$0")
binary=${TMPDIR:-/tmp}/base-mlx-cuda-bench
"${NVCC:-nvcc}" -std=c++17 -gencode=arch=compute_90a,code=sm_90a -O3 -I "$here/.." -o "$binary" "$here/bench.cu"
exec "$binary" "$@"
