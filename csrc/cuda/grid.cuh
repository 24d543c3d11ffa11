// How the element-wise kernels share out their elements.
#pragma once

#include <stdint.h>

#include "cuda/device.cuh"

namespace fastgan::cuda {

constexpr int kThreads = 256;

// Enough blocks for n items, and no more than keep every multiprocessor busy: threads stride.
inline unsigned blocks_for(int64_t n) {
  const int64_t blocks = (n + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < 4096 ? blocks : 4096);
}

__device__ inline int64_t first_item() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t item_stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

}  // namespace fastgan::cuda
